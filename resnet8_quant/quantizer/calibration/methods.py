"""Calibration methods: from the statistics of a tensor to its range.

Each takes `TensorStats`, the `calibration` part of the config and the `QuantScheme` of the activation, and returns
(low, high), float32, within the tensor's extremes. `METHODS` is the table; conf/calibration has a file for each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet8_quant.config import CalibrationConfig, Method
from resnet8_quant.quantizer.calibration.error import least_error_range
from resnet8_quant.quantizer.calibration.observer import Histogram, TensorStats
from resnet8_quant.quantizer.quant_params import QuantScheme

Range = tuple[np.float32, np.float32]

# The values of parameters that the config leaves at None. Each parameter is read by one method.
DEFAULTS: dict[str, float] = {"averaging_constant": 0.01, "percentile": 99.999, "norm": 2.4}

SMOOTHING = 1e-4  # entropy: probability, divided by the number of bins, of a bin that quantization empties
SPACING = 1.01  # entropy: ratio of neighbouring thresholds


def minmax(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """Smallest and largest value: nothing is clipped. Jacob et al., arXiv 1712.05877, section 3."""
    return stats.low, stats.high


def moving_average(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """Exponential moving average of each image's extremes, in the order of the training set.

    Jacob et al., arXiv 1712.05877, section 3.1, average over batches; over images the batch size has no effect.
    """
    weight = _parameter(config, "averaging_constant")
    averages = []
    for values in (stats.image_lows, stats.image_highs):
        # Dividing by the sum of the weights corrects the bias towards the first image (Kingma and Ba,
        # arXiv 1412.6980, section 3), which would otherwise still count more than a third after a hundred images.
        age = np.arange(len(values))[::-1]
        weights = (1.0 - weight) ** age
        averages.append(np.float32(values @ weights / weights.sum()))
    return max(averages[0], stats.low), min(averages[1], stats.high)


def percentile(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """Cut (100 - percentile) / 2 percent of the values at each end, exact to one bin.

    At a ReLU output the lower end stays at zero. Wu et al., arXiv 2004.09602, section 4.
    """
    histogram = _histogram(stats)
    # Exact zeros are in no bin; here they become one of width zero, so that the cumulated counts hold every value.
    zero = min(max(0, -histogram.first), len(histogram.counts))
    cumulated = np.cumsum(np.insert(histogram.counts, zero, histogram.zeros))
    lefts, rights = np.insert(histogram.edges[:-1], zero, 0.0), np.insert(histogram.edges[1:], zero, 0.0)
    cut = cumulated[-1] * (100.0 - _parameter(config, "percentile")) / 200.0
    low = lefts[np.searchsorted(cumulated, cut, side="right")]
    high = rights[np.searchsorted(cumulated, cumulated[-1] - cut, side="left")]
    return _within(stats, low, high)


def entropy(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """The clipping that loses the least information, see `entropy_threshold`."""
    threshold = entropy_threshold(_histogram(stats), scheme)
    return _within(stats, -threshold, threshold)


def mse(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """The range with the smallest mean squared error, see `least_error_range`."""
    return _least_error(stats, scheme, 2.0)


def lp(stats: TensorStats, config: CalibrationConfig, scheme: QuantScheme) -> Range:
    """The range with the smallest error in another norm; above 2, large errors weigh more."""
    return _least_error(stats, scheme, _parameter(config, "norm"))


METHODS: dict[Method, Callable[[TensorStats, CalibrationConfig, QuantScheme], Range]] = {
    Method.minmax: minmax,
    Method.moving_average: moving_average,
    Method.percentile: percentile,
    Method.entropy: entropy,
    Method.mse: mse,
    Method.lp: lp,
}


def entropy_threshold(histogram: Histogram, scheme: QuantScheme) -> float:
    """The magnitude at which clipping loses the least information; infinite where there is nothing to choose.

    Migacz, "8-bit inference with TensorRT", GTC 2017: of all thresholds, the one with the smallest Kullback-Leibler
    divergence KL(P || Q) between the clipped distribution P and its quantized version Q.

    Args:
        histogram: of the tensor; with no more bins than ``scheme`` has levels, the answer is infinite.
        scheme: of the activation.
    """
    # Pad the histogram so that zero lies on a bin edge inside it: `below` bins are negative, `above` positive.
    # Exact zeros stay out. Any quantization represents them, and half of all values in one bin would drown the rest.
    below = max(0, -histogram.first)
    gaps = max(0, histogram.first), max(0, below - len(histogram.counts))
    counts = np.pad(histogram.counts, gaps)
    above = len(counts) - below

    # A symmetric scheme looks at magnitudes: fold the negative half over the positive one, for half of the levels.
    levels = scheme.levels
    if scheme.symmetric:
        folded = np.zeros(max(above, below), np.int64)
        folded[: max(0, above)] += counts[below:]
        folded[:below] += counts[:below][::-1]
        counts, below, above, levels = folded, 0, len(folded), levels // 2

    best, best_divergence = np.inf, np.inf
    for reach in _candidate_reaches(levels, below, above):
        # The window of this threshold. P counts what lies outside in its outermost bins, as clipping does.
        left, right = min(reach, below), min(reach, above)
        inside = counts[below - left : below + right].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += counts[: below - left].sum()
        clipped[-1] += counts[below + right :].sum()
        divergence = _divergence(clipped, inside, levels)
        if divergence < best_divergence:
            best, best_divergence = reach * histogram.width, divergence
    return float(best)


def _candidate_reaches(levels: int, below: int, above: int) -> list[int]:
    """Numbers of bins from zero to the threshold, one percent apart, with at least ``levels`` bins in the window."""
    widest = max(below, above)
    # The shorter side runs out first; the longer one then has to make up for it.
    reach = max(-(-levels // 2), levels - min(below, above))
    reaches = []
    while reach < widest:
        reaches.append(reach)
        reach = max(reach + 1, round(reach * SPACING))
    return [*reaches, widest] if below + above >= levels else []


def _divergence(clipped: np.ndarray, inside: np.ndarray, levels: int) -> float:
    """KL(P || Q): P is ``clipped``; Q is ``inside`` merged into ``levels`` groups and spread over the occupied bins.

    Args:
        clipped, inside: float64 [bins].
        levels: at most as many as bins.
    """
    # Quantization: each group of neighbouring bins becomes one level. Its count is spread evenly over those bins of
    # the group that hold anything, since an empty bin has no value that could be represented.
    starts = np.arange(levels) * len(inside) // levels
    occupied = clipped > 0
    sums = np.add.reduceat(inside, starts)
    used = np.add.reduceat(occupied.astype(np.float64), starts)
    mean = np.divide(sums, used, out=np.zeros(levels), where=used > 0)
    quantized = np.repeat(mean, np.diff(starts, append=len(inside)))[occupied]

    # A window that clips most values looks like a perfect match of the few that are left: refuse it.
    total, quantized_total = clipped.sum(), quantized.sum()
    if 2 * inside.sum() < total or quantized_total == 0:
        return float("inf")

    # Smoothing: a bin that is empty in Q but not in P would make the divergence infinite.
    p = clipped[occupied] / total
    q = np.maximum(quantized / quantized_total, SMOOTHING / len(inside))
    return float(np.sum(p * np.log(p / q)))


def _parameter(config: CalibrationConfig, name: str) -> float:
    value: float | None = getattr(config, name)
    return DEFAULTS[name] if value is None else value


def _histogram(stats: TensorStats) -> Histogram:
    assert stats.histogram is not None  # the config is checked: methods that come here have bins
    return stats.histogram


def _least_error(stats: TensorStats, scheme: QuantScheme, norm: float) -> Range:
    low, high = least_error_range(_histogram(stats), float(stats.low), float(stats.high), scheme, norm)
    return _within(stats, low, high)


def _within(stats: TensorStats, low: float, high: float) -> Range:
    ends = np.clip(np.array([low, high], np.float32), stats.low, stats.high)
    return ends[0], ends[1]
