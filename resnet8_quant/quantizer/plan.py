"""The plan of a quantized model: bit widths of its layers, then their codes, biases and the activations' parameters.

A layer is a Conv, Gemm or MatMul with an initializer as its weight; its name is that of its output, and quant.layers
takes patterns such as "stack1.*". refine/ fills a `Plan`, emit.py writes it into a Q/DQ graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx

from resnet8_quant.config import DType, QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import attributes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.validation import layer_override

LAYERS = ("Conv", "Gemm", "MatMul")
# Attributes of a Gemm that computes nothing but a product and a sum.
PLAIN_GEMM = {"transA": 0, "alpha": 1.0, "beta": 1.0}


@dataclass(frozen=True)
class LayerBits:
    """Bit widths of a layer's weight and of the activation that it reads."""

    weight: int
    activation: int


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as ``scale * (codes - zero_point)``.

    Attributes:
        name: of the float initializer.
        codes: int8 or uint8, in the initializer's shape.
        scale: float32, [channels] or [].
        zero_point: of the dtype of ``codes`` and the shape of ``scale``.
        axis: of the channels; None where there is one scale.
        dtype: the narrowest ONNX type that holds ``codes``.
    """

    name: str
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None
    dtype: DType

    def dequantized(self) -> np.ndarray:
        """float32, in the initializer's shape: what DequantizeLinear makes of it."""
        shape = [1] * self.codes.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        centered = self.codes.astype(np.int32) - self.zero_point.astype(np.int32).reshape(shape)
        return np.asarray(centered.astype(np.float32) * self.scale.reshape(shape))


@dataclass(frozen=True)
class LayerPlan:
    """A Conv, Gemm or MatMul.

    Attributes:
        output: the node's output in the float graph, which names the layer.
        input: the activation that it reads.
        input_params: how the layer reads it; fewer bits than the stored tensor has, or the same parameters.
        weight: quantized.
        bias: float64 [channels]; None where the layer neither has nor needs one.
    """

    output: str
    input: str
    input_params: QuantParams
    weight: QuantizedWeight
    bias: np.ndarray | None


@dataclass(frozen=True)
class Plan:
    """A whole model.

    Attributes:
        layers: in the order of the graph.
        tensors: {activation: how it is stored}, for every tensor that has a range.
        activation_type: ONNX type that stores all activations.
    """

    layers: tuple[LayerPlan, ...]
    tensors: dict[str, QuantParams]
    activation_type: DType


def bias_codes(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float64 [channels]: the 32-bit integers that a bias becomes with ``scale``, the input's times the weight's."""
    return np.asarray(np.clip(np.rint(bias / scale.astype(np.float64)), -(2**31), 2**31 - 1))


def layer_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The layers of a graph, in its order: 2-D convolutions and matrix products, each with its own float32 weight."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    return [
        node
        for node in graph.node
        if node.op_type in LAYERS
        and node.input[1] in weights
        and uses[node.input[1]] == 1
        and weights[node.input[1]].data_type == onnx.TensorProto.FLOAT
        and len(weights[node.input[1]].dims) == (4 if node.op_type == "Conv" else 2)
        and all(attributes(node).get(name, plain) == plain for name, plain in PLAIN_GEMM.items())
    ]


def layer_bits(graph: onnx.GraphProto, quant: QuantConfig) -> dict[str, LayerBits]:
    """Bit widths of every layer that quant.layers does not keep in float, in the order of the graph.

    Raises:
        ExperimentError: a name in quant.layers matches no layer.
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
    return {
        name: LayerBits(layer["weight_bits"], layer["activation_bits"])
        for name, layer in bits.items()
        if not layer.get("float")
    }
