"""How wide each layer is: from the `quant` part of the config to bits for every layer of a graph.

In: a float graph, `QuantConfig`. Out: {layer: `LayerBits`}. A layer is a Conv, Gemm or MatMul with an initializer as
its weight; its name is that of its output, and quant.layers takes patterns such as "stack1.*".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from resnet8_quant.config import QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.validation import layer_override

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class LayerBits:
    """Bits of a layer's weight and of the activation that it reads."""

    weight: int
    activation: int


def layer_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The layers of a graph, in its order; of 2-D convolutions and matrices, each with a weight of its own."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    return [
        node
        for node in graph.node
        if node.op_type in LAYERS
        and node.input[1] in weights
        and uses[node.input[1]] == 1
        and len(weights[node.input[1]].dims) == (4 if node.op_type == "Conv" else 2)
        and _plain(node)
    ]


def layer_bits(graph: onnx.GraphProto, quant: QuantConfig) -> dict[str, LayerBits]:
    """Bits of every layer.

    Raises:
        ExperimentError: a name in quant.layers matches no layer, or says something unknown.
    """
    names = [node.output[0] for node in layer_nodes(graph)]
    weight = quant.weight_bits or quant.weight_type.bits
    activation = quant.activation_bits or quant.activation_type.bits
    bits = {name: {"weight_bits": weight, "activation_bits": activation} for name in names}
    if quant.keep_first_last is not None and names:
        for name in (names[0], names[-1]):  # their activations keep all bits: those cost no bytes and cannot saturate
            kept = min(quant.keep_first_last, quant.weight_type.bits)
            bits[name] = {"weight_bits": max(weight, kept), "activation_bits": quant.activation_type.bits}
    for pattern, override in quant.layers.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ExperimentError(
                f"`quant.layers` names {pattern!r}, which matches no layer; the model has {', '.join(names)}",
                layer_override(names[-1] if names else "LAYER", "weight_bits", 8),
            )
        for name in matching:
            bits[name] |= override
    return {name: LayerBits(found["weight_bits"], found["activation_bits"]) for name, found in bits.items()}


def _plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm multiplies by 1 and does not transpose its input."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return all(given.get(name, usual) == usual for name, usual in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)))
