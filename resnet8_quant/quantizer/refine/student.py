"""The student of a distillation: a plan whose numbers are parameters, computed as the emitted Q/DQ graph computes.

Weights and activations are quantized in the forward pass as they will be in the file, with straight-through gradients
(LSQ: Esser et al., arXiv 1902.08153; zero points: LSQ+, Bhalgat et al., arXiv 2004.09576).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from resnet8_quant.config import Config
from resnet8_quant.errors import missing_extra
from resnet8_quant.quantizer.emit import float_name
from resnet8_quant.quantizer.plan import LAYERS, LayerBits, LayerPlan, Plan
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, is_signed
from resnet8_quant.quantizer.refine.activations import MOVING
from resnet8_quant.quantizer.refine.torch_graph import Inputs, TorchGraph

try:
    import torch
except ImportError as error:
    raise missing_extra("torch", "distill") from error

# Rates relative to that of weights. A bias or a zero point moves a whole channel or tensor: at the weights' own rates
# the loss of W4A4 doubles within 300 steps.
SCALE_RATE = BIAS_RATE = 1 / 3
ZERO_POINT_RATE = 1 / 30  # of half the range


class FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
    """QuantizeLinear and DequantizeLinear, with the gradients of LSQ and LSQ+.

    With v = x / scale: inside the bounds dy/dx = 1, dy/dscale = round(v) - v, dy/dzero_point = 0; outside dy/dx = 0,
    dy/dscale = bound - zero_point, dy/dzero_point = -scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        qmin: int,
        qmax: int,
        axis: int | None = None,
    ) -> torch.Tensor:
        """Quantize ``x``, float32, with float32 scales and integral zero points, [] or [channels] along ``axis``."""
        # With Python's numbers in place of tensors, and in place: PyTorch's own operator takes twice the time.
        step: Any
        zero: Any
        if axis is None:
            step, zero = scale.item(), int(zero_point.item())
        else:
            shape = [-1 if i == axis else 1 for i in range(x.ndim)]
            step, zero = scale.reshape(shape), zero_point.reshape(shape)
        low, high = qmin - zero, qmax - zero
        y = torch.div(x, step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, y, scale)
        # Not rounded first, which would let half a step below zero pass where the quantizer is a ReLU, too.
        ctx.axis, ctx.low, ctx.high = axis, low * step, high * step
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of x, scale and zero point; the levels have none."""
        x, y, scale = ctx.saved_tensors
        others = [i for i in range(x.ndim) if i != ctx.axis]
        as_stored = sorted(range(x.ndim), key=lambda i: -x.stride(i))
        if ctx.axis is None:
            passed = torch.ops.aten.hardtanh_backward(gradient, x, ctx.low, ctx.high)
        else:
            passed = gradient * ((x >= ctx.low) & (x <= ctx.high))

        def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            if ctx.axis is not None:
                return (a * b).sum(others)
            return torch.dot(*(each.permute(as_stored).reshape(-1) for each in (a, b)))

        # In terms of y: dy/dscale is (y - x) / scale inside, y / scale outside.
        to_scale = (dot(gradient, y) - dot(passed, x)) / scale
        to_zero_point = (passed - gradient).sum(others) * scale if ctx.needs_input_grad[2] else None
        return passed, to_scale, to_zero_point, None, None, None


class _RoundThrough(torch.autograd.Function):  # type: ignore[misc]
    """Rounding whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


fake_quantize, round_through = FakeQuantize.apply, _RoundThrough.apply

# An activation that is stored (its name), or read by a layer with fewer bits than it is stored with.
Key = str | tuple[str, QuantParams]


class Student:
    """A `Plan` whose numbers are parameters, and the emitted graph that computes with them.

    Attributes:
        parameters: {what it is: the parameter}; scales as their logarithms, so that a step is relative to each of them.
        rates: {what it is: its step size, relative to the learning rate}.
    """

    def __init__(
        self, emitted: onnx.ModelProto, plan: Plan, bits: dict[str, LayerBits], config: Config, model: onnx.ModelProto
    ) -> None:
        """Start from ``plan``, which ``emitted`` holds.

        Args:
            bits: of each layer.
            config: ``quant`` is read.
            model: the float model.
        """
        self.plan, self.graph = plan, TorchGraph(emitted, also=["QuantizeLinear"])
        self.logits = self.graph.logits()
        quant = config.quant
        symmetric = is_signed(quant.weight_type) if quant.weight_symmetric is None else quant.weight_symmetric
        self._schemes = {
            layer.output: QuantScheme.of_weight(quant.weight_type, symmetric, bits[layer.output].weight)
            for layer in plan.layers
        }
        self._moved_from = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in MOVING}
        self.parameters: dict[str, torch.Tensor] = {}
        self.rates: dict[str, float] = {}
        self._find_sites(emitted)
        for layer in plan.layers:
            self._add_layer(layer, 2 ** ((4 - bits[layer.output].weight) / 2))
        for key, params in self._activations.items():
            self._add_activation(key, params)

    def _find_sites(self, emitted: onnx.ModelProto) -> None:
        """Which node is which layer, and which QuantizeLinear has which parameters."""
        producers = {node.output[0]: node for node in emitted.graph.node}
        by_weight = {layer.weight.name: layer for layer in self.plan.layers}
        self._layers: dict[str, LayerPlan] = {}  # {output of the node: its layer}
        self._keys: dict[str, Key] = {}  # {output of the QuantizeLinear: its parameters}
        self._integers: set[str] = set()  # outputs of QuantizeLinear and of the Clip behind it

        def stored(name: str) -> str:
            while name in producers and producers[name].op_type in ("DequantizeLinear", "Cast"):
                name = producers[name].input[0]
            return name.removesuffix(TENSOR_NAME_QUANT_SUFFIX)

        for node in emitted.graph.node:
            if node.op_type == "QuantizeLinear":
                self._keys.setdefault(node.output[0], self._key(float_name(node)))
                self._integers.add(node.output[0])
            elif node.op_type == "Clip" and node.input[0] in self._integers:
                self._integers.add(node.output[0])
            elif node.op_type in LAYERS and (layer := by_weight.get(stored(node.input[1]))) is not None:
                self._layers[node.output[0]] = layer
                quantize = producers[node.input[0]]
                while quantize.op_type != "QuantizeLinear":
                    quantize = producers[quantize.input[0]]
                self._keys[quantize.output[0]] = self._read_key(layer)
        # In their order, which is the same in every process: a checkpoint holds the parameters in it.
        keys = dict.fromkeys(self._keys.values())
        self._activations = {key: self.plan.tensors[key] if isinstance(key, str) else key[1] for key in keys}

    def _key(self, name: str) -> str:
        """The tensor whose parameters ``name`` has: operators that move values hand theirs on."""
        tensors = self.plan.tensors
        while name in self._moved_from and tensors.get(self._moved_from[name]) == tensors.get(name):
            name = self._moved_from[name]
        return name

    def _read_key(self, layer: LayerPlan) -> Key:
        stored = layer.input_params == self.plan.tensors[layer.input]
        return self._key(layer.input) if stored else (layer.input, layer.input_params)

    def _add(self, name: str, value: np.ndarray | np.generic, rate: float) -> None:
        self.parameters[name] = torch.tensor(value, dtype=torch.float32, requires_grad=True)
        self.rates[name] = rate

    def _add_layer(self, layer: LayerPlan, rate: float) -> None:
        """``rate``: of its weights and bias; the fewer its bits, the further a layer has to move."""
        weight, name = layer.weight, layer.output
        # In the middle of the codes' cells. Drawn towards the float weights, they would lie at the edges of cells, and
        # the first steps undo the refinement's rounding: the loss of W4A4 then rises from 0.04 to 0.14.
        start = weight.dequantized()
        self._add(f"weight {name}", start, rate * float(np.abs(start).mean()))
        self._add(f"weight scale {name}", np.log(weight.scale), SCALE_RATE)
        if layer.bias is not None:
            step = float(layer.input_params.scale) * float(weight.scale.mean())
            self._add(f"bias {name}", layer.bias, BIAS_RATE * rate * max(float(np.abs(layer.bias).mean()), step))

    def _add_activation(self, key: Key, params: QuantParams) -> None:
        if key == self.graph.input and params.bit_width >= 8:
            return  # pixels are exact as they are, whatever takes them as bytes relies on it
        self._add(f"activation scale {key}", np.log(np.float64(params.scale)), SCALE_RATE)
        # A range that starts or ends at zero goes on doing so: a ReLU's lower half holds nothing.
        if params.qmin < params.zero_point < params.qmax and params.zero_point * 2 != params.qmin + params.qmax:
            self._add(f"zero point {key}", np.float64(params.zero_point), ZERO_POINT_RATE * params.levels / 2)

    def _shape(self, layer: LayerPlan) -> list[int]:
        """The shape in which a layer's scale broadcasts with its weight."""
        if layer.weight.axis is None:
            return [1] * layer.weight.codes.ndim
        return [-1 if i == layer.weight.axis else 1 for i in range(layer.weight.codes.ndim)]

    def _weight_scale(self, layer: LayerPlan) -> torch.Tensor:
        return torch.exp(self.parameters[f"weight scale {layer.output}"])

    def _scale(self, key: Key) -> torch.Tensor:
        learned = self.parameters.get(f"activation scale {key}")
        return torch.tensor(self._activations[key].scale) if learned is None else torch.exp(learned)

    def _zero_point(self, key: Key) -> torch.Tensor:
        params = self._activations[key]
        if (learned := self.parameters.get(f"zero point {key}")) is None:
            return torch.tensor(float(params.zero_point))
        return round_through(torch.clamp(learned, params.qmin, params.qmax))

    def _levels(self, key: Key) -> tuple[int, int]:
        """Smallest and largest code: those of the type, unless a Clip leaves fewer."""
        params = self._activations[key]
        if params.bit_width < self.plan.activation_type.bits:
            return params.qmin, params.qmax
        scheme = QuantScheme.of_activation(self.plan.activation_type, symmetric=False)
        return scheme.qmin, scheme.qmax

    def _weight(self, layer: LayerPlan) -> torch.Tensor:
        scheme, zero_point = self._schemes[layer.output], torch.from_numpy(layer.weight.zero_point.astype(np.int32))
        operands = self.parameters[f"weight {layer.output}"], self._weight_scale(layer), zero_point
        return fake_quantize(*operands, scheme.qmin, scheme.qmax, layer.weight.axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of inputs, float32."""

        def compute(node: onnx.NodeProto, inputs: Inputs) -> Any:
            if node.op_type == "QuantizeLinear":
                key = self._keys[node.output[0]]
                return fake_quantize(inputs[0], self._scale(key), self._zero_point(key), *self._levels(key))
            if node.op_type in ("Clip", "DequantizeLinear") and node.input[0] in self._integers:
                return inputs[0]  # the codes are already values, and within their bounds
            if node.output[0] not in self._layers:
                return None
            layer = self._layers[node.output[0]]
            operands = [inputs[0], self._weight(layer)]
            if (bias := self.parameters.get(f"bias {layer.output}")) is not None:
                step = self._scale(self._read_key(layer)) * self._weight_scale(layer)
                operands.append(round_through(bias / step) * step)
            return self.graph.operator(node, operands)

        logits = self.graph.run(x, self.logits, compute)
        return logits.reshape(len(logits), -1)

    def to_plan(self) -> Plan:
        """The plan with the parameters as they are now."""
        with torch.no_grad():
            new = {key: self._params(key) for key in self._activations}
            layers = []
            for layer in self.plan.layers:
                scheme, scale = self._schemes[layer.output], self._weight_scale(layer)
                values = self._weight(layer) / scale.reshape(self._shape(layer))
                codes = np.rint(values.numpy()) + layer.weight.zero_point.reshape(self._shape(layer))
                codes = np.clip(codes, scheme.qmin, scheme.qmax).astype(layer.weight.codes.dtype)
                weight = dataclasses.replace(layer.weight, codes=codes, scale=scale.numpy().copy())
                bias = self.parameters.get(f"bias {layer.output}")
                bias = None if bias is None else bias.numpy().astype(np.float64)
                read = new[self._read_key(layer)]
                layers.append(dataclasses.replace(layer, input_params=read, weight=weight, bias=bias))
        tensors = {name: new.get(self._key(name), params) for name, params in self.plan.tensors.items()}
        return Plan(tuple(layers), tensors, self.plan.activation_type)

    def _params(self, key: Key) -> QuantParams:
        scale, zero_point = np.float32(self._scale(key).item()), int(self._zero_point(key).item())
        return dataclasses.replace(self._activations[key], scale=scale, zero_point=zero_point)
