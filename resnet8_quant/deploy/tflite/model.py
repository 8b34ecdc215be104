"""A TensorFlow Lite model as plain data: tensors with quantization parameters, operators with options.

Between `convert`, which makes it from ONNX, `file`, which writes and reads .tflite, and `reference`, which computes it.
Activations are NHWC with a batch of 1, as TensorFlow Lite stores them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from resnet8_quant.deploy.memory import Layer, Memory


@dataclass
class Tensor:
    """One tensor.

    Attributes:
        name: for people.
        shape: NHWC for activations; weights as the operator wants them: OHWI for CONV_2D, [outputs, inputs] for
            FULLY_CONNECTED, 1HWC for DEPTHWISE_CONV_2D.
        dtype: "int8", "int4", "int32" or "float32".
        scale: float32 [1], or one for each channel along ``axis``; None: not quantized.
        zero_point: of activations; 0 for weights and biases.
        axis: of the channels; None: one scale for all.
        data: constant values, int4 ones as int8; None: computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray | None = None
    zero_point: int = 0
    axis: int | None = None
    data: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """Size in memory; two int4 values share a byte."""
        count = math.prod(self.shape)
        return (count + 1) // 2 if self.dtype == "int4" else count * np.dtype(self.dtype).itemsize


@dataclass
class Operator:
    """One operator; ``inputs`` and ``outputs`` index the model's tensors, -1 for an input that is left out.

    ``options`` has TensorFlow Lite's names: strides, padding ("SAME" or "VALID"), activation ("NONE", "RELU", "RELU6"),
    filter, axis, keep_dims, depth_multiplier, beta.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)


@dataclass
class TfliteModel:
    """Operators in the order of their execution; one input, one output."""

    tensors: list[Tensor]
    operators: list[Operator]
    input: int
    output: int
    description: str = ""
    metadata: dict[str, bytes] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> int:
        """Append a tensor; its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def memory(self) -> Memory:
        """Figures of the model as the Micro runs it: in the order of the file."""
        owner, live = self.owners(), tuple(self.live_bytes())
        sizes = {str(i): self.tensors[i].bytes for i in set(owner.values())}
        layers = []
        for operator in self.operators:
            output = operator.outputs[0]
            read = tuple(str(owner[i]) for i in operator.inputs if i in owner)
            work = self._work(operator)
            layers.append(Layer(self.tensors[output].name, operator.kind, *work, read, str(owner[output])))
        return Memory(tuple(layers), sizes, live, sum(layer.macs for layer in layers), max(live, default=0))

    def _work(self, operator: Operator) -> tuple[int, int, int, int]:
        """Multiply-accumulates, weights, their bits, and biases."""
        if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            return 0, 0, 0, 0
        weight, bias = self.tensors[operator.inputs[1]], operator.inputs[2]
        weights = math.prod(weight.shape)
        output = self.tensors[operator.outputs[0]].shape
        positions = math.prod(output[1:-1]) if operator.kind != "FULLY_CONNECTED" else math.prod(output[:-1])
        biases = math.prod(self.tensors[bias].shape) if bias >= 0 else 0
        return weights * positions, weights, 4 if weight.dtype == "int4" else 8, biases

    def lifetimes(self) -> dict[int, tuple[int, int]]:
        """Of each activation with its own memory: the step that writes it (-1: the input) and the last that reads it.

        A RESHAPE computes nothing: its output is its input's memory.
        """
        owner = self.owners()
        written, read = {self.input: -1}, {owner[self.output]: len(self.operators)}
        for step, operator in enumerate(self.operators):
            for i in operator.inputs:
                if i >= 0 and self.tensors[i].data is None:
                    read[owner[i]] = max(step, read.get(owner[i], step))
            written.setdefault(owner[operator.outputs[0]], step)
        return {i: (first, read.get(i, first)) for i, first in written.items()}

    def owners(self) -> dict[int, int]:
        """Activation -> the one whose memory it shares, itself as a rule."""
        owner = {i: i for i, tensor in enumerate(self.tensors) if tensor.data is None}
        for operator in self.operators:
            if operator.kind == "RESHAPE":
                owner[operator.outputs[0]] = owner[operator.inputs[0]]
        return owner

    def live_bytes(self) -> list[int]:
        """Activations that live while each operator runs, its inputs and output among them."""
        spans = self.lifetimes()
        return [
            sum(self.tensors[i].bytes for i, (first, last) in spans.items() if first <= step <= last)
            for step in range(len(self.operators))
        ]
