"""The same model in fewer bytes: nothing goes that an inference needs.

In: a ModelProto. Out: another one that computes the same, to the bit, with the same kernels. The weights of a small
network are soon smaller than the names of its tensors; with 2-bit weights the text is most of the file.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count, product

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

DEFAULT_DOMAIN = ("", "ai.onnx")
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
    small = onnx.ModelProto()
    small.CopyFrom(model)
    _drop_text(small)
    if not small.functions and not any(_has_subgraph(node) for node in small.graph.node):
        _drop_zero_points(small.graph)
        _drop_defaults(small)
        _share_initializers(small.graph)
        _rename(small.graph)
    onnx.checker.check_model(small, full_check=True)
    return small


def _has_subgraph(node: NodeProto) -> bool:
    return any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute)


def _drop_text(model: onnx.ModelProto) -> None:
    """Who made it, what it is about, node names, shapes that can be inferred, operator sets that no node is from."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    graph = model.graph
    for field in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "g"  # the checker wants one
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        for field in ("doc_string", "metadata_props"):
            part.ClearField(field)
    for node in graph.node:
        node.ClearField("name")
    if not model.functions and not any(_has_subgraph(node) for node in graph.node):
        used = {"" if node.domain in DEFAULT_DOMAIN else node.domain for node in graph.node}
        kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain in DEFAULT_DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(kept)


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Those of biases and of convolutions' weights that are all zero; DequantizeLinear knows the type without.

    Not those of activations: without one QuantizeLinear means uint8, and the scalar is shared anyway. Not those of
    other weights: onnxruntime 1.32 makes no QGemm without.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    constant = tensors.keys() | {node.output[0] for node in graph.node if set(node.input) <= tensors.keys()}
    readers: dict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name].add(f"{node.op_type} {position}")
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in constant:
            zero_point = tensors.get(node.input[2])
            zero = zero_point is not None and not numpy_helper.to_array(zero_point).astype(np.int64).any()
            if zero and readers[node.output[0]] <= WITHOUT_ZERO_POINT:
                del node.input[2:]


def _drop_defaults(model: onnx.ModelProto) -> None:
    """Attributes that say what holds without them."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opsets[""] = next(opsets[domain] for domain in DEFAULT_DOMAIN if domain in opsets)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Cast", "DequantizeLinear") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        schema = None
        if node.domain in DEFAULT_DOMAIN and onnx.defs.has(node.op_type, ""):
            schema = onnx.defs.get_schema(node.op_type, opsets[""])
        kept = [attribute for attribute in node.attribute if not _is_default(attribute, node, schema, shapes)]
        del node.attribute[:]
        node.attribute.extend(kept)


def _is_default(
    attribute: AttributeProto, node: NodeProto, schema: onnx.defs.OpSchema | None, shapes: dict[str, list[int]]
) -> bool:
    microsoft = MICROSOFT_DEFAULTS.get(node.op_type, {}) if node.domain == "com.microsoft" else {}
    if (schema is None and not microsoft) or attribute.ref_attr_name:
        return False
    name, value = attribute.name, onnx.helper.get_attribute_value(attribute)
    if node.op_type in WINDOWS and name in NEUTRAL:
        return all(number == NEUTRAL[name] for number in value)
    if node.op_type in WEIGHT_OF and name == "kernel_shape":
        return shapes.get(node.input[WEIGHT_OF[node.op_type]], [])[2:] == list(value)
    if schema is None:
        return name in microsoft and bool(microsoft[name] == value)
    known = schema.attributes.get(name)
    if known is None or known.required or known.default_value.type != attribute.type:
        return False
    return bool(onnx.helper.get_attribute_value(known.default_value) == value)


def _share_initializers(graph: onnx.GraphProto) -> None:
    """One tensor for all of the same type, shape and bytes, stored as raw bytes; none that is not read."""
    named = {value.name for value in (*graph.input, *graph.output)}
    read = {name for node in graph.node for name in node.input} | named
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    other: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        if tensor.name not in read:
            continue
        raw = tensor
        if tensor.data_type != TensorProto.STRING and tensor.data_location != TensorProto.EXTERNAL:
            raw = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
            if tensor.name not in named:
                key = (tensor.data_type, tuple(tensor.dims), raw.raw_data)
                other[tensor.name] = first.setdefault(key, tensor.name)
        if other.get(tensor.name, tensor.name) == tensor.name:
            kept.append(raw)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def _rename(graph: onnx.GraphProto) -> None:
    """The shortest names for the tensors that are named most often."""
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    uses = Counter(name for node in graph.node for name in (*node.input, *node.output))
    uses.update(tensor.name for tensor in graph.initializer)
    names = _short_names(fixed)
    renamed = {name: name if name in fixed else next(names) for name, _ in uses.most_common()}
    for node in graph.node:
        node.input[:] = [renamed[name] for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]


def _short_names(taken: set[str]) -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ... without ``taken``."""
    for length in count(1):
        for letters in product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name
