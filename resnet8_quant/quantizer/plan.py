"""What the emitted model shall hold: every layer's integers and biases, every activation's grid.

In: nothing; these are plain records. refine/ fills them, emit.py writes them into a Q/DQ graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import DType
from resnet8_quant.quantizer.calibration.grid import Grid


@dataclass(frozen=True)
class IntegerWeight:
    """A weight on its grid: ``scale * (values - zero_point)``.

    Attributes:
        name: of the float initializer.
        values: int8 or uint8, in the initializer's shape.
        scale: float32, [channels] or [].
        zero_point: of the dtype of ``values`` and the shape of ``scale``.
        axis: of the channels; None where there is one scale.
        bits: of the grid; ``values`` need no more.
        container: the narrowest ONNX type that holds ``values``.
    """

    name: str
    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None
    bits: int
    container: DType

    def dequantized(self) -> np.ndarray:
        """float32, in the initializer's shape: what DequantizeLinear makes of it."""
        shape = [1] * self.values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        centered = self.values.astype(np.int32) - self.zero_point.astype(np.int32).reshape(shape)
        return np.asarray(centered.astype(np.float32) * self.scale.reshape(shape))


@dataclass(frozen=True)
class LayerPlan:
    """A Conv, Gemm or MatMul.

    Attributes:
        output: the node's output in the float graph, which names the layer.
        input: the activation that it reads.
        input_grid: what it reads it on; narrower than the tensor's own grid, or the same.
        weight: integers.
        bias: float64 [channels]; None where the layer neither has nor needs one.
    """

    output: str
    input: str
    input_grid: Grid
    weight: IntegerWeight
    bias: np.ndarray | None


@dataclass(frozen=True)
class Plan:
    """A whole model.

    Attributes:
        layers: in the order of the graph.
        tensors: {activation: the grid that it is stored on}, for every tensor that has a range.
        activation_type: the container of all activations.
    """

    layers: tuple[LayerPlan, ...]
    tensors: dict[str, Grid]
    activation_type: DType


def bias_integers(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float64 [channels]: the 32-bit integers that a bias becomes on ``scale``, input's times weight's."""
    return np.asarray(np.clip(np.rint(bias / scale.astype(np.float64)), -(2**31), 2**31 - 1))
