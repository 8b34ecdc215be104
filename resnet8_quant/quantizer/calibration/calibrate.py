"""Calibration as a whole: float model and calibration images -> quantization parameters of each activation."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from resnet8_quant.config import Config
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import one_blas_thread
from resnet8_quant.quantizer.calibration.cache import cached_stats
from resnet8_quant.quantizer.calibration.collect import collect_stats
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.methods import METHODS, Range
from resnet8_quant.quantizer.calibration.observer import TensorStats
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme

log = logging.getLogger(__name__)

# What quantize_static quantizes by default, in a fixed order: its own default is a set, whose order varies.
OPERATORS = sorted(set(QLinearOpsRegistry) | set(QDQRegistry))


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        ranges: {tensor: (low, high)} for every tensor that onnxruntime wants a range for.
        stats: {tensor: its statistics}; not for tensors whose range follows from another's.
        params: {tensor: scale and zero point} that onnxruntime makes of ``ranges``.
        cached: whether the statistics came from the cache.
        seconds: wall time.
        refined: tensors whose range a refinement chose.
    """

    ranges: dict[str, Range]
    stats: dict[str, TensorStats]
    params: dict[str, QuantParams]
    cached: bool
    seconds: float
    refined: frozenset[str] = frozenset()

    def with_params(self, params: dict[str, QuantParams], *, refined: bool) -> Calibration:
        """A copy with other ``params``, of fewer bits; ``refined``: a refinement chose their ranges."""
        changed = {name: new for name, new in params.items() if new != self.params.get(name)}
        ranges = {name: (np.float32(new.low), np.float32(new.high)) for name, new in changed.items()}
        return dataclasses.replace(
            self,
            params=self.params | changed,
            ranges=self.ranges | ranges,
            refined=frozenset(changed if refined else ()),
        )


@dataclass(frozen=True)
class CalibratedTensors:
    """The float tensors of a graph that are quantized.

    Attributes:
        observed: those whose values decide.
        followers: {input of a Relu or Clip: its output}: the activation is folded into the operator before it.
        fixed: {output of a Softmax: (0, 1)}.
    """

    observed: tuple[str, ...]
    followers: dict[str, str]
    fixed: dict[str, tuple[np.float32, np.float32]]


@one_blas_thread()
def calibrate(
    model: FloatModel, images: CalibrationImages, config: Config, *, cache: Path | None = None
) -> Calibration:
    """Choose a range and quantization parameters for each float tensor that onnxruntime quantizes.

    Args:
        config: of the run; ``quant``, ``calibration`` and ``evaluation.threads`` are read.
        cache: folder for statistics; None: no cache.

    Raises:
        ExperimentError: an activation is NaN or infinite; the cache cannot be written.
    """
    started = time.perf_counter()
    tensors = calibrated_tensors(model.proto(), OPERATORS)
    bins, threads = config.calibration.bins, config.evaluation.threads
    if cache is None:
        stats, cached = collect_stats(model, tensors.observed, images, bins, threads), False
    else:
        stats, cached = cached_stats(model, tensors.observed, images, bins, threads=threads, cache=cache)
    if constant := [name for name, tensor in stats.items() if tensor.low == tensor.high]:
        log.warning("the same value in every calibration image: %s", ", ".join(constant))

    scheme = QuantScheme.of_activation(config.quant.activation_type, config.quant.activation_symmetric)
    choose_range = METHODS[config.calibration.method]
    ranges = {name: choose_range(tensor, config.calibration, scheme) for name, tensor in stats.items()} | tensors.fixed
    # Backwards, since the output that a follower takes its range from may be a follower itself: Relu after Clip.
    for name, output in reversed(tensors.followers.items()):
        ranges[name] = ranges[output]
    params = {name: QuantParams.of_range(*ends, scheme) for name, ends in ranges.items()}
    return Calibration(ranges, stats, params, cached, time.perf_counter() - started)


def calibrated_tensors(model: onnx.ModelProto, operators: Collection[str]) -> CalibratedTensors:
    """Find the float32 tensors at one of ``operators``, by the rules of onnxruntime.quantization.

    It wants a range for every float tensor at an operator that it quantizes, and then overrules some of them.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in operators]
    floats = {
        name
        for node in nodes
        for name in (*node.input, *node.output)
        if name in typed and name not in weights and typed[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    uses = Counter(name for node in graph.node for name in node.input)
    followers, fixed = {}, {}
    for node in nodes:
        if node.op_type in ("Relu", "Clip") and uses[node.input[0]] == 1 and {node.input[0], node.output[0]} <= floats:
            followers[node.input[0]] = node.output[0]
        elif node.op_type == "Softmax" and node.output[0] in floats:
            fixed[node.output[0]] = (np.float32(0), np.float32(1))
    return CalibratedTensors(tuple(sorted(floats - followers.keys() - fixed.keys())), followers, fixed)
