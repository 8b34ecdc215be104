"""The grids of the activations: which tensor is stored on how many bits, and with which range.

In: a float graph, the bits of its layers, what calibration found. Out: the grid of each tensor, and of each layer's
input where that is narrower.
"""

from __future__ import annotations

import numpy as np
import onnx

from resnet8_quant.config import CalibrationConfig, DType, QuantConfig
from resnet8_quant.quantizer.calibration.engine import Calibration
from resnet8_quant.quantizer.calibration.error import error_range
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.calibration.methods import METHODS
from resnet8_quant.quantizer.calibration.observer import Batch, Observation, Observer
from resnet8_quant.quantizer.refine.bits import LayerBits

# Operators that move values without changing them: their output has the grid of their input.
MOVING = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
BINS = 2048
CHUNK = 50  # images


class ActivationGrids:
    """Decides the grid of a tensor when it is first asked for.

    Attributes:
        tensors: {tensor: the grid that it is stored on}, of those asked for so far.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        bits: dict[str, LayerBits],
        quant: QuantConfig,
        config: CalibrationConfig,
        calibration: Calibration,
        in_place: bool,
    ) -> None:
        """Args: in_place: take narrow ranges from the values of the quantized model, not from calibration."""
        self.quant, self.config, self.calibration, self.in_place = quant, config, calibration, in_place
        self.tensors: dict[str, Grid] = {}
        self._bits = bits
        self._outputs = {value.name for value in graph.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        self._moved: dict[str, str] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
            if node.op_type in MOVING:
                self._moved[node.output[0]] = node.input[0]
        self._narrow: dict[tuple[str, int], Grid] = {}

    def stored(self, name: str, values: np.ndarray | None) -> Grid:
        """The grid of tensor ``name``; ``values`` are those of the quantized model, where they are at hand."""
        if name not in self.tensors:
            source = self._moved.get(name)
            if source in self.calibration.grids:  # whichever of the two is asked for first
                self.tensors[name] = self.stored(source, None)
            else:
                self.tensors[name] = self._grid(name, self._stored_bits(name), values)
        return self.tensors[name]

    def read(self, layer: onnx.NodeProto, values: np.ndarray | None) -> Grid:
        """The grid on which ``layer`` reads its input."""
        name, bits = layer.input[0], self._bits[layer.output[0]].activation
        stored = self.stored(name, values)
        if stored.levels.count <= 2**bits:
            return stored
        if (name, bits) not in self._narrow:
            self._narrow[name, bits] = self._grid(name, bits, values)
        return self._narrow[name, bits]

    def _stored_bits(self, name: str) -> int:
        consumers, widest = self._consumers.get(name, []), self.quant.activation_type.bits
        readers = [self._bits[node.output[0]].activation for node in consumers if self._reads(node, name)]
        if name not in self._outputs and readers and len(readers) == len(consumers):
            return min(widest, max(readers))
        if self.quant.activation_bits is None:
            return widest
        return min(widest, max([self.quant.residual_bits, *readers]))

    def _reads(self, node: onnx.NodeProto, name: str) -> bool:
        return bool(node.output[0] in self._bits and node.input[0] == name)

    def _grid(self, name: str, bits: int, values: np.ndarray | None) -> Grid:
        if bits == self.quant.activation_type.bits or name not in self.calibration.observations:
            return self.calibration.grids[name]
        levels = narrow_levels(self.quant.activation_type, bits, self.quant.activation_symmetric)
        if not self.in_place or values is None:
            observed = self.calibration.observations[name]
            return Grid.of(*METHODS[self.config.method](observed, self.config, levels), levels)
        seen = _observe(values)
        assert seen.histogram is not None
        low, high = error_range(seen.histogram, float(seen.low), float(seen.high), levels, 2.0)
        return Grid.of(np.float32(low), np.float32(high), levels)


def narrow_levels(kind: DType, bits: int, symmetric: bool) -> Levels:
    """The first ``2 ** bits`` integers of a type, around zero where it is signed."""
    if kind.name.startswith("u"):
        return Levels(0, 2**bits - 1, symmetric)
    return Levels(-(2 ** (bits - 1)) + int(symmetric), 2 ** (bits - 1) - 1, symmetric)


def on_grid(values: np.ndarray, grid: Grid) -> np.ndarray:
    """float32 ``values`` as QuantizeLinear and DequantizeLinear leave them."""
    steps = values / grid.scale
    np.rint(steps, out=steps)
    lowest, highest = grid.levels.lowest - grid.zero_point, grid.levels.highest - grid.zero_point
    np.clip(steps, lowest, highest, out=steps)
    steps *= grid.scale
    return np.asarray(steps)


def _observe(values: np.ndarray) -> Observation:
    observer = Observer(len(values), BINS)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        observer.update(Batch.of(part, True), start, len(part))
    return observer.finish(observer.image_lows.min(), observer.image_highs.max())
