"""TensorFlow Lite's integer arithmetic in NumPy, bit for bit that of the reference kernels, which also the Micro has.

In: a `TfliteModel` and int8 inputs. Out: int8 outputs, or every tensor. Each function names the kernel that it follows,
in tensorflow/lite/kernels/internal/reference (R) or tensorflow/lite/micro/kernels (M).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel

Array = Any  # np.ndarray, whose element types NumPy's stubs cannot follow through this arithmetic
INT32_MAX, INT16_MAX = 2**31 - 1, 2**15 - 1
ADD_SHIFT = 20  # M/add_common.cc


def quantize_multiplier(value: float) -> tuple[int, int]:
    """A positive real as ``multiplier * 2 ** (shift - 31)``, the multiplier in [2^30, 2^31).

    kernels/internal/quantization_util.cc, QuantizeMultiplier.
    """
    if value == 0:
        return 0, 0
    fraction, shift = math.frexp(value)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def rounding_doubling_high_mul(a: Array, b: Array | int) -> Array:
    """High 32 bits of twice the product, to nearest (gemmlowp, SaturatingRoundingDoublingHighMul).

    C++ adds another nudge to a negative product and divides towards zero; a shift, which rounds down, is the same.
    """
    return (a.astype(np.int64) * b + (1 << 30)) >> 31


def rounding_divide_by_pot(x: Array, exponent: Array | int) -> Array:
    """``x / 2 ** exponent``, rounded half away from zero (gemmlowp, RoundingDivideByPOT)."""
    exponent = np.asarray(exponent, np.int64)
    half = (np.int64(1) << exponent) >> 1
    return (x + half + np.where(exponent > 0, x >> 63, 0)) >> exponent


def multiply_by_quantized_multiplier(x: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """``x * multiplier * 2 ** (shift - 31)`` with two roundings (R/common.h, MultiplyByQuantizedMultiplier)."""
    left, right = np.maximum(shift, 0), np.maximum(-np.asarray(shift), 0)
    return rounding_divide_by_pot(rounding_doubling_high_mul(x.astype(np.int64) << left, multiplier), right)


def run(model: TfliteModel, inputs: Array, every: bool = False) -> Array | dict[int, Array]:
    """Compute a model.

    Args:
        model: of the operators in ``KERNELS``.
        inputs: int8 [N, ...], as the input tensor wants them, for any N.
        every: also the tensors in between.

    Returns:
        int8 [N, ...]; with ``every``: tensor index -> values.
    """
    values: dict[int, Array] = {model.input: inputs}
    for operator in model.operators:
        tensors = [model.tensors[i] if i >= 0 else None for i in operator.inputs]
        arrays = [
            None if tensor is None else values[i] if tensor.data is None else tensor.data
            for i, tensor in zip(operator.inputs, tensors, strict=True)
        ]
        output = model.tensors[operator.outputs[0]]
        values[operator.outputs[0]] = KERNELS[operator.kind](operator, tensors, arrays, output)
    return values if every else values[model.output]


def activation_limits(operator: Operator, output: Tensor) -> tuple[int, int]:
    """The clamp of a fused activation (kernels/kernel_util.cc, CalculateActivationRangeQuantized)."""
    kind = operator.kind if operator.kind in ("RELU", "RELU6") else operator.options.get("activation", "NONE")
    low, high = -128, 127
    if kind in ("RELU", "RELU6"):
        low = max(low, output.zero_point)
    if kind == "RELU6":
        high = min(high, output.zero_point + _round(6.0 / _scale(output)))
    return low, high


def _round(value: float) -> int:
    """C's round: half away from zero."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def _scale(tensor: Tensor) -> float:
    assert tensor.scale is not None
    return float(tensor.scale[0])


def _clamp(x: Array, operator: Operator, output: Tensor) -> Array:
    return np.clip(x + output.zero_point, *activation_limits(operator, output)).astype(np.int8)


def product_scale(first: Tensor, second: Tensor, output: Tensor) -> tuple[int, int]:
    """Of a product of two tensors with one scale each, whose product is rounded to float32 first."""
    assert first.scale is not None
    assert second.scale is not None
    return quantize_multiplier(float(first.scale[0] * second.scale[0]) / _scale(output))


def channel_scales(source: Tensor, weights: Tensor, output: Tensor) -> tuple[Array, Array]:
    """Per output channel (kernels/kernel_util.cc, PopulateConvolutionQuantizationParams)."""
    assert weights.scale is not None
    pairs = [quantize_multiplier(_scale(source) * float(w) / _scale(output)) for w in weights.scale]
    multiplier, shift = np.array(pairs, np.int64).T
    return multiplier, shift


def padding(size: int, kernel: int, stride: int, mode: str) -> tuple[int, int]:
    """Zeros before and after (kernels/padding.h)."""
    if mode == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _windows(x: Array, kernel: tuple[int, int], operator: Operator, fill: int) -> Array:
    """[N,H,W,C] -> every window, [N,OH,OW,C,KH,KW]."""
    strides: Any = operator.options["strides"]
    mode = str(operator.options["padding"])
    pads = [padding(x.shape[1 + i], kernel[i], strides[i], mode) for i in (0, 1)]
    padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))[:, :: strides[0], :: strides[1]]


def _conv(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/conv.h, ConvPerChannel: zero points out, 32-bit sums, bias, one multiplier for each channel."""
    source, weights, _ = tensors
    x, w, bias = arrays
    # Floats hold these sums exactly, float32 as long as they stay below 2^24 in whatever order BLAS adds.
    largest = 255 * np.abs(w.astype(np.int64)).sum((1, 2, 3)).max()
    dtype = np.float32 if largest < 2**24 else np.float64
    patches = _windows(x.astype(dtype) - dtype(source.zero_point), w.shape[1:3], operator, 0)
    n, height, width, channels = patches.shape[:4]
    groups = channels // w.shape[3]
    parts = []
    for group, kernels in enumerate(np.split(w, groups)):
        columns = patches[:, :, :, group * w.shape[3] : (group + 1) * w.shape[3]].reshape(n * height * width, -1)
        parts.append(columns @ kernels.transpose(3, 1, 2, 0).reshape(-1, len(kernels)).astype(dtype))
    sums = np.concatenate(parts, 1).astype(np.int64).reshape(n, height, width, -1)
    if bias is not None:
        sums = sums + bias
    return _clamp(multiply_by_quantized_multiplier(sums, *channel_scales(source, weights, output)), operator, output)


def _depthwise(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/depthwise_conv.h, DepthwiseConvPerChannel."""
    source, weights, _ = tensors
    x, w, bias = arrays
    patches = _windows(x.astype(np.int32) - source.zero_point, w.shape[1:3], operator, 0)
    multiplier: Any = operator.options.get("depth_multiplier", 1)
    kernel = w[0].reshape(*w.shape[1:3], patches.shape[3], multiplier).astype(np.int64)
    sums = np.einsum("nhwcij,ijcm->nhwcm", patches.astype(np.int64), kernel).reshape(*patches.shape[:3], -1)
    if bias is not None:
        sums = sums + bias
    return _clamp(multiply_by_quantized_multiplier(sums, *channel_scales(source, weights, output)), operator, output)


def _fully_connected(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/fully_connected.h; with one scale the product of the scales is rounded to float32 first
    (kernels/kernel_util.cc, GetQuantizedConvolutionMultipler)."""
    source, weights, _ = tensors
    x, w, bias = arrays
    sums = (x.reshape(-1, w.shape[1]).astype(np.int64) - source.zero_point) @ w.T.astype(np.int64)
    if bias is not None:
        sums = sums + bias
    if len(weights.scale) == 1:
        return _clamp(multiply_by_quantized_multiplier(sums, *product_scale(source, weights, output)), operator, output)
    return _clamp(multiply_by_quantized_multiplier(sums, *channel_scales(source, weights, output)), operator, output)


def add_scales(tensors: list[Tensor], output: Tensor) -> list[tuple[int, int]]:
    """Multiplier and shift of each input and of the sum (M/add_common.cc)."""
    twice = 2 * max(_scale(tensor) for tensor in tensors)
    reals = [_scale(tensor) / twice for tensor in tensors] + [twice / ((1 << ADD_SHIFT) * _scale(output))]
    return [quantize_multiplier(real) for real in reals]


def _add(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/add.h: both inputs on a common scale with 20 bits more, then the output's."""
    *scales, last = add_scales(tensors, output)
    total: Any = 0
    for tensor, array, scale in zip(tensors, arrays, scales, strict=True):
        shifted = (array.astype(np.int64) - tensor.zero_point) << ADD_SHIFT
        total = total + multiply_by_quantized_multiplier(shifted, *scale)
    return _clamp(multiply_by_quantized_multiplier(total, *last), operator, output)


def _mul(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/mul.h; the product of the input scales is rounded to float32 first (M/mul_common.cc)."""
    first, second = (array.astype(np.int64) - tensor.zero_point for array, tensor in zip(arrays, tensors, strict=True))
    return _clamp(
        multiply_by_quantized_multiplier(first * second, *product_scale(tensors[0], tensors[1], output)),
        operator,
        output,
    )


def _average_pool(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/pooling.h, AveragePool: the codes' mean over the window's pixels that are inside the image."""
    kernel: Any = operator.options["filter"]
    patches = _windows(arrays[0].astype(np.int64), kernel, operator, 0)
    inside = _windows(np.ones_like(arrays[0][:1], np.int64), kernel, operator, 0).sum((-1, -2))
    total = patches.sum((-1, -2))
    rounded = (np.abs(total) + inside // 2) // inside
    mean = np.where(total > 0, rounded, -rounded)
    return np.clip(mean, *activation_limits(operator, output)).astype(np.int8)


def _max_pool(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/pooling.h, MaxPool."""
    kernel: Any = operator.options["filter"]
    largest = _windows(arrays[0], kernel, operator, -128).max((-1, -2))
    return np.clip(largest, *activation_limits(operator, output)).astype(np.int8)


def mean_scale(source: Tensor, output: Tensor, count: int) -> tuple[int, int]:
    """Multiplier and shift of a mean over ``count`` values (R/reduce.h, QuantizedMeanOrSum).

    The count is divided into the multiplier, which first gets as many bits more as the count has.
    """
    multiplier, shift = quantize_multiplier(_scale(source) / _scale(output))
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << bits) // count, shift - bits


def _mean(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/reduce.h, QuantizedMeanOrSum."""
    axes: Any = tuple(arrays[1])
    x = arrays[0].astype(np.int64) - tensors[0].zero_point
    count = int(np.prod([x.shape[axis] for axis in axes]))
    total = x.sum(axes, keepdims=bool(operator.options["keep_dims"]))
    return _clamp(multiply_by_quantized_multiplier(total, *mean_scale(tensors[0], output, count)), operator, output)


def _reshape(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """The values stay."""
    return np.asarray(arrays[0]).reshape(len(arrays[0]), *output.shape[1:])


def _pad(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """M/pad.cc: with the zero point."""
    return np.pad(arrays[0], [tuple(pair) for pair in arrays[1]], constant_values=output.zero_point)


def relu_scale(source: Tensor, output: Tensor) -> tuple[int, int]:
    """Multiplier and shift of a RELU (M/activations_common.cc, CalculateReluOpData): the quotient is a float32."""
    assert source.scale is not None
    assert output.scale is not None
    return quantize_multiplier(float(source.scale[0] / output.scale[0]))


def _relu(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """M/activations_common.cc, ReluQuantized: from one scale to another, at least 0."""
    x = arrays[0].astype(np.int64) - tensors[0].zero_point
    return _clamp(multiply_by_quantized_multiplier(x, *relu_scale(tensors[0], output)), operator, output)


def _relu6(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """M/activations_common.cc, Relu6Quantized: 0 to 6 on the input's scale, which the output keeps."""
    return np.clip(arrays[0], *activation_limits(operator, output)).astype(np.int8)


def requantize_scale(source: Tensor, output: Tensor) -> tuple[int, int]:
    """Multiplier and shift from one scale to another."""
    return quantize_multiplier(_scale(source) / _scale(output))


def _quantize(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/quantize.h, AffineQuantize, from float32; R/requantize.h from uint8 or from int8 on another scale."""
    source = tensors[0]
    if source.dtype == "float32":
        scaled = arrays[0] / np.float32(_scale(output))
        rounded = np.where(scaled >= 0, np.floor(scaled + 0.5), np.ceil(scaled - 0.5))
        return np.clip(rounded + output.zero_point, -128, 127).astype(np.int8)
    x = arrays[0].astype(np.int64) - source.zero_point
    return _clamp(multiply_by_quantized_multiplier(x, *requantize_scale(source, output)), operator, output)


def _dequantize(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/dequantize.h: in double, stored as float32."""
    return (_scale(tensors[0]) * (arrays[0].astype(np.int64) - tensors[0].zero_point)).astype(np.float32)


def _concatenation(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/concatenation.h: all on one scale."""
    axis: Any = operator.options["axis"]
    return np.concatenate(arrays, axis)


# HARD_SWISH in 16 bits (R/hard_swish.h)


def hard_swish_scales(source: Tensor, output: Tensor) -> tuple[int, int, int, int]:
    """16-bit multiplier and exponent to the output's scale, and those to a scale where 3 is 2^15
    (M/hard_swish_common.cc)."""
    assert source.scale is not None
    assert output.scale is not None
    fine = np.float32(1 / 128) * source.scale[0]
    pairs = [quantize_multiplier(float(fine / other)) for other in (output.scale[0], np.float32(3 / 32768))]
    (first, to_output), (second, to_relu) = pairs
    return _as_16_bits(first), to_output, _as_16_bits(second), to_relu


def _as_16_bits(multiplier: int) -> int:
    return min((multiplier + (1 << 15)) >> 16, INT16_MAX)


def _high_mul_16(a: Array, b: Array | int, rounds: bool) -> Array:
    """High 16 bits of twice the product, rounded half away from zero, or towards zero."""
    product = a * b
    nudged = product + (np.where(product >= 0, 1 << 14, 1 - (1 << 14)) if rounds else 0)
    return np.minimum(np.where(nudged >= 0, nudged >> 15, -((-nudged) >> 15)), INT16_MAX)


def _shift_16(x: Array, bits: int) -> Array:
    return np.clip(x << bits, -INT16_MAX - 1, INT16_MAX)


def _hard_swish(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """x * relu6(x + 3) / 6: the first factor on the output's scale, the second one between 0 and 2^15."""
    to_output, output_exponent, to_relu, relu_exponent = hard_swish_scales(tensors[0], output)
    fine = (arrays[0].astype(np.int64) - tensors[0].zero_point) << 7
    value = _high_mul_16(fine, to_output, rounds=True)
    gate = fine if relu_exponent <= 0 else _shift_16(fine, relu_exponent - 1)
    gate = _high_mul_16(gate, to_relu, rounds=True)
    gate = _shift_16(gate, 1) if relu_exponent > 0 else rounding_divide_by_pot(gate, -relu_exponent)
    gate = (gate + (1 << 15)) >> 1
    product = _high_mul_16(gate, value, rounds=False)
    return _clamp(rounding_divide_by_pot(product, -output_exponent), operator, output)


# SOFTMAX and LOGISTIC in fixed point (R/softmax.h, R/integer_ops/logistic.h, with gemmlowp's fixedpoint.h). Differences
# to the largest logit have 5 integer bits, inputs of LOGISTIC 4, sums of exponentials 12.
DIFFERENCE_BITS, LOGISTIC_BITS, SUM_BITS = 5, 4, 12


def _exp_on_negative(x: Array, integer_bits: int) -> Array:
    """exp of int32 with so many integer bits, x <= 0; result with 0 integer bits (gemmlowp, exp_on_negative_values)."""
    fraction_bits = 31 - integer_bits
    quarter = np.int64(1 << (fraction_bits - 2))
    masked = (x & (quarter - 1)) - quarter
    # exp on [-1/4, 0): a Taylor polynomial around -1/8, of inputs with 0 integer bits
    a = masked << integer_bits
    term = 1895147668  # exp(-1/8)
    third = 715827883  # 1/3
    y = a + (1 << 28)
    y2 = rounding_doubling_high_mul(y, y)
    y3 = rounding_doubling_high_mul(y2, y)
    y4 = rounding_doubling_high_mul(y2, y2)
    y4_over_4 = rounding_divide_by_pot(y4, 2)
    inner = rounding_divide_by_pot(rounding_doubling_high_mul(y4_over_4 + y3, third) + y2, 1)
    result = term + rounding_doubling_high_mul(y + inner, term)
    remainder = masked - x
    # Each bit of the whole quarters multiplies by its own exp(-2^e), e from -2 to the highest integer bit.
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for exponent, factor in zip(range(-2, integer_bits), factors, strict=False):
        bit = np.int64(1) << (fraction_bits + exponent)
        result = np.where(remainder & bit, rounding_doubling_high_mul(result, factor), result)
    return np.where(x == 0, INT32_MAX, result)


def _one_over_one_plus(x: Array) -> Array:
    """1 / (1 + x) for x in [0, 1) without integer bits (gemmlowp, one_over_one_plus_x_for_x_in_0_1)."""
    total = x.astype(np.int64) + INT32_MAX
    half = np.where(total >= 0, total + 1, total - 1) // 2  # RoundingHalfSum
    # 48/17 - 32/17 * half, with 2 integer bits
    y = 1515870810 + rounding_doubling_high_mul(half, -1010580540)
    for _ in range(3):
        product = rounding_doubling_high_mul(half, y)
        y = y + _saturating_shift(rounding_doubling_high_mul(y, (1 << 29) - product), 2)
    return _saturating_shift(y, 1)


def _saturating_shift(x: Array, bits: int) -> Array:
    return np.clip(x << bits, -(2**31), INT32_MAX)


def logistic_scale(source: Tensor) -> tuple[int, int, int]:
    """Multiplier and shift of an input, and the distance from 0 at which the result is 0 or 1
    (M/logistic_common.cc)."""
    multiplier, shift = quantize_multiplier(_scale(source) * (1 << (31 - LOGISTIC_BITS)))
    return multiplier, shift, _radius(LOGISTIC_BITS, shift)


def _radius(integer_bits: int, shift: int) -> int:
    """Largest input that has no more than so many integer bits (kernels/internal/quantization_util.cc,
    CalculateInputRadius)."""
    return math.floor(((1 << integer_bits) - 1) * float(1 << (31 - integer_bits)) / 2.0**shift)


def _logistic(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/integer_ops/logistic.h: 1 / (1 + exp(-|x|)), mirrored for x < 0; output scale 1/256 and zero point -128."""
    multiplier, shift, radius = logistic_scale(tensors[0])
    x = arrays[0].astype(np.int64) - tensors[0].zero_point
    inside = np.abs(x) < radius
    scaled = multiply_by_quantized_multiplier(np.where(inside, x, 0), multiplier, shift)
    positive = _one_over_one_plus(_exp_on_negative(-np.abs(scaled), LOGISTIC_BITS))
    result = np.where(scaled > 0, positive, np.where(scaled < 0, INT32_MAX - positive, 1 << 30))
    codes = np.clip(rounding_divide_by_pot(result, 31 - 8) - 128, -128, 127)
    return np.where(inside, codes, np.where(x > 0, 127, -128)).astype(np.int8)


def softmax_scale(source: Tensor, beta: float) -> tuple[int, int, int]:
    """Multiplier and shift of a difference of logits, and the smallest difference that counts
    (kernels/internal/quantization_util.cc, PreprocessSoftmaxScaling)."""
    real = min(beta * _scale(source) * (1 << (31 - DIFFERENCE_BITS)), float(INT32_MAX))
    multiplier, shift = quantize_multiplier(real)
    return multiplier, shift, -_radius(DIFFERENCE_BITS, shift)


def _softmax(operator: Operator, tensors: list[Any], arrays: list[Any], output: Tensor) -> Array:
    """R/softmax.h, Softmax for int8: on the last axis, output scale 1/256 and zero point -128."""
    multiplier, shift, smallest = softmax_scale(tensors[0], float(operator.options.get("beta", 1.0)))  # type: ignore[arg-type]
    x = arrays[0].astype(np.int64)
    difference = x - x.max(-1, keepdims=True)
    counted = difference >= smallest
    exponential = _exp_on_negative(
        multiply_by_quantized_multiplier(np.where(counted, difference, 0), multiplier, shift), DIFFERENCE_BITS
    )
    exponential = np.where(counted, exponential, 0)
    total = rounding_divide_by_pot(exponential, SUM_BITS).sum(-1, keepdims=True)

    # GetReciprocal: 1 / total as a number below 1 and a power of two
    leading = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    over_one = SUM_BITS - leading
    shifted = (total << leading) - (1 << 31)
    scale = _one_over_one_plus(shifted)
    product = rounding_doubling_high_mul(exponential, scale)
    unsigned = rounding_divide_by_pot(product, over_one + 31 - 8)
    result = np.clip(unsigned - 128, -128, 127)
    return np.where(counted, result, -128).astype(np.int8)


KERNELS: dict[str, Callable[[Operator, list[Any], list[Any], Tensor], Array]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _hard_swish,
    "LOGISTIC": _logistic,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "MUL": _mul,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu6,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
}
