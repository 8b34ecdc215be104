"""Quantization parameters of the activations of a low-bit model: bit width and range of each tensor."""

from __future__ import annotations

import numpy as np
import onnx

from resnet8_quant.config import Config
from resnet8_quant.quantizer.calibration.calibrate import Calibration
from resnet8_quant.quantizer.calibration.error import least_error_range
from resnet8_quant.quantizer.calibration.methods import METHODS
from resnet8_quant.quantizer.calibration.observer import Batch, Observer, TensorStats
from resnet8_quant.quantizer.plan import LayerBits
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme

# Operators that move values without changing them: their output has the parameters of their input.
MOVING = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
BINS = 2048
CHUNK = 50  # images


class ActivationParams:
    """Decides the parameters of a tensor when it is first asked for.

    Attributes:
        tensors: {tensor: how it is stored}, of those asked for so far.
    """

    def __init__(
        self, graph: onnx.GraphProto, bits: dict[str, LayerBits], config: Config, calibration: Calibration
    ) -> None:
        """Prepare for a float graph, the bit widths of its layers and their calibration.

        With ``refine.activation_ranges`` the ranges of low-bit activations come from the values of the quantized
        model, otherwise from the statistics of calibration.
        """
        self.config, self.calibration, self.bits = config, calibration, bits
        self.tensors: dict[str, QuantParams] = {}
        self._outputs = {value.name for value in graph.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        self._moved_from = {node.output[0]: node.input[0] for node in graph.node if node.op_type in MOVING}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._low_bit: dict[tuple[str, int], QuantParams] = {}

    def stored(self, name: str, values: np.ndarray | None) -> QuantParams:
        """How tensor ``name`` is stored.

        Args:
            values: float32 [N, ...], those of the quantized model, where they are at hand.
        """
        if name not in self.tensors:
            source = self._moved_from.get(name)
            if source in self.calibration.params:  # whichever of the two is asked for first
                self.tensors[name] = self.stored(source, None)
            else:
                self.tensors[name] = self._params(name, self._stored_bits(name), values)
        return self.tensors[name]

    def read(self, layer: onnx.NodeProto, values: np.ndarray | None) -> QuantParams:
        """How ``layer`` reads its input: as it is stored, or with fewer bits."""
        name, bits = layer.input[0], self.bits[layer.output[0]].activation
        stored = self.stored(name, values)
        if stored.levels <= 2**bits:
            return stored
        if (name, bits) not in self._low_bit:
            self._low_bit[name, bits] = self._params(name, bits, values)
        return self._low_bit[name, bits]

    def _stored_bits(self, name: str) -> int:
        """The bit width that all readers of a tensor need."""
        consumers, widest = self._consumers.get(name, []), self.config.quant.activation_type.bits
        readers = [
            self.bits[node.output[0]].activation
            for node in consumers
            if node.output[0] in self.bits and node.input[0] == name
        ]
        if name not in self._outputs and readers and len(readers) == len(consumers):
            return min(widest, max(readers))
        if self.config.quant.activation_bits is None:
            return widest
        return min(widest, max([self.config.quant.residual_bits, *readers]))

    def _params(self, name: str, bits: int, values: np.ndarray | None) -> QuantParams:
        quant = self.config.quant
        if bits == quant.activation_type.bits or name not in self.calibration.stats:
            return self.calibration.params[name]
        scheme = QuantScheme.of_activation(quant.activation_type, quant.activation_symmetric, bits)
        if not self.config.refine.activation_ranges or values is None:
            choose_range = METHODS[self.config.calibration.method]
            ends = choose_range(self.calibration.stats[name], self.config.calibration, scheme)
            return QuantParams.of_range(*ends, scheme)
        stats = _stats(values)
        assert stats.histogram is not None
        low, high = least_error_range(stats.histogram, float(stats.low), float(stats.high), scheme, 2.0)
        return QuantParams.of_range(np.float32(low), np.float32(high), scheme)


def _stats(values: np.ndarray) -> TensorStats:
    """Statistics of one tensor's values, float32 [N, ...]."""
    observer = Observer(len(values), BINS)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        observer.update(Batch.of(part, True), start, len(part))
    return observer.finish(observer.image_lows.min(), observer.image_highs.max())
