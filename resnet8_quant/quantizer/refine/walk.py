"""Refines a model layer after layer, in the order of the graph.

In: a float model, its calibration, calibration images, the `quant` and `refine` parts of the config. Out: a `Plan`.

Float and quantized model are walked side by side on the same images. Each layer takes its input from the already
quantized model, and its integers are chosen so that its output comes close to the float model's: later layers thus make
up for earlier ones.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.config import CalibrationConfig, QuantConfig, RefineConfig, Rounding, Target, WeightScale
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.engine import Calibration
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.plan import LayerPlan, Plan, bias_integers
from resnet8_quant.quantizer.refine.activations import ActivationGrids, on_grid
from resnet8_quant.quantizer.refine.bits import LayerBits, layer_bits, layer_nodes
from resnet8_quant.quantizer.refine.layer import changed_node, plan_layer
from resnet8_quant.quantizer.refine.nodes import NodeRunner

log = logging.getLogger(__name__)

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def needs_images(config: RefineConfig) -> bool:
    """Whether a refinement looks at activations at all."""
    return (
        config.rounding is not Rounding.nearest
        or config.weight_scale in (WeightScale.hessian, WeightScale.rounded)
        or config.target is Target.outputs
        or config.bias
        or config.activation_ranges
    )


def refine(
    model: FloatModel,
    images: CalibrationImages,
    quant: QuantConfig,
    config: CalibrationConfig,
    refinement: RefineConfig,
    calibration: Calibration,
    *,
    bits: dict[str, LayerBits] | None = None,
    threads: int = 0,
) -> Plan:
    """Choose the integers of every layer and the grid of every activation.

    Args:
        model: float, BatchNorm folded.
        images: calibration images; ``refinement.images`` of them are used, evenly spread.
        quant: types and widths.
        config: the method that gives ranges which are not taken in place.
        refinement: what is refined and how.
        calibration: of the same model.
        bits: of each layer; None: those of ``quant``.
        threads: of ONNX Runtime; 0 for all cores.

    Raises:
        ExperimentError: quant.layers matches no layer.
    """
    proto = model.proto()
    graph = proto.graph
    bits = layer_bits(graph, quant) if bits is None else bits
    layers = {node.output[0]: node for node in layer_nodes(graph)}
    weights = {tensor.name for tensor in graph.initializer}
    left = [node.output[0] for node in graph.node if node.op_type in WEIGHTED and weights & set(node.input[:2])]
    if left := [name for name in left if name not in layers]:
        log.warning("neither narrowed nor refined: %s", ", ".join(left))
    grids = ActivationGrids(graph, bits, quant, config, calibration, refinement.activation_ranges)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    plans: list[LayerPlan] = []
    if not needs_images(refinement):
        for name in calibration.grids:
            grids.stored(name, None)
        for node in layers.values():
            width = bits[node.output[0]].weight
            plans.append(plan_layer(node, constants, grids.read(node, None), width, quant, refinement, None, None))
        return Plan(tuple(plans), grids.tensors, quant.activation_type)

    folded = {node.input[0] for node in graph.node if node.op_type in ("Relu", "Clip")} & calibration.grids.keys()
    folded -= calibration.observations.keys()
    if quant.activation_symmetric:  # quantize_static then keeps the Relu, and quantizes what it reads
        folded = set()
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    first = spread_images(model, images, refinement.images)
    runner = NodeRunner(proto, _batch(model, graph, len(first)), threads)
    source = graph.input[0].name
    floating, quantized = {source: first}, {source: on_grid(first, grids.stored(source, first))}
    with progress("refining", len(layers), "layers") as advance:
        for i, node in enumerate(graph.node):
            known = {name: constants[name] for name in node.input if name in constants}
            names = [name for name in node.input if name and name not in constants]
            results = runner.run(node, {name: floating[name] for name in names}, known)
            if not names:
                constants.update(zip(filter(None, node.output), results, strict=True))
                continue
            if node.output[0] in layers:
                name = node.input[0]
                grid = grids.read(node, quantized[name])
                read = quantized[name] if grid == grids.stored(name, None) else on_grid(quantized[name], grid)
                width = bits[node.output[0]].weight
                plan = plan_layer(node, constants, grid, width, quant, refinement, read, floating[name])
                plans.append(plan)
                changed, constant = changed_node(node, plan, constants)
                if plan.bias is not None:
                    scale = np.float32(grid.scale) * plan.weight.scale
                    stored = bias_integers(plan.bias, scale) * scale
                    constant[changed.input[2]] = np.broadcast_to(stored, plan.bias.shape).astype(np.float32)
                outputs = runner.run(changed, {name: read}, constant)
                advance(1)
            else:
                outputs = runner.run(node, {name: quantized[name] for name in names}, known)
            for name, float_values, values in zip(filter(None, node.output), results, outputs, strict=True):
                floating[name] = float_values
                stays = name in folded or name not in calibration.grids
                quantized[name] = values if stays else on_grid(values, grids.stored(name, values))
            for name in names:
                if last_use[name] == i:
                    del floating[name], quantized[name]
    for name in calibration.grids:
        grids.stored(name, None)
    return Plan(tuple(plans), grids.tensors, quant.activation_type)


def _batch(model: FloatModel, graph: onnx.GraphProto, count: int) -> int | None:
    """Images in a call: all at once where the graph computes with the shapes of its tensors."""
    shapes = [node.op_type for node in graph.node if node.op_type in ("Shape", "Size")]
    if shapes and model.input_spec.batch is not None and model.input_spec.batch < count:
        raise ExperimentError(
            f"`model`: it has a fixed batch and computes with shapes ({shapes[0]}), which cannot be refined",
            "export it with a free batch, or refine=none",
        )
    return count if shapes else model.input_spec.batch


def spread_images(model: FloatModel, images: CalibrationImages, most: int) -> np.ndarray:
    """The model's input for up to ``most`` images, evenly spread; with a fixed batch, whole batches of them."""
    count, batch = min(len(images), most), model.input_spec.batch or 1
    places = np.linspace(0, len(images) - 1, max(batch, count // batch * batch)).round().astype(np.int64)
    return model.input_spec.prepare(images.images[images.chosen[places]])
