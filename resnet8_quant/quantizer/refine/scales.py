"""Scales and zero points of a layer's weight, searched together with its codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import RefineConfig, Rounding, WeightScale
from resnet8_quant.quantizer.quant_params import QuantScheme
from resnet8_quant.quantizer.refine.rounding import descend, gptq, nearest, output_error

CANDIDATES = 24  # shares of the widest range
# The smallest share, by bit width: fewer levels gain more from clipping.
SMALLEST_SHARE = {2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 7: 0.7, 8: 0.8}


@dataclass(frozen=True)
class QuantizedRows:
    """A weight matrix as ``scale * codes``, a row for each output channel.

    Attributes:
        codes: float64 [R, K], integers relative to the zero point.
        scale: float64 [R], values that float32 represents.
        zero_point: int64 [R].
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray


def quantize_rows(
    weights: np.ndarray,
    hessians: list[np.ndarray],
    scheme: QuantScheme,
    per_channel: bool,
    config: RefineConfig,
    smallest_scale: np.ndarray | None = None,
) -> QuantizedRows:
    """Choose scales and codes of a weight matrix.

    Args:
        weights: float64 [R, K], a row for each output channel.
        hessians: H = E[x x^T], float64 [K, K], for each group of rows, in the order of the rows.
        scheme: of the codes.
        per_channel: a scale for each row, or one for all.
        config: how scales are chosen and weights rounded.
        smallest_scale: float64 [R], lower bound of the scales; None: no such limit.
    """
    # Candidates: shares of the range that holds the largest weight. Below 1 they clip it and resolve the others
    # better; a little above 1 the largest weight may fall closer to a code.
    shares = np.ones(1)
    if config.weight_scale is not WeightScale.max:
        shares = np.append(np.linspace(SMALLEST_SHARE.get(scheme.bit_width, 0.9), 1.0, CANDIDATES), 1.05)
    scale, zero_point = _candidates(weights, shares, scheme, per_channel, smallest_scale)  # [candidates, R]

    # Each candidate's codes and their error: with plain rounding, or with the rounding that is used in the end
    # ("rounded"), which is slower and finds other scales than those that suit plain rounding.
    in_loop = config.weight_scale is WeightScale.rounded
    errors = np.empty(scale.shape)
    codes = np.empty((*scale.shape, weights.shape[1]))
    for rows, H in _groups(weights, hessians):
        qmin, qmax = scheme.qmin - zero_point[:, rows], scheme.qmax - zero_point[:, rows]
        copies = np.broadcast_to(weights[rows], (len(shares), *weights[rows].shape))
        if in_loop:  # candidates are independent rows to GPTQ, so that one call rounds all of them
            flat = copies.reshape(-1, weights.shape[1])
            rounded = _round(flat, scale[:, rows].ravel(), qmin.ravel(), qmax.ravel(), H, config)
            codes[:, rows] = rounded.reshape(copies.shape)
        else:
            codes[:, rows] = nearest(copies, scale[:, rows], qmin, qmax)
        # The error of the weights themselves (mse), or that of the layer's output.
        metric = np.eye(weights.shape[1]) if config.weight_scale is WeightScale.mse else H
        errors[:, rows] = output_error(copies, codes[:, rows], scale[:, rows], metric)

    # The best candidate of each row, or of all rows together where they share one scale.
    best = errors.argmin(axis=0) if per_channel else np.full(len(weights), errors.sum(axis=1).argmin())
    every = np.arange(len(weights))
    scale, zero_point, codes = scale[best, every], zero_point[best, every], codes[best, every]

    # The final rounding with the chosen scales.
    for rows, H in _groups(weights, hessians):
        qmin, qmax = scheme.qmin - zero_point[rows], scheme.qmax - zero_point[rows]
        if not in_loop:
            codes[rows] = _round(weights[rows], scale[rows], qmin, qmax, H, config)
        if config.rounding is Rounding.descent:
            codes[rows] = descend(weights[rows], codes[rows], scale[rows], qmin, qmax, H)
    return QuantizedRows(codes, scale, zero_point.astype(np.int64))


def _round(
    weights: np.ndarray, scale: np.ndarray, qmin: np.ndarray, qmax: np.ndarray, H: np.ndarray, config: RefineConfig
) -> np.ndarray:
    """Codes by GPTQ where ``config`` asks for more than the nearest ones, and never worse than these."""
    plain = nearest(weights, scale, qmin, qmax)
    if config.rounding is Rounding.nearest:
        return plain
    compensated = gptq(weights, scale, qmin, qmax, H, damping=config.damping, activation_order=config.activation_order)
    # GPTQ is greedy: where bounds or damping hinder the compensation, a row may end up worse.
    worse = output_error(weights, compensated, scale, H) > output_error(weights, plain, scale, H)
    return np.where(worse[:, None], plain, compensated)


def _candidates(
    weights: np.ndarray, shares: np.ndarray, scheme: QuantScheme, per_channel: bool, smallest_scale: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points, float64 [candidates, R], for each share of the widest range; float32 holds the scales."""
    # The widest range: the extremes of each row, or of all rows, and zero.
    low, high = np.minimum(weights.min(axis=1), 0.0), np.maximum(weights.max(axis=1), 0.0)
    if not per_channel:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    if scheme.symmetric:
        middle = (scheme.qmin + scheme.qmax + 1) // 2
        widest = np.maximum(-low, high) / (scheme.qmax - middle)
    else:
        widest = (high - low) / (scheme.qmax - scheme.qmin)
    widest = np.where(widest > np.finfo(np.float32).tiny, widest, 1.0)  # a row of zeros

    # Rounded to float32 before anything is rounded with them, since that is what the graph stores.
    scale = shares[:, None] * widest
    if smallest_scale is not None:
        scale = np.maximum(scale, smallest_scale if per_channel else smallest_scale.max())
    scale = scale.astype(np.float32).astype(np.float64)
    if scheme.symmetric:
        return scale, np.full(scale.shape, float(middle))
    return scale, np.clip(np.rint(scheme.qmin - shares[:, None] * low / scale), scheme.qmin, scheme.qmax)


def _groups(weights: np.ndarray, hessians: list[np.ndarray]) -> list[tuple[slice, np.ndarray]]:
    """Rows of each group, and its H."""
    size = len(weights) // len(hessians)
    return [(slice(i * size, (i + 1) * size), H) for i, H in enumerate(hessians)]
