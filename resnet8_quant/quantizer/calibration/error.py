"""Quantization error measured on a histogram, and the range that makes it smallest (methods `mse` and `lp`).

The error is the sum of |x - fake_quantize(x)| ** norm. Norm 2 is the mean squared error of Banner et al.,
arXiv 1810.05723; other norms are those of LAPQ, Nahshan et al., arXiv 1911.07190. Unlike in those papers no
distribution is assumed: the real integer grid, zero point included, is laid over the measured histogram.
"""

from __future__ import annotations

import numpy as np

from resnet8_quant.quantizer.calibration.observer import Histogram
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, params_of_ranges

COARSE = np.geomspace(1.0, 1 / 256, 64)  # shares of the widest range, 9 percent apart
FINE = np.geomspace(COARSE[2], COARSE[0], 24) / COARSE[1]  # around the best coarse share, under 1 percent apart
ROUNDS = 4
BLOCK_ELEMENTS = 1 << 18  # candidates times bins computed at once; keeps the arrays in the CPU's cache


def least_error_range(
    histogram: Histogram, low: float, high: float, scheme: QuantScheme, norm: float
) -> tuple[float, float]:
    """The range within [low, high] whose quantization makes the smallest error.

    Args:
        histogram: of the tensor.
        low, high: its smallest and largest value.
        scheme: of the activation.
        norm: exponent of the error, above 0.

    Returns:
        (low, high).
    """
    widest = np.array([min(low, 0.0), max(high, 0.0)])
    if scheme.symmetric:
        widest[:] = -np.abs(widest).max(), np.abs(widest).max()
    if not widest.any():
        return low, high

    # First both ends shrink together: a line search over one share of the widest range.
    shares = _search(histogram, widest, np.ones(2), np.array([1, 1]), scheme, norm)

    # Then one end at a time, until neither moves: coordinate descent over the two shares. A symmetric range has one
    # free parameter, and an end at zero has nothing to clip.
    ends = [end for end, value in ((np.array([1, 0]), widest[0]), (np.array([0, 1]), widest[1])) if value != 0]
    if not scheme.symmetric and len(ends) == 2:
        for _ in range(ROUNDS):
            before = shares
            for end in ends:
                shares = _search(histogram, widest, shares, end, scheme, norm)
            if (shares == before).all():
                break
    best = widest * shares
    return max(low, float(best[0])), min(high, float(best[1]))


def _search(
    histogram: Histogram, widest: np.ndarray, shares: np.ndarray, moved: np.ndarray, scheme: QuantScheme, norm: float
) -> np.ndarray:
    """``shares`` with the ``moved`` ends at their best candidate: first a coarse pass, then a fine one around it."""
    for candidates in (COARSE, None):
        if candidates is None:
            candidates = np.minimum(FINE * shares[moved.argmax()], 1.0)
        # The current shares compete too, so that a pass never makes the error larger.
        pairs = np.vstack([shares, np.where(moved, candidates[:, None], shares)])
        ranges = pairs * widest
        scales, zero_points = params_of_ranges(ranges[:, 0], ranges[:, 1], scheme)
        size = max(1, BLOCK_ELEMENTS // len(histogram.counts))
        blocks = [slice(start, start + size) for start in range(0, len(scales), size)]
        errors = [
            quantization_errors(histogram, scales[b], zero_points[b], scheme.qmin, scheme.qmax, norm) for b in blocks
        ]
        shares = pairs[np.concatenate(errors).argmin()]
    return shares


def quantization_errors(
    histogram: Histogram, scales: np.ndarray, zero_points: np.ndarray, qmin: int, qmax: int, norm: float = 2.0
) -> np.ndarray:
    """Sum of ``|x - fake_quantize(x)| ** norm`` over a tensor, for each of several quantizations.

    Exact if the values are spread evenly within each bin, however fine the quantization; zeros have no error.

    Args:
        histogram: of the tensor.
        scales, zero_points: float64 [n].
        qmin, qmax: of all of them.
        norm: above 0.

    Returns:
        float64 [n].
    """
    # In units of the scale, u = x / scale, the error is |u - round(u)| ** norm, or |u - bound| ** norm where u is
    # clipped. Its antiderivative F at the edges gives the integral over each bin. Every whole step that lies below u
    # contributes `step`, the integral of |t| ** norm from -1/2 to 1/2; what is left adds |rest| ** (norm + 1).
    step = 2.0 * 0.5 ** (norm + 1) / (norm + 1)
    u = histogram.edges[None, :] / scales[:, None]
    nearest = np.clip(np.rint(u), (qmin - zero_points)[:, None], (qmax - zero_points)[:, None])
    rest = u - nearest
    integral = nearest * step + np.sign(rest) * np.abs(rest) ** (norm + 1) / (norm + 1)

    # Back in units of x: scale ** norm for the error and scale for du; dividing by the width makes it a mean per bin.
    per_bin = np.diff(integral, axis=1) * (scales[:, None] ** (norm + 1) / histogram.width)
    return np.asarray(per_bin @ histogram.counts)


def signal_to_noise_db(histogram: Histogram, params: QuantParams) -> float | None:
    """10 log10(sum of x squared / sum of squared quantization errors); None for a tensor of zeros."""
    edges = histogram.edges
    # The integral of x squared over a bin, with the bin's values spread evenly.
    signal = float((np.diff(edges**3) / (3 * histogram.width)) @ histogram.counts)
    scales, zero_points = np.array([params.scale], np.float64), np.array([params.zero_point], np.float64)
    noise = float(quantization_errors(histogram, scales, zero_points, params.qmin, params.qmax)[0])
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def clipped_fraction(histogram: Histogram, low: float, high: float) -> float:
    """Share of the values outside [low, high]; the bins at the two ends count as inside."""
    edges = histogram.edges
    outside = (edges[1:] < low) | (edges[:-1] >= high)
    return float(histogram.counts[outside].sum() / histogram.total)
