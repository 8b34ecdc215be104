"""Calibration images: which ones, and how they are read in batches without copying the training set.

A draw depends on the labels, the `calibration` part of the config and the seed alone, so that every quant type and
method sees the same images.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet8_quant.config import CalibrationConfig, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import expanded, forget_pages, read_regular, sha256_bytes
from resnet8_quant.inputs.arrays import UNREADABLE, read_npy

log = logging.getLogger(__name__)

LARGEST_LIST = 10 << 20  # bytes of an index file


@dataclass(frozen=True)
class CalibrationImages:
    """The images that calibrate.

    Attributes:
        images: uint8 [N,H,W,C], for example all training images.
        chosen: int64 [n], indices of those that calibrate.
        digest: SHA-256 of their pixels in their order, hexadecimal.
    """

    images: np.ndarray
    chosen: np.ndarray
    digest: str

    @classmethod
    def of(cls, images: np.ndarray, chosen: np.ndarray | None = None, digest: str | None = None) -> CalibrationImages:
        """All of ``images``, or the ``chosen`` ones.

        Args:
            images: uint8 [N,H,W,C].
            chosen: int64 [n]; None: all.
            digest: names the content of ``images`` where the caller knows it; None: they are hashed.
        """
        chosen = np.arange(len(images)) if chosen is None else np.asarray(chosen, np.int64)
        content = digest or sha256_bytes(np.ascontiguousarray(images).reshape(-1).data)
        return cls(images, chosen, sha256_bytes(content.encode(), chosen.astype("<i8").tobytes()))

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, start: int, size: int) -> np.ndarray:
        """uint8 [size,H,W,C] from ``start``; the last batch is padded with its last image."""
        indices = self.chosen[start : start + size]
        batch = np.asarray(self.images[np.pad(indices, (0, size - len(indices)), mode="edge")])
        forget_pages(self.images)
        return batch


def choose_images(config: CalibrationConfig, train_labels: np.ndarray, test_count: int, seed: int) -> np.ndarray:
    """Choose the calibration images that ``config`` asks for.

    Args:
        train_labels: int64 [N].
        seed: of a local Generator; nothing else is random.

    Returns:
        int64, ascending: indices of training images, or with ``sampling=mlperf_tiny`` of TEST images.

    Raises:
        ExperimentError: no class has so many images; the list cannot be read or names images that do not exist.
    """
    if config.sampling is Sampling.mlperf_tiny:
        return _listed(config, test_count)
    rng, count = np.random.default_rng(seed), config.samples_per_class
    labels, sizes = np.unique(train_labels, return_counts=True)
    if count > sizes.max() and count != CalibrationConfig().samples_per_class:  # the default is for any data
        raise ExperimentError(
            f"`calibration.samples_per_class` is {count}, but class {labels[sizes.argmax()]}, the largest, has only "
            f"{sizes.max()} training images",
            f"choose 1 to {sizes.max()}: calibration.samples_per_class={sizes.max()}",
        )
    if config.sampling is Sampling.random:
        everything = len(train_labels)
        return np.sort(rng.choice(everything, min(count * len(labels), everything), replace=False))
    if (few := sizes < count).any():
        least = sizes.argmin()
        log.info(
            "calibration takes all images of %d classes, which have fewer than %d; the smallest, class %d, has %d",
            few.sum(),
            count,
            labels[least],
            sizes[least],
        )
    first, chosen = config.sampling is Sampling.first, []
    for label, size in zip(labels, sizes, strict=True):
        members = np.flatnonzero(train_labels == label)
        each = min(count, size)
        chosen.append(members[:each] if first else rng.choice(members, each, replace=False))
    return np.sort(np.concatenate(chosen))


def overlapping(calibration: np.ndarray, chosen: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Find the test images that are, pixel for pixel, among the calibration images.

    Args:
        calibration, test: uint8 [N,H,W,C].
        chosen: indices into ``calibration``.

    Returns:
        bool [len(test)].
    """
    # Hashes, not copies: the whole training set would be 150 MB. Equal hashes are then compared pixel by pixel.
    places: dict[int, list[int]] = {}
    for place, image in enumerate(test):
        places.setdefault(hash(image.tobytes()), []).append(place)
    overlap = np.zeros(len(test), bool)
    for index in chosen:
        for place in places.get(hash(calibration[index].tobytes()), ()):
            overlap[place] |= bool((test[place] == calibration[index]).all())
    forget_pages(calibration)
    return overlap


def _listed(config: CalibrationConfig, test_count: int) -> np.ndarray:
    """The test images that ``config`` lists, ascending."""
    if config.index_file is not None:
        name, indices = "calibration.index_file", _read_list(expanded(config.index_file))
    else:
        name, indices = "calibration.indices", np.asarray(config.indices)
    remedy = f"give whole numbers from 0 to {test_count - 1}, each once"
    if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
        raise ExperimentError(f"`{name}` holds {indices.dtype} values of shape {list(indices.shape)}", remedy)
    chosen, times = np.unique(indices.astype(np.int64), return_counts=True)
    outside = next((int(index) for index in chosen if not 0 <= index < test_count), None)
    if outside is not None:
        raise ExperimentError(f"`{name}` lists image {outside}, but there are {test_count} test images", remedy)
    if (times > 1).any():
        raise ExperimentError(f"`{name}` lists image {chosen[times.argmax()]} more than once", remedy)
    return chosen


def _read_list(path: Path) -> np.ndarray:
    """Indices from a .npy file, or from a text file with one in each line."""
    try:
        content = read_regular(path, LARGEST_LIST)
        if path.suffix == ".npy":
            return read_npy(io.BytesIO(content), len(content))
        return np.array([int(line) for line in content.decode().split()])
    except (OSError, *UNREADABLE) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExperimentError(
            f"`calibration.index_file`: {path} cannot be read as a list of indices ({reason})",
            "give a .npy file, or text with one index in each line",
        ) from error
