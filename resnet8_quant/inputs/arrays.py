"""Datasets of the user's own: one .npz file with the arrays x_train, y_train, x_test and y_test.

In: the path of the file (``data.path``), or its bytes. Out: a checked ``Dataset``. Nothing in the file is unpickled,
and no memory is set aside for more than the file holds.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.splits import Dataset, Split, digested

LARGEST_ARRAY = 1 << 33  # bytes of one array: a small archive can claim to unpack to any size
NAMES = ("x_train", "y_train", "x_test", "y_test")
REMEDY = (
    "write it with np.savez_compressed('data.npz', x_train=..., y_train=..., x_test=..., y_test=...): images uint8 "
    "[N, H, W, C], labels integers [N]; then data=arrays data.path=data.npz"
)


def load_arrays(path: str | None) -> Dataset:
    """Load the dataset in the .npz file ``path``; no other file, name, type or shape of an array is admitted."""
    if not path:
        raise ExperimentError("`data.path` is not set, and data=arrays reads its images from there", REMEDY)
    file = Path(os.path.expanduser(path))
    if not os.path.isfile(file):
        raise ExperimentError(f"`data.path`: {path} is not a file", REMEDY)
    try:
        with file.open("rb") as stream:
            return read_npz(stream, "arrays", f"`data.path`: {path}")
    except OSError as error:
        raise ExperimentError(f"`data.path`: {path} cannot be read ({error.strerror or error})", REMEDY) from error


def read_npz(stream: IO[bytes], name: str, where: str) -> Dataset:
    """Read and check the four arrays of an open .npz file, which messages call ``where``."""
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
            arrays = {key: _read_array(archive, members[key], f"{where}: {key}") for key in NAMES}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ExperimentError(f"{where} is damaged ({error})", REMEDY) from error
    train, test = (_split(arrays, split, where) for split in ("train", "test"))
    shapes = [_shape(split.images.shape[1:]) for split in (train, test)]
    if shapes[0] != shapes[1]:
        problem = f"{where}: images of x_train are {shapes[0]}, of x_test {shapes[1]}"
        raise ExperimentError(f"{problem}; expected the same height, width and channels", REMEDY)
    return digested(name, train, test)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> NDArray[Any]:
    """One array; NumPy reports a bad header and pickled objects as a ValueError."""
    try:
        # NumPy sets aside what the header declares before it reads on: compare that with the size of the member.
        with archive.open(member) as file:
            header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
        declared = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and declared > min(member.file_size, LARGEST_ARRAY):
            raise ValueError(f"it declares {declared:,} bytes, its file has {member.file_size:,}")
        with archive.open(member) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            return array
    except ValueError as error:
        raise ExperimentError(f"{where} is not a plain array of numbers ({error})", REMEDY) from error


def _split(arrays: dict[str, NDArray[Any]], split: str, where: str) -> Split:
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8 or images.ndim != 4:
        problem = f"x_{split} is {images.dtype} {_shape(images.shape)}, expected uint8 [N, H, W, C]"
    elif images.size == 0:
        problem = f"x_{split} is empty {_shape(images.shape)}, expected at least one image"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = (
            f"y_{split} is {labels.dtype} {_shape(labels.shape)}, expected integers [N] (one-hot labels: y.argmax(1))"
        )
    elif len(labels) != len(images):
        problem = f"y_{split} has {len(labels)} labels, expected {len(images)}, one per image of x_{split}"
    elif (labels := labels.astype(np.int64)).min() < 0:  # as int64, in which a huge uint64 is negative
        problem = f"y_{split} holds {labels.min()}, expected labels of at least 0"
    else:
        return Split(images, labels)
    raise ExperimentError(f"{where}: {problem}", REMEDY)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
