"""Quantization parameters: which integers a tensor may take, and the scale and zero point that map values to them.

Scales and zero points of activations are computed by onnxruntime's own formula, so that calibration and
quantize_static agree to the bit. The same classes serve weights and activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import DType


def is_signed(dtype: DType) -> bool:
    """Whether an integer type holds negative numbers."""
    return not dtype.name.startswith("u")


class _Levels:
    """What schemes and parameters know of the integers from ``qmin`` to ``qmax``."""

    qmin: int
    qmax: int

    @property
    def levels(self) -> int:
        """Number of integers."""
        return self.qmax - self.qmin + 1

    @property
    def bit_width(self) -> int:
        """Bits that so many integers need."""
        return (self.levels - 1).bit_length()


@dataclass(frozen=True)
class QuantScheme(_Levels):
    """The integers that a quantized tensor may take, before its scale and zero point are chosen.

    Attributes:
        dtype: ONNX type that stores them.
        qmin, qmax: smallest and largest integer, for example -128 and 127.
        symmetric: whether the zero point is fixed at the middle; a range then reaches as far below zero as above.
    """

    dtype: DType
    qmin: int
    qmax: int
    symmetric: bool

    @classmethod
    def of_activation(cls, dtype: DType, symmetric: bool, bit_width: int | None = None) -> QuantScheme:
        """The scheme of an activation stored as ``dtype``.

        Symmetric signed types leave their smallest integer out, as onnxruntime does.

        Args:
            bit_width: of the integers in use; None: all bits of ``dtype``.
        """
        half = 1 << ((bit_width or dtype.bits) - 1)
        if not is_signed(dtype):
            return cls(dtype, 0, 2 * half - 1, symmetric)
        return cls(dtype, -half + int(symmetric), half - 1, symmetric)

    @classmethod
    def of_weight(cls, dtype: DType, symmetric: bool, bit_width: int) -> QuantScheme:
        """The scheme of a weight, stored in the narrowest ONNX type with the sign of ``dtype``.

        From 8 bits on, symmetric signed weights leave the smallest integer out, as onnxruntime does; below 8 bits
        every level counts and all are used.
        """
        half = 1 << (bit_width - 1)
        storage_bits = next(bits for bits in (2, 4, 8, 16) if bit_width <= bits)
        if not is_signed(dtype):
            return cls(DType[f"uint{storage_bits}"], 0, 2 * half - 1, symmetric)
        qmin = -half + int(symmetric and bit_width >= 8)
        return cls(DType[f"int{storage_bits}"], qmin, half - 1, symmetric)


@dataclass(frozen=True)
class QuantParams(_Levels):
    """Parameters of an activation's quantization: ``x = scale * (q - zero_point)`` for qmin <= q <= qmax.

    Attributes:
        scale: float32, as stored in the graph.
        zero_point: integer between ``qmin`` and ``qmax``.
        dtype: ONNX type that stores q.
        qmin, qmax: smallest and largest q; fewer integers than ``dtype`` holds where the tensor is low-bit.
    """

    scale: np.float32
    zero_point: int
    dtype: DType
    qmin: int
    qmax: int

    @classmethod
    def of_range(cls, low: np.float32, high: np.float32, scheme: QuantScheme) -> QuantParams:
        """The parameters that onnxruntime computes for the range [low, high]; zero is always represented exactly."""
        from onnxruntime.quantization.quant_utils import compute_scale_zp  # here, so that --help need not wait for it

        limits = np.array(scheme.qmin, np.int64), np.array(scheme.qmax, np.int64)
        zero_point, scale = compute_scale_zp(np.float32(low), np.float32(high), *limits, scheme.symmetric)
        return cls(np.float32(scale), int(zero_point), scheme.dtype, scheme.qmin, scheme.qmax)

    @property
    def low(self) -> float:
        """The smallest value that is represented."""
        return float(self.scale) * (self.qmin - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value that is represented."""
        return float(self.scale) * (self.qmax - self.zero_point)


def fake_quantize(values: np.ndarray, params: QuantParams) -> np.ndarray:
    """float32 ``values`` after QuantizeLinear and DequantizeLinear with ``params``; a new array."""
    codes = values / params.scale
    np.rint(codes, out=codes)
    np.clip(codes, params.qmin - params.zero_point, params.qmax - params.zero_point, out=codes)
    codes *= params.scale
    return np.asarray(codes)


def params_of_ranges(lows: np.ndarray, highs: np.ndarray, scheme: QuantScheme) -> tuple[np.ndarray, np.ndarray]:
    """`QuantParams.of_range` for many candidate ranges at once, in float64.

    Args:
        lows, highs: float64 [n].

    Returns:
        Scales and zero points, float64 [n].
    """
    # Zero must be representable: a ReLU output, padding and absent values are exact zeros.
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    if scheme.symmetric:
        highs = np.maximum(-lows, highs)
        lows = -highs
    scales = (highs - lows) / (scheme.levels - 1)
    if scheme.symmetric:
        return scales, np.full(len(scales), np.round((scheme.qmin + scheme.qmax) / 2))
    return scales, np.round(scheme.qmin - lows / scales)
