"""Sensitivity of a model to the bit width of each layer alone: the error of the logits against the float model's.

The layer's codes are refined as they will be; all else stays float, so that the errors of several layers may be
added up. A layer that stays in float adds nothing itself; what its input adds counts where it would be quantized
otherwise than for integers, as with 4-bit activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.config import Config, DType, Rounding, WeightScale
from resnet8_quant.graphs.graph import Graph, at_least_opset, before_softmax
from resnet8_quant.graphs.tap import tap
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.mixed_precision.allocation import FLOAT_BITS, Choice
from resnet8_quant.quantizer.plan import LayerPlan, layer_nodes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.quantizer.refine.layer import node_of_plan, quantize_layer
from resnet8_quant.quantizer.refine.reconstruct import spread_images

FLOAT_INPUT = QuantParams(np.float32(1.0), 0, DType.uint8, 0, 255)  # of a layer whose input stays float
# From a layer, whether it stays in float, and the values that it reads, to how these are quantized; None: not at all.
ReadParams = Callable[[str, bool, np.ndarray], QuantParams | None]
IMAGES = 256
OLDEST_OPSET = 13  # whose Clip takes its limits as inputs, as all later ones
BATCH = 64


def sensitivities(
    model: FloatModel,
    images: CalibrationImages,
    config: Config,
    widths: dict[str, list[int]],
    read_params: ReadParams = lambda layer, in_float, values: None,
) -> dict[str, list[Choice]]:
    """Measure the error of each layer's weight alone at each of its bit widths.

    Args:
        images: calibration images; 256 of them are used.
        config: of the run; ``quant`` and ``refine`` are read.
        widths: of each layer; 32: it stays in float.
        read_params: how a layer would read its input.
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
    logits = before_softmax(proto.graph.node, proto.graph.output[0].name)
    values = _run(proto, [logits, *reads], feed, batch) | {source: feed}

    choices: dict[str, list[Choice]] = {}
    with progress("sensitivity", len(nodes), "layers") as advance:
        for node in nodes:
            x, layer = values[node.input[0]], node.output[0]
            input_errors = [0.0, 0.0]  # of a layer with integers, of one in float; what both share decides nothing
            inputs = [read_params(layer, kind, x) for kind in (False, True)] if FLOAT_BITS in widths[layer] else []
            if len({*inputs}) > 1:
                for kind, params in enumerate(inputs):
                    if params is not None:
                        changed = _run(_with_input(proto, node, params), [logits], feed, batch)
                        input_errors[kind] = _error(changed[logits], values[logits])
            options = []
            for width in widths[layer]:
                if width == FLOAT_BITS:
                    options.append(Choice(width, input_errors[True], constants[node.input[1]].nbytes))
                    continue
                plan = quantize_layer(node, constants, FLOAT_INPUT, width, config.quant, refinement, (x, x))
                outputs = _run(_with(proto, node, plan, constants), [logits], feed, batch)
                error = _error(outputs[logits], values[logits]) + input_errors[False]
                payload = -(-plan.weight.codes.size * plan.weight.dtype.bits // 8)  # packed
                options.append(Choice(width, error, payload))
            choices[layer] = options
            advance(1)
    return choices


def _error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean((logits.astype(np.float64) - expected) ** 2))


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


def _with_input(proto: onnx.ModelProto, node: onnx.NodeProto, params: QuantParams) -> onnx.ModelProto:
    """The float model with the input of one layer quantized and dequantized."""
    graph = Graph(at_least_opset(proto, OLDEST_OPSET))
    layer = next(other for other in graph.nodes if other.output[0] == node.output[0])
    read = layer.input[0]
    scale = np.float32(params.scale)
    low, high = (np.float32(bound - params.zero_point) for bound in (params.qmin, params.qmax))
    for op_type, values in {"Div": [scale], "Round": [], "Clip": [low, high], "Mul": [scale]}.items():
        operands = [graph.add_initializer(f"{node.output[0]}_input_{op_type}", value) for value in values]
        output = graph.unique_name(f"{node.output[0]}_input_{op_type}_Output")
        graph.insert_before(layer, onnx.helper.make_node(op_type, [read, *operands], [output]))
        read = output
    layer.input[0] = read
    return graph.finish()


def _run(proto: onnx.ModelProto, names: list[str], feed: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Values of the tensors ``names`` on ``feed``."""
    values_of = tap(proto, names, threads=0)
    parts = [values_of(feed[start : start + batch]) for start in range(0, len(feed), batch)]
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
