"""Cross-layer equalization: magnitudes move between two layers until both have the same range in each channel.

In: a float model. Out: a float model that computes the same, friendlier to one scale for a whole weight. Nagel et
al., arXiv 1906.04721, section 4.1: a channel of the first layer is divided by s, the second layer's weights for that
channel are multiplied by it; Relu lets a positive factor pass.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.refine.bits import layer_nodes

log = logging.getLogger(__name__)

ROUNDS = 20  # one pair's change reaches its neighbours; ResNet8 has no chains and needs one


def equalized(model: FloatModel) -> FloatModel:
    """The model with its pairs Conv > Relu > Conv equalized; the same model where it has none."""
    proto = model.proto()
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    pairs = _pairs(proto.graph)
    for _ in range(ROUNDS):
        moved = max((_equalize(first, second, arrays) for first, second in pairs), default=0.0)
        if moved < 1e-4:
            break
    log.info("equalized %d pairs of layers", len(pairs))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    serialized = proto.SerializeToString(deterministic=True)
    return dataclasses.replace(model, serialized=serialized, digest=sha256_bytes(serialized))


def _pairs(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers whose output nothing but one other layer reads, through a Relu or directly."""
    layers = {node.output[0]: node for node in layer_nodes(graph) if _ungrouped(node)}
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name for tensor in graph.initializer if uses[tensor.name] == 1}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found = []
    for name, first in layers.items():
        readers = consumers.get(name, [])
        while len(readers) == 1 and readers[0].op_type == "Relu" and name not in outputs:
            name = readers[0].output[0]
            readers = consumers.get(name, [])
        biased = len(first.input) < 3 or not first.input[2] or first.input[2] in weights
        if len(readers) == 1 and name not in outputs and readers[0].output[0] in layers and biased:
            second = readers[0]
            if second.op_type == first.op_type == "Conv" and second.input[0] == name:
                found.append((first, second))
    return found


def _equalize(first: onnx.NodeProto, second: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> float:
    """Equalize one pair in place; the largest relative change."""
    before, after = arrays[first.input[1]], arrays[second.input[1]]
    out_range = np.abs(before).reshape(len(before), -1).max(axis=1)
    in_range = np.abs(after).max(axis=(0, 2, 3))
    alive = (out_range > 0) & (in_range > 0)
    factor = np.ones_like(out_range)
    factor[alive] = np.sqrt(out_range[alive] / in_range[alive])
    arrays[first.input[1]] = (before / factor[:, None, None, None]).astype(before.dtype)
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] = (arrays[first.input[2]] / factor).astype(before.dtype)
    arrays[second.input[1]] = (after * factor[None, :, None, None]).astype(after.dtype)
    return float(np.abs(factor - 1).max())


def _ungrouped(node: onnx.NodeProto) -> bool:
    return all(a.name != "group" or helper.get_attribute_value(a) == 1 for a in node.attribute)
