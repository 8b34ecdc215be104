"""Datasets of the user's own: the arrays x_train, y_train, x_test and y_test, in an .npz file or as .npy files.

In: the path of the .npz file, or of the folder with x_train.npy, y_train.npy, x_test.npy and y_test.npy
(``data.path``). Out: a checked ``Dataset``. Nothing is unpickled. Of an .npz file no more is read than it can hold and
``data.max_bytes`` allows; .npy files are memory-mapped.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.files import expanded, open_regular
from resnet8_quant.inputs.float_images import to_pixels
from resnet8_quant.inputs.input_spec import shape_text
from resnet8_quant.inputs.splits import Dataset, Split, digested

LONGEST_HEADER = 1 << 16  # bytes, of a .npy file; NumPy itself reads no more than 10,000
LARGEST_RATIO = 1032  # of unpacked to packed bytes: what deflate cannot exceed
# What NumPy raises, which reads the header with Python's tokenizer.
UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, SyntaxError, TokenError)
NAMES = ("x_train", "y_train", "x_test", "y_test")
Normalization = tuple[Sequence[float] | None, Sequence[float] | None]  # mean and std of the model
REMEDY = (
    "write it with np.savez_compressed('data.npz', x_train=..., y_train=..., x_test=..., y_test=...): images uint8 "
    "[N, H, W, C], labels whole numbers [N]; then data=arrays data.path=data.npz"
)
NPY_REMEDY = (
    "write x_train.npy, y_train.npy, x_test.npy and y_test.npy into a folder with np.save: images uint8 [N, H, W, C], "
    "labels whole numbers [N]; then data=arrays data.path=FOLDER"
)


def load_arrays(
    path: str | None,
    max_bytes: int | None = None,
    first_label: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Load the dataset in the .npz file, or in the folder of .npy files, ``path``.

    Args:
        path: of the file or the folder.
        max_bytes: most bytes of all arrays that are read into memory; None: the default of ``data.max_bytes``.
        first_label: number of the first class, which becomes 0.
        mean: of the model, per channel in pixel units: what float images are read by, see `to_pixels`.
        std: likewise.

    Raises:
        ExperimentError: another file, name, type or shape of an array, or more bytes.
    """
    if not path:
        raise ExperimentError("`data.path` is not set, and data=arrays reads its images from there", REMEDY)
    most = DataConfig().max_bytes if max_bytes is None else max_bytes
    place, where = expanded(path), f"`data.path`: {path}"
    if place.is_dir():
        arrays = _map_folder(place, where)
        return _dataset(arrays, "arrays", where, most, first_label, (mean, std), NPY_REMEDY)
    if not os.path.isfile(place):
        raise ExperimentError(f"`data.path`: {path} is neither an .npz file nor a folder of .npy files", REMEDY)
    try:
        with open_regular(place) as stream:
            return read_npz(stream, "arrays", where, most, first_label, (mean, std))
    except OSError as error:
        raise ExperimentError(f"{where} cannot be read ({error.strerror or error})", REMEDY) from error


def read_npz(
    stream: IO[bytes],
    name: str,
    where: str,
    most: int = DataConfig().max_bytes,
    first_label: int = 0,
    normalization: Normalization = (None, None),
) -> Dataset:
    """Read and check the four arrays of an open .npz file, which messages call ``where``; other arguments as above."""
    possible = LARGEST_RATIO * stream.seek(0, os.SEEK_END)
    if not zipfile.is_zipfile(stream):
        raise ExperimentError(f"{where} is not an .npz file (a zip archive of arrays)", REMEDY)
    stream.seek(0)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [key for key in NAMES if key not in members]
            if missing:
                present = ", ".join(members) or "nothing"
                raise ExperimentError(f"{where} lacks {', '.join(missing)}; it holds {present}", REMEDY)
            total = sum(members[key].file_size for key in NAMES)
            if total > most:
                raise ExperimentError(
                    f"{where} unpacks to {total:,} bytes, more than `data.max_bytes`, {most:,}",
                    f"{COMMAND} data.max_bytes={total}, if the memory is there",
                )
            arrays = {key: _read_array(archive, members[key], possible, f"{where}: {key}") for key in NAMES}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ExperimentError(f"{where} is damaged ({str(error) or 'it ends too early'})", REMEDY) from error
    return _dataset(arrays, name, where, most, first_label, normalization, REMEDY)


def _map_folder(folder: Path, where: str) -> dict[str, NDArray[Any]]:
    """Map the four .npy files of a folder; none of it is read but their headers."""
    arrays = {}
    if missing := [f"{key}.npy" for key in NAMES if not (folder / f"{key}.npy").exists()]:
        raise ExperimentError(f"{where} is a folder without {', '.join(missing)}", NPY_REMEDY)
    for key in NAMES:
        try:
            with open_regular(folder / f"{key}.npy") as file:
                arrays[key] = map_npy(file)
        except OSError as error:
            raise ExperimentError(
                f"{where}: {key}.npy cannot be read ({error.strerror or error})", NPY_REMEDY
            ) from error
        except UNREADABLE as error:
            raise ExperimentError(
                f"{where}: {key}.npy is not a plain array of numbers ({error})", NPY_REMEDY
            ) from error
    return arrays


def _dataset(
    arrays: dict[str, NDArray[Any]],
    name: str,
    where: str,
    most: int,
    first_label: int,
    normalization: Normalization,
    remedy: str,
) -> Dataset:
    """The dataset of the four arrays, checked; float images become uint8."""
    images = {key: _with_channels_last(arrays[key]) for key in NAMES if key.startswith("x")}
    floats = all(array.dtype.kind == "f" for array in images.values())
    labels = {}
    for split in ("train", "test"):
        x, y = images[f"x_{split}"], _numbered(arrays[f"y_{split}"])
        labels[split], problem = _checked_labels(x, y, split, floats, first_label)
        if problem:
            raise ExperimentError(f"{where}: {problem}", remedy)
    shapes = [shape_text(array.shape[1:]) for array in images.values()]
    if shapes[0] != shapes[1]:
        problem = f"{where}: images of x_train are {shapes[0]}, of x_test {shapes[1]}"
        raise ExperimentError(f"{problem}; expected the same height, width and channels", remedy)
    if floats:
        images = to_pixels(images, *normalization, where, most)
    train, test = (Split(images[f"x_{split}"], labels[split]) for split in ("train", "test"))
    return digested(name, train, test)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, possible: int, where: str) -> NDArray[Any]:
    """One array of at most ``possible`` bytes."""
    try:
        with archive.open(member) as file:
            return read_npy(file, min(member.file_size, possible))
    except UNREADABLE as error:
        raise ExperimentError(f"{where} is not a plain array of numbers ({error})", REMEDY) from error


def read_npy(file: IO[bytes], largest: int) -> NDArray[Any]:
    """Read an array in the .npy format from the start of ``file``.

    NumPy sets aside what the header declares before it reads on: compared here with what the file can hold.

    Args:
        file: seekable.
        largest: bytes of the array; a header that declares more is refused.

    Raises:
        one of `UNREADABLE`: it is none, its header is wrong, it holds pickled objects, or it would be larger.
    """
    _read_header(file, largest)
    file.seek(0)
    array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def map_npy(file: io.BufferedReader) -> NDArray[Any]:
    """Map an .npy file read-only; nothing but its header is read.

    Raises:
        one of `UNREADABLE`: as ``read_npy``; OSError: it cannot be mapped.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    shape, fortran_order, dtype, start = _read_header(file, size)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    declared = math.prod(shape) * dtype.itemsize
    if declared > size - start:
        raise ValueError(f"it declares {declared:,} bytes, its file has {size - start:,} of data")
    if declared == 0:
        return np.empty(shape, dtype)
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    return np.memmap(file, dtype, "r", start, shape, order).view(np.ndarray)


def _read_header(file: IO[bytes], largest: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and the beginning of the data of an .npy file, which holds ``largest`` bytes."""
    start = io.BytesIO(file.read(LONGEST_HEADER))
    header = npy.read_array_header_1_0 if npy.read_magic(start) == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = header(start)
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (declared > largest and not dtype.hasobject):
        raise ValueError(f"it declares {declared:,} bytes, its file has {largest:,}")
    return shape, fortran_order, dtype, start.tell()


def _checked_labels(
    images: NDArray[Any], labels: NDArray[Any], split: str, floats: bool, first_label: int
) -> tuple[NDArray[np.int64], str]:
    """The labels from 0, and what is wrong with them or the images, if anything is."""
    problem = ""
    if (images.dtype != np.uint8 and not floats) or images.ndim != 4:
        problem = f"x_{split} is {images.dtype} {shape_text(images.shape)}, expected uint8 [N, H, W, C]"
    elif images.size == 0:
        problem = f"x_{split} is empty {shape_text(images.shape)}, expected at least one image"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = (
            f"y_{split} is {labels.dtype} {shape_text(labels.shape)}, expected whole numbers [N] or [N, 1], or a "
            "single 1 in each row [N, C] of zeros"
        )
    elif len(labels) != len(images):
        problem = f"y_{split} has {len(labels)} labels, expected {len(images)}, one per image of x_{split}"
    elif (labels := labels.astype(np.int64) - first_label).min() < 0:  # as int64, in which a huge uint64 is negative
        problem = f"y_{split} holds {labels.min() + first_label}, expected labels of at least {first_label}"
    return labels, problem


def _with_channels_last(images: NDArray[Any]) -> NDArray[Any]:
    """Gray images [N,H,W] and images [N,C,H,W] of 1 or 3 channels as [N,H,W,C]; any others as they are."""
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
        return images.transpose(0, 2, 3, 1)
    return images


def _numbered(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels [N,1], one-hot rows, true and false, and whole numbers of a float type as integers [N].

    What can be read in another way, or not at all, is returned as it is.
    """
    if labels.size == 0:
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.ndim == 2 and labels.dtype.kind in "iuf" and ((labels == 0) | (labels == 1)).all():
        return labels.argmax(axis=1) if ((labels == 1).sum(axis=1) == 1).all() else labels
    if labels.dtype.kind == "f" and (np.abs(labels) < 2**31).all() and (labels == np.floor(labels)).all():
        return labels.astype(np.int64)
    return labels
