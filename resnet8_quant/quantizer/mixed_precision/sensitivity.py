"""What it costs to narrow one layer alone: the error of the logits against the float model's.

In: a float model, images, widths. Out: for each layer a `Choice` for each width. The layer's integers are refined as
they will be; all else stays float, so that the costs of several layers may be added up.
"""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.config import QuantConfig, RefineConfig, Rounding, WeightScale
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.mixed_precision.budget import Choice
from resnet8_quant.quantizer.plan import LayerPlan
from resnet8_quant.quantizer.refine.bits import LayerBits, layer_nodes
from resnet8_quant.quantizer.refine.layer import changed_node, plan_layer
from resnet8_quant.quantizer.refine.walk import spread_images

NO_GRID = Grid(np.float32(1.0), 0, Levels(0, 255, False))  # of an input that stays float
IMAGES = 256
BATCH = 64


def sensitivities(
    model: FloatModel, images: CalibrationImages, quant: QuantConfig, refinement: RefineConfig, widths: list[int]
) -> dict[str, list[Choice]]:
    """Narrow each layer's weight alone to each of ``widths``.

    Args:
        model: float, BatchNorm folded.
        images: calibration images; 256 of them are used.
        quant: type, symmetry and channels of the weights.
        refinement: how weights are rounded; a search for scales is left out, it would take long and change little.
        widths: in bits.
    """
    quick = dataclasses.replace(
        refinement,
        weight_scale=WeightScale.hessian if refinement.weight_scale is WeightScale.rounded else refinement.weight_scale,
        rounding=Rounding.gptq if refinement.rounding is Rounding.descent else refinement.rounding,
    )
    proto = model.proto()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = layer_nodes(proto.graph)
    batch = model.input_spec.batch or BATCH
    feed = spread_images(model, images, IMAGES)
    reads = sorted({node.input[0] for node in nodes} - {model.input_spec.name})
    logits = _logits(proto.graph)
    seen = _run(proto, [logits, *reads], model.input_spec.name, feed, batch)
    seen[model.input_spec.name] = feed
    found: dict[str, list[Choice]] = {}
    with progress("sensitivity", len(nodes), "layers") as advance:
        for node in nodes:
            options = []
            for width in widths:
                values = seen[node.input[0]]
                plan = plan_layer(node, constants, NO_GRID, width, quant, quick, values, values)
                outputs = _run(_with(proto, node, plan, constants), [logits], model.input_spec.name, feed, batch)
                error = float(np.mean((outputs[logits].astype(np.float64) - seen[logits]) ** 2))
                options.append(Choice(width, error, payload_of(plan)))
            found[node.output[0]] = options
            advance(1)
    return found


def allowed(layer: str, options: list[Choice], quant: QuantConfig, bits: dict[str, LayerBits]) -> list[Choice]:
    """The options that quant.layers and quant.keep_first_last leave to a layer: one named there keeps its width."""
    fixed = any("weight_bits" in override and fnmatchcase(layer, name) for name, override in quant.layers.items())
    ends = (next(iter(bits)), list(bits)[-1])
    least = (
        bits[layer].weight if fixed else min(quant.keep_first_last or 0, quant.weight_type.bits) if layer in ends else 0
    )
    most = bits[layer].weight if fixed else max(choice.bits for choice in options)
    found = [choice for choice in options if least <= choice.bits <= most]
    if not found:
        raise ExperimentError(
            f"`allocate.choices` has none of the widths from {least} to {most} that layer {layer} is held to",
            f"allocate.choices=[{','.join(str(choice.bits) for choice in options)},{least}]",
        )
    return found


def payload_of(plan: LayerPlan) -> int:
    """Bytes of a layer's packed integers."""
    return -(-plan.weight.values.size * plan.weight.container.bits // 8)


def _logits(graph: onnx.GraphProto) -> str:
    """The scores before a final Softmax, where there is one."""
    output = graph.output[0].name
    last = next(node for node in graph.node if output in node.output)
    return str(last.input[0] if last.op_type == "Softmax" else output)


def _with(
    proto: onnx.ModelProto, node: onnx.NodeProto, plan: LayerPlan, constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """The float model with one layer's weight and bias changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    changed, values = changed_node(node, plan, constants)
    next(found for found in copy.graph.node if found.output[0] == node.output[0]).CopyFrom(changed)
    kept = [tensor for tensor in copy.graph.initializer if tensor.name not in values]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in values.items())])
    return copy


def _run(proto: onnx.ModelProto, names: list[str], source: str, feed: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Values of the tensors ``names`` on ``feed``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = new_session(copy.SerializeToString(), threads=0)
    parts = [session.run(names, {source: feed[start : start + batch]}) for start in range(0, len(feed), batch)]
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
