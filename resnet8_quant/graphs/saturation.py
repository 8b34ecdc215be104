"""Can a model saturate in ONNX Runtime's kernels for uint8 activations with int8 weights?

In: an ONNX model. Out: the layers that may answer differently on an x86 CPU without VNNI, and a copy whose integer
operators cannot.

There the kernels multiply with VPMADDUBSW, which adds two neighbouring products in 16 bits and saturates. A sum of K
products is exact if no pair of them can leave those 16 bits:

    -32768 <= q * min(0, w[k]) + q * min(0, w[k+1])  and  q * max(0, w[k]) + q * max(0, w[k+1]) <= 32767

for the largest code ``q`` that an activation can have: 255, or less where a Clip says so. Weights of 7 bits, -64 to
63, pass with any activation: 255 * 128 = 32,640. Neighbours are those in the order of summation, which is kernel row,
kernel column, input channel for a convolution. The kernels of today pair the weights 2j and 2j + 1; both alignments
are looked at, since a convolution that computes several pixels at once shifts its weights.

Exact whatever the weights: uint8 with uint8 (widened to 16 bits before they are multiplied), int8 with int8 where the
graph says so, depthwise convolutions (32 bits), and all kernels of other instruction sets. Q/DQ pairs of int8
activations are not: ONNX Runtime turns them into uint8 on x86.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from resnet8_quant.graphs.graph import DEFAULT_DOMAIN, INTEGER_OPERATORS, Graph, attributes, input_name
from resnet8_quant.graphs.runtime import new_session

LOWEST, HIGHEST = -(2**15), 2**15 - 1  # of the 16-bit sum of a pair
LARGEST_CODE = 255
SHIFT = 128  # from int8 to uint8


FLOAT_OPERATORS = ("Conv", "Gemm", "MatMul")  # integer ones between DequantizeLinear and QuantizeLinear
CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")
# Between a DequantizeLinear and a layer these keep it an integer layer: ONNX Runtime moves the pair past them.
CARRIERS = {
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Pad", "Expand"),
    *("MaxPool", "Relu", "Clip"),
}


def pair_saturates(weights: np.ndarray, largest: int = LARGEST_CODE) -> bool:
    """Whether two neighbouring products can leave 16 bits.

    Args:
        weights: integers [outputs, K], in the order of summation.
        largest: code of an activation.
    """
    codes = weights.astype(np.int64)
    positive, negative = np.maximum(codes, 0), np.minimum(codes, 0)
    above = largest * (positive[:, :-1] + positive[:, 1:])
    below = largest * (negative[:, :-1] + negative[:, 1:])
    return bool((above > HIGHEST).any() or (below < LOWEST).any())


@functools.lru_cache(maxsize=16)
def saturating_layers(model: bytes) -> tuple[str, ...]:
    """Outputs of the layers of a serialized model in which a pair of products can saturate, in the graph's order."""
    return tuple(str(node.output[0]) for node in saturating_nodes(Graph(onnx.load_from_string(model))))


def saturating_nodes(graph: Graph) -> list[NodeProto]:
    """The nodes of ``graph`` in which a pair of products can saturate, in its order."""
    reader = _Reader(graph)
    return [node for node in graph.nodes if reader.saturates(node)]


def unsigned_weights(model: bytes) -> bytes:
    """The model with uint8 weights, of the same value, in those integer operators that can saturate.

    Args:
        model: serialized ModelProto; Q/DQ pairs in it stay as they are.
    """
    graph = Graph(onnx.load_from_string(model))
    return bytes(graph.finish().SerializeToString()) if use_unsigned_weights(graph) else model


def use_unsigned_weights(graph: Graph) -> list[str]:
    """Give integer operators that can saturate uint8 weights, 128 more with a zero point 128 more.

    The kernel for uint8 with uint8 is exact on every CPU, and slower than that for uint8 with int8 where that is exact.

    Returns:
        First outputs of the changed nodes.
    """
    reader = _Reader(graph)
    changed = []
    for node in [node for node in graph.nodes if node.op_type in INTEGER_OPERATORS and reader.saturates(node)]:
        inputs = INTEGER_OPERATORS[node.op_type]
        name, zero_point = node.input[inputs.weight], input_name(node, inputs.weight_zero_point)
        if name not in reader.constants:
            continue
        node.input.extend([""] * (inputs.weight_zero_point + 1 - len(node.input)))
        for position, label, codes in (
            (inputs.weight, name, reader.value(name)),
            (
                inputs.weight_zero_point,
                zero_point or f"{name}_zero_point",
                reader.value(zero_point) if zero_point else np.zeros((), np.int8),
            ),
        ):
            unsigned = (codes.astype(np.int16) + SHIFT).astype(np.uint8)
            node.input[position] = graph.add_initializer(f"{label}_unsigned", unsigned)
        changed.append(str(node.output[0]))
    return changed


class _Reader:
    """Follows a graph upwards from its layers, to the types and values of their integers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = list(graph.nodes)
        self.tensors = dict(graph.initializers)
        self.producers = graph.producers()
        self.constants = graph.constants()
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.input}
        self.folded: dict[str, np.ndarray] | None = None

    def saturates(self, node: NodeProto) -> bool:
        """Whether a pair of products of ``node`` can saturate."""
        if node.op_type in INTEGER_OPERATORS:
            return self._integer_operator_saturates(node)
        if node.op_type not in FLOAT_OPERATORS or node.domain not in DEFAULT_DOMAIN:
            return False
        left, right = (self._behind_carriers(name) for name in node.input[:2])
        if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
            return False  # computed in float
        for position, weight, data in ((1, right, left), (0, left, right)):  # a MatMul may have its weight first
            if weight.input[0] in self.constants:
                return self._weight_saturates(node, position, weight.input[0], self._largest_code(data.input[0]))
        return self._is_int8(input_name(right, 2), right.input[0])

    def _integer_operator_saturates(self, node: NodeProto) -> bool:
        inputs, largest = INTEGER_OPERATORS[node.op_type], LARGEST_CODE
        if inputs.data_zero_point is not None:
            data = node.input[inputs.data]
            if self._is_int8(input_name(node, inputs.data_zero_point), data):  # no kernel mixes int8 with int8 up
                return False
            largest = self._largest_code(data)
        return self._weight_saturates(node, inputs.weight, node.input[inputs.weight], largest)

    def _weight_saturates(self, node: NodeProto, position: int, name: str, largest: int) -> bool:
        """Whether a weight does, with activations up to ``largest``; one that is not constant may be anything."""
        if not largest:
            return False
        if name not in self.constants:
            return self._is_int8("", name)
        codes = self.value(name)
        if codes.dtype != np.int8:
            return False
        rows = rows_of(node, position, codes)
        return rows is not None and pair_saturates(rows, largest)

    def _behind_carriers(self, name: str) -> NodeProto | None:
        """The node that ``name`` comes from, through operators that ONNX Runtime moves a DequantizeLinear past."""
        node = self.producers.get(name)
        while node is not None and node.op_type in CARRIERS:
            node = self.producers.get(node.input[0])
        return node

    def _largest_code(self, name: str) -> int:
        """Largest value of an activation's integers, as uint8; 0 if they are not 8 bits wide."""
        node, largest = self.producers.get(name), LARGEST_CODE
        while node is not None and node.op_type in CARRIERS:
            if node.op_type == "Clip" and input_name(node, 2) in self.tensors:
                limit = self.value(node.input[2])
                largest = min(largest, int(limit.max()) + (SHIFT if limit.dtype == np.int8 else 0))
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "QuantizeLinear":
            return largest
        return largest if self.graph.quantized_dtype(node) in (TensorProto.UINT8, TensorProto.INT8) else 0

    def _is_int8(self, zero_point: str, name: str) -> bool:
        """Whether the integers ``name`` are int8, by their zero point or by what makes them."""
        if zero_point in self.tensors:
            return bool(self.tensors[zero_point].data_type == TensorProto.INT8)
        if name in self.inputs:
            return bool(self.inputs[name] == TensorProto.INT8)
        node = self._behind_carriers(name)
        if node is None or node.op_type != "QuantizeLinear":
            return False
        return self.graph.quantized_dtype(node) == TensorProto.INT8

    def value(self, name: str) -> np.ndarray:
        """The values of a constant; what nodes make of initializers is computed once, all of it together."""
        if name in self.tensors:
            return np.asarray(numpy_helper.to_array(self.tensors[name]))
        if self.folded is None:
            self.folded = self._fold()
        return self.folded[name]

    def _fold(self) -> dict[str, np.ndarray]:
        """What nodes make of initializers alone, as far as another node reads it."""
        nodes = [node for node in self.nodes if self.constants.issuperset(node.output)]
        others = (node for node in self.nodes if not self.constants.issuperset(node.output))
        names = sorted({name for node in others for name in node.input if name in self.constants} - set(self.tensors))
        used = {name: self.tensors[name] for node in nodes for name in node.input if name in self.tensors}
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        graph = helper.make_graph(nodes, "constants", [], outputs, list(used.values()))
        part = helper.make_model(
            graph, opset_imports=self.graph.model.opset_import, ir_version=self.graph.model.ir_version
        )
        return dict(zip(names, new_session(part.SerializeToString()).run(names, {}), strict=True))


def rows_of(node: NodeProto, position: int, weight: np.ndarray) -> np.ndarray | None:
    """A weight as [outputs, K] in the order of summation; None for a depthwise convolution, whose kernel is exact.

    Args:
        position: among the inputs of ``node``; 0: a matrix from the left.
    """
    if node.op_type in CONVOLUTIONS:
        group = attributes(node).get("group", 1)
        if weight.shape[1] == 1 and weight.shape[0] == group:
            return None
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    transposed = attributes(node).get("transB", 0)
    if position == 0 or transposed or weight.ndim < 2:
        return weight.reshape(-1, weight.shape[-1])
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
