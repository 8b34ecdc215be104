"""Folding: a float graph becomes one that quantization can take, with the same outputs.

In: a ModelProto and its input spec. Out: one without BatchNorm, constant nodes and constant Mul/Add after Conv, which
ONNX Runtime's own semantics-preserving ("basic") optimizations fold into the weights; a BatchNorm behind something else
becomes a Conv. What is left is named, and random images prove that the outputs are the same.
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
TOLERANCE = 1e-3  # of an output in the order of 1; folding rounds differently in float32


def needs_folding(model: onnx.ModelProto) -> bool:
    """Whether the graph holds what quantization should not see: BatchNorm, constant nodes, affine ops after Conv."""
    conv_outputs = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("BatchNormalization", "Constant", "Identity", "Dropout"):
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
    norms = _norms_as_convolutions(folded)
    _require_same_outputs(original, folded.SerializeToString(), input_spec)
    for node in folded.graph.node:
        if node.op_type == "BatchNormalization":
            log.warning("BatchNormalization %r could not be folded into a Conv: it stays float", node.name)
    if norms:
        log.info("%d BatchNormalizations behind something else than a Conv became depthwise 1x1 Convs", norms)
    log.info("folded %d operators into %d", len(model.graph.node), len(folded.graph.node))
    return folded


def _norms_as_convolutions(model: onnx.ModelProto) -> int:
    """Write each BatchNormalization of images with constant parameters as a depthwise Conv of 1x1; return how many.

    What is not behind a Conv, as in DenseNet, cannot be folded into one, and onnxruntime has no integer
    BatchNormalization. The Conv computes the same line for each channel, and has integer kernels.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)}
    made = 0
    for i, node in enumerate(model.graph.node):
        options = attributes(node)
        if (
            node.op_type != "BatchNormalization"
            or not tensors.keys() >= set(node.input[1:])
            or ranks.get(node.input[0]) != IMAGE_RANK
            or options.get("training_mode", 0)
        ):
            continue
        scale, bias, mean, variance = (numpy_helper.to_array(tensors[name]).astype(float) for name in node.input[1:])
        weight = scale / np.sqrt(variance + options.get("epsilon", 1e-5))
        names = []
        for end, values in (("weight", weight.reshape(-1, 1, 1, 1)), ("bias", bias - mean * weight)):
            name = f"{node.output[0]}.{end}"
            while name in tensors:
                name += "_"
            tensors[name] = numpy_helper.from_array(values.astype(np.float32), name)
            model.graph.initializer.append(tensors[name])
            names.append(name)
        convolution = helper.make_node(
            "Conv", [node.input[0], *names], node.output[:1], node.name, kernel_shape=[1, 1], group=len(weight)
        )
        model.graph.node[i].CopyFrom(convolution)
        made += 1
    if made:
        read = {name for node in model.graph.node for name in node.input}
        read.update(value.name for value in (*model.graph.input, *model.graph.output))
        live = [tensor for tensor in model.graph.initializer if tensor.name in read or has_inner_graphs(model)]
        del model.graph.initializer[:]
        model.graph.initializer.extend(live)
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
