"""One layer on its grid: from a node, its weights and what it sees to a `LayerPlan`.

In: a Conv, Gemm or MatMul of the float model, its input in the quantized and in the float model. Out: integers and
bias. With ``refine.target=outputs`` the rounding starts from the weights that bring the layer closest to its float
output on the quantized input (least squares; as in GPTAQ, arXiv 2504.02692); ``refine.bias`` moves the bias by what
is left of the mean (Nagel et al., arXiv 1906.04721, section 4.2).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from resnet8_quant.config import DType, QuantConfig, RefineConfig, Target
from resnet8_quant.quantizer.calibration.grid import Grid
from resnet8_quant.quantizer.plan import IntegerWeight, LayerPlan
from resnet8_quant.quantizer.refine.scales import WeightLevels, round_rows
from resnet8_quant.quantizer.refine.unfold import Geometry, Moments, moments


def plan_layer(
    node: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    input_grid: Grid,
    width: int,
    quant: QuantConfig,
    refinement: RefineConfig,
    quantized: np.ndarray | None,
    floating: np.ndarray | None,
) -> LayerPlan:
    """Choose a layer's integers and bias.

    Args:
        node: of the float graph.
        constants: {initializer: its value}.
        input_grid: what the layer reads its input on.
        width: bits of the weight.
        quant: type, symmetry and channels of the weight.
        refinement: how scales are chosen and weights rounded.
        quantized, floating: float32, the layer's input in the two models; None where only the weights decide.
    """
    name = node.input[1]
    weight = constants[name]
    axis = _channel_axis(node)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    bias = None if bias is None else np.broadcast_to(bias.reshape(-1), len(rows)).astype(np.float64)
    kind = quant.weight_type
    signed = not kind.name.startswith("u")
    symmetric = signed if quant.weight_symmetric is None else quant.weight_symmetric
    found: Moments | None = None
    target, hessians = rows, [np.eye(rows.shape[1])]
    if quantized is not None and floating is not None:
        found = moments(quantized, floating, Geometry.of(node, weight, quantized.shape))
        if not (refinement.bias and node.op_type != "MatMul"):
            found = found.raw()  # no bias makes up for the mean
        hessians = list(found.covariance)
        if refinement.target is Target.outputs:
            target = _compensated(rows, found, refinement.damping)
    levels = WeightLevels.of(width, signed, symmetric)
    # the bias is stored in 32 bits and steps of both scales; twice, for what its correction adds
    smallest = None if bias is None else 2 * np.abs(bias) / (2**31 * float(input_grid.scale))
    rounded = round_rows(target, hessians, levels, quant.per_channel, width, refinement, smallest)
    if found is not None and refinement.bias and node.op_type != "MatMul":
        size = len(rows) // len(hessians)
        group = np.arange(len(rows)) // size
        mean = (rows * found.float_mean[group]).sum(axis=1)
        made = (rounded.steps * rounded.scale[:, None] * found.mean[group]).sum(axis=1)
        bias = (np.zeros(len(rows)) if bias is None else bias) + mean - made
    container = _container(width, signed)
    dtype = np.dtype(container.name if container.bits >= 8 else ("int8" if signed else "uint8"))
    steps = rounded.steps + rounded.zero_point[:, None]
    values = np.moveaxis(steps.reshape(-1, *np.delete(weight.shape, axis)), 0, axis).astype(dtype)
    scale, zero_point = rounded.scale.astype(np.float32), rounded.zero_point.astype(dtype)
    if not quant.per_channel:
        scale, zero_point = scale[0], zero_point[0]
    integers = IntegerWeight(
        name, values, np.asarray(scale), np.asarray(zero_point), axis if quant.per_channel else None, width, container
    )
    return LayerPlan(node.output[0], node.input[0], input_grid, integers, bias)


def _compensated(rows: np.ndarray, found: Moments, damping: float) -> np.ndarray:
    """The weights that, on the quantized input, come closest to the layer's output on the float input."""
    target = np.empty_like(rows)
    groups = len(found.covariance)
    size = len(rows) // groups
    for g, (covariance, cross) in enumerate(zip(found.covariance, found.cross, strict=True)):
        part = slice(g * size, (g + 1) * size)
        ridge = (damping * float(np.diag(covariance).mean()) or 1.0) * np.eye(len(covariance))
        target[part] = rows[part] + rows[part] @ np.linalg.solve(covariance + ridge, (cross - covariance).T).T
    return target


def changed_node(
    node: onnx.NodeProto, plan: LayerPlan, constants: dict[str, np.ndarray]
) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """The node with its quantized weight and bias, and their values."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
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
    transposed = any(a.name == "transB" and helper.get_attribute_value(a) for a in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else 1


def _container(bits: int, signed: bool) -> DType:
    """The narrowest ONNX type that holds so many bits."""
    width = next(width for width in (2, 4, 8, 16) if bits <= width)
    return DType[f"{'' if signed else 'u'}int{width}"]
