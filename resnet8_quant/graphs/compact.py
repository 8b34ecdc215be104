"""Shrink the file; outputs stay the same.

In: a ModelProto. Out: another one that computes the same, to the bit, with the same kernels. The weights of a small
network are soon smaller than the names of its tensors; with 2-bit weights the text is most of the file.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from copy import deepcopy
from itertools import count, product

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from resnet8_quant.graphs.graph import DEFAULT_DOMAIN, MICROSOFT, Graph, has_inner_graphs

WINDOWS = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger"),
    *("QLinearAveragePool", "NhwcMaxPool", "FusedConv"),
)
NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0}  # for each axis; the schema gives them no default
WITHOUT_ZERO_POINT = {"Conv 1", "Conv 2", "Gemm 2"}  # operator and position of what may do without one
WEIGHT_OF = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3}  # whose shape says kernel_shape
MICROSOFT_DEFAULTS: dict[str, dict[str, object]] = {  # of ONNX Runtime's operators, which package onnx does not know
    "QLinearConv": {"auto_pad": b"NOTSET", "group": 1},
    "FusedConv": {"auto_pad": b"NOTSET", "group": 1},
    "QLinearAveragePool": {"auto_pad": b"NOTSET", "ceil_mode": 0, "count_include_pad": 0},
    "NhwcMaxPool": {"auto_pad": b"NOTSET", "ceil_mode": 0},
    "QGemm": {"alpha": 1.0, "transA": 0, "transB": 0},
    "QLinearSoftmax": {"axis": -1},
}


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop names, text and what is said twice; ``model`` is not changed.

    The graph's inputs and outputs keep their names. A model with subgraphs or functions, which refer to the names
    around them, keeps all names and tensors.
    """
    small = _without_text(model)
    if not has_inner_graphs(small):
        graph = Graph(small)
        _drop_zero_points(graph)
        _drop_defaults(graph)
        _share_initializers(graph)
        _shorten_names(graph)
        small = graph.finish()
    onnx.checker.check_model(small, full_check=True)
    return small


def _without_text(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without who made it, what it is about, node names, and shapes that can be inferred."""
    copy = deepcopy(model)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        copy.ClearField(field)
    graph = copy.graph
    for field in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "g"  # the checker wants one
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        for field in ("doc_string", "metadata_props"):
            part.ClearField(field)
    for node in graph.node:
        node.ClearField("name")
    return copy


def _drop_zero_points(graph: Graph) -> None:
    """Drop those of biases and of convolutions' weights that are all zero; DequantizeLinear knows the type without.

    Not those of activations: without one QuantizeLinear means uint8, and the scalar is shared anyway. Not those of
    other weights: onnxruntime 1.32 makes no QGemm without.
    """
    constants = graph.constants()
    consumers: dict[str, set[str]] = defaultdict(set)  # tensor -> "operator position" of each that reads it
    for node in graph.nodes:
        for position, name in enumerate(node.input):
            consumers[name].add(f"{node.op_type} {position}")
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or len(node.input) != 3 or node.input[0] not in constants:
            continue
        name = node.input[2]
        is_zero = name in graph.initializers and not graph.array(name).astype(np.int64).any()
        if is_zero and consumers[node.output[0]] <= WITHOUT_ZERO_POINT:
            del node.input[2:]


def _drop_defaults(graph: Graph) -> None:
    """Drop attributes that say what holds without them."""
    opset = next(entry.version for entry in graph.model.opset_import if entry.domain in DEFAULT_DOMAIN)
    shapes = {name: list(tensor.dims) for name, tensor in graph.initializers.items()}
    for node in graph.nodes:
        if node.op_type in ("Cast", "DequantizeLinear") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        schema = None
        if node.domain in DEFAULT_DOMAIN and onnx.defs.has(node.op_type, ""):
            schema = onnx.defs.get_schema(node.op_type, opset)
        kept = [attribute for attribute in node.attribute if not _is_default(attribute, node, schema, shapes)]
        del node.attribute[:]
        node.attribute.extend(kept)


def _is_default(
    attribute: AttributeProto, node: NodeProto, schema: onnx.defs.OpSchema | None, shapes: dict[str, list[int]]
) -> bool:
    microsoft = MICROSOFT_DEFAULTS.get(node.op_type, {}) if node.domain == MICROSOFT else {}
    if (schema is None and not microsoft) or attribute.ref_attr_name:
        return False
    name, value = attribute.name, onnx.helper.get_attribute_value(attribute)
    # Windows move by one, see all and have no pads, unless they say so; a weight's shape says how large they are.
    if node.op_type in WINDOWS and name in NEUTRAL:
        return all(number == NEUTRAL[name] for number in value)
    if node.op_type in WEIGHT_OF and name == "kernel_shape":
        return shapes.get(node.input[WEIGHT_OF[node.op_type]], [])[2:] == list(value)
    # Of all others the schema knows the default.
    if schema is None:
        return name in microsoft and bool(microsoft[name] == value)
    known = schema.attributes.get(name)
    if known is None or known.required or known.default_value.type != attribute.type:
        return False
    return bool(onnx.helper.get_attribute_value(known.default_value) == value)


def _share_initializers(graph: Graph) -> None:
    """Keep one initializer of all that have the same type, shape and bytes, stored as raw bytes."""
    ends = graph.ends()
    read = {name for node in graph.nodes for name in node.input}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in list(graph.initializers.items()):
        if tensor.data_type == TensorProto.STRING or tensor.data_location == TensorProto.EXTERNAL:
            continue
        if name not in read | ends:
            continue
        raw = graph.initializers[name] = numpy_helper.from_array(graph.array(name), name)
        if name not in ends:
            key = (tensor.data_type, tuple(tensor.dims), raw.raw_data)
            shared[name] = first.setdefault(key, name)
    for node in graph.nodes:
        node.input[:] = [shared.get(name, name) for name in node.input]
    graph.prune()


def _shorten_names(graph: Graph) -> None:
    """Give the shortest names to the tensors that are named most often."""
    ends = graph.ends() | {""}
    uses = Counter(name for node in graph.nodes for name in (*node.input, *node.output))
    uses.update(graph.initializers.keys())
    names = _short_names(ends)
    graph.rename({name: name if name in ends else next(names) for name, _ in uses.most_common()})


def _short_names(taken: set[str]) -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ... without ``taken``."""
    for length in count(1):
        for letters in product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name
