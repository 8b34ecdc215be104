"""A `Plan` written into the graph of quantize_static: other integers, biases and grids in the same Q/DQ structure.

In: the Q/DQ model that onnxruntime made of a float graph, and a plan for that graph. Out: a new model.

Fewer bits than a byte are written so that ONNX Runtime still finds the pattern of its integer kernels:
- an n-bit activation is QuantizeLinear - Clip - DequantizeLinear, and the Clip works on the integers. It leaves the
  same ones as a Clip of the floats, which would stand between a layer and its QuantizeLinear and keep both float.
- a 2- or 4-bit weight is Cast - DequantizeLinear. The Cast to 8 bits is folded when the model is loaded. Without it
  onnxruntime 1.32 computes with 4-bit weights in float, and rejects a model with 2-bit weights: it makes a QLinearConv
  of them, which does not know the type.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from resnet8_quant.config import DType
from resnet8_quant.quantizer.plan import LayerPlan, Plan, bias_codes
from resnet8_quant.quantizer.quant_params import QuantParams

BIASED = ("Conv", "ConvTranspose", "Gemm")  # their third input
REDEFINED = ("RoiAlign", "Split")  # at opsets 16 and 18, under the attributes that they had
BRIDGES = ("QuantizeLinear", "DequantizeLinear")
LAYERS = (*BIASED, "MatMul")
OUTPUT_SUFFIX = "_QuantizeLinear_Input"  # quantize_static renames a graph's output before it quantizes it
DEFAULT_DOMAIN = ("", "ai.onnx")
OLDEST_OPSET = 13  # a scale for each channel
OPSETS = {DType.int4: 21, DType.uint4: 21, DType.int2: 25, DType.uint2: 25}  # of Cast


def emit(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Write ``plan`` into ``model``, which is not changed.

    Activations that the plan does not name keep their grids, weights that it does not name their integers.

    Raises:
        ValueError: the plan is not one for this graph, or it contradicts itself.
    """
    opset = max([OLDEST_OPSET, *(OPSETS.get(layer.weight.dtype, 0) for layer in plan.layers)])
    draft = _Draft(at_least_opset(model, opset))
    sites = [draft.site(layer) for layer in plan.layers]
    if missing := {layer.input for layer in plan.layers} - plan.tensors.keys():
        raise ValueError(f"layers read {sorted(missing)}, which have no grid in the plan")
    activations = draft.activations(plan.tensors)
    # All that is old goes first, so that what replaces it can have its names.
    for site in sites:
        site.node.input[site.weight] = ""
        if site.node.op_type in BIASED:
            del site.node.input[2:]
    for _, pair in activations:
        for node in pair:
            del node.input[1:]
    draft.prune()
    for name, pair in activations:
        draft.set_grid(name, plan.tensors[name], plan.activation_type, pair)
    for site in sites:
        draft.set_weight(site)
        if site.layer.bias is not None:
            draft.set_bias(site)
    chains: dict[tuple[str, QuantParams], str] = {}
    for site in sites:
        read, grid = site.node.input[site.data], site.layer.input_params
        if grid != plan.tensors[site.layer.input]:
            if (read, grid) not in chains:
                chains[read, grid] = draft.requantized(read, site.layer, plan.activation_type)
            site.node.input[site.data] = chains[read, grid]
    return draft.finish()


def at_least_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """A copy of ``model`` at opset ``wanted`` or its own, whichever is higher, without its value_info.

    Where no operator of the graph changed in between but for types and optional additions, that is a new number;
    otherwise onnx.version_converter rewrites the graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    default = next(entry for entry in copy.opset_import if entry.domain in DEFAULT_DOMAIN)
    if default.version < wanted:
        kinds = {node.op_type for node in copy.graph.node if node.domain in DEFAULT_DOMAIN}
        if not all(_only_extended(kind, default.version, wanted) for kind in kinds):
            return at_least_opset(version_converter.convert_version(copy, wanted), wanted)
        default.version = wanted
    needed = helper.find_min_ir_version_for(copy.opset_import, ignore_unknown=True)
    copy.ir_version = max(copy.ir_version, needed)
    return copy


def _only_extended(kind: str, old: int, new: int) -> bool:
    """Whether a node that is legal at opset ``old`` means the same at ``new``, as far as the two schemas tell."""
    before, after = onnx.defs.get_schema(kind, old), onnx.defs.get_schema(kind, new)
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    known, added = before.attributes, after.attributes.keys() - before.attributes.keys()
    inputs = [value.name for value in before.inputs]
    return before.since_version == after.since_version or (
        not (after.deprecated or kind in REDEFINED)
        and known.keys() <= after.attributes.keys()
        and all(after.attributes[name].default_value == known[name].default_value for name in known)
        and not any(after.attributes[name].required for name in added)
        and [value.name for value in after.inputs][: len(inputs)] == inputs
        and all(value.option != required for value in after.inputs[len(inputs) :])
        and len(before.outputs) == len(after.outputs)
    )


@dataclass(frozen=True)
class _Site:
    """A layer's place in the graph: its node, the positions of data and weight in its inputs, its old bias's name."""

    layer: LayerPlan
    node: NodeProto
    data: int
    weight: int
    bias: str


class _Draft:
    """A graph under change: its old nodes in order, its initializers by name, and what goes before and after a node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.sources = {name: node for node in self.nodes for name in node.output}
        self.before: dict[str, list[NodeProto]] = defaultdict(list)  # {first output of an old node: new ones}
        self.after: dict[str, list[NodeProto]] = defaultdict(list)
        self.taken: set[str] = set()

    def site(self, layer: LayerPlan) -> _Site:
        """Find the only node that reads the weight of ``layer``."""
        name, stored = layer.weight.name, layer.weight.name + TENSOR_NAME_QUANT_SUFFIX
        floats = {
            node.output[0] for node in self.nodes if node.op_type == "DequantizeLinear" and node.input[0] == stored
        }
        users = [(node, i) for node in self.nodes for i, read in enumerate(node.input) if read in floats]
        if len(users) != 1:
            raise ValueError(f"weight {name!r} of layer {layer.output!r} has {len(users)} users, expected one")
        node, position = users[0]
        if node.op_type not in LAYERS or position > 1:
            raise ValueError(f"weight {name!r} is input {position} of a {node.op_type}, expected {', '.join(LAYERS)}")
        if layer.weight.codes.shape != (shape := tuple(self.tensors[stored].dims)):
            raise ValueError(f"weight {name!r} has the shape {layer.weight.codes.shape}, the graph has {shape}")
        bias = str(node.input[2]) if node.op_type in BIASED and len(node.input) > 2 else ""
        if layer.bias is None and bias:
            raise ValueError(f"layer {layer.output!r} has a bias, whose integers depend on the scales: plan it too")
        if layer.bias is not None and node.op_type not in BIASED:
            raise ValueError(f"layer {layer.output!r} is a {node.op_type}, which takes no bias")
        dequantize = self.sources.get(node.input[1 - position])
        quantize = self.sources.get(dequantize.input[0]) if dequantize is not None else None
        if quantize is None or _float_name(quantize) != layer.input:
            raise ValueError(f"layer {layer.output!r} does not read a quantized {layer.input!r}")
        return _Site(layer, node, 1 - position, position, bias)

    def activations(self, grids: dict[str, QuantParams]) -> list[tuple[str, list[NodeProto]]]:
        """(float tensor, its QuantizeLinear and all DequantizeLinears of that) for the tensors in ``grids``."""
        readers = defaultdict(list)
        for node in self.nodes:
            if node.op_type == "DequantizeLinear":
                readers[node.input[0]].append(node)
        sources = [node for node in self.nodes if node.op_type == "QuantizeLinear" and _float_name(node) in grids]
        return [(_float_name(node), [node, *readers[node.output[0]]]) for node in sources]

    def prune(self) -> None:
        """Drop nodes and initializers that nothing reads, and free their names."""
        wanted = {value.name for value in (*self.model.graph.input, *self.model.graph.output)}
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name in wanted}
        self.taken = wanted.union(*(node.output for node in self.nodes))

    def unique(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        candidate, number = name, 1
        while candidate in self.taken:
            candidate, number = f"{name}_{number}", number + 1
        self.taken.add(candidate)
        return candidate

    def store(self, name: str, values: np.ndarray | np.float32) -> str:
        """Add an initializer."""
        name = self.unique(name)
        self.tensors[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def set_grid(self, name: str, grid: QuantParams, kind: DType, pair: list[NodeProto]) -> None:
        """Give a QuantizeLinear and its DequantizeLinears a grid; a Clip where that has fewer bits than its type.

        Not where it has fewer levels but as many bits: onnxruntime's symmetric int8 leaves -128 out of the range that
        a scale is made for, not out of the integers.
        """
        if not grid.qmin <= grid.zero_point <= grid.qmax:
            raise ValueError(f"tensor {name!r} has its zero point {grid.zero_point} outside {grid.qmin}..{grid.qmax}")
        ends = _cast(name, np.array([grid.qmin, grid.qmax]), kind)
        scale = self.store(f"{name}_scale", np.float32(grid.scale))
        zero_point = self.store(f"{name}_zero_point", _cast(name, np.array(grid.zero_point), kind))
        for node in pair:
            node.input.extend([scale, zero_point])
        if grid.bit_width < kind.bits:
            limits = [
                self.store(f"{name}_{end}", value) for end, value in zip(("lowest", "highest"), ends, strict=True)
            ]
            clipped = self.unique(f"{name}_Clip_Output")
            clip = helper.make_node("Clip", [pair[0].output[0], *limits], [clipped], f"{name}_Clip")
            self.after[pair[0].output[0]].append(clip)
            for node in pair[1:]:
                node.input[0] = clipped

    def requantized(self, read: str, layer: LayerPlan, kind: DType) -> str:
        """Quantize and dequantize ``read`` once more, on the grid of a layer; returns the new tensor."""
        name = self.unique(f"{layer.input}_for_{layer.output}")
        integers, floats = (self.unique(f"{name}_{op}_Output") for op in BRIDGES)
        pair = [
            helper.make_node("QuantizeLinear", [read], [integers], f"{name}_QuantizeLinear"),
            helper.make_node("DequantizeLinear", [integers], [floats], f"{name}_DequantizeLinear"),
        ]
        self.set_grid(name, layer.input_params, kind, pair)
        self.after[read] += [pair[0], *self.after.pop(integers, []), pair[1]]
        return floats

    def set_weight(self, site: _Site) -> None:
        """Store a layer's weight."""
        weight = site.layer.weight
        channels = () if weight.axis is None else (weight.codes.shape[weight.axis],)
        if not weight.scale.shape == weight.zero_point.shape == channels:
            raise ValueError(f"weight {weight.name!r}: one scale and zero point for each of {channels} expected")
        container = weight.dtype
        integers = self.store(weight.name + TENSOR_NAME_QUANT_SUFFIX, _cast(weight.name, weight.codes, container))
        if container.bits < 8:
            container = DType["uint8" if container.name.startswith("u") else "int8"]
            wide = self.unique(f"{weight.name}_Cast_Output")
            cast = helper.make_node("Cast", [integers], [wide], f"{weight.name}_Cast", to=_onnx_type(container))
            self.before[site.node.output[0]].append(cast)
            integers = wide
        scale = self.store(f"{weight.name}_scale", weight.scale.astype(np.float32))
        zero_point = self.store(f"{weight.name}_zero_point", _cast(weight.name, weight.zero_point, container))
        output, inputs = f"{weight.name}_DequantizeLinear_Output", [integers, scale, zero_point]
        site.node.input[site.weight] = self._dequantized(inputs, output, weight.name, weight.axis, site)

    def set_bias(self, site: _Site) -> None:
        """Store a layer's bias."""
        layer, bias = site.layer, site.layer.bias
        # An integer kernel takes the float32 product of the two scales for this one, whatever is stored here.
        scale = np.asarray(np.float32(layer.input_params.scale) * layer.weight.scale.astype(np.float32))
        if bias is None or bias.ndim != 1 or scale.shape not in ((), bias.shape):
            raise ValueError(f"layer {layer.output!r}: its bias does not fit the {scale.size} scales of its weight")
        integers = bias_codes(bias, scale).astype(np.int32)
        name = site.bias or f"{layer.output}_bias"
        parts = {"": integers, "_scale": scale, "_zero_point": np.zeros(scale.shape, np.int32)}
        inputs = [self.store(f"{name}{TENSOR_NAME_QUANT_SUFFIX}{part}", values) for part, values in parts.items()]
        site.node.input.append(self._dequantized(inputs, name, name, 0 if scale.ndim else None, site))

    def _dequantized(self, inputs: list[str], output: str, name: str, axis: int | None, site: _Site) -> str:
        output = self.unique(output)
        axes: dict[str, Any] = {} if axis is None else {"axis": axis}
        node = helper.make_node("DequantizeLinear", inputs, [output], self.unique(f"{name}_DequantizeLinear"), **axes)
        self.before[site.node.output[0]].append(node)
        return output

    def finish(self) -> onnx.ModelProto:
        """The model, checked."""
        nodes = [
            new for node in self.nodes for new in (*self.before[node.output[0]], node, *self.after[node.output[0]])
        ]
        del self.model.graph.node[:], self.model.graph.initializer[:]
        self.model.graph.node.extend(nodes)
        self.model.graph.initializer.extend(self.tensors.values())
        onnx.checker.check_model(self.model, full_check=True)
        return self.model


def _float_name(quantize: NodeProto) -> str:
    """What the float graph calls the tensor that a QuantizeLinear reads."""
    return str(quantize.input[0]).removesuffix(OUTPUT_SUFFIX)


def _cast(name: str, values: np.ndarray, kind: DType) -> np.ndarray:
    """``values`` in the dtype that onnx packs as ``kind``."""
    lowest = 0 if kind.name.startswith("u") else -(2 ** (kind.bits - 1))
    highest = lowest + 2**kind.bits - 1
    if values.size and not lowest <= int(values.min()) <= int(values.max()) <= highest:
        raise ValueError(f"{name!r} needs integers from {values.min()} to {values.max()}, which {kind.name} has not")
    return values.astype(helper.tensor_dtype_to_np_dtype(_onnx_type(kind)))


def _onnx_type(kind: DType) -> int:
    return int(getattr(TensorProto, kind.name.upper()))
