"""Observers of activations: the extremes in each image, and a histogram that grows with the values.

The statistics are the same to the bit for every order and size of the batches: bins have a power of two as their
width and an edge at zero, so that a histogram that must reach further merges neighbours exactly, and one pass over
the images is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SMALLEST_EXPONENT = -100  # values below 2**-100 share the bins beside zero


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's values.

    Attributes:
        counts: int64 [bins]; no empty bin at either end, except that a tensor of zeros has a single one.
        first: bin i holds (first + i) * width < x <= (first + i + 1) * width; zero is always an edge.
        width: of a bin, a power of two.
        zeros: values that are exactly zero, which is what ReLU makes of half of them; they are in no bin.
    """

    counts: np.ndarray
    first: int
    width: float
    zeros: int

    @property
    def edges(self) -> np.ndarray:
        """float64 [bins + 1]."""
        return (self.first + np.arange(len(self.counts) + 1)) * self.width

    @property
    def total(self) -> int:
        """Number of values, zeros included."""
        return int(self.counts.sum()) + self.zeros


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one tensor over all calibration images.

    Attributes:
        low, high: smallest and largest value.
        image_lows, image_highs: float32 [images], the same for each image, in the order of the images.
        histogram: None where none was asked for.
    """

    low: np.float32
    high: np.float32
    image_lows: np.ndarray
    image_highs: np.ndarray
    histogram: Histogram | None


@dataclass(frozen=True)
class Batch:
    """Values of one tensor in some images.

    Attributes:
        values: float32 [n, values of an image]; None where no histogram is wanted.
        lows, highs: float32 [n], the extremes of each image.
    """

    values: np.ndarray | None
    lows: np.ndarray
    highs: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, keep: bool) -> Batch:
        """A batch from float32 ``values`` [n, ...]."""
        flat = values.reshape(len(values), -1)
        return cls(flat if keep else None, flat.min(axis=1), flat.max(axis=1))


class NotFinite(ValueError):
    """A value is NaN or infinite."""


class Observer:
    """Collects the `TensorStats` of one tensor."""

    def __init__(self, images: int, bins: int | None) -> None:
        """Prepare for a number of images.

        Args:
            images: how many there will be.
            bins: from zero to the largest magnitude, at least; None: no histogram.
        """
        self.image_lows = np.empty(images, np.float32)
        self.image_highs = np.empty(images, np.float32)
        # Twice the next power of two, so that after a merge of neighbours there are still `bins`.
        self.half = 2 << (bins - 1).bit_length() if bins else 0
        self.counts = np.zeros(2 * self.half, np.int64)  # bin `half` begins above zero
        self.exponent = SMALLEST_EXPONENT  # the bins reach from -2**exponent to 2**exponent
        self.zeros = 0

    def update(self, batch: Batch, start: int, count: int) -> None:
        """Observe the images ``start`` to ``start + count``.

        Raises:
            NotFinite: a value is NaN or infinite.
        """
        low, high = batch.lows.min(), batch.highs.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise NotFinite
        self.image_lows[start : start + count] = batch.lows
        self.image_highs[start : start + count] = batch.highs
        if batch.values is None:
            return

        # Bin numbers: x in units of the width, rounded up. The factor is a power of two, so the product is exact and
        # the same for every batch.
        self._reach(max(-low, high))
        scaled = batch.values * np.float32(math.ldexp(self.half, -self.exponent))
        np.ceil(scaled, out=scaled)

        # Bin `below` ends at zero; rounding up puts exact zeros there, from where they move to a count of their own.
        below = self.half - 1
        if low < 0:
            scaled += np.float32(below)
            counts = np.bincount(scaled.astype(np.intp).ravel())
            self.counts[: len(counts)] += counts
            zeros = int(np.count_nonzero(batch.values == 0))
        else:
            counts = np.bincount(scaled.astype(np.intp).ravel())
            self.counts[below : below + len(counts)] += counts
            zeros = int(counts[0])
        self.counts[below] -= zeros
        self.zeros += zeros

    def finish(self, low: np.float32, high: np.float32) -> TensorStats:
        """The statistics, with the extremes ``low`` and ``high`` of all images."""
        histogram = None
        if self.half:
            occupied = np.flatnonzero(self.counts)
            first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (self.half, self.half)
            width = math.ldexp(1.0, self.exponent) / self.half
            histogram = Histogram(self.counts[first : last + 1].copy(), first - self.half, width, self.zeros)
        return TensorStats(low, high, self.image_lows, self.image_highs, histogram)

    def _reach(self, limit: np.float32) -> None:
        """Double the bins' width until magnitudes up to ``limit`` fall into them; neighbouring bins are merged."""
        doublings = max(0, math.frexp(limit)[1] - self.exponent) if limit > 0 else 0
        if not doublings:
            return
        group = 1 << min(doublings, self.half.bit_length() - 1)
        merged = self.counts.reshape(-1, group).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[self.half - len(merged) // 2 : self.half + len(merged) // 2] = merged
        self.exponent += doublings
