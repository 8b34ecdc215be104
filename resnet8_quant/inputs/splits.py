"""Images with their labels: the dataclasses that every reader of datasets returns, and the digest of their contents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.files import forget_pages, sha256_bytes

PART = 16 << 20  # bytes of an array that are hashed at a time


@dataclass(frozen=True, repr=False)
class Split:
    """Images and their labels, in a fixed order.

    Attributes:
        images: uint8 ``[N, H, W, C]``; may be a read-only view of a memory-mapped file.
        labels: int64 ``[N]``, at least 0.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"<{len(self.labels):,} images of {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True, repr=False)
class Dataset:
    """A training split (calibration draws from it) and a test split (accuracy is measured on it).

    Attributes:
        name: as on the command line: ``cifar10``, ``sample``, ``arrays`` or ``folder``.
        digest: SHA-256, hexadecimal, of the contents of all four arrays; equal data has an equal digest, whatever
            file it came from (see ``combined_digest``).
        class_names: one for each class, in the order of the labels; empty where the data has no names.
    """

    name: str
    train: Split
    test: Split
    digest: str
    class_names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes: of the names; without names the largest label of both splits, plus one."""
        return len(self.class_names) or int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, train={self.train}, test={self.test}, {self.classes} classes)"


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of the raw bytes of ``array`` in C order, hexadecimal; labels in the smallest unsigned type they fit.

    A memory-mapped array is read a part at a time.
    """
    if array.ndim == 1:
        array = array.astype(np.min_scalar_type(int(array.max())))
    digest = hashlib.sha256()
    rows = max(1, PART // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).data.cast("B"))
        forget_pages(array)
    return digest.hexdigest()


def combined_digest(arrays: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """The digest of a dataset from name -> (shape, ``array_digest``) of its four arrays, without reading the arrays."""
    lines = [f"{name} {'x'.join(map(str, shape))} {digest}\n" for name, (shape, digest) in sorted(arrays.items())]
    return sha256_bytes("".join(lines).encode())


def digested(name: str, train: Split, test: Split) -> Dataset:
    """A ``Dataset`` whose digest is computed from its arrays (about 1 GB per second)."""
    digests = {}
    for key, split in (("train", train), ("test", test)):
        digests[f"{key}_images"] = (split.images.shape, array_digest(split.images))
        digests[f"{key}_labels"] = (split.labels.shape, array_digest(split.labels))
    return Dataset(name, train, test, combined_digest(digests))
