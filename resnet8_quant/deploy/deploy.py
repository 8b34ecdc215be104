"""The way from a Q/DQ model to a deployed one: re-encode, fuse, make lean.

In: ONNX bytes, the `deploy` part of the config, the input spec. Out: ONNX bytes and the input_spec of the new model.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnx

from resnet8_quant.config import DeployConfig, DeployInput
from resnet8_quant.deploy.fuse import fuse, pack, shapes_of
from resnet8_quant.deploy.graph import Graph
from resnet8_quant.deploy.lean import drop_layout, give, take_bytes
from resnet8_quant.deploy.reencode import reencode
from resnet8_quant.deploy.unsigned import use_unsigned_weights
from resnet8_quant.deploy.widen import convolutions, use_products, widen_input
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.saturation import saturating_nodes
from resnet8_quant.graphs.session import kernels_saturate
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.quantizer.compact import compact

log = logging.getLogger(__name__)


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
        ExperimentError: the model cannot be re-encoded (see ``reencode``), its input cannot be widened, or it is for
            CPUs with VNNI and this one's kernels saturate.
    """
    if config.activation_type is None:
        return model, input_spec
    fused, narrow = fuse(reencode(onnx.load_from_string(model), config.activation_type))
    graph = Graph(fused)
    shapes = _nhwc_shapes(graph, input_spec)
    drop_layout(graph, shapes)
    if config.avoid_saturation:
        unsigned = use_unsigned_weights(graph)
        if unsigned:
            log.info(
                "deploy: %d layers get uint8 weights, exact on every CPU; weights of 7 bits stay int8 and are faster",
                len(unsigned),
            )
    for node in convolutions(graph):
        _, height, width, _ = shapes[node.input[0]]
        if config.wide_input and widen_input(graph, node, height, width):
            log.info("deploy: %s computes several pixels at once", node.name)
        elif config.products and use_products(graph, node, height, width):
            log.info("deploy: %s is computed as a product of matrices", node.name)
    give(graph, config.output)
    if config.input is DeployInput.uint8:
        take_bytes(graph, input_spec)
        input_spec = dataclasses.replace(input_spec, raw=True)
    pack(graph, narrow)
    deployed = graph.finish()
    _check_saturation(deployed, config)
    onnx.checker.check_model(deployed)
    if small:
        deployed = compact(deployed)
    return bytes(deployed.SerializeToString(deterministic=True)), input_spec


def _check_saturation(deployed: onnx.ModelProto, config: DeployConfig) -> None:
    """Refuse a model that this CPU would compute wrong."""
    if not kernels_saturate():
        return
    layers = [node.output[0] for node in saturating_nodes(deployed)]
    if layers:
        raise ExperimentError(
            f"`deploy` is {config.name}: {len(layers)} layers ({', '.join(layers[:3])}{', ...' if layers[3:] else ''}) "
            "can saturate in this CPU's kernels, which have no VNNI, and would answer differently; weights of 7 bits "
            "and deploy=x86 are exact",
            f"python run.py quant=u8s7 deploy={config.name}, or python run.py quant=u8s8 deploy=x86",
        )


def _nhwc_shapes(graph: Graph, input_spec: InputSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what the convolutions and the changes of layout read, for one image."""
    names = [
        node.input[0] for node in (*convolutions(graph), *graph.nodes) if node.op_type in ("QLinearConv", "Transpose")
    ]
    image = np.zeros((input_spec.batch or 1, *input_spec.shape), np.uint8)
    return shapes_of(graph.finish(), list(dict.fromkeys(names)), input_spec.prepare(image))
