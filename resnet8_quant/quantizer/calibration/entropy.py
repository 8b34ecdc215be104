"""The entropy method: the clipping that loses the least information.

In: an `Observation` and `Levels`. Out: a range. Migacz, "8-bit inference with TensorRT", GTC 2017: of all thresholds,
take the one with the smallest Kullback-Leibler divergence between the clipped distribution and its quantized version.

- Candidates run from as many bins as there are levels up to all of them, one percent apart.
- What lies outside a candidate is counted in its outermost bins, as clipping does it.
- Symmetric types look at magnitudes; the others at the tensor's own two sides, and spend no level where no value is.
- Exact zeros (ReLU) are left out: any grid represents them, and half of all values in one bin would drown the rest.
- Smoothing: a bin that quantization empties keeps the probability ``SMOOTHING`` / bins, so that the divergence is
  finite.
"""

from __future__ import annotations

import numpy as np

from resnet8_quant.quantizer.calibration.grid import Levels
from resnet8_quant.quantizer.calibration.observer import Histogram

SMOOTHING = 1e-4
SPACING = 1.01


def entropy_threshold(histogram: Histogram, levels: Levels) -> float:
    """The magnitude at which to clip, a multiple of the bins' width; infinite where there is nothing to choose.

    Args:
        histogram: of the tensor.
        levels: of the activation type; finer bins than levels, or the answer is infinite.
    """
    below = max(0, -histogram.first)  # bins below zero
    gaps = max(0, histogram.first), max(0, below - len(histogram.counts))  # between zero and the nearest value
    counts = np.pad(histogram.counts, gaps)
    above = len(counts) - below
    if levels.symmetric:
        folded = np.zeros(max(above, below), np.int64)
        folded[: max(0, above)] += counts[below:]
        folded[:below] += counts[:below][::-1]
        counts, below, above, number = folded, 0, len(folded), levels.count // 2
    else:
        number = levels.count
    best, best_divergence = np.inf, np.inf
    for reach in _candidates(number, below, above):
        left, right = min(reach, below), min(reach, above)
        inside = counts[below - left : below + right].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += counts[: below - left].sum()
        clipped[-1] += counts[below + right :].sum()
        divergence = _divergence(clipped, inside, number)
        if divergence < best_divergence:
            best, best_divergence = reach * histogram.width, divergence
    return float(best)


def _candidates(number: int, below: int, above: int) -> list[int]:
    """Numbers of bins from zero to the threshold, such that the window has at least ``number`` bins."""
    widest = max(below, above)
    # the shorter side runs out first; then the longer one has to make up for it
    reach = max(-(-number // 2), number - min(below, above))
    found = []
    while reach < widest:
        found.append(reach)
        reach = max(reach + 1, round(reach * SPACING))
    return [*found, widest] if below + above >= number else []


def _divergence(clipped: np.ndarray, inside: np.ndarray, levels: int) -> float:
    """KL(clipped || inside merged into ``levels`` groups and spread again over the bins in use)."""
    starts = np.arange(levels) * len(inside) // levels
    occupied = clipped > 0
    sums = np.add.reduceat(inside, starts)
    used = np.add.reduceat(occupied.astype(np.float64), starts)
    mean = np.divide(sums, used, out=np.zeros(levels), where=used > 0)
    quantized = np.repeat(mean, np.diff(starts, append=len(inside)))[occupied]
    total, quantized_total = clipped.sum(), quantized.sum()
    if 2 * inside.sum() < total or quantized_total == 0:  # a window on the tails alone can look like a perfect match
        return float("inf")
    p = clipped[occupied] / total
    q = np.maximum(quantized / quantized_total, SMOOTHING / len(inside))
    return float(np.sum(p * np.log(p / q)))
