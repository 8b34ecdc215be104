"""The grid of an integer type: scale and zero point from a range, and what rounding to it does to a tensor.

In: a range and a `Levels`. Out: a `Grid`, by onnxruntime's own formula, and its error on a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

from resnet8_quant.config import DType
from resnet8_quant.quantizer.calibration.observer import Histogram


@dataclass(frozen=True)
class Levels:
    """The integers of an activation type.

    Attributes:
        lowest, highest: for example -128 and 127.
        symmetric: whether a range is widened to reach as far below zero as above.
    """

    lowest: int
    highest: int
    symmetric: bool

    @property
    def count(self) -> int:
        """Number of integers."""
        return self.highest - self.lowest + 1

    @classmethod
    def of(cls, kind: DType, symmetric: bool) -> Levels:
        """The levels that onnxruntime uses for a type: symmetric int8 leaves -128 out."""
        lowest, highest = get_qmin_qmax_for_qType(getattr(TensorProto, kind.name.upper()), symmetric=symmetric)
        return cls(int(lowest), int(highest), symmetric)


@dataclass(frozen=True)
class Grid:
    """Rounding to ``scale * (q - zero_point)`` for the integers q of ``levels``.

    Attributes:
        scale: float32, as stored in the graph.
        zero_point: integer within the levels.
    """

    scale: np.float32
    zero_point: int
    levels: Levels

    @classmethod
    def of(cls, low: np.float32, high: np.float32, levels: Levels) -> Grid:
        """The grid that onnxruntime makes of the range: zero is always on it."""
        limits = np.array(levels.lowest, np.int64), np.array(levels.highest, np.int64)
        zero_point, scale = compute_scale_zp(np.float32(low), np.float32(high), *limits, levels.symmetric)
        return cls(np.float32(scale), int(zero_point), levels)

    @property
    def low(self) -> float:
        """The smallest value on the grid."""
        return float(self.scale) * (self.levels.lowest - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value on the grid."""
        return float(self.scale) * (self.levels.highest - self.zero_point)


def candidate_grids(lows: np.ndarray, highs: np.ndarray, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """`Grid.of` for float64 arrays of ranges, without float32's last rounding: scales and zero points [n]."""
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    if levels.symmetric:
        highs = np.maximum(-lows, highs)
        lows = -highs
    scales = (highs - lows) / (levels.count - 1)
    if levels.symmetric:
        return scales, np.full(len(scales), np.round((levels.lowest + levels.highest) / 2))
    return scales, np.round(levels.lowest - lows / scales)


def rounding_errors(
    histogram: Histogram, scales: np.ndarray, zero_points: np.ndarray, levels: Levels, norm: float = 2.0
) -> np.ndarray:
    """Sum of ``|x - rounded x| ** norm`` over a tensor, for each of several grids.

    Exact if the values are spread evenly within each bin, however fine the grid; zeros have no error.

    Args:
        histogram: of the tensor.
        scales, zero_points: float64 [n].
        levels: of all of them.
        norm: above 0.

    Returns:
        float64 [n].
    """
    # The antiderivative of |u - round(u)| ** norm in units of the scale, u = x / scale: each whole step adds the same.
    step = 2.0 * 0.5 ** (norm + 1) / (norm + 1)
    u = histogram.edges[None, :] / scales[:, None]
    nearest = np.clip(np.rint(u), (levels.lowest - zero_points)[:, None], (levels.highest - zero_points)[:, None])
    rest = u - nearest
    integral = nearest * step + np.sign(rest) * np.abs(rest) ** (norm + 1) / (norm + 1)
    per_bin = np.diff(integral, axis=1) * (scales[:, None] ** (norm + 1) / histogram.width)
    return np.asarray(per_bin @ histogram.counts)


def signal_to_noise_db(histogram: Histogram, grid: Grid) -> float | None:
    """10 log10(sum of x squared / sum of squared rounding errors); None for a tensor of zeros."""
    edges = histogram.edges
    signal = float((np.diff(edges**3) / (3 * histogram.width)) @ histogram.counts)
    scales, zero_points = np.array([grid.scale], np.float64), np.array([grid.zero_point], np.float64)
    noise = float(rounding_errors(histogram, scales, zero_points, grid.levels)[0])
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def clipped_fraction(histogram: Histogram, low: float, high: float) -> float:
    """Share of the values outside [low, high]; the bins at the two ends count as inside."""
    edges = histogram.edges
    outside = (edges[1:] < low) | (edges[:-1] >= high)
    return float(histogram.counts[outside].sum() / histogram.total)
