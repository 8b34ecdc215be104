"""Folding: a float graph becomes one that quantization can take, with the same outputs.

In: a ModelProto and its input spec. Out: one without BatchNorm, constant nodes and constant Mul/Add after Conv, which
ONNX Runtime's own semantics-preserving ("basic") optimizations fold into the weights; a BatchNorm beside a Gemm goes
into it, and one of images behind something else than a Conv becomes one. What is left is named, and random images prove
that the outputs are the same.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.graph import attributes, has_inner_graphs
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.input_spec import InputSpec

log = logging.getLogger(__name__)

IMAGE_RANK = 4  # [N, C, H, W]
PRODUCT_RANK = 2  # [N, features]
TOLERANCE = 1e-3  # of an output in the order of 1; folding rounds differently in float32


def needs_folding(model: onnx.ModelProto) -> bool:
    """Whether the graph holds what quantization should not see: BatchNorm, what is constant, affine ops after Conv."""
    conv_outputs = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    constants = {tensor.name for tensor in model.graph.initializer}
    # In a quantized model these are Casts of its stored integers, which would take more bytes afterwards.
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    for node in model.graph.node:
        if node.op_type in ("BatchNormalization", "Constant", "Identity", "Dropout"):
            return True
        if not quantized and node.input and constants >= set(node.input):
            return True
        affine = node.op_type in ("Mul", "Add", "Sub", "Div")
        if affine and conv_outputs & set(node.input) and constants & set(node.input):
            return True
    return False


def fold(model: onnx.ModelProto, input_spec: InputSpec) -> onnx.ModelProto:
    """Return ``model`` with everything folded that can be; the same object where there is nothing to do."""
    if not needs_folding(model):
        return model
    original = model.SerializeToString()
    with temporary_folder() as folder:
        path = folder / "folded.onnx"
        try:
            new_session(original, level="basic", optimized_model=path)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExperimentError(
                f"`model`: ONNX Runtime cannot load it: {str(error).splitlines()[0]}",
                "export the model again; its operators must be in ONNX Runtime's CPU provider",
            ) from error
        folded = onnx.load(path)
    used = {node.domain for node in folded.graph.node}
    kept = [opset for opset in folded.opset_import if opset.domain in used | {""}]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    products, norms = _norms_into_products(folded), _norms_as_convolutions(folded)
    if products or norms:
        _drop_unread(folded)
    _require_same_outputs(original, folded.SerializeToString(), input_spec)
    for node in folded.graph.node:
        if node.op_type == "BatchNormalization":
            log.warning("BatchNormalization %r could not be folded into a Conv or a Gemm: it stays float", node.name)
    if products:
        log.info("%d BatchNormalizations beside a Gemm went into it", products)
    if norms:
        log.info("%d BatchNormalizations behind something else than a Conv became depthwise 1x1 Convs", norms)
    log.info("folded %d operators into %d", len(model.graph.node), len(folded.graph.node))
    return folded


def _norms(model: onnx.ModelProto, rank: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{place of a BatchNormalization with constant parameters: weight, bias, of each channel, float64}.

    Args:
        rank: of its input.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)}
    lines = {}
    for i, node in enumerate(model.graph.node):
        if (
            node.op_type == "BatchNormalization"
            and tensors.keys() >= set(node.input[1:])
            and ranks.get(node.input[0]) == rank
        ):
            scale, bias, mean, variance = (
                numpy_helper.to_array(tensors[name]).astype(float) for name in node.input[1:]
            )
            weight = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
            lines[i] = weight, bias - mean * weight
    return lines


def _norms_into_products(model: onnx.ModelProto) -> int:
    """Write each BatchNormalization behind a Gemm or MatMul, or in front of one, into its numbers; return how many."""
    folded: list[onnx.NodeProto] = []
    if has_inner_graphs(model):  # which may read any tensor
        return 0
    product: onnx.NodeProto
    for i, (scale, shift) in _norms(model, PRODUCT_RANK).items():
        norm, tensors = model.graph.node[i], {tensor.name: tensor for tensor in model.graph.initializer}
        before = next((node for node in model.graph.node if norm.input[0] in node.output), None)
        behind = _only_reader(model, norm.output[0])
        if before is not None and _is_product(before, tensors) and _only_reader(model, norm.input[0]) is norm:
            product = before
        elif behind is not None and _is_product(behind, tensors) and behind.input[0] == norm.output[0]:
            product = behind
        else:
            continue
        transposed = attributes(product).get("transB", 0)
        weight = numpy_helper.to_array(tensors[product.input[1]]).astype(float)
        weight = weight.T if transposed else weight  # [inputs, outputs]
        bias = numpy_helper.to_array(tensors[product.input[2]]).astype(float) if len(product.input) > 2 else 0.0
        if product is before:
            weight, bias = weight * scale, bias * scale + shift
            product.output[0] = norm.output[0]
        else:
            weight, bias = weight * scale[:, None], bias + shift @ weight
            product.input[0] = norm.input[0]
        names = [
            _added(model, f"{norm.output[0]}.weight", weight.T if transposed else weight),
            _added(model, f"{norm.output[0]}.bias", bias.reshape(-1)),
        ]
        product.CopyFrom(
            helper.make_node("Gemm", [product.input[0], *names], product.output, product.name, transB=transposed)
        )
        folded.append(norm)
    for norm in folded:
        model.graph.node.remove(norm)
    return len(folded)


def _is_product(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether it is a MatMul or a plain Gemm, of values with a constant matrix and a constant bias of each output."""
    if node.op_type not in ("MatMul", "Gemm") or not tensors.keys() >= set(node.input[1:]):
        return False
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    sizes, *bias = (list(tensors[name].dims) for name in node.input[1:])
    return (
        len(sizes) == PRODUCT_RANK
        and all(size == 1 for dims in bias for size in dims[:-1])
        and all(attributes(node).get(name, value) == value for name, value in plain.items())
    )


def _only_reader(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The node that alone reads a tensor; None where several or an output of the graph do."""
    readers = [node for node in model.graph.node for read in node.input if read == name]
    return readers[0] if len(readers) == 1 and name not in {value.name for value in model.graph.output} else None


def _added(model: onnx.ModelProto, name: str, values: np.ndarray) -> str:
    """Add a float32 initializer; returns its name, which may have got an end."""
    while name in {tensor.name for tensor in model.graph.initializer}:
        name += "_"
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name


def _drop_unread(model: onnx.ModelProto) -> None:
    """Drop the initializers that nothing reads any more."""
    if has_inner_graphs(model):
        return
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    live = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(live)


def _norms_as_convolutions(model: onnx.ModelProto) -> int:
    """Write each BatchNormalization of images with constant parameters as a depthwise Conv of 1x1; return how many.

    What is not behind a Conv, as in DenseNet, cannot be folded into one, and onnxruntime has no integer
    BatchNormalization. The Conv computes the same line for each channel, and has integer kernels.
    """
    made = 0
    for i, (weight, bias) in _norms(model, IMAGE_RANK).items():
        node = model.graph.node[i]
        names = [_added(model, f"{node.output[0]}.weight", weight.reshape(-1, 1, 1, 1))]
        names.append(_added(model, f"{node.output[0]}.bias", bias))
        convolution = helper.make_node(
            "Conv", [node.input[0], *names], node.output[:1], node.name, kernel_shape=[1, 1], group=len(weight)
        )
        model.graph.node[i].CopyFrom(convolution)
        made += 1
    return made


def _require_same_outputs(original: bytes, folded: bytes, input_spec: InputSpec) -> None:
    images = np.random.default_rng(0).integers(0, 256, (input_spec.batch or 4, *input_spec.shape), dtype=np.uint8)
    feed = {input_spec.name: input_spec.prepare(images)}
    before, after = (runtime.run(new_session(data, threads=0), None, feed)[0] for data in (original, folded))
    difference = float(np.max(np.abs(before - after)))
    if not difference <= TOLERANCE * max(1.0, float(np.max(np.abs(before)))):
        raise ExperimentError(
            f"`model`: folding BatchNorm changed the output by {difference:g}",
            "export the model with BatchNorm folded, then run again",
        )
