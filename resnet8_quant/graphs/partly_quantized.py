"""A float model of which chosen parts compute as in its Q/DQ model: weights and inputs of single layers, or all else.

In: a float model and the Q/DQ model with names that was made of it. Out: copies of the float graph. Q/DQ pairs are
copied into it rather than bypassed in the other one, which lacks every Relu that a QuantizeLinear has taken over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from resnet8_quant.graphs.graph import (
    DEFAULT_DOMAIN,
    Graph,
    at_least_opset,
    attributes,
    before_softmax,
    input_name,
)
from resnet8_quant.graphs.quantization_summary import QUANTIZERS, WEIGHTED, summarize

WEIGHT_SUFFIX = "_quantized"  # onnxruntime's, of the integers that a weight becomes
OUTPUT_SUFFIX = "_QuantizeLinear_Input"  # and of a graph's output before it is quantized


@dataclass(frozen=True)
class PartialLayer:
    """A layer with an integer weight.

    Attributes:
        name: of its output in the float graph, as quant.layers has it.
        operator: of ONNX.
        weight_bits: of its weight.
        activation_bits: of its input; 32 where that is not quantized.
        output: the quantized tensor that it computes, behind its activation function; "" where there is none.
    """

    name: str
    operator: str
    weight_bits: int
    activation_bits: int
    output: str


class PartlyQuantized:
    """Makes models of which some parts are quantized; with none it is the float model, with all the Q/DQ model.

    Attributes:
        layers: in the order of the float graph.
        tensors: {float tensor: the tensor with its dequantized values}, of all that are stored as integers.
    """

    def __init__(self, floating: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        """Prepare; both models are left as they are.

        Raises:
            ValueError: no weight of ``quantized`` is named after one of ``floating``, or no layer has one.
        """
        source = Graph(quantized)
        opsets = {entry.domain: entry.version for entry in quantized.opset_import}
        opset = next(version for domain, version in opsets.items() if domain in DEFAULT_DOMAIN)
        self._graph = graph = Graph(at_least_opset(floating, opset))
        known = {entry.domain for entry in graph.model.opset_import} | {*DEFAULT_DOMAIN}
        graph.model.opset_import.extend(entry for entry in quantized.opset_import if entry.domain not in known)
        self._copied: dict[str, str] = {}  # {output of a Q, Clip or DQ: its name here}
        self.tensors: dict[str, str] = {}
        self._copy_pairs(source)
        self._values: dict[str, list[str]] = {}  # {layer: its inputs, all quantized}
        self.layers = self._find_layers(source, quantized)
        if not self.layers:
            raise ValueError("no quantized weight has the name of a weight of the float model")

    def _copy_pairs(self, source: Graph) -> None:
        """Copy every QuantizeLinear, Clip, DequantizeLinear of an activation, each behind what it reads."""
        graph, constants = self._graph, source.constants()
        for original in source.nodes:
            read = original.input[0] if original.input else ""
            follows = original.op_type in ("Clip", QUANTIZERS[1]) and read in self._integers(source)
            if read in constants or not (original.op_type == QUANTIZERS[0] or follows):
                continue
            node, floating = deepcopy(original), read.removesuffix(OUTPUT_SUFFIX)
            for position, name in enumerate(node.input):
                if position == 0:
                    node.input[0] = self._copied.get(name, floating)
                elif name:
                    node.input[position] = graph.add_initializer(name, source.array(name))
            self._copied[original.output[0]] = node.output[0] = graph.unique_name(f"{original.output[0]}_value")
            node.name = node.output[0]
            place = graph.producer(node.input[0])
            if place is None:
                graph.nodes.insert(0, node)
            else:
                graph.insert_after(place, node)
            if original.op_type == QUANTIZERS[1]:
                self.tensors.setdefault(self._root(node), node.output[0])
        self.tensors = {name: value for name, value in self.tensors.items() if name not in self._copied.values()}

    def _integers(self, source: Graph) -> set[str]:
        """What the copied QuantizeLinear and Clip nodes compute."""
        nodes = (node for node in source.nodes if node.op_type in ("Clip", QUANTIZERS[0]))
        return {name for node in nodes for name in node.output if name in self._copied}

    def _root(self, node: NodeProto) -> str:
        """The float tensor that a copied DequantizeLinear is made from: its QuantizeLinear's input."""
        while node.op_type != QUANTIZERS[0]:
            producer = self._graph.producer(node.input[0])
            assert producer is not None  # copied before
            node = producer
        return str(node.input[0])

    def _find_layers(self, source: Graph, quantized: onnx.ModelProto) -> tuple[PartialLayer, ...]:
        summaries = {layer.output: layer for layer in summarize(quantized).layers}
        layers = []
        for node in self._graph.nodes:
            stored = f"{node.input[1]}{WEIGHT_SUFFIX}" if len(node.input) > 1 else ""
            if node.op_type not in WEIGHTED or stored not in source.initializers:
                continue
            dequantize = next(
                (n for n in source.nodes if n.op_type == QUANTIZERS[1] and source.stored(n.input[0]) == stored), None
            )
            user = next(iter(source.consumers(dequantize.output[0])), None) if dequantize is not None else None
            if dequantize is None or user is None:
                continue
            inputs = [self._copied.get(user.input[0], node.input[0])]
            inputs.append(self._graph.add_initializer(f"{stored}_value", dequantized(source, dequantize)))
            if bias := input_name(user, 2):
                made = source.producer(bias)
                values = source.array(bias) if made is None else dequantized(source, made)
                inputs.append(self._graph.add_initializer(f"{node.output[0]}_bias_value", values))
            self._values[node.output[0]] = inputs
            output = user.output[0].removesuffix(OUTPUT_SUFFIX)
            summary = summaries[output]
            bits = summary.weight_bits, summary.activation_bits
            layers.append(PartialLayer(node.output[0], node.op_type, *bits, output if output in self.tensors else ""))
        return tuple(layers)

    @property
    def scores(self) -> str:
        """The float graph's tensor that classes are read from: what a last Softmax reads, else the output."""
        return before_softmax(self._graph.nodes, self._graph.output.name)

    def model(
        self,
        weights: Collection[str] = (),
        activations: Collection[str] = (),
        others: bool = False,
        outputs: Sequence[str] = (),
    ) -> onnx.ModelProto:
        """The float model with some of its parts quantized.

        Args:
            weights: names of layers whose weight and bias are.
            activations: names of layers whose input is.
            others: whether everything is that no layer reads: inputs of Add, pools, the output.
            outputs: more tensors to return, behind ``scores``.
        """
        graph = deepcopy(self._graph)
        copied = {*self._copied.values()}
        for node in graph.nodes:
            if (name := node.output[0]) in self._values:
                values = self._values[name]
                if name in activations:
                    node.input[0] = values[0]
                if name in weights:
                    node.input[1:] = values[1:]
            elif others and name not in copied:
                node.input[:] = [self.tensors.get(read, read) for read in node.input]
        score = self.scores
        score = self.tensors.get(score, score) if others else score
        del graph.model.graph.output[:]
        graph.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys((score, *outputs)))
        return graph.finish()


def dequantized(graph: Graph, node: NodeProto) -> np.ndarray:
    """float32: what a DequantizeLinear of an initializer computes."""
    codes = graph.array(graph.stored(node.input[0])).astype(np.int64)
    scale = graph.array(node.input[1])
    zero_point = (
        graph.array(graph.stored(name)).astype(np.int64)
        if (name := input_name(node, 2))
        else np.zeros_like(scale, np.int64)
    )
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    else:
        shape = [1] * codes.ndim
        shape[attributes(node).get("axis", 1)] = -1
        scale, zero_point = scale.reshape(shape), np.reshape(zero_point, shape)
    return np.asarray((codes - zero_point).astype(np.float32) * scale)
