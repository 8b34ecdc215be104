"""What was really quantized, read back from the produced graph.

In: an ONNX model. Out: `GraphContents`: the number types found and how many operators are quantized. The row of a run
says what this module found, not what was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import onnx

BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
INTEGER_WEIGHT_INPUT = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3}
INTEGER_OUTPUT_ZERO_POINT = {"QLinearConv": 7, "QGemm": 8, "QLinearMatMul": 7}
# A float weight or operand leaves these float; of the others only the first input counts, not shapes and scales.
ALL_INPUTS_DECIDE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat")
BRIDGES = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class GraphContents:
    """Quantization as it stands in a graph.

    Attributes:
        activation_type: for example "int8"; several joined by "+"; "float32" where nothing is quantized.
        weight_type: likewise.
        per_channel: whether any weight has a scale per channel.
        quantized_ops: operators whose data inputs are all quantized.
        float_ops: the others, QuantizeLinear and DequantizeLinear not counted.
        operators: {"Conv": [quantized, float], ...}.
        weight_payload_bytes: of all initializers as stored, without names and graph.
    """

    activation_type: str
    weight_type: str
    per_channel: bool
    quantized_ops: int
    float_ops: int
    operators: dict[str, list[int]]
    weight_payload_bytes: int


def read_contents(model: onnx.ModelProto) -> GraphContents:
    """Walk the graph once, in its topological order."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    quantized_tensors: set[str] = set()
    activation_types: set[str] = set()
    weight_types: set[str] = set()
    per_channel = False
    counts: dict[str, Counter[bool]] = {}

    def type_of(name: str) -> str:
        return str(onnx.TensorProto.DataType.Name(weights[name].data_type)).lower().replace("float", "float32")

    for node in model.graph.node:
        inputs, kind = list(node.input), node.op_type
        if kind in BRIDGES:
            source, scale, zero_point = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else ""
            if kind == "DequantizeLinear" and source in weights:
                if weights[source].data_type != onnx.TensorProto.INT32:  # int32 is a bias
                    weight_types.add(type_of(source))
                    per_channel |= prod(weights[scale].dims) > 1
            elif kind == "QuantizeLinear":
                activation_types.add(type_of(zero_point) if zero_point in weights else "uint8")
            quantized_tensors.update(node.output)
            continue
        bias = BIAS_INPUT.get(kind)
        data = [name for i, name in enumerate(inputs) if name and i != bias]
        if kind in INTEGER_WEIGHT_INPUT:
            position = INTEGER_WEIGHT_INPUT[kind]
            weight_types.add(type_of(inputs[position]))
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
    )


def payload_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values as stored; 4-bit values are packed two to a byte."""
    count = int(prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
