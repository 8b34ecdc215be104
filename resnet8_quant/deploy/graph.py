"""A graph under change: who makes and who reads each tensor, and new nodes and initializers in their place.

In: a ModelProto, which is not changed. Out: another one, in topological order, without what nobody reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

DEFAULT_DOMAIN = ("", "ai.onnx")
MICROSOFT = "com.microsoft"


class Graph:
    """A copy of a model's graph. ``nodes`` is in topological order and stays so."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        del self.model.graph.value_info[:]
        copy = onnx.GraphProto()
        copy.CopyFrom(self.model.graph)
        self.nodes = list(copy.node)
        self.tensors = {tensor.name: tensor for tensor in copy.initializer}
        ends = {value.name for value in (*copy.input, *copy.output)}
        self._taken = ends.union(self.tensors, *(node.output for node in self.nodes))

    @property
    def input(self) -> onnx.ValueInfoProto:
        """The graph's input."""
        value: onnx.ValueInfoProto = next(v for v in self.model.graph.input if v.name not in self.tensors)
        return value

    @property
    def output(self) -> onnx.ValueInfoProto:
        """The graph's first output."""
        value: onnx.ValueInfoProto = self.model.graph.output[0]
        return value

    def source(self, name: str) -> NodeProto | None:
        """The node that makes a tensor; None for inputs and initializers."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.nodes if name in node.input]

    def stored(self, name: str) -> str:
        """The initializer that is ``name``, or that a Cast makes it of; "" for other tensors."""
        source = self.source(name)
        if source is not None and source.op_type == "Cast":
            name = source.input[0]
        return name if name in self.tensors else ""

    def array(self, name: str) -> np.ndarray:
        """The values of an initializer."""
        return np.asarray(numpy_helper.to_array(self.tensors[name]))

    def fresh(self, name: str) -> str:
        """A name for a new tensor: ``name``, with as many "_" behind it as nothing else is called."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def put(self, name: str, values: np.ndarray) -> str:
        """Add an initializer, or find the equal one of that name; returns its name, as ``fresh`` makes it."""
        while name in self._taken and not (name in self.tensors and _equal(self.array(name), values)):
            name += "_"
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.asarray(values, order="C"), self.fresh(name))
        return name

    def replace(self, old: NodeProto, *new: NodeProto) -> None:
        """Put nodes in the place of another."""
        place = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def reroute(self, old: str, new: str) -> None:
        """Let all that reads ``old`` read ``new``."""
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]

    def finish(self) -> onnx.ModelProto:
        """The changed model, without nodes, initializers and operator sets that nothing needs."""
        graph = self.model.graph
        read = {value.name for value in graph.output}
        kept = []
        for node in reversed(self.nodes):
            if read.intersection(node.output):
                kept.append(node)
                read.update(node.input)
        nodes = kept[::-1]
        del graph.node[:]
        graph.node.extend(nodes)
        tensors = [tensor for tensor in self.tensors.values() if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        used = {node.domain for node in nodes}
        entries = [entry for entry in self.model.opset_import if entry.domain in {*used, *DEFAULT_DOMAIN}]
        del self.model.opset_import[:]
        self.model.opset_import.extend(entries)
        return self.model


def attributes(node: NodeProto) -> dict[str, Any]:
    """{name: value} of a node's attributes."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
