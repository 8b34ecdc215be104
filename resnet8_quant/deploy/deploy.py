"""The way from a Q/DQ model to a deployed one: convert activations, fuse, rewrite convolutions, set input and output.

In: ONNX bytes, the `deploy` part of the config, the input spec. Out: ONNX bytes and the input_spec of the new model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx

from resnet8_quant.config import Config, DeployConfig, DeployInput, DType, SizeOf
from resnet8_quant.deploy.convert_activations import convert_activations
from resnet8_quant.deploy.fuse import drop_layout, fuse, pack
from resnet8_quant.deploy.input_output import set_output, uint8_input
from resnet8_quant.deploy.pixel_blocking import block_input, convolutions, gemm_convolution
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.compact import compact
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.graphs.saturation import saturating_nodes, use_unsigned_weights
from resnet8_quant.graphs.session import kernels_saturate
from resnet8_quant.graphs.tap import tap
from resnet8_quant.inputs.input_spec import InputSpec

log = logging.getLogger(__name__)


def target_size(config: Config, input_spec: InputSpec) -> Callable[[bytes], int] | None:
    """From a Q/DQ model to the bytes that ``allocate.count`` counts: of its .tflite file, or of its deployed file.

    None where the quantizer's own file is the one that is written.
    """
    if config.allocate.count is SizeOf.tflite:
        from resnet8_quant.deploy.tflite.target import flash_bytes

        return partial(flash_bytes, config=config.deploy)
    if config.deploy.activation_type is None:
        return None

    def size(model: bytes) -> int:
        deployed, _ = _rewrite(model, config.deploy, input_spec, logging.DEBUG)
        return len(_serialize(deployed, config.quant.compact))

    return size


def deploy(
    model: bytes, config: DeployConfig, input_spec: InputSpec, *, small: bool = False
) -> tuple[bytes, InputSpec]:
    """Rewrite a quantized model for a target.

    Args:
        model: Q/DQ.
        config: the target; ``activation_type`` None: ``model`` is returned as it is.
        input_spec: of the model's input.
        small: drop names, as ``quant.compact`` asks.

    Returns:
        The new model, and how it is fed.

    Raises:
        ExperimentError: the model's activations cannot be converted (see ``convert_activations``), it does not end in
            the logits that ``config.output`` is made of, or it is for CPUs with VNNI and this one's kernels saturate.
    """
    if config.activation_type is None:
        return model, input_spec
    deployed, input_spec = _rewrite(model, config, input_spec, logging.INFO)
    _check_saturation(deployed, config)
    return _serialize(deployed, small), input_spec


def _rewrite(
    model: bytes, config: DeployConfig, input_spec: InputSpec, level: int
) -> tuple[onnx.ModelProto, InputSpec]:
    """``deploy`` before its checks; ``level`` is that of the messages about what is rewritten."""
    assert config.activation_type is not None
    graph, low_bit = fuse(convert_activations(onnx.load_from_string(model), config.activation_type))
    shapes = _nhwc_shapes(graph, input_spec)
    drop_layout(graph, shapes)
    if config.avoid_saturation:
        unsigned = use_unsigned_weights(graph)
        if unsigned:
            log.log(
                level,
                "deploy: %d layers get uint8 weights, exact on every CPU; weights of 7 bits stay int8 and are faster",
                len(unsigned),
            )
    for node in convolutions(graph):
        _, height, width, _ = shapes[node.input[0]]
        if config.pixel_blocking and block_input(graph, node, height, width):
            log.log(level, "deploy: %s computes several pixels at once", node.name)
        elif config.gemm_convolutions and gemm_convolution(graph, node, height, width):
            log.log(level, "deploy: %s is computed as a product of matrices", node.name)
    set_output(graph, config.output)
    if config.input is DeployInput.uint8:
        folded, normalized = uint8_input(graph, input_spec), input_spec.mean is not None or input_spec.std is not None
        if normalized and folded:
            log.log(level, "deploy: model.mean and model.std are in the first scale and zero point and cost nothing")
        elif normalized:
            log.log(
                level,
                "deploy: model.mean and model.std are applied in float to each image: they cannot be in the first "
                "scale and zero point, whose integers are not the pixels (%s)",
                _why_not_pixels(input_spec, config),
            )
        input_spec = dataclasses.replace(input_spec, raw=True)
    pack(graph, low_bit)
    deployed = graph.finish()
    onnx.checker.check_model(deployed)
    return deployed, input_spec


def _why_not_pixels(input_spec: InputSpec, config: DeployConfig) -> str:
    """Why the first integers cannot be the pixels."""
    if config.activation_type is not DType.uint8:
        return "activations are int8"
    for name, numbers in (("mean", input_spec.mean or (0.0,)), ("std", input_spec.std or (1.0,))):
        if len(set(numbers)) > 1:
            return f"model.{name} differs between channels"
    if not float((input_spec.mean or (0.0,))[0]).is_integer():
        return "model.mean is no whole number"
    return "the calibrated range is not that of pixels from 0 to 255"


def _serialize(deployed: onnx.ModelProto, small: bool) -> bytes:
    return bytes((compact(deployed) if small else deployed).SerializeToString(deterministic=True))


def _check_saturation(deployed: onnx.ModelProto, config: DeployConfig) -> None:
    """Refuse a model that this CPU would compute wrong."""
    if not kernels_saturate():
        return
    layers = [node.output[0] for node in saturating_nodes(Graph(deployed))]
    if layers:
        raise ExperimentError(
            f"`deploy` is {config.name}: {len(layers)} layers ({', '.join(layers[:3])}{', ...' if layers[3:] else ''}) "
            "can saturate in this CPU's kernels, which have no VNNI, and would answer differently; weights of 7 bits "
            "and deploy=x86 are exact",
            f"python run.py quant=u8s7 deploy={config.name}, or python run.py quant=u8s8 deploy=x86",
        )


def _nhwc_shapes(graph: Graph, input_spec: InputSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what the convolutions and Transposes read, for one image; taken from a run of the graph as it is."""
    readers = [*convolutions(graph), *(node for node in graph.nodes if node.op_type == "Transpose")]
    computed = {graph.input.name, *graph.producers()}
    names = list(dict.fromkeys(node.input[0] for node in readers if node.input[0] in computed))
    image = np.zeros((input_spec.batch or 1, *input_spec.shape), np.uint8)
    values = tap(graph.finish(), names, level="none")(input_spec.prepare(image))
    return {name: value.shape for name, value in zip(names, values, strict=True)}
