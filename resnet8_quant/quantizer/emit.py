"""A `Plan` written into the graph of quantize_static: other codes, biases and scales in the same Q/DQ structure.

In: the Q/DQ model that onnxruntime made of a float graph, and a plan for that graph. Out: a new model.

Fewer bits than a byte are written so that ONNX Runtime still finds the pattern of its integer kernels:
- an n-bit activation is QuantizeLinear - Clip - DequantizeLinear, and the Clip works on the integers. It leaves the
  same ones as a Clip of the floats, which would stand between a layer and its QuantizeLinear and keep both float.
- a 2- or 4-bit weight is Cast - DequantizeLinear. The Cast to 8 bits is folded when the model is loaded. Without it
  onnxruntime 1.32 computes with 4-bit weights in float, and rejects a model with 2-bit weights: it makes a QLinearConv
  of them, which does not know the type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from resnet8_quant.config import DType
from resnet8_quant.graphs.graph import Graph, at_least_opset, input_name
from resnet8_quant.quantizer.plan import LayerPlan, Plan, bias_codes
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, is_signed

BIASED = ("Conv", "ConvTranspose", "Gemm")  # their third input
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
OUTPUT_SUFFIX = "_QuantizeLinear_Input"  # quantize_static renames a graph's output before it quantizes it
OLDEST_OPSET = 13  # a scale for each channel
OPSETS = {DType.int4: 21, DType.uint4: 21, DType.int2: 25, DType.uint2: 25}  # of Cast


def emit(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Write ``plan`` into ``model``, which is not changed.

    Activations that the plan does not name keep their parameters, weights that it does not name their codes.

    Raises:
        ValueError: the plan is not one for this graph, or needs integers that its types do not have.
    """
    opset = max([OLDEST_OPSET, *(OPSETS.get(layer.weight.dtype, 0) for layer in plan.layers)])
    graph = Graph(at_least_opset(model, opset))
    sites = [_find_site(graph, layer) for layer in plan.layers]
    activations = []  # (float tensor, its QuantizeLinear and all DequantizeLinears of that)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and float_name(node) in plan.tensors:
            readers = [reader for reader in graph.consumers(node.output[0]) if reader.op_type == "DequantizeLinear"]
            activations.append((float_name(node), [node, *readers]))

    # All that is old goes first, so that what replaces it can have its names.
    for site in sites:
        site.node.input[site.weight] = ""
        if site.node.op_type in BIASED:
            del site.node.input[2:]
    for _, pair in activations:
        for node in pair:
            del node.input[1:]
    graph.prune()

    for name, pair in activations:
        clip = _set_params(graph, name, plan.tensors[name], plan.activation_type, pair)
        graph.insert_after(pair[0], *clip)
    for site in sites:
        _set_weight(graph, site)
        if site.layer.bias is not None:
            _set_bias(graph, site, site.layer.bias)

    # A layer may read its input with other parameters than it is stored with: it gets a Q/DQ pair of its own.
    chains: dict[tuple[str, QuantParams], str] = {}  # (tensor, params) -> the requantized tensor, which layers share
    last: dict[str, NodeProto] = {}  # tensor -> the last node of its chains
    for site in sites:
        read, params = site.node.input[site.data], site.layer.input_params
        if params != plan.tensors[site.layer.input]:
            if (read, params) not in chains:
                nodes = _requantize(graph, read, site.layer, plan.activation_type)
                place = last.get(read) or graph.producer(read)
                assert place is not None  # the tensor's DequantizeLinear
                graph.insert_after(place, *nodes)
                last[read], chains[read, params] = nodes[-1], nodes[-1].output[0]
            site.node.input[site.data] = chains[read, params]
    emitted = graph.finish()
    onnx.checker.check_model(emitted, full_check=True)
    return emitted


def quantized_tensors(model: onnx.ModelProto) -> set[str]:
    """Activations of the float graph that a Q/DQ model stores as integers."""
    return {float_name(node) for node in model.graph.node if node.op_type == "QuantizeLinear"}


@dataclass(frozen=True)
class _Site:
    """A layer's place in the graph: its node, the positions of data and weight in its inputs, its old bias's name."""

    layer: LayerPlan
    node: NodeProto
    data: int
    weight: int
    bias: str


def _find_site(graph: Graph, layer: LayerPlan) -> _Site:
    """Find the only node that reads the weight of ``layer``."""
    name, stored = layer.weight.name, layer.weight.name + TENSOR_NAME_QUANT_SUFFIX
    dequantized = {node.output[0] for node in graph.consumers(stored) if node.op_type == "DequantizeLinear"}
    users = [(node, i) for node in graph.nodes for i, read in enumerate(node.input) if read in dequantized]
    if len(users) != 1:
        raise ValueError(f"weight {name!r} of layer {layer.output!r} has {len(users)} users, expected one")
    node, position = users[0]
    if layer.weight.codes.shape != (shape := tuple(graph.initializers[stored].dims)):
        raise ValueError(f"weight {name!r} has the shape {layer.weight.codes.shape}, the graph has {shape}")
    dequantize = graph.producer(node.input[1 - position])
    quantize = graph.producer(dequantize.input[0]) if dequantize is not None else None
    if quantize is None or float_name(quantize) != layer.input:
        raise ValueError(f"layer {layer.output!r} does not read a quantized {layer.input!r}")
    return _Site(layer, node, 1 - position, position, input_name(node, 2) if node.op_type in BIASED else "")


def _set_params(graph: Graph, name: str, params: QuantParams, dtype: DType, pair: list[NodeProto]) -> list[NodeProto]:
    """Give a QuantizeLinear and its DequantizeLinears their parameters.

    Returns:
        The Clip that goes behind the QuantizeLinear where the codes have fewer bits than their type; else nothing.
        Fewer levels with as many bits need none: onnxruntime's symmetric int8 leaves -128 out of the range that a
        scale is made for, not out of the integers.
    """
    limits = _cast(name, np.array([params.qmin, params.qmax]), dtype)
    scale = graph.add_initializer(f"{name}_scale", np.float32(params.scale))
    zero_point = graph.add_initializer(f"{name}_zero_point", _cast(name, np.array(params.zero_point), dtype))
    for node in pair:
        node.input.extend([scale, zero_point])
    if params.bit_width >= dtype.bits:
        return []
    lowest = graph.add_initializer(f"{name}_lowest", limits[0])
    highest = graph.add_initializer(f"{name}_highest", limits[1])
    clipped = graph.unique_name(f"{name}_Clip_Output")
    for node in pair[1:]:
        node.input[0] = clipped
    return [helper.make_node("Clip", [pair[0].output[0], lowest, highest], [clipped], f"{name}_Clip")]


def _requantize(graph: Graph, read: str, layer: LayerPlan, dtype: DType) -> list[NodeProto]:
    """Nodes that quantize and dequantize ``read`` again, as a layer reads it; the last makes the new tensor."""
    name = graph.unique_name(f"{layer.input}_for_{layer.output}")
    integers, floats = (graph.unique_name(f"{name}_{op_type}_Output") for op_type in QUANTIZERS)
    pair = [
        helper.make_node("QuantizeLinear", [read], [integers], f"{name}_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [integers], [floats], f"{name}_DequantizeLinear"),
    ]
    clip = _set_params(graph, name, layer.input_params, dtype, pair)
    return [pair[0], *clip, pair[1]]


def _set_weight(graph: Graph, site: _Site) -> None:
    """Store a layer's weight."""
    weight = site.layer.weight
    container = weight.dtype
    values = _cast(weight.name, weight.codes, container)
    integers = graph.add_initializer(weight.name + TENSOR_NAME_QUANT_SUFFIX, values)
    if container.bits < 8:
        container = DType.int8 if is_signed(container) else DType.uint8
        wide = graph.unique_name(f"{weight.name}_Cast_Output")
        cast = helper.make_node("Cast", [integers], [wide], f"{weight.name}_Cast", to=_onnx_type(container))
        graph.insert_before(site.node, cast)
        integers = wide
    scale = graph.add_initializer(f"{weight.name}_scale", weight.scale.astype(np.float32))
    zero_point = graph.add_initializer(f"{weight.name}_zero_point", _cast(weight.name, weight.zero_point, container))
    output, inputs = f"{weight.name}_DequantizeLinear_Output", [integers, scale, zero_point]
    site.node.input[site.weight] = _dequantize(graph, inputs, output, weight.name, weight.axis, site)


def _set_bias(graph: Graph, site: _Site, bias: np.ndarray) -> None:
    """Store a layer's bias."""
    layer = site.layer
    # An integer kernel takes the float32 product of the two scales for this one, whatever is stored here.
    scale = np.asarray(np.float32(layer.input_params.scale) * layer.weight.scale.astype(np.float32))
    integers = bias_codes(bias, scale).astype(np.int32)
    name = site.bias or f"{layer.output}_bias"
    parts = {"": integers, "_scale": scale, "_zero_point": np.zeros(scale.shape, np.int32)}
    inputs = [
        graph.add_initializer(f"{name}{TENSOR_NAME_QUANT_SUFFIX}{part}", values) for part, values in parts.items()
    ]
    site.node.input.append(_dequantize(graph, inputs, name, name, 0 if scale.ndim else None, site))


def _dequantize(graph: Graph, inputs: list[str], output: str, name: str, axis: int | None, site: _Site) -> str:
    """Insert a DequantizeLinear before the layer of ``site``; returns its output."""
    output = graph.unique_name(output)
    axes: dict[str, Any] = {} if axis is None else {"axis": axis}
    node = helper.make_node("DequantizeLinear", inputs, [output], graph.unique_name(f"{name}_DequantizeLinear"), **axes)
    graph.insert_before(site.node, node)
    return output


def float_name(quantize: NodeProto) -> str:
    """What the float graph calls the tensor that a QuantizeLinear reads."""
    return str(quantize.input[0]).removesuffix(OUTPUT_SUFFIX)


def _cast(name: str, values: np.ndarray, dtype: DType) -> np.ndarray:
    """``values`` in the dtype that onnx packs as ``dtype``."""
    limits = QuantScheme.of_activation(dtype, symmetric=False)
    if values.size and not limits.qmin <= int(values.min()) <= int(values.max()) <= limits.qmax:
        raise ValueError(f"{name!r} needs integers from {values.min()} to {values.max()}, which {dtype.name} has not")
    return values.astype(helper.tensor_dtype_to_np_dtype(_onnx_type(dtype)))


def _onnx_type(dtype: DType) -> int:
    return int(getattr(TensorProto, dtype.name.upper()))
