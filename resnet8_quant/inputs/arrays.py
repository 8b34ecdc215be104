"""Datasets of the user's own: one .npz file with the arrays x_train, y_train, x_test and y_test.

In: the path of the file (``data.path``), or its bytes. Out: a checked ``Dataset``. Nothing in the file is unpickled,
and no memory is set aside for more than the file can hold and ``data.max_bytes`` allows.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.files import expanded, open_regular
from resnet8_quant.inputs.splits import Dataset, Split, digested

LONGEST_HEADER = 1 << 16  # bytes, of a .npy file; NumPy itself reads no more than 10,000
LARGEST_RATIO = 1032  # of unpacked to packed bytes: what deflate cannot exceed
UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, SyntaxError)  # what NumPy raises
NAMES = ("x_train", "y_train", "x_test", "y_test")
REMEDY = (
    "write it with np.savez_compressed('data.npz', x_train=..., y_train=..., x_test=..., y_test=...): images uint8 "
    "[N, H, W, C], labels whole numbers [N]; then data=arrays data.path=data.npz"
)


def load_arrays(path: str | None, max_bytes: int | None = None, first_label: int = 0) -> Dataset:
    """Load the dataset in the .npz file ``path``; no other file, name, type or shape of an array is admitted.

    Args:
        path: of the file.
        max_bytes: most bytes of all four arrays together; None: the default of ``data.max_bytes``.
        first_label: number of the first class, which becomes 0.
    """
    if not path:
        raise ExperimentError("`data.path` is not set, and data=arrays reads its images from there", REMEDY)
    file = expanded(path)
    if not os.path.isfile(file):
        raise ExperimentError(f"`data.path`: {path} is not a file", REMEDY)
    try:
        with open_regular(file) as stream:
            return read_npz(stream, "arrays", f"`data.path`: {path}", max_bytes, first_label)
    except OSError as error:
        raise ExperimentError(f"`data.path`: {path} cannot be read ({error.strerror or error})", REMEDY) from error


def read_npz(stream: IO[bytes], name: str, where: str, max_bytes: int | None = None, first_label: int = 0) -> Dataset:
    """Read and check the four arrays of an open .npz file, which messages call ``where``."""
    most = DataConfig().max_bytes if max_bytes is None else max_bytes
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
    train, test = (_split(arrays, split, where, first_label) for split in ("train", "test"))
    shapes = [_shape(split.images.shape[1:]) for split in (train, test)]
    if shapes[0] != shapes[1]:
        problem = f"{where}: images of x_train are {shapes[0]}, of x_test {shapes[1]}"
        raise ExperimentError(f"{problem}; expected the same height, width and channels", REMEDY)
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
    start = io.BytesIO(file.read(LONGEST_HEADER))
    header = npy.read_array_header_1_0 if npy.read_magic(start) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = header(start)
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (declared > largest and not dtype.hasobject):
        raise ValueError(f"it declares {declared:,} bytes, its file has {largest:,}")
    file.seek(0)
    array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def _split(arrays: dict[str, NDArray[Any]], split: str, where: str, first_label: int) -> Split:
    images, labels = _with_channels_last(arrays[f"x_{split}"]), _numbered(arrays[f"y_{split}"])
    if images.dtype != np.uint8 or images.ndim != 4:
        problem = f"x_{split} is {images.dtype} {_shape(images.shape)}, expected uint8 [N, H, W, C]"
    elif images.size == 0:
        problem = f"x_{split} is empty {_shape(images.shape)}, expected at least one image"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = (
            f"y_{split} is {labels.dtype} {_shape(labels.shape)}, expected whole numbers [N] or [N, 1], or a "
            "single 1 in each row [N, C] of zeros"
        )
    elif len(labels) != len(images):
        problem = f"y_{split} has {len(labels)} labels, expected {len(images)}, one per image of x_{split}"
    elif (labels := labels.astype(np.int64) - first_label).min() < 0:  # as int64, in which a huge uint64 is negative
        problem = f"y_{split} holds {labels.min() + first_label}, expected labels of at least {first_label}"
    else:
        return Split(images, labels)
    raise ExperimentError(f"{where}: {problem}", REMEDY)


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
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.ndim == 2 and labels.dtype.kind in "iuf" and ((labels == 0) | (labels == 1)).all():
        return labels.argmax(axis=1) if ((labels == 1).sum(axis=1) == 1).all() else labels
    if labels.dtype.kind == "f" and (np.abs(labels) < 2**31).all() and (labels == np.floor(labels)).all():
        return labels.astype(np.int64)
    return labels


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
