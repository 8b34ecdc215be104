"""Cross-layer equalization: magnitudes move between two layers until both have the same range in each channel.

Nagel et al., arXiv 1906.04721, section 4.1. The model computes the same afterwards, but one scale for a whole weight
fits it better.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.graph import attributes
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.plan import layer_nodes

log = logging.getLogger(__name__)

ROUNDS = 100  # one pair's change reaches its neighbours; ResNet8 has no chains and needs one, MobileNet is one chain


def equalize(model: FloatModel) -> FloatModel:
    """Equalize the pairs Conv > Relu > Conv of a model; the result computes the same."""
    proto = model.proto()
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    pairs = _pairs(proto.graph)
    for _ in range(ROUNDS):
        moved = max((_equalize_pair(first, second, arrays) for first, second in pairs), default=0.0)
        if moved < 1e-4:
            break
    log.info("equalized %d pairs of layers", len(pairs))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    serialized = proto.SerializeToString(deterministic=True)
    return dataclasses.replace(model, serialized=serialized, digest=sha256_bytes(serialized))


def _pairs(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers whose output nothing but one other layer reads, through a Relu or directly."""
    layers = {node.output[0]: node for node in layer_nodes(graph)}
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name for tensor in graph.initializer if uses[tensor.name] == 1}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    pairs = []
    for name, first in layers.items():
        readers = consumers.get(name, [])
        while len(readers) == 1 and readers[0].op_type == "Relu" and name not in outputs:
            name = readers[0].output[0]
            readers = consumers.get(name, [])
        biased = len(first.input) < 3 or not first.input[2] or first.input[2] in weights
        if len(readers) == 1 and name not in outputs and readers[0].output[0] in layers and biased:
            second = readers[0]
            if second.op_type == first.op_type == "Conv" and second.input[0] == name:
                pairs.append((first, second))
    return pairs


def _equalize_pair(first: onnx.NodeProto, second: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> float:
    """Equalize one pair in place, and return the largest relative change.

    Channel i of the first layer is divided by s_i and the second layer's weights for it are multiplied by s_i; a Relu
    between them lets a positive factor pass.
    """
    W1, W2 = arrays[first.input[1]], arrays[second.input[1]]
    # [group, outputs, inputs, height, width]: an output of a group reads its inputs alone, in a depthwise Conv one.
    grouped = W2.reshape(attributes(second).get("group", 1), -1, *W2.shape[1:])
    r1 = np.abs(W1).reshape(len(W1), -1).max(axis=1)
    r2 = np.abs(grouped).max(axis=(1, 3, 4)).reshape(-1)

    # s_i = sqrt(r1_i / r2_i), equation 11 of the paper in other symbols, makes both ranges sqrt(r1_i * r2_i): neither
    # layer has a channel that is small beside its scale. A channel that is zero on either side stays as it is.
    alive = (r1 > 0) & (r2 > 0)
    s = np.ones_like(r1)
    s[alive] = np.sqrt(r1[alive] / r2[alive])
    arrays[first.input[1]] = (W1 / s[:, None, None, None]).astype(W1.dtype)
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] = (arrays[first.input[2]] / s).astype(W1.dtype)
    factors = s.reshape(len(grouped), 1, -1, 1, 1)
    arrays[second.input[1]] = (grouped * factors).reshape(W2.shape).astype(W2.dtype)
    return float(np.abs(s - 1).max())
