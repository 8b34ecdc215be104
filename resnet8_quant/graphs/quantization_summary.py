"""What is quantized in a model, read from its graph.

In: an ONNX model. Out: a `QuantizationSummary`: the types of its integers and how many operators are quantized. The
results of a run say what stands in the produced file, not what was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from resnet8_quant.graphs.graph import INTEGER_OPERATORS, Graph, input_name, type_name

BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
# Those that know the scales of all their numbers; the others return 32-bit sums or floats.
INTEGER_LAYERS = {name: inputs for name, inputs in INTEGER_OPERATORS.items() if inputs.output_scale}
# A float weight or operand leaves these float; of the others only the first input counts, not shapes and scales.
ALL_INPUTS_DECIDE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class LayerSummary:
    """A convolution or matrix product with integer weights.

    Attributes:
        output: what it computes; onnxruntime names it after the Relu that it folds into the layer.
        op_type: "Conv", "QLinearConv", ...
        weight_type: as stored, for example "int4".
        weight_bits: that the stored integers need, but more than half the type's: 5 to 8 in int8, 3 or 4 in int4.
        activation_type: of its input; "float32" where that is not quantized.
        activation_bits: for the levels that can occur; fewer than the type's where a Clip leaves fewer.
        per_channel: whether the weight has a scale per channel.
        weight: the initializer that holds its integers.
    """

    output: str
    op_type: str
    weight_type: str
    weight_bits: int
    activation_type: str
    activation_bits: int
    per_channel: bool
    weight: str


@dataclass(frozen=True)
class QuantizationSummary:
    """Quantization as it stands in a graph.

    Attributes:
        activation_type: for example "int8"; several joined by "+"; "float32" where nothing is quantized.
        weight_type: likewise.
        per_channel: whether any weight has a scale per channel.
        quantized_ops: operators whose data inputs are all quantized.
        float_ops: the others. Not counted at all: QuantizeLinear, DequantizeLinear, and what stands between them for
            integers of fewer bits, which are a Clip of an activation and a Cast of a weight; and a Sum of one tensor,
            which keeps a layer in float.
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
    layers: tuple[LayerSummary, ...]


def summarize(model: onnx.ModelProto) -> QuantizationSummary:
    """Summarize the quantization of ``model``."""
    reader = _Reader(Graph(model))
    activation_types: set[str] = set()
    weight_types: set[str] = set()
    per_channel = False
    counts: dict[str, Counter[bool]] = {}  # operator -> how many are quantized (True) and float (False)
    byte_types = (TensorProto.INT8, TensorProto.UINT8)
    quantized = {value.name for value in model.graph.input if value.type.tensor_type.elem_type in byte_types}

    for node in reader.nodes:
        op_type, inputs = node.op_type, list(node.input)
        # Quantizers say the types of what they convert, and count as no operators.
        if op_type in QUANTIZERS:
            weight = reader.stored(inputs[0])
            if op_type == "QuantizeLinear":
                activation_types.add(type_name(reader.graph.quantized_dtype(node)))
            elif weight and reader.tensors[weight].data_type != TensorProto.INT32:  # int32 is a bias
                weight_types.add(reader.type_of(weight))
                per_channel |= reader.is_per_channel(inputs[1])
            quantized.update(node.output)
            continue
        if reader.only_converts(node) or (op_type == "Cast" and inputs[0] in quantized):
            continue
        if op_type == "Sum" and len(inputs) == 1:  # what it hands on is to be read as floats
            continue

        # Integer operators say the types of their weight and output themselves.
        if op_type in INTEGER_LAYERS:
            places = INTEGER_LAYERS[op_type]
            if weight := reader.stored(inputs[places.weight]):
                weight_types.add(reader.type_of(weight))
            per_channel |= reader.is_per_channel(inputs[places.weight + 1])
            if (zero_point := input_name(node, places.output_scale + 1)) in reader.tensors:
                activation_types.add(reader.type_of(zero_point))

        # An operator is quantized if all the data that it computes with is.
        data = [name for i, name in enumerate(inputs) if name and i != BIAS_INPUT.get(op_type)]
        data = data if op_type in ALL_INPUTS_DECIDE else data[:1]
        is_quantized = bool(data) and quantized.issuperset(data)
        if is_quantized:
            quantized.update(node.output)
        counts.setdefault(op_type, Counter())[is_quantized] += 1

    operators = {op_type: [count[True], count[False]] for op_type, count in sorted(counts.items())}
    return QuantizationSummary(
        activation_type="+".join(sorted(activation_types)) or "float32",
        weight_type="+".join(sorted(weight_types)) or "float32",
        per_channel=per_channel,
        quantized_ops=sum(count[0] for count in operators.values()),
        float_ops=sum(count[1] for count in operators.values()),
        operators=operators,
        weight_payload_bytes=sum(payload_bytes(tensor) for tensor in reader.tensors.values()),
        layers=tuple(layer for node in reader.nodes if (layer := reader.layer(node)) is not None),
    )


class _Reader:
    """Follows a graph upwards, to the integers that its tensors are made of."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.tensors = graph.initializers
        self.producers = graph.producers()
        self.constants = graph.constants()
        self.dequantized = {node.input[0] for node in graph.nodes if node.op_type == "DequantizeLinear"}

    def type_of(self, name: str) -> str:
        """Of an initializer, for example "int8"."""
        return type_name(self.tensors[name].data_type)

    def is_per_channel(self, scale: str) -> bool:
        """Whether a scale has more than one element."""
        return bool(prod(self.tensors[scale].dims) > 1)

    def stored(self, name: str) -> str:
        """The initializer that is ``name`` or that it is made of, by a Cast for example; "" for other tensors."""
        while name in self.constants and name not in self.tensors:
            name = self.producers[name].input[0]
        return name if name in self.tensors else ""

    def only_converts(self, node: NodeProto) -> bool:
        """Whether a node only turns integers into other integers: a weight, or what a DequantizeLinear reads."""
        if self.constants.issuperset(node.output):
            return True
        if not self.dequantized.issuperset(node.output):
            return False
        producer = self.producers.get(node.input[0]) if node.input else None
        return node.op_type == "Clip" and producer is not None and producer.op_type == "QuantizeLinear"

    def layer(self, node: NodeProto) -> LayerSummary | None:
        """What is known of a node's weight and input; None if it has no integer weight."""
        if node.op_type in INTEGER_LAYERS:
            places = INTEGER_LAYERS[node.op_type]
            weight, scale = self.stored(node.input[places.weight]), node.input[places.weight + 1]
            if not weight:
                return None
            weight_type, activation = self.type_of(weight), self.type_of(node.input[places.data_zero_point])
            weight_bits, activation_bits = _bits(weight_type), _bits(activation)
        else:
            position, dequantize = self._dequantized_weight(node)
            if dequantize is None:
                return None
            weight, scale = self.stored(dequantize.input[0]), dequantize.input[1]
            weight_type = self.type_of(weight)
            names = (weight, input_name(dequantize, 2))
            weight_bits = _bits_needed(weight_type, *(self.tensors[name] for name in names if name))
            activation, activation_bits = self._activation(node.input[1 - position])
        output = node.output[0].removesuffix("_QuantizeLinear_Input").removesuffix("_quantized")
        per_channel = self.is_per_channel(scale)
        bits = weight_type, weight_bits, activation, activation_bits
        return LayerSummary(output, node.op_type, *bits, per_channel, weight)

    def _dequantized_weight(self, node: NodeProto) -> tuple[int, NodeProto | None]:
        """Position of a node's weight among its inputs, and its DequantizeLinear; None if it has no integer one."""
        for position in (1, 0) if node.op_type in WEIGHTED else ():
            producer = self.producers.get(node.input[position])
            if producer is not None and producer.op_type == "DequantizeLinear" and self.stored(producer.input[0]):
                return position, producer
        return 1, None

    def _activation(self, name: str) -> tuple[str, int]:
        """Type and bits of the integers that ``name`` is dequantized from: by QuantizeLinear, Clip if there is one."""
        unquantized = "float32", _bits("float32")
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return unquantized
        node, levels = self.producers.get(node.input[0]), None
        if node is not None and node.op_type == "Clip":
            if len(node.input) > 2 and all(limit in self.tensors for limit in node.input[1:]):
                low, high = (int(self.graph.array(limit)) for limit in node.input[1:])
                levels = high - low + 1
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "QuantizeLinear":
            return unquantized
        dtype = type_name(self.graph.quantized_dtype(node))
        return dtype, _bits(dtype) if levels is None else (levels - 1).bit_length()


def _bits(type_name: str) -> int:
    """Bits of a type, from its name."""
    return int("".join(filter(str.isdigit, type_name)))


def _bits_needed(type_name: str, *tensors: TensorProto) -> int:
    """Bits of the narrowest integers, signed as ``type_name``, that hold all values; more than half as many as it."""
    values = np.concatenate([numpy_helper.to_array(tensor).astype(np.int64).ravel() for tensor in tensors])
    # a signed n-bit integer v has n - 1 bits in v or, if it is negative, in ~v
    needed = int(np.maximum(values, ~values).max(initial=0)).bit_length() + (not type_name.startswith("u"))
    return max(needed, _bits(type_name) // 2 + 1)


def payload_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values as stored; those of less than a byte are packed."""
    count = int(prod(tensor.dims))
    name = type_name(tensor.data_type)
    if name.removeprefix("u") in ("int4", "int2"):
        return (count * _bits(name) + 7) // 8
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
