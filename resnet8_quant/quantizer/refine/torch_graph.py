"""A float ONNX graph as PyTorch operations, through which gradients flow.

In: a ModelProto with the operators of small CNNs. Out: a function from input to output. onnx2torch does the same for
more operators, but none of quantized models, wants torchvision, and had its last release in 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.graphs.graph import attributes, before_softmax
from resnet8_quant.quantizer.refine.im2col import explicit_pads

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    raise missing_extra("torch", "distill") from error

Inputs = Sequence[Any]  # a torch.Tensor each, None where an optional input is left out
Operator = Callable[[Inputs, dict[str, Any]], Any]


def _convolution(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x, weight, *bias = inputs
    strides, dilations = tuple(values.get("strides", (1, 1))), tuple(values.get("dilations", (1, 1)))
    top, left, bottom, right = explicit_pads(values, weight.shape[2:], strides, dilations, x.shape)
    pads = (top, left)
    if (top, left) != (bottom, right):
        x, pads = F.pad(x, (left, right, top, bottom)), (0, 0)
    return F.conv2d(x, weight, bias[0] if bias else None, strides, pads, dilations, values.get("group", 1))


def _gemm(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    a, b, *c = inputs
    a, b = (a.T if values.get("transA") else a), (b.T if values.get("transB") else b)
    product = values.get("alpha", 1.0) * (a @ b)
    return product + values.get("beta", 1.0) * c[0] if c and c[0] is not None else product


def _pool(inputs: Inputs, values: dict[str, Any], largest: bool) -> torch.Tensor:
    """MaxPool or AveragePool; what is padded is no maximum, and counts in an average only if ``values`` says so."""
    x, kernel = inputs[0], tuple(values["kernel_shape"])
    strides, dilations = tuple(values.get("strides", (1, 1))), tuple(values.get("dilations", (1, 1)))
    top, left, bottom, right = explicit_pads(values, kernel, strides, dilations, x.shape)
    pads, ceil = (left, right, top, bottom), bool(values.get("ceil_mode", 0))
    if largest:
        padded = F.pad(x, pads, value=-math.inf) if any(pads) else x
        return F.max_pool2d(padded, kernel, strides, 0, dilations, ceil)
    if not any(pads):
        return F.avg_pool2d(x, kernel, strides, 0, ceil)
    pooled = F.avg_pool2d(F.pad(x, pads), kernel, strides, 0, ceil)
    if values.get("count_include_pad", 0):
        return pooled
    return pooled / F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, strides, 0, ceil)


def _clip(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x, low, high = (*inputs, None, None)[:3]
    return torch.clamp(x, values.get("min") if low is None else low, values.get("max") if high is None else high)


def _axes(inputs: Inputs, values: dict[str, Any]) -> list[int] | None:
    """The axes of an operator, an attribute once and an input today; None: all."""
    axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else values.get("axes")
    return None if axes is None else [int(axis) for axis in axes]


def _reduce_mean(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    axes = _axes(inputs, values)
    return inputs[0].mean(dim=axes, keepdim=bool(values.get("keepdims", 1)))


def _squeeze(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    axes = _axes(inputs, values)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x, axes = inputs[0], _axes(inputs, values) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _reshape(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x, shape = inputs[0], [int(size) for size in inputs[1].tolist()]
    shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x = inputs[0]
    axis = values.get("axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _dequantize(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    x, scale, *zero_point = inputs
    shape = [1] * x.ndim
    if scale.ndim:
        shape[values.get("axis", 1)] = -1
    zero = zero_point[0].reshape(shape if scale.ndim else []) if zero_point else 0
    return (x - zero) * scale.reshape(shape if scale.ndim else [])


def _softmax(inputs: Inputs, values: dict[str, Any]) -> torch.Tensor:
    return torch.softmax(inputs[0], values.get("axis", -1))


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, _: x[0] + x[1],
    "AveragePool": lambda x, a: _pool(x, a, largest=False),
    "Cast": lambda x, _: x[0],  # of a constant's integers to wider ones
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Constant": lambda _, a: _constant(next(iter(a.values()))),
    "Conv": _convolution,
    "DequantizeLinear": _dequantize,  # of a constant; those of activations belong to the quantizer before them
    "Div": lambda x, _: x[0] / x[1],
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, _: x[0].mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, a: torch.clamp(a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5), 0.0, 1.0),
    "HardSwish": lambda x, _: F.hardswish(x[0]),
    "Identity": lambda x, _: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "MatMul": lambda x, _: x[0] @ x[1],
    "MaxPool": lambda x, a: _pool(x, a, largest=True),
    "Mul": lambda x, _: x[0] * x[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda x, _: torch.relu(x[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": lambda x, _: x[0] - x[1],
    "Sum": lambda x, _: sum(x[1:], x[0]),
    "Tanh": lambda x, _: torch.tanh(x[0]),
    "Transpose": lambda x, a: x[0].permute(a.get("perm") or tuple(range(x[0].ndim))[::-1]),
    "Unsqueeze": _unsqueeze,
}


class TorchGraph:
    """A model that PyTorch computes, node by node.

    Attributes:
        nodes: in their order.
        constants: {initializer: its value}.
    """

    def __init__(self, proto: onnx.ModelProto, also: Sequence[str] = ()) -> None:
        """Prepare for a model; ``also``: operators that the caller computes itself.

        Raises:
            ExperimentError: an operator is missing here.
        """
        graph = proto.graph
        missing = sorted({node.op_type for node in graph.node} - {*OPERATORS, *also})
        if missing:
            raise ExperimentError(
                f"`refine.distill`: no gradient of {', '.join(missing)}; known are {', '.join(OPERATORS)}",
                "refine=best",
            )
        self.nodes = list(graph.node)
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.constants = {tensor.name: _constant(tensor) for tensor in graph.initializer}
        # A batch that was fixed when the model was exported stands in the shapes of its Reshapes, too.
        batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
        for node in self.nodes:
            if node.op_type == "Reshape" and node.input[1] in self.constants and batch:
                shape = self.constants[node.input[1]]
                if shape[0] == batch:
                    shape[0] = 0  # as many as before
        self._attributes = {node.output[0]: attributes(node) for node in self.nodes}

    def operator(self, node: NodeProto, inputs: Inputs) -> Any:
        """A node's output from its inputs."""
        return OPERATORS[node.op_type](inputs, self._attributes[node.output[0]])

    def run(
        self, x: torch.Tensor, output: str | None = None, compute: Callable[[NodeProto, Inputs], Any] | None = None
    ) -> torch.Tensor:
        """The value of ``output``, by default the graph's.

        Args:
            x: float32, the input.
            compute: a node's output from its inputs, in place of `OPERATORS`; None: leave that node to these.
        """
        values: dict[str, Any] = {self.input: x}
        output = output or self.output
        for node in self.nodes:
            inputs = [values[n] if n in values else self.constants[n] if n else None for n in node.input]
            value = compute(node, inputs) if compute else None
            values[node.output[0]] = self.operator(node, inputs) if value is None else value
            if node.output[0] == output:
                break
        return values[output]

    def logits(self) -> str:
        """The tensor whose Softmax the output is; the output itself where it is none."""
        return before_softmax(self.nodes, self.output)


def _constant(stored: Any) -> torch.Tensor:
    """A tensor that is stored in the graph, or a plain value; integers of any width become int64."""
    array = np.asarray(numpy_helper.to_array(stored) if isinstance(stored, onnx.TensorProto) else stored)
    kind = np.float32 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(array.astype(kind))
