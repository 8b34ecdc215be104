"""What exporters write in several ways, written in one: float32, plain Gemms, nothing that is text alone.

In: a checked ModelProto that somebody else made. Out: the same object, changed; what it computes stays, but for
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import attributes, subgraphs

log = logging.getLogger(__name__)

TEXT = ("doc_string", "metadata_props")


def normalize(model: onnx.ModelProto) -> None:
    """Bring a model to what quantization knows.

    Args:
        model: with float32 input and output; changed in place.

    Raises:
        ExperimentError: a Gemm with alpha 0, whose weights have no range that its bias could be stored in.
    """
    _drop_text(model)
    _widen_float16(model)
    _plain_gemms(model.graph)


def _drop_text(model: onnx.ModelProto) -> None:
    """Drop comments and metadata: torch's exporter writes the stack of every operator, more than all weights."""
    for graph in _graphs(model.graph):
        for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            for field in TEXT:
                part.ClearField(field)
    for field in TEXT:
        model.ClearField(field)


def _widen_float16(model: onnx.ModelProto) -> None:
    """Make float32 of every float16 tensor: the CPU computes in float32, and onnxruntime quantizes that alone."""
    count = 0
    for graph in _graphs(model.graph):
        count += sum(_widen(tensor) for tensor in graph.initializer)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    count += _widen(attribute.t)
                elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT
                    count += 1
    if count:
        _drop_casts(model)
        log.info("float16: %d tensors and casts became float32, in which ONNX Runtime computes on a CPU", count)


def _widen(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT16:
        return False
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return True


def _drop_casts(model: onnx.ModelProto) -> None:
    """Make an Identity, which folding removes, of each Cast from float32 to float32."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for value in (*graph.input, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            floats.add(value.name)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in floats and node.attribute[0].i == TensorProto.FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]


def _plain_gemms(graph: onnx.GraphProto) -> None:
    """Write Gemms with constants so that alpha and beta are 1, and the bias has one value for each output.

    onnxruntime's quantizer knows no bias of another shape, and its QGemm multiplies the bias by alpha, too.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    replaced = set()

    def replace(node: onnx.NodeProto, position: int, values: np.ndarray) -> None:
        old = node.input[position]
        name = f"{old}_plain"  # another operator may read the same tensor
        while name in tensors:
            name += "_"
        tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        graph.initializer.append(tensors[name])
        node.input[position] = name
        replaced.add(old)

    for node in graph.node:
        if node.op_type != "Gemm" or not {*node.input[1:]} <= tensors.keys():
            continue
        options = attributes(node)
        alpha, beta = options.get("alpha", 1.0), options.get("beta", 1.0)
        if alpha == 0.0:
            raise ExperimentError(
                f"`model`: Gemm {node.name or node.output[0]!r} has alpha 0 and computes nothing from its input",
                "export the model without it",
            )
        weight = numpy_helper.to_array(tensors[node.input[1]])
        outputs = weight.shape[0 if options.get("transB", 0) else 1]
        if alpha != 1.0:
            replace(node, 1, weight * np.float32(alpha))
        if len(node.input) > 2:
            bias = numpy_helper.to_array(tensors[node.input[2]])
            plain = bias.shape == (outputs,) or bias.shape not in ((), (1,), (1, 1), (1, outputs))
            if not plain or beta != 1.0:
                flat = bias if plain else np.broadcast_to(bias.reshape(-1), outputs)
                replace(node, 2, flat * np.float32(beta))
        kept = [attribute for attribute in node.attribute if attribute.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
    read = {name for each in _graphs(graph) for node in each.node for name in node.input}
    read.update(value.name for value in (*graph.output, *graph.input))
    kept_tensors = [tensor for tensor in graph.initializer if tensor.name not in replaced - read]
    del graph.initializer[:]
    graph.initializer.extend(kept_tensors)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those in its operators: the branches of an If, the body of a Loop."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)
