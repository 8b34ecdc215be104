"""What was really quantized, read back from the produced graph.

In: an ONNX model. Out: `GraphContents`: the number types found and how many operators are quantized. The row of a run
says what this module found, not what was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
INTEGER_WEIGHT_INPUT = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3}
INTEGER_OUTPUT_ZERO_POINT = {"QLinearConv": 7, "QGemm": 8, "QLinearMatMul": 7}
# A float weight or operand leaves these float; of the others only the first input counts, not shapes and scales.
ALL_INPUTS_DECIDE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat")
BRIDGES = ("QuantizeLinear", "DequantizeLinear")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_DATA_ZERO_POINT = 2  # of QLinearConv, QGemm and QLinearMatMul alike


@dataclass(frozen=True)
class LayerContents:
    """A convolution or matrix product with integer weights.

    Attributes:
        output: what it computes; onnxruntime names it after the Relu that it folds into the layer.
        op_type: "Conv", "QLinearConv", ...
        weight_type: as stored, for example "int4".
        weight_bits: that the stored integers need, but more than half the type's: 5 to 8 in int8, 3 or 4 in int4.
        activation_type: of its input; "float32" where that is not quantized.
        activation_bits: for the levels that can occur; fewer than the type's where a Clip leaves fewer.
        per_channel: whether the weight has a scale per channel.
    """

    output: str
    op_type: str
    weight_type: str
    weight_bits: int
    activation_type: str
    activation_bits: int
    per_channel: bool


@dataclass(frozen=True)
class GraphContents:
    """Quantization as it stands in a graph.

    Attributes:
        activation_type: for example "int8"; several joined by "+"; "float32" where nothing is quantized.
        weight_type: likewise.
        per_channel: whether any weight has a scale per channel.
        quantized_ops: operators whose data inputs are all quantized.
        float_ops: the others. Not counted at all: QuantizeLinear, DequantizeLinear, and what emit writes between them
            for integers of fewer bits, which are a Clip of an activation and a Cast of a weight.
        operators: {"Conv": [quantized, float], ...}.
        weight_payload_bytes: of all initializers as stored, without names and graph.
        layers: with integer weights, in the order of the graph.
    """

    activation_type: str
    weight_type: str
    per_channel: bool
    quantized_ops: int
    float_ops: int
    operators: dict[str, list[int]]
    weight_payload_bytes: int
    layers: tuple[LayerContents, ...]


def read_contents(model: onnx.ModelProto) -> GraphContents:
    """Walk the graph once, in its topological order."""
    graph = _Graph(model)
    weights, type_of = graph.weights, graph.type_of
    bytes_in = (TensorProto.INT8, TensorProto.UINT8)
    quantized_tensors = {value.name for value in model.graph.input if value.type.tensor_type.elem_type in bytes_in}
    activation_types: set[str] = set()
    weight_types: set[str] = set()
    per_channel = False
    counts: dict[str, Counter[bool]] = {}

    for node in model.graph.node:
        inputs, kind = list(node.input), node.op_type
        if kind in BRIDGES:
            source = graph.stored(inputs[0])
            if kind == "DequantizeLinear" and source:
                if weights[source].data_type != TensorProto.INT32:  # int32 is a bias
                    weight_types.add(type_of(source))
                    per_channel |= prod(weights[inputs[1]].dims) > 1
            elif kind == "QuantizeLinear":
                activation_types.add(graph.quantized_type(node))
            quantized_tensors.update(node.output)
            continue
        if graph.is_part_of_a_bridge(node) or (kind == "Cast" and inputs[0] in quantized_tensors):
            continue
        bias = BIAS_INPUT.get(kind)
        data = [name for i, name in enumerate(inputs) if name and i != bias]
        if kind in INTEGER_WEIGHT_INPUT:
            position = INTEGER_WEIGHT_INPUT[kind]
            if source := graph.stored(inputs[position]):
                weight_types.add(type_of(source))
            per_channel |= prod(weights[inputs[position + 1]].dims) > 1
            output = INTEGER_OUTPUT_ZERO_POINT[kind]
            if len(inputs) > output and inputs[output] in weights:
                activation_types.add(type_of(inputs[output]))
        deciding = data if kind in ALL_INPUTS_DECIDE else data[:1]
        is_quantized = bool(deciding) and all(name in quantized_tensors for name in deciding)
        if is_quantized:
            quantized_tensors.update(node.output)
        counts.setdefault(kind, Counter())[is_quantized] += 1
    operators = {kind: [count[True], count[False]] for kind, count in sorted(counts.items())}
    return GraphContents(
        activation_type="+".join(sorted(activation_types)) or "float32",
        weight_type="+".join(sorted(weight_types)) or "float32",
        per_channel=per_channel,
        quantized_ops=sum(count[0] for count in operators.values()),
        float_ops=sum(count[1] for count in operators.values()),
        operators=operators,
        weight_payload_bytes=sum(payload_bytes(tensor) for tensor in weights.values()),
        layers=tuple(layer for node in model.graph.node if (layer := graph.layer(node)) is not None),
    )


class _Graph:
    """A graph, to be followed upwards."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.sources = {name: node for node in model.graph.node for name in node.output}
        self.constants = set(self.weights)  # and what is made of them alone, when the model is loaded
        for node in model.graph.node:
            if node.op_type != "DequantizeLinear" and self.constants.issuperset(filter(None, node.input)):
                self.constants.update(node.output)
        self.read_by_bridges = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}

    def type_of(self, name: str) -> str:
        """Of an initializer, for example "int8"."""
        return _type_name(self.weights[name].data_type)

    def stored(self, name: str) -> str:
        """The initializer that is ``name`` or that it is made of, by a Cast for example; "" for other tensors."""
        while name in self.constants and name not in self.weights:
            name = self.sources[name].input[0]
        return name if name in self.weights else ""

    def quantized_type(self, node: NodeProto) -> str:
        """Of the output of a QuantizeLinear: as its zero point, else as the attribute says, else uint8."""
        if len(node.input) > 2 and node.input[2] in self.weights:
            return self.type_of(node.input[2])
        asked = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
        return _type_name(asked) if asked else "uint8"

    def is_part_of_a_bridge(self, node: NodeProto) -> bool:
        """Whether a node only turns integers into other integers: a weight, or what a DequantizeLinear reads."""
        if self.constants.issuperset(node.output):
            return True
        if not self.read_by_bridges.issuperset(node.output):
            return False
        source = self.sources.get(node.input[0]) if node.input else None
        return node.op_type == "Clip" and source is not None and source.op_type == "QuantizeLinear"

    def layer(self, node: NodeProto) -> LayerContents | None:
        """What is known of a node's weight and input; None if it has no integer weight."""
        if node.op_type in INTEGER_WEIGHT_INPUT:
            position = INTEGER_WEIGHT_INPUT[node.op_type]
            weight, scale = self.stored(node.input[position]), node.input[position + 1]
            if not weight:
                return None
            kind, activation = self.type_of(weight), self.type_of(node.input[INTEGER_DATA_ZERO_POINT])
            bits, activation_bits = _width(kind), _width(activation)
        else:
            if node.op_type not in WEIGHTED:
                return None
            found = self._dequantized_weight(node)
            if found is None:
                return None
            position, weight, dequantize = found
            scale, kind = dequantize.input[1], self.type_of(weight)
            zero_point = dequantize.input[2] if len(dequantize.input) > 2 else ""
            bits = _bits_needed(kind, *(self.weights[name] for name in (weight, zero_point) if name))
            activation, activation_bits = self._activation(node.input[1 - position])
        output = node.output[0].removesuffix("_QuantizeLinear_Input").removesuffix("_quantized")
        per_channel = prod(self.weights[scale].dims) > 1
        return LayerContents(output, node.op_type, kind, bits, activation, activation_bits, per_channel)

    def _dequantized_weight(self, node: NodeProto) -> tuple[int, str, NodeProto] | None:
        """(position among the node's inputs, initializer, its DequantizeLinear)."""
        for position in (1, 0):
            source = self.sources.get(node.input[position])
            if source is not None and source.op_type == "DequantizeLinear" and self.stored(source.input[0]):
                return position, self.stored(source.input[0]), source
        return None

    def _activation(self, name: str) -> tuple[str, int]:
        """Type and bits of the integers that ``name`` is dequantized from."""
        source = self.sources.get(name)
        if source is None or source.op_type != "DequantizeLinear":
            return "float32", _width("float32")
        source = self.sources.get(source.input[0])
        levels = None
        if source is not None and source.op_type == "Clip":
            levels = self._levels(source)
            source = self.sources.get(source.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            return "float32", _width("float32")
        kind = self.quantized_type(source)
        return kind, _width(kind) if levels is None else (levels - 1).bit_length()

    def _levels(self, clip: NodeProto) -> int | None:
        if len(clip.input) < 3 or not all(name in self.weights for name in clip.input[1:]):
            return None
        low, high = (int(numpy_helper.to_array(self.weights[name])) for name in clip.input[1:])
        return high - low + 1


def _type_name(data_type: int) -> str:
    name = str(TensorProto.DataType.Name(data_type)).lower()
    return "float32" if name == "float" else name


def _width(kind: str) -> int:
    """Bits of a type, from its name."""
    return int("".join(filter(str.isdigit, kind)))


def _bits_needed(kind: str, *tensors: TensorProto) -> int:
    """The narrowest integers of the signedness of ``kind`` that hold all values, but more than half as wide as it."""
    values = np.concatenate([numpy_helper.to_array(tensor).astype(np.int64).ravel() for tensor in tensors])
    needed = int(np.maximum(values, ~values).max(initial=0)).bit_length() + (not kind.startswith("u"))
    return max(needed, _width(kind) // 2 + 1)


def payload_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values as stored; those of less than a byte are packed."""
    count = int(prod(tensor.dims))
    name = _type_name(tensor.data_type)
    if name.removeprefix("u") in ("int4", "int2"):
        return (count * _width(name) + 7) // 8
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
