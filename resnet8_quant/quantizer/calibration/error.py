"""The error methods: the range whose grid makes the smallest rounding and clipping error.

In: an `Observation` and `Levels`. Out: a range. The error is the sum of |x - rounded x| ** norm over the histogram;
norm 2 is the mean squared error of Banner et al., arXiv 1810.05723, other norms are LAPQ's (Nahshan et al.,
arXiv 1911.07190). Unlike in those papers nothing is assumed about the distribution: the real grid, zero point included,
is laid over the measured histogram.
"""

from __future__ import annotations

import numpy as np

from resnet8_quant.quantizer.calibration.grid import Levels, candidate_grids, rounding_errors
from resnet8_quant.quantizer.calibration.observer import Histogram

COARSE = np.geomspace(1.0, 1 / 256, 64)  # of the widest range; 9 percent apart
FINE = np.geomspace(COARSE[2], COARSE[0], 24) / COARSE[1]  # around the best coarse one; under 1 percent apart
ROUNDS = 4
ELEMENTS = 1 << 18  # of a block of candidates times bins; keeps the work in the CPU's cache


def error_range(histogram: Histogram, low: float, high: float, levels: Levels, norm: float) -> tuple[float, float]:
    """The best range within [low, high] and zero: both ends together first, then one after the other.

    Args:
        histogram: of the tensor.
        low, high: its smallest and largest value.
        levels: of the activation type.
        norm: of the error, above 0.
    """
    widest = np.array([min(low, 0.0), max(high, 0.0)])
    if levels.symmetric:
        widest[:] = -np.abs(widest).max(), np.abs(widest).max()
    if not widest.any():
        return low, high
    both, only_low, only_high = np.array([1, 1]), np.array([1, 0]), np.array([0, 1])
    ends = [end for end, value in ((only_low, widest[0]), (only_high, widest[1])) if value != 0]
    share = np.ones(2)  # of the widest range, for each end
    share = _improved(histogram, widest, share, both, levels, norm)
    if not levels.symmetric and len(ends) == 2:
        for _ in range(ROUNDS):
            before = share
            for end in ends:
                share = _improved(histogram, widest, share, end, levels, norm)
            if (share == before).all():
                break
    best = widest * share
    return max(low, float(best[0])), min(high, float(best[1]))


def _improved(
    histogram: Histogram, widest: np.ndarray, share: np.ndarray, moved: np.ndarray, levels: Levels, norm: float
) -> np.ndarray:
    """``share`` with the ``moved`` ends at the best of the coarse and then of the fine candidates."""
    for shares in (COARSE, None):
        if shares is None:
            shares = np.minimum(FINE * share[moved.argmax()], 1.0)
        candidates = np.vstack([share, np.where(moved, shares[:, None], share)])
        share = candidates[_errors(histogram, candidates * widest, levels, norm).argmin()]
    return share


def _errors(histogram: Histogram, ranges: np.ndarray, levels: Levels, norm: float) -> np.ndarray:
    """`rounding_errors` of each range [n, 2], in blocks."""
    scales, zero_points = candidate_grids(ranges[:, 0], ranges[:, 1], levels)
    size = max(1, ELEMENTS // len(histogram.counts))
    return np.concatenate(
        [
            rounding_errors(histogram, scales[start : start + size], zero_points[start : start + size], levels, norm)
            for start in range(0, len(scales), size)
        ]
    )
