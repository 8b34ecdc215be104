"""Datasets: what every other room knows about images and labels, and the one function that loads them.

In: a ``DataConfig`` and the cache folder. Out: a ``Dataset`` of two splits. A dataset that is already in the cache is
memory-mapped, so loading it costs milliseconds; modules that decode or download are imported only where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.files import sha256_bytes


@dataclass(frozen=True)
class Split:
    """Images and their labels, in a fixed order.

    Attributes:
        images: uint8 ``[N, H, W, C]``; may be a read-only view of a memory-mapped file.
        labels: int64 ``[N]``, at least 0.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __repr__(self) -> str:
        shapes = (f"{name}={array.dtype}{list(array.shape)}" for name, array in vars(self).items())
        return f"Split({', '.join(shapes)})"


@dataclass(frozen=True)
class Dataset:
    """A training split (calibration draws from it) and a test split (accuracy is measured on it).

    Attributes:
        name: the word of the command line: ``cifar10``, ``sample`` or ``arrays``.
        digest: SHA-256, hexadecimal, over the contents of all four arrays; equal data has an equal digest, whatever
            file it came from (see ``combined_digest``).
    """

    name: str
    train: Split
    test: Split
    digest: str

    @property
    def classes(self) -> int:
        """Number of classes: the largest label of both splits, plus one."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1


def load_dataset(config: DataConfig, cache: Path) -> Dataset:
    """Load the dataset that ``config.kind`` names.

    Args:
        config: ``root`` is read for cifar10, ``path`` for arrays.
        cache: folder of the verified copies (``files.cache_folder``); written to by cifar10 only.

    Raises:
        ExperimentError: the data cannot be found, fetched, decoded or verified.
    """
    return LOADERS[config.kind](config, cache)


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of the raw bytes of ``array`` in C order, hexadecimal; labels in the smallest unsigned type they fit."""
    if array.ndim == 1:
        array = array.astype(np.min_scalar_type(int(array.max())))
    return sha256_bytes(np.ascontiguousarray(array).data.cast("B"))


def combined_digest(arrays: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """The digest of a dataset from name -> (shape, ``array_digest``) of its four arrays, without reading the arrays."""
    lines = [f"{name} {'x'.join(map(str, shape))} {digest}\n" for name, (shape, digest) in sorted(arrays.items())]
    return sha256_bytes("".join(lines).encode())


def dataset_of(name: str, train: Split, test: Split) -> Dataset:
    """A ``Dataset`` whose digest is computed from its arrays (about 1 GB per second)."""
    arrays: dict[str, NDArray[Any]] = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    digests = {key: (array.shape, array_digest(array)) for key, array in arrays.items()}
    return Dataset(name, train, test, combined_digest(digests))


def _load_cifar10(config: DataConfig, cache: Path) -> Dataset:
    from resnet8_quant.inputs.cifar10 import load_cifar10

    return load_cifar10(config.root, cache)


def _load_sample(config: DataConfig, cache: Path) -> Dataset:
    return _bundled_sample()


@lru_cache(maxsize=1)
def _bundled_sample() -> Dataset:
    """Unpacked once in a process, and read-only: the jobs of a sweep share it."""
    from resnet8_quant.inputs.sample import load_sample

    data = load_sample()
    for array in (data.train.images, data.train.labels, data.test.images, data.test.labels):
        array.flags.writeable = False
    return data


def _load_arrays(config: DataConfig, cache: Path) -> Dataset:
    from resnet8_quant.inputs.arrays import load_arrays

    return load_arrays(config.path)


LOADERS: dict[DataKind, Callable[[DataConfig, Path], Dataset]] = {
    DataKind.cifar10: _load_cifar10,
    DataKind.sample: _load_sample,
    DataKind.arrays: _load_arrays,
}
