"""Layer-wise reconstruction: quantizes a model layer after layer, in the order of the graph.

Float and quantized model are run side by side on the same images, node by node. Each layer takes its input from the
already quantized model, and its codes are chosen so that its output comes close to the float model's: later layers
thus make up for earlier ones, as in AdaRound (Nagel et al., arXiv 2004.10568) and BRECQ (Li et al., arXiv 2102.05426).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resnet8_quant.config import Config, RefineConfig, Rounding, Target, WeightScale
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.calibrate import Calibration
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.plan import LayerBits, LayerPlan, Plan, bias_codes, layer_bits, layer_nodes
from resnet8_quant.quantizer.quant_params import fake_quantize
from resnet8_quant.quantizer.refine.activations import ActivationParams
from resnet8_quant.quantizer.refine.layer import node_of_plan, quantize_layer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CHUNK = 100  # images in a call, unless the model's batch is fixed


def needs_images(config: RefineConfig) -> bool:
    """Whether a refinement looks at activations at all."""
    return (
        config.rounding is not Rounding.nearest
        or config.weight_scale in (WeightScale.hessian, WeightScale.rounded)
        or config.target is Target.outputs
        or config.bias
        or config.activation_ranges
    )


def reconstruct(
    model: FloatModel,
    images: CalibrationImages,
    config: Config,
    calibration: Calibration,
    bits: dict[str, LayerBits] | None = None,
    quantized: Collection[str] | None = None,
) -> Plan:
    """Choose the codes of every layer and the parameters of every activation.

    Args:
        images: calibration images; ``config.refine.images`` of them are used, evenly spread.
        config: of the run; ``quant``, ``calibration``, ``refine`` and ``evaluation.threads`` are read.
        bits: of each layer that is quantized; None: those of ``config.quant``.
        quantized: activations that the graph stores as integers; None: all that ``calibration`` has parameters of.

    Raises:
        ExperimentError: quant.layers matches no layer.
    """
    proto = model.proto()
    graph = proto.graph
    bits = layer_bits(graph, config.quant) if bits is None else bits
    names = {node.output[0] for node in layer_nodes(graph)}
    layers = {node.output[0]: node for node in layer_nodes(graph) if node.output[0] in bits}
    weights = {tensor.name for tensor in graph.initializer}
    weighted = [node.output[0] for node in graph.node if node.op_type in WEIGHTED and weights & set(node.input[:2])]
    if untouched := [name for name in weighted if name not in names]:
        log.warning("neither low-bit nor refined: %s", ", ".join(untouched))
    params = ActivationParams(graph, bits, config, calibration)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    if needs_images(config.refine):
        stored = set(calibration.params if quantized is None else quantized)
        plans = _side_by_side(model, proto, images, params, constants, stored)
        for name in calibration.params:  # tensors that no layer reads
            params.stored(name, None)
    else:
        for name in calibration.params:
            params.stored(name, None)
        plans = [
            quantize_layer(
                node, constants, params.read(node, None), bits[name].weight, config.quant, config.refine, None
            )
            for name, node in layers.items()
        ]
    return Plan(tuple(plans), params.tensors, config.quant.activation_type)


def _side_by_side(
    model: FloatModel,
    proto: onnx.ModelProto,
    images: CalibrationImages,
    params: ActivationParams,
    constants: dict[str, np.ndarray],
    stored_tensors: set[str],
) -> list[LayerPlan]:
    """Run float and quantized model node by node and quantize each layer when its input is known.

    Args:
        constants: {name: value} of the initializers; computed constants are added.
        stored_tensors: activations that the graph stores as integers.
    """
    config, calibration, bits = params.config, params.calibration, params.bits
    layers = {node.output[0]: node for node in layer_nodes(proto.graph) if node.output[0] in bits}
    graph = proto.graph
    # quantize_static folds a Relu or Clip into the operator before it, whose output then is never quantized itself.
    # With symmetric activations it keeps the Relu, and quantizes what it reads.
    folded = {node.input[0] for node in graph.node if node.op_type in ("Relu", "Clip")} & calibration.params.keys()
    folded = set() if config.quant.activation_symmetric else folded - calibration.stats.keys()
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}

    # Both models start from the same images; the quantized one sees them on the grid of its input.
    source, feed = graph.input[0].name, spread_images(model, images, config.refine.images)
    runner = NodeRunner(proto, _batch(model, graph, len(feed)), config.evaluation.threads)
    starts_quantized = source in stored_tensors & calibration.params.keys()
    floating, quantized = {source: feed}, {source: feed}
    if starts_quantized:
        quantized[source] = fake_quantize(feed, params.stored(source, feed))
    plans = []
    with progress("refining", len(layers), "layers") as advance:
        for i, node in enumerate(graph.node):
            known = {name: constants[name] for name in node.input if name in constants}
            names = [name for name in node.input if name and name not in constants]
            float_outputs = runner.run(node, {name: floating[name] for name in names}, known)
            if not names:  # computed from constants alone: a constant too
                constants.update(zip(filter(None, node.output), float_outputs, strict=True))
                continue
            if node.output[0] in layers:
                # Its input is what the layers before really hand on, so that its codes make up for their errors.
                name, output = node.input[0], node.output[0]
                read_params = params.read(node, quantized[name])
                stored = read_params == params.stored(name, None)
                read = quantized[name] if stored else fake_quantize(quantized[name], read_params)
                options = (bits[output].weight, config.quant, config.refine)
                plan = quantize_layer(node, constants, read_params, *options, (read, floating[name]))
                plans.append(plan)

                # The next layers see what these codes compute, with the bias rounded as the emitted graph will hold it.
                changed, values = node_of_plan(node, plan, constants)
                if plan.bias is not None:
                    scale = np.float32(read_params.scale) * plan.weight.scale
                    stored_bias = bias_codes(plan.bias, scale) * scale
                    values[changed.input[2]] = np.broadcast_to(stored_bias, plan.bias.shape).astype(np.float32)
                outputs = runner.run(changed, {name: read}, values)
                advance(1)
            else:
                outputs = runner.run(node, {name: quantized[name] for name in names}, known)

            # Activations are quantized as the emitted graph does it.
            for name, float_value, value in zip(filter(None, node.output), float_outputs, outputs, strict=True):
                floating[name] = float_value
                stays = name in folded or name not in stored_tensors & calibration.params.keys()
                quantized[name] = value if stays else fake_quantize(value, params.stored(name, value))
            for name in set(names):  # let go of what no later node reads
                if last_use[name] == i:
                    del floating[name], quantized[name]
    return plans


def _batch(model: FloatModel, graph: onnx.GraphProto, count: int) -> int | None:
    """Images in a call: all at once where the graph computes with the shapes of its tensors."""
    inner = [node.op_type for node in graph.node if any(each.HasField("g") for each in node.attribute)]
    if inner:
        raise ExperimentError(
            f"`refine`: the model has {inner[0]}, a graph within the graph, which cannot be run node by node",
            "refine=none",
        )
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


class NodeRunner:
    """Runs single nodes of a graph on all images; a node is compiled once for each shape of its inputs."""

    def __init__(self, model: onnx.ModelProto, batch: int | None, threads: int) -> None:
        """Prepare for nodes of ``model``, ``batch`` images in a call (None: ``CHUNK``); ``threads`` 0: all cores."""
        self.opset, self.ir = list(model.opset_import), model.ir_version
        self.batch = batch or CHUNK
        self.threads = threads
        self.sessions: dict[tuple[object, ...], InferenceSession] = {}

    def run(
        self, node: onnx.NodeProto, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """The node's outputs for all images.

        Args:
            inputs: {name: array with the images on its first axis}.
            constants: {name: array that is the same for all images}.
        """
        self.sessions.clear()  # their memory is of no use to the next node
        axes = {array.shape[:1] for array in inputs.values()}
        if len(axes) != 1 or axes == {()}:  # constants alone, or a value of all images, as a ReduceMax makes
            return self._call(node, inputs | constants)
        count = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, count, self.batch):
            part = {name: array[start : start + self.batch] for name, array in inputs.items()}
            parts.append(self._call(node, part | constants))
        if len(parts) == 1:  # what a Shape returns has no axis for the images
            return parts[0]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _call(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        key = (node.SerializeToString(), *((name, array.shape, array.dtype) for name, array in sorted(values.items())))
        if key not in self.sessions:
            described = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in values.items()
            ]
            outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
            graph = helper.make_graph([node], "node", described, outputs)
            model = helper.make_model(graph, opset_imports=self.opset, ir_version=self.ir)
            # idle threads would spin and take the cores from NumPy, which works between the calls
            entries = {"session.intra_op.allow_spinning": "0"}
            self.sessions[key] = new_session(model.SerializeToString(), self.threads, entries=entries, arena=False)
        return [np.asarray(output) for output in runtime.run(self.sessions[key], None, values)]
