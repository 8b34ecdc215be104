"""Datasets of the user's own: one .npz file with the arrays x_train, y_train, x_test and y_test.

In: the path of the file (``data.path``), or its bytes. Out: a checked ``Dataset``. Nothing in the file is unpickled.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.dataset import Dataset, Split, dataset_of

NAMES = ("x_train", "y_train", "x_test", "y_test")
REMEDY = (
    "write it with np.savez_compressed('data.npz', x_train=..., y_train=..., x_test=..., y_test=...): images uint8 "
    "[N, H, W, C], labels integers [N]; then data=arrays data.path=data.npz"
)


def load_arrays(path: str | None) -> Dataset:
    """Load the dataset in the .npz file ``path``.

    Returns:
        A dataset named ``arrays``; images uint8 ``[N, H, W, C]``, labels int64 ``[N]``.

    Raises:
        ExperimentError: no path, no such file, not an .npz, or arrays of another name, type or shape.
    """
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
    """Read and check the four arrays.

    Args:
        stream: an open .npz file.
        name: the name of the dataset.
        where: how messages name the file.

    Raises:
        ExperimentError: not an .npz, or arrays of another name, type or shape.
    """
    if not zipfile.is_zipfile(stream):
        raise ExperimentError(f"{where} is not an .npz file (a zip archive of arrays)", REMEDY)
    stream.seek(0)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(stream, allow_pickle=False) as npz:
            missing = [key for key in NAMES if key not in npz.files]
            if missing:
                found = ", ".join(npz.files) or "nothing"
                raise ExperimentError(f"{where} lacks {', '.join(missing)}; it holds {found}", REMEDY)
            for key in NAMES:
                arrays[key] = _array(npz, key, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ExperimentError(f"{where} is damaged ({error})", REMEDY) from error
    train = _split(arrays, "train", where)
    test = _split(arrays, "test", where)
    train_shape, test_shape = train.images.shape[1:], test.images.shape[1:]
    if train_shape != test_shape:
        raise ExperimentError(
            f"{where}: images of x_train are {_shape(train_shape)}, of x_test {_shape(test_shape)}; "
            "expected the same height, width and channels",
            REMEDY,
        )
    return dataset_of(name, train, test)


def _array(npz: Any, key: str, where: str) -> NDArray[Any]:
    """One array of the file; numpy reports pickled objects and bad headers as a ValueError."""
    try:
        array = npz[key]
    except ValueError as error:
        raise ExperimentError(f"{where}: {key} is not a plain array of numbers ({error})", REMEDY) from error
    if not isinstance(array, np.ndarray):  # a zip member without the .npy header comes back as bytes
        raise ExperimentError(f"{where}: {key} is not an array", REMEDY)
    return array


def _split(arrays: dict[str, NDArray[Any]], split: str, where: str) -> Split:
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ExperimentError(
            f"{where}: x_{split} is {images.dtype} {_shape(images.shape)}, expected uint8 [N, H, W, C]", REMEDY
        )
    if images.size == 0:
        raise ExperimentError(
            f"{where}: x_{split} is empty {_shape(images.shape)}, expected at least one image", REMEDY
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ExperimentError(
            f"{where}: y_{split} is {labels.dtype} {_shape(labels.shape)}, expected integers [N] "
            "(one-hot labels: y.argmax(1))",
            REMEDY,
        )
    if len(labels) != len(images):
        raise ExperimentError(
            f"{where}: y_{split} has {len(labels)} labels, expected {len(images)}, one per image of x_{split}", REMEDY
        )
    labels = labels.astype(np.int64)  # before the comparison: a huge uint64 turns negative here
    if labels.min() < 0:
        raise ExperimentError(f"{where}: y_{split} holds {labels.min()}, expected labels of at least 0", REMEDY)
    return Split(images, labels)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
