"""A TensorFlow Lite model as plain data: tensors with quantization parameters, operators with options.

Between `convert`, which makes it from ONNX, `file`, which writes and reads .tflite, and `reference`, which computes it.
Activations are NHWC with a batch of 1, as TensorFlow Lite stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


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
        count = int(np.prod(self.shape, dtype=np.int64))
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
