"""One editable ONNX graph, for everything that reads or rewrites a model.

In: a ModelProto, which is not changed. Out: another one, without nodes and initializers that nothing reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference, version_converter

DEFAULT_DOMAIN = ("", "ai.onnx")
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
PRODUCER = "resnet8-quant"
_SAME_VALUES = ("Identity", "QuantizeLinear", "Clip", "DequantizeLinear", "Flatten", "Reshape", "Squeeze")
REDEFINED = ("RoiAlign", "Split")  # at opsets 16 and 18, under the attributes that they had


@dataclass(frozen=True)
class IntegerInputs:
    """Positions of the inputs of an operator that multiplies integers; None or 0: it has no such input."""

    data: int
    data_zero_point: int | None
    weight: int
    weight_zero_point: int
    output_scale: int  # its zero point comes next; so does the weight's scale behind the weight


# ONNX Runtime's integer operators with a weight; DynamicQuantizeMatMul makes uint8 of floats itself.
INTEGER_OPERATORS = {
    "QLinearConv": IntegerInputs(0, 2, 3, 5, 6),
    "QGemm": IntegerInputs(0, 2, 3, 5, 7),
    "QLinearMatMul": IntegerInputs(0, 2, 3, 5, 6),
    "ConvInteger": IntegerInputs(0, 2, 1, 3, 0),
    "MatMulInteger": IntegerInputs(0, 2, 1, 3, 0),
    "MatMulIntegerToFloat": IntegerInputs(0, 4, 1, 5, 0),
    "DynamicQuantizeMatMul": IntegerInputs(0, None, 1, 3, 0),
}


class Graph:
    """A copy of a model's graph, to be edited in place.

    Shapes and types of inner tensors (``value_info``) are dropped, since edits may change them.

    Attributes:
        model: the rest of the model: inputs, outputs, opsets, metadata.
        nodes: in topological order; whoever edits the list keeps it so.
        initializers: {name: tensor}, in the order in which they are stored.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, copied = deepcopy(model), deepcopy(model)
        self.nodes = list(copied.graph.node)
        self.initializers = {tensor.name: tensor for tensor in copied.graph.initializer}
        self._original = frozenset(self.initializers)  # old models list them as inputs too
        for field in ("node", "initializer", "value_info"):
            self.model.graph.ClearField(field)
        self._taken = self._names()

    @property
    def input(self) -> onnx.ValueInfoProto:
        """The graph's first input that is not an initializer."""
        value: onnx.ValueInfoProto = next(v for v in self.model.graph.input if v.name not in self._original)
        return value

    @property
    def output(self) -> onnx.ValueInfoProto:
        """The graph's first output."""
        value: onnx.ValueInfoProto = self.model.graph.output[0]
        return value

    def producer(self, name: str) -> NodeProto | None:
        """The node that computes a tensor; None for inputs and initializers."""
        return next((node for node in self.nodes if name in node.output), None)

    def producers(self) -> dict[str, NodeProto]:
        """{tensor: the node that computes it} as of now, for algorithms that look up many."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.nodes if name in node.input]

    def constants(self) -> set[str]:
        """Initializers, and what nodes compute from them alone when the model is loaded.

        Not what a DequantizeLinear computes: ONNX Runtime keeps that node to find its integer kernels.
        """
        names = set(self.initializers)
        for node in self.nodes:
            if node.op_type != "DequantizeLinear" and node.input and names.issuperset(filter(None, node.input)):
                names.update(node.output)
        return names

    def stored(self, name: str) -> str:
        """The initializer that is ``name``, or that a Cast makes it of; "" for other tensors."""
        node = self.producer(name)
        if node is not None and node.op_type == "Cast":
            name = node.input[0]
        return name if name in self.initializers else ""

    def quantized_dtype(self, quantize: NodeProto) -> int:
        """Type of what a QuantizeLinear makes: as its zero point, else as its attribute says, else uint8."""
        if (zero_point := input_name(quantize, 2)) in self.initializers:
            return int(self.initializers[zero_point].data_type)
        return int(attributes(quantize).get("output_dtype", 0) or TensorProto.UINT8)

    def array(self, name: str) -> np.ndarray:
        """The values of an initializer."""
        return np.asarray(numpy_helper.to_array(self.initializers[name]))

    def unique_name(self, name: str) -> str:
        """Reserve a name for a new tensor or node: ``name``, with as many "_" behind it as it takes."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def add_initializer(self, name: str, values: np.ndarray | np.generic) -> str:
        """Add an initializer, or find an equal one of that name; returns its name, as ``unique_name`` makes it."""
        values = np.asarray(values, order="C")
        while name in self._taken and not (name in self.initializers and _equal(self.array(name), values)):
            name += "_"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(values, self.unique_name(name))
        return name

    def add_node(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node of one output; node and output share the name, as ``unique_name`` makes it."""
        name = self.unique_name(name)
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def insert_before(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes directly in front of another."""
        self.replace(node, *new, node)

    def insert_after(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes directly behind another."""
        self.replace(node, node, *new)

    def replace(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes in the place of another."""
        place = next(i for i, other in enumerate(self.nodes) if other is node)
        self.nodes[place : place + 1] = new

    def reroute(self, old: str, new: str) -> None:
        """Let all that reads ``old`` read ``new``."""
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename tensors, {old: new}, where nodes and initializers have them; inputs and outputs of the graph stay."""
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in self.initializers.values():
            tensor.name = names.get(tensor.name, tensor.name)
        self.initializers = {tensor.name: tensor for tensor in self.initializers.values()}
        self._taken.update(names.values())

    def prune(self) -> None:
        """Drop nodes and initializers that nothing reads, and free their names."""
        self.nodes, kept = self._live()
        self.initializers = {tensor.name: tensor for tensor in kept}
        self._taken = self._names()

    def finish(self) -> onnx.ModelProto:
        """The edited model, without nodes, initializers and opsets that nothing needs; the graph may be edited on."""
        nodes, tensors = self._live()
        model = deepcopy(self.model)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)

        # An initializer that went would stay listed as an input, which callers would have to feed.
        gone = self._original - {tensor.name for tensor in tensors}
        inputs = [value for value in model.graph.input if value.name not in gone]
        del model.graph.input[:]
        model.graph.input.extend(inputs)

        # Nodes of subgraphs and functions are not looked at, and may be from any domain.
        if not has_inner_graphs(model):
            domains = {*(node.domain for node in nodes), *DEFAULT_DOMAIN}
            opsets = [entry for entry in model.opset_import if entry.domain in domains]
            del model.opset_import[:]
            model.opset_import.extend(opsets)
        return model

    def _live(self) -> tuple[list[NodeProto], list[TensorProto]]:
        """Nodes and initializers that the graph's outputs depend on."""
        read = {value.name for value in self.model.graph.output}
        nodes = []
        for node in reversed(self.nodes):
            if read.intersection(node.output):
                nodes.append(node)
                read.update(_reads(node))
        return nodes[::-1], [tensor for tensor in self.initializers.values() if tensor.name in read]

    def ends(self) -> set[str]:
        """Names of the graph's inputs and outputs."""
        return {value.name for value in (*self.model.graph.input, *self.model.graph.output)}

    def _names(self) -> set[str]:
        return {*self.ends(), *self.initializers}.union(*(node.output for node in self.nodes))


def at_least_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a copy of ``model`` at ``opset`` or its own, whichever is higher, without its value_info.

    Where no operator of the graph changed in between but for types and optional additions, that is a new number;
    otherwise onnx.version_converter rewrites the graph.
    """
    copy = deepcopy(model)
    del copy.graph.value_info[:]
    default = next(entry for entry in copy.opset_import if entry.domain in DEFAULT_DOMAIN)
    if default.version < opset:
        op_types = {node.op_type for node in copy.graph.node if node.domain in DEFAULT_DOMAIN}
        if not all(_only_extended(op_type, default.version, opset) for op_type in op_types):
            return at_least_opset(version_converter.convert_version(copy, opset), opset)
        default.version = opset
    needed = helper.find_min_ir_version_for(copy.opset_import, ignore_unknown=True)
    copy.ir_version = max(copy.ir_version, needed)
    return copy


def _only_extended(op_type: str, old: int, new: int) -> bool:
    """Whether a node that is legal at opset ``old`` means the same at ``new``, as far as the two schemas tell."""
    before, after = onnx.defs.get_schema(op_type, old), onnx.defs.get_schema(op_type, new)
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    known, added = before.attributes, after.attributes.keys() - before.attributes.keys()
    inputs = [value.name for value in before.inputs]
    return before.since_version == after.since_version or (
        not (after.deprecated or op_type in REDEFINED)
        and known.keys() <= after.attributes.keys()
        and all(after.attributes[name].default_value == known[name].default_value for name in known)
        and not any(after.attributes[name].required for name in added)
        and [value.name for value in after.inputs][: len(inputs)] == inputs
        and all(value.option != required for value in after.inputs[len(inputs) :])
        and len(before.outputs) == len(after.outputs)
    )


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} for a batch of 1, as far as ONNX infers it; a size that is not known is 0.

    Initializers are not among them.
    """
    copy = deepcopy(model)
    for value in (*copy.graph.input, *copy.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions):
            dimensions[0].dim_value = 1
    del copy.graph.value_info[:]
    graph = shape_inference.infer_shapes(copy, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def before_softmax(nodes: Iterable[NodeProto], output: str) -> str:
    """The tensor whose Softmax ``output`` is, quantized or in another shape; ``output`` itself where it is none."""
    producers, name = {node.output[0]: node for node in nodes}, output
    while (node := producers.get(name)) is not None:
        if node.op_type == "Softmax":
            return str(node.input[0])
        if node.op_type not in _SAME_VALUES:
            break
        name = node.input[0]
    return output


def attributes(node: NodeProto) -> dict[str, Any]:
    """{name: value} of a node's attributes."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def type_name(data_type: int) -> str:
    """Name of an ONNX type as the config has it, for example "int8"."""
    name = str(TensorProto.DataType.Name(data_type)).lower()
    return "float32" if name == "float" else name


def input_name(node: NodeProto, position: int) -> str:
    """Name of a node's input; "" where it has none there."""
    return str(node.input[position]) if len(node.input) > position else ""


def has_inner_graphs(model: onnx.ModelProto) -> bool:
    """Whether a model has functions, or nodes with graphs of their own (If, Loop, Scan)."""
    return bool(model.functions) or any(True for node in model.graph.node for _ in subgraphs(node))


def subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in an operator: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _reads(node: NodeProto) -> Iterator[str]:
    """All tensors that a node needs, those that its subgraphs take from around them included."""
    yield from node.input
    for graph in subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _reads(inner)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
