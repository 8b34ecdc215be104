"""The scale of a layer's weights, and with it their integers.

In: rows of weights, the second moments of the layer's inputs, a grid's width. Out: whole numbers, scales, zero points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import RefineConfig, Rounding, WeightScale
from resnet8_quant.quantizer.refine.rounding import descend, gptq, nearest, output_error

CANDIDATES = 24  # shares of the widest range
NARROWEST = {2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 7: 0.7, 8: 0.8}  # of the candidates, by bits


@dataclass(frozen=True)
class WeightLevels:
    """The integers of a weight's grid.

    Attributes:
        lowest, highest: for example -8 and 7.
        symmetric: whether the zero point is the middle.
    """

    lowest: int
    highest: int
    symmetric: bool

    @classmethod
    def of(cls, bits: int, signed: bool, symmetric: bool) -> WeightLevels:
        """The levels of a width; as in onnxruntime, symmetric 8-bit signed weights leave -128 out."""
        half = 1 << (bits - 1)
        if not signed:
            return cls(0, 2 * half - 1, symmetric)
        return cls(-half + (1 if symmetric and bits >= 8 else 0), half - 1, symmetric)


@dataclass(frozen=True)
class RoundedRows:
    """Weights on their grids.

    Attributes:
        steps: float64 [R, K], whole numbers relative to the zero point.
        scale: float64 [R], values that float32 holds.
        zero_point: int64 [R].
    """

    steps: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray


def round_rows(
    target: np.ndarray,
    moments: list[np.ndarray],
    levels: WeightLevels,
    per_channel: bool,
    bits: int,
    config: RefineConfig,
    smallest: np.ndarray | None = None,
) -> RoundedRows:
    """Choose scales and integers for a layer.

    Args:
        target: float64 [R, K], one row for each output channel.
        moments: float64 [K, K] for each group of rows, in the order of the rows.
        levels: of the grid.
        per_channel: a scale for each row, or one for all.
        bits: of the grid.
        config: how scales are chosen and weights rounded.
        smallest: float64 [R], below which no scale may be; None: no such limit.
    """
    shares = np.ones(1)
    if config.weight_scale is not WeightScale.max:
        shares = np.append(np.linspace(NARROWEST.get(bits, 0.9), 1.0, CANDIDATES), 1.05)
    scale, zero_point = _grids(target, shares, levels, per_channel, smallest)  # [C, R]
    in_loop = config.weight_scale is WeightScale.rounded
    errors = np.empty(scale.shape)
    steps = np.empty((*scale.shape, target.shape[1]))
    for rows, hessian in _groups(target, moments):
        lowest, highest = levels.lowest - zero_point[:, rows], levels.highest - zero_point[:, rows]
        candidates = np.broadcast_to(target[rows], (len(shares), *target[rows].shape))
        if in_loop:
            flat = candidates.reshape(-1, target.shape[1])
            rounded = _compensated(flat, scale[:, rows].ravel(), lowest.ravel(), highest.ravel(), hessian, config)
            steps[:, rows] = rounded.reshape(candidates.shape)
        else:
            steps[:, rows] = nearest(candidates, scale[:, rows], lowest, highest)
        weights = np.eye(target.shape[1]) if config.weight_scale is WeightScale.mse else hessian
        errors[:, rows] = output_error(candidates, steps[:, rows], scale[:, rows], weights)
    best = errors.argmin(axis=0) if per_channel else np.full(len(target), errors.sum(axis=1).argmin())
    every = np.arange(len(target))
    scale, zero_point, chosen = scale[best, every], zero_point[best, every], steps[best, every]
    for rows, hessian in _groups(target, moments):
        lowest, highest = levels.lowest - zero_point[rows], levels.highest - zero_point[rows]
        if not in_loop:
            chosen[rows] = _compensated(target[rows], scale[rows], lowest, highest, hessian, config)
        if config.rounding is Rounding.descent:
            chosen[rows] = descend(target[rows], chosen[rows], scale[rows], lowest, highest, hessian)
    return RoundedRows(chosen, scale, zero_point.astype(np.int64))


def _compensated(
    target: np.ndarray,
    scale: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    moments: np.ndarray,
    config: RefineConfig,
) -> np.ndarray:
    """Whole numbers by GPTQ where ``config`` asks for more than the nearest ones, and never worse than these."""
    plain = nearest(target, scale, lowest, highest)
    if config.rounding is Rounding.nearest:
        return plain
    better = gptq(
        target, scale, lowest, highest, moments, damping=config.damping, activation_order=config.activation_order
    )
    worse = output_error(target, better, scale, moments) > output_error(target, plain, scale, moments)
    return np.where(worse[:, None], plain, better)


def _grids(
    target: np.ndarray, shares: np.ndarray, levels: WeightLevels, per_channel: bool, smallest: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """float32-exact scales and zero points [C, R] for each share of the widest range."""
    low, high = np.minimum(target.min(axis=1), 0.0), np.maximum(target.max(axis=1), 0.0)
    if not per_channel:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    if levels.symmetric:
        middle = (levels.lowest + levels.highest + 1) // 2
        widest = np.maximum(-low, high) / (levels.highest - middle)
    else:
        widest = (high - low) / (levels.highest - levels.lowest)
    widest = np.where(widest > np.finfo(np.float32).tiny, widest, 1.0)  # a row of zeros
    scale = shares[:, None] * widest
    if smallest is not None:
        scale = np.maximum(scale, smallest if per_channel else smallest.max())
    scale = scale.astype(np.float32).astype(np.float64)
    if levels.symmetric:
        return scale, np.full(scale.shape, float(middle))
    return scale, np.clip(np.rint(levels.lowest - shares[:, None] * low / scale), levels.lowest, levels.highest)


def _groups(target: np.ndarray, moments: list[np.ndarray]) -> list[tuple[slice, np.ndarray]]:
    size = len(target) // len(moments)
    return [(slice(i * size, (i + 1) * size), hessian) for i, hessian in enumerate(moments)]
