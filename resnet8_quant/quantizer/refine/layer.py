"""One layer: from a node, its weight and the moments of its input to codes and a bias."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx

from resnet8_quant.config import QuantConfig, RefineConfig, Target
from resnet8_quant.graphs.graph import attributes
from resnet8_quant.quantizer.plan import LayerPlan, QuantizedWeight
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, is_signed
from resnet8_quant.quantizer.refine.im2col import Geometry, Moments, moments
from resnet8_quant.quantizer.refine.scales import QuantizedRows, quantize_rows


def quantize_layer(
    node: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    input_params: QuantParams,
    bit_width: int,
    quant: QuantConfig,
    refinement: RefineConfig,
    inputs: tuple[np.ndarray, np.ndarray] | None,
) -> LayerPlan:
    """Choose a layer's codes and bias.

    Args:
        node: Conv, Gemm or MatMul of the float graph.
        constants: {initializer: its value}.
        input_params: how the layer reads its input.
        bit_width: of the weight.
        quant: type, symmetry and channels of the weight.
        inputs: float32, the layer's input in the quantized and in the float model; None where only the weights decide.
    """
    # The weight as a matrix W, a row for each output channel; the bias as a vector.
    name = node.input[1]
    weight = constants[name]
    axis = _channel_axis(node)
    W = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    bias = None if bias is None else np.broadcast_to(bias.reshape(-1), len(W)).astype(np.float64)
    corrects_bias = refinement.bias and node.op_type != "MatMul"

    # H, and the weights to approximate. A corrected bias absorbs every constant offset of the output, so that H is
    # the covariance of the input; without correction it is the second moment about zero.
    stats: Moments | None = None
    target, hessians = W, [np.eye(W.shape[1])]
    if inputs is not None:
        stats = moments(*inputs, Geometry.of(node, weight, inputs[0].shape))
        if not corrects_bias:
            stats = stats.about_zero()
        hessians = list(stats.covariance)
        if refinement.target is Target.outputs:
            target = _least_squares(W, stats, refinement.damping)

    # The bias is stored in 32 bits and in units of both scales; a scale must not be so small that it overflows. Twice
    # its size leaves room for its correction.
    smallest = None if bias is None else 2 * np.abs(bias) / (2**31 * float(input_params.scale))
    symmetric = is_signed(quant.weight_type) if quant.weight_symmetric is None else quant.weight_symmetric
    scheme = QuantScheme.of_weight(quant.weight_type, symmetric, bit_width)
    rows = quantize_rows(target, hessians, scheme, quant.per_channel, refinement, smallest)
    if stats is not None and corrects_bias:
        bias = _corrected_bias(W, bias, rows, stats)
    quantized = _quantized_weight(name, rows, scheme, weight.shape, axis, quant.per_channel)
    return LayerPlan(node.output[0], node.input[0], input_params, quantized, bias)


def with_bias(node: onnx.NodeProto, plan: LayerPlan) -> LayerPlan:
    """A layer with a bias that ``refine.bias`` might give it: a stand-in of the same size, for the size of a file."""
    if node.op_type == "MatMul":
        return plan
    axis = _channel_axis(node)
    weight = np.moveaxis(plan.weight.dequantized(), axis, 0).astype(np.float64)
    sums = weight.reshape(len(weight), -1).sum(axis=1)  # hardly those of another layer, which would be stored once
    return replace(plan, bias=sums if plan.bias is None else plan.bias + sums)


def _least_squares(W: np.ndarray, stats: Moments, damping: float) -> np.ndarray:
    """The weights that, on the quantized input, come closest to the layer's output on the float input.

    Least squares: W C H^-1 with H = cov(x) and C = cov(x_float, x), as in GPTAQ, arXiv 2504.02692. They undo what the
    quantized layers before this one did to its input, as far as a linear map can.

    Args:
        W: float64 [R, K].
        stats: moments of the input.
        damping: share of the mean diagonal of H that is added to its diagonal.
    """
    target = np.empty_like(W)
    size = len(W) // len(stats.covariance)
    for g, (H, C) in enumerate(zip(stats.covariance, stats.cross, strict=True)):
        # W C H^-1 = W + W (C - H) H^-1: written as a change of W, the damping pulls towards W and not towards zero.
        part = slice(g * size, (g + 1) * size)
        ridge = (damping * float(np.diag(H).mean()) or 1.0) * np.eye(len(H))
        target[part] = W[part] + W[part] @ np.linalg.solve(H + ridge, (C - H).T).T
    return target


def _corrected_bias(W: np.ndarray, bias: np.ndarray | None, rows: QuantizedRows, stats: Moments) -> np.ndarray:
    """The bias that makes each channel's mean output equal to the float model's.

    Bias correction, Nagel et al., arXiv 1906.04721, section 4.2, with the measured means: the shift E[W x_float] -
    E[W_q x] of the output is added to the bias.
    """
    group = np.arange(len(W)) // (len(W) // len(stats.mean))
    float_output = (W * stats.float_mean[group]).sum(axis=1)
    output = (rows.codes * rows.scale[:, None] * stats.mean[group]).sum(axis=1)
    return np.asarray((np.zeros(len(W)) if bias is None else bias) + float_output - output)


def _quantized_weight(
    name: str, rows: QuantizedRows, scheme: QuantScheme, shape: tuple[int, ...], axis: int, per_channel: bool
) -> QuantizedWeight:
    """Rows of codes in the shape of the weight, with scale and zero point for each channel or for all."""
    signed = is_signed(scheme.dtype)
    dtype = np.dtype(scheme.dtype.name if scheme.dtype.bits >= 8 else ("int8" if signed else "uint8"))
    codes = rows.codes + rows.zero_point[:, None]
    codes = np.moveaxis(codes.reshape(-1, *np.delete(shape, axis)), 0, axis).astype(dtype)
    scale, zero_point = rows.scale.astype(np.float32), rows.zero_point.astype(dtype)
    if not per_channel:
        scale, zero_point = scale[0], zero_point[0]
    channels = axis if per_channel else None
    return QuantizedWeight(name, codes, np.asarray(scale), np.asarray(zero_point), channels, scheme.dtype)


def node_of_plan(
    node: onnx.NodeProto, plan: LayerPlan, constants: dict[str, np.ndarray]
) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """The float node with its dequantized weight and the plan's bias: a copy of ``node``, and {input: value}."""
    changed = deepcopy(node)
    values = {plan.weight.name: plan.weight.dequantized()}
    if plan.bias is not None:
        if len(changed.input) < 3:
            changed.input.append(f"{plan.output}.bias")
        elif not changed.input[2]:
            changed.input[2] = f"{plan.output}.bias"
        values[changed.input[2]] = plan.bias.astype(np.float32)
    elif len(changed.input) > 2 and changed.input[2]:
        values[changed.input[2]] = constants[changed.input[2]]
    return changed, values


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that belongs to the output channels."""
    if node.op_type == "Conv":
        return 0
    return 0 if attributes(node).get("transB") else 1
