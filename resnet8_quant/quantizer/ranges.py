"""Activation ranges by MinMax, percentile and entropy, each true to its name.

In: a stream of activations. Out: {tensor: (low, high)}. MinMax sees the images once; the histogram methods twice: the
first pass finds the limits, the second fills a fixed number of bins, so that memory does not grow with the images
and the batch size has no effect.

onnxruntime's own "entropy" is not used: with its 128 bins and 128 levels a single candidate is left, which is MinMax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import CalibrationConfig, Method
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.activations import ActivationStream

Ranges = dict[str, tuple[np.float32, np.float32]]
SMALLEST = 1e-30  # a tensor below it is all zero as far as bins and scales are concerned
SMOOTHING = 1e-4  # probability given to a bin that quantization empties, so that the divergence stays finite


@dataclass(frozen=True)
class Histogram:
    """Counts of one tensor's values.

    Attributes:
        counts: int64 [bins] over [-limit, limit], or over [0, limit] where no value is negative.
        low, high: the smallest and the largest value.
    """

    counts: np.ndarray
    low: np.float32
    high: np.float32

    @property
    def signed(self) -> bool:
        """Whether negative values occur."""
        return bool(self.low < 0)

    @property
    def limit(self) -> float:
        """The largest magnitude."""
        return float(max(abs(self.low), abs(self.high)))

    @property
    def edges(self) -> np.ndarray:
        """float64 [bins + 1]."""
        return np.linspace(-self.limit if self.signed else 0.0, self.limit, len(self.counts) + 1)


def find_ranges(stream: ActivationStream, config: CalibrationConfig, levels: int, symmetric: bool) -> Ranges:
    """Find a range for each tensor of ``stream``.

    Args:
        stream: the activations of the calibration images.
        config: method and its parameters.
        levels: of the activation type, for example 256.
        symmetric: whether the quantizer will use the range symmetrically around zero.

    Raises:
        ExperimentError: an activation is NaN or infinite.
    """
    limits = _limits(stream)
    if config.method is Method.minmax:
        return limits
    assert config.bins is not None  # config.check
    histograms = _histograms(stream, limits, config.bins)
    choose = CHOICES[config.method]
    return {name: choose(histogram, config, levels, symmetric) for name, histogram in histograms.items()}


def _limits(stream: ActivationStream) -> Ranges:
    """Smallest and largest value of each tensor."""
    limits: Ranges = {}
    for values in stream.batches("calibration: range"):
        for name, value in values.items():
            low, high = value.min(), value.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ExperimentError(
                    f"`model`: the activation {name!r} is NaN or infinite on the calibration images",
                    "check the model and the input range that it expects (model.mean, model.std)",
                )
            if name in limits:
                low, high = min(low, limits[name][0]), max(high, limits[name][1])
            limits[name] = (low, high)
    return limits


def _histograms(stream: ActivationStream, limits: Ranges, bins: int) -> dict[str, Histogram]:
    """Counts of each tensor in ``bins`` equal bins between its limits."""
    histograms = {name: Histogram(np.zeros(bins, np.int64), low, high) for name, (low, high) in limits.items()}
    for values in stream.batches("calibration: histogram"):
        for name, value in values.items():
            histogram = histograms[name]
            if histogram.limit < SMALLEST:
                histogram.counts[0] += value.size
                continue
            offset = histogram.limit if histogram.signed else 0.0
            scale = bins / (histogram.limit + offset)
            index = ((value.ravel() + np.float32(offset)) * np.float32(scale)).astype(np.int32)
            np.minimum(index, bins - 1, out=index)
            histogram.counts[:] += np.bincount(index, minlength=bins)
    return histograms


def percentile_range(
    histogram: Histogram, config: CalibrationConfig, levels: int, symmetric: bool
) -> tuple[np.float32, np.float32]:
    """Cut (100 - percentile) / 2 percent of the values at each end, exact to one bin.

    At a ReLU output the lower end stays at zero. Wu et al., arXiv 2004.09602, section 4.
    """
    assert config.percentile is not None  # config.check
    edges = histogram.edges
    cumulated = np.cumsum(histogram.counts)
    cut = cumulated[-1] * (100.0 - config.percentile) / 200.0
    # the first edge with more than `cut` values below it, and the last with as many above it
    low = edges[int(np.searchsorted(cumulated, cut, side="right"))]
    high = edges[int(np.searchsorted(cumulated, cumulated[-1] - cut, side="left")) + 1]
    return max(np.float32(low), histogram.low), min(np.float32(high), histogram.high)


def entropy_range(
    histogram: Histogram, config: CalibrationConfig, levels: int, symmetric: bool
) -> tuple[np.float32, np.float32]:
    """The clipping that loses the least information: minimal Kullback-Leibler divergence.

    Migacz, "8-bit inference with TensorRT", GTC 2017. Candidates run from as many bins as there are levels up to all of
    them; what lies outside a candidate is counted in its outermost bins. A one-sided tensor's first bin is set to its
    second: ReLU's zeros are exact after any quantization and would drown the rest.
    """
    if histogram.limit < SMALLEST:
        return histogram.low, histogram.high
    bins = len(histogram.counts)
    if histogram.signed:
        counts, start, widest = histogram.counts.astype(np.float64), levels // 2, bins // 2
        center = bins // 2
    else:
        counts, start, widest = histogram.counts.astype(np.float64), levels // 2 if symmetric else levels, bins
        counts[0] = counts[1]
        center = 0
    levels_in_use = levels if histogram.signed else start
    best, best_divergence = widest, np.inf
    step = max(1, start // 32)  # under half a percent of the range between candidates
    for half in (*range(start, widest, step), widest):
        inside = counts[center - half : center + half] if histogram.signed else counts[:half]
        reference = inside.copy()
        if histogram.signed:
            reference[0] += counts[: center - half].sum()
            reference[-1] += counts[center + half :].sum()
        else:
            reference[-1] += counts[half:].sum()
        divergence = _divergence(reference, inside, levels_in_use)
        if divergence < best_divergence:
            best, best_divergence = half, divergence
    threshold = np.float32(histogram.limit * best / widest)
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _divergence(reference: np.ndarray, inside: np.ndarray, levels: int) -> float:
    """KL(reference || inside merged into ``levels`` groups and spread again over the bins in use)."""
    starts = np.arange(levels) * len(inside) // levels
    in_use = (reference > 0).astype(np.float64)
    sums = np.add.reduceat(inside, starts)
    used = np.add.reduceat(in_use, starts)
    sizes = np.diff(starts, append=len(inside))
    mean = np.divide(sums, used, out=np.zeros(levels), where=used > 0)
    quantized = np.repeat(mean, sizes) * in_use
    total, quantized_total = reference.sum(), quantized.sum()
    if total == 0 or quantized_total == 0:
        return float("inf")
    occupied = reference > 0
    p = reference[occupied] / total
    q = np.maximum(quantized[occupied] / quantized_total, SMOOTHING / len(inside))
    return float(np.sum(p * np.log(p / q)))


CHOICES: dict[Method, Callable[[Histogram, CalibrationConfig, int, bool], tuple[np.float32, np.float32]]] = {
    Method.percentile: percentile_range,
    Method.entropy: entropy_range,
}
