"""Sensitivity of a model to the bit width of each layer alone: the error of the logits against the float model's.

The layer's codes are refined as they will be; all else stays float, so that the errors of several layers may be
added up.
"""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.config import Config, DType, Rounding, WeightScale
from resnet8_quant.graphs.tap import tap
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.mixed_precision.allocation import Choice
from resnet8_quant.quantizer.plan import LayerPlan, layer_nodes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.quantizer.refine.layer import node_of_plan, quantize_layer
from resnet8_quant.quantizer.refine.reconstruct import spread_images

FLOAT_INPUT = QuantParams(np.float32(1.0), 0, DType.uint8, 0, 255)  # of a layer whose input stays float
IMAGES = 256
BATCH = 64


def sensitivities(
    model: FloatModel, images: CalibrationImages, config: Config, widths: dict[str, list[int]]
) -> dict[str, list[Choice]]:
    """Measure the error of each layer's weight alone at each of its bit widths.

    Args:
        images: calibration images; 256 of them are used.
        config: of the run; ``quant`` and ``refine`` are read.
    """
    # A search for scales with the rounding in its loop is left out: it would take long and change little.
    refinement = config.refine
    if refinement.weight_scale is WeightScale.rounded:
        refinement = dataclasses.replace(refinement, weight_scale=WeightScale.hessian)
    if refinement.rounding is Rounding.descent:
        refinement = dataclasses.replace(refinement, rounding=Rounding.gptq)

    # The float model's logits, and what each layer reads in it.
    proto = model.proto()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = [node for node in layer_nodes(proto.graph) if node.output[0] in widths]
    batch, source = model.input_spec.batch or BATCH, model.input_spec.name
    feed = spread_images(model, images, IMAGES)
    reads = sorted({node.input[0] for node in nodes} - {source})
    logits = _logits(proto.graph)
    values = _run(proto, [logits, *reads], feed, batch) | {source: feed}

    choices: dict[str, list[Choice]] = {}
    with progress("sensitivity", len(nodes), "layers") as advance:
        for node in nodes:
            x = values[node.input[0]]
            options = []
            for width in widths[node.output[0]]:
                plan = quantize_layer(node, constants, FLOAT_INPUT, width, config.quant, refinement, (x, x))
                outputs = _run(_with(proto, node, plan, constants), [logits], feed, batch)
                error = float(np.mean((outputs[logits].astype(np.float64) - values[logits]) ** 2))
                payload = -(-plan.weight.codes.size * plan.weight.dtype.bits // 8)  # packed
                options.append(Choice(width, error, payload))
            choices[node.output[0]] = options
            advance(1)
    return choices


def _logits(graph: onnx.GraphProto) -> str:
    """The scores before a final Softmax, where there is one."""
    output = graph.output[0].name
    last = next(node for node in graph.node if output in node.output)
    return str(last.input[0] if last.op_type == "Softmax" else output)


def _with(
    proto: onnx.ModelProto, node: onnx.NodeProto, plan: LayerPlan, constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """The float model with one layer's weight and bias changed."""
    copy = deepcopy(proto)
    changed, values = node_of_plan(node, plan, constants)
    next(other for other in copy.graph.node if other.output[0] == node.output[0]).CopyFrom(changed)
    kept = [tensor for tensor in copy.graph.initializer if tensor.name not in values]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in values.items())])
    return copy


def _run(proto: onnx.ModelProto, names: list[str], feed: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Values of the tensors ``names`` on ``feed``."""
    values_of = tap(proto, names, threads=0)
    parts = [values_of(feed[start : start + batch]) for start in range(0, len(feed), batch)]
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
