"""Float model + calibration images -> quantized model.

onnxruntime's quantize_static inserts Q/DQ pairs or integer operators, with the ranges of calibration/. What refine/ and
mixed_precision/ choose is then written into that graph by emit, and distilled.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from resnet8_quant.config import Config, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.compact import compact
from resnet8_quant.graphs.quantization_summary import QuantizationSummary, summarize
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import one_blas_thread
from resnet8_quant.quantizer.calibration.calibrate import OPERATORS, Calibration, calibrate
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit, quantized_tensors
from resnet8_quant.quantizer.insert_ranges import insert_ranges, serialize
from resnet8_quant.quantizer.mixed_precision import allocation
from resnet8_quant.quantizer.mixed_precision.allocation import BitWidths
from resnet8_quant.quantizer.mixed_precision.sensitivity import sensitivities
from resnet8_quant.quantizer.plan import LayerBits, Plan, layer_bits, layer_nodes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.quantizer.refine.activations import ActivationParams
from resnet8_quant.quantizer.refine.equalize import equalize
from resnet8_quant.quantizer.refine.layer import with_bias
from resnet8_quant.quantizer.refine.reconstruct import reconstruct
from resnet8_quant.validation import FLOAT, allocates, is_low_bit, is_refined

if TYPE_CHECKING:
    from resnet8_quant.quantizer.refine.distill import Distillation, Distiller

log = logging.getLogger(__name__)

GRAPHS = 4  # of quantize_static that are kept, for different layers in float


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model and how it came about.

    Attributes:
        serialized: ONNX bytes.
        named: the same before ``quant.compact`` took the names.
        summary: what was really quantized.
        calibration: the ranges, and the statistics of each activation.
        seconds: wall time of what came after calibration.
        distillation: how it went; None without ``refine.distill``.
        float_layers: names of the layers that stay in float, by ``quant.layers`` or as ``allocate`` chose.
    """

    serialized: bytes
    named: bytes
    summary: QuantizationSummary
    calibration: Calibration
    seconds: float
    distillation: Distillation | None = None
    float_layers: tuple[str, ...] = ()


@one_blas_thread()
def quantize(
    model: FloatModel,
    images: CalibrationImages,
    config: Config,
    *,
    accuracy_drop: Callable[[bytes], float] | None = None,
    target_size: Callable[[bytes], int] | None = None,
    training: CalibrationImages | None = None,
    cache: Path | None = None,
) -> QuantizedModel:
    """Calibrate on ``images`` and quantize ``model``.

    Args:
        model: float, BatchNorm folded.
        images: calibration images from the training set.
        config: of the run, checked; ``quant``, ``calibration``, ``refine``, ``allocate`` and ``evaluation.threads``
            are read.
        accuracy_drop: from a serialized model to its drop of accuracy on validation images, a ratio; needed with
            ``allocate.max_accuracy_drop``.
        target_size: from a serialized Q/DQ model with names to the bytes that ``allocate`` counts; None: those of the
            file.
        training: images that ``refine.distill`` may learn from, none of the test set; None: ``images``.
        cache: folder for the statistics of calibration; None: no cache.

    Raises:
        ExperimentError: NaN in an activation, nothing in the graph could be quantized, or no allocation of bits
            keeps the limit.
    """
    quant, distillation = config.quant, None
    if config.refine.equalize:
        model = equalize(model)
    distiller = None
    if config.refine.distill:
        from resnet8_quant.quantizer.refine.distill import Distiller

        distiller = Distiller(model, training or images, images, config, cache)
    calibration = calibrate(model, images, config, cache=cache)
    calibrated = time.perf_counter()
    graph = model.proto().graph
    bits = layer_bits(graph, quant)
    if is_low_bit(quant) or is_refined(config.refine) or allocates(config):
        builder = _Builder(model, images, config, calibration, distiller)
        if allocates(config):
            built = _allocated(builder, accuracy_drop, target_size)
        else:
            built = builder.distilled(builder.build())
        named, serialized, bits, distillation = built.named, built.serialized, built.bits, built.distillation
        calibration = calibration.with_params(built.plan.tensors, refined=config.refine.activation_ranges)
    else:
        named = serialized = insert_ranges(model, calibration, quant)
        if quant.compact:
            serialized = serialize(compact(onnx.load_from_string(named)))
    kept = tuple(node.output[0] for node in layer_nodes(graph) if node.output[0] not in bits)
    summary = summarize(onnx.load_from_string(serialized))
    if quant.compact:
        summary = dataclasses.replace(summary, layers=summarize(onnx.load_from_string(named)).layers)
    if summary.quantized_ops == 0 and kept and allocates(config):
        numbers = ",".join(str(choice) for choice in config.allocate.choices if choice != FLOAT)
        raise ExperimentError(
            "`allocate.choices` has float, and within the limit all layers may stay in it: nothing would be quantized",
            f"allocate.choices=[{numbers}]" if numbers else "allocate.choices=[2,4,7]",
        )
    if summary.quantized_ops == 0:
        raise ExperimentError(
            f"`model`: none of its {summary.float_ops} operators could be quantized",
            f"onnxruntime quantizes {', '.join(OPERATORS)}",
        )
    log.info(
        "quantized with %s on %d images: %s activations, %s weights%s, %s",
        config.calibration.method.name,
        len(images),
        summary.activation_type,
        summary.weight_type,
        " per channel" if summary.per_channel else "",
        quant.format.name,
    )
    seconds = time.perf_counter() - calibrated
    return QuantizedModel(serialized, named, summary, calibration, seconds, distillation, kept)


@dataclass(frozen=True)
class _Built:
    """A model, before and after ``quant.compact``, the plan that it was made from, and the bit widths of its layers.

    Layers that stay in float are not among ``bits``.
    """

    named: bytes
    serialized: bytes
    plan: Plan
    bits: dict[str, LayerBits]
    distillation: Distillation | None = None


class _Builder:
    """Builds models of one calibration."""

    def __init__(
        self,
        model: FloatModel,
        images: CalibrationImages,
        config: Config,
        calibration: Calibration,
        distiller: Distiller | None,
    ) -> None:
        self.model, self.images, self.config, self.calibration = model, images, config, calibration
        self.distiller = distiller
        self.graph = model.proto().graph
        self.bits = layer_bits(self.graph, config.quant)
        self._quantized = lru_cache(GRAPHS)(self._insert_ranges)

    def quantized(self, bits: Collection[str]) -> onnx.ModelProto:
        """What quantize_static makes of the model where the layers ``bits`` have integers; not to be changed."""
        return self._quantized(frozenset(self.bits.keys() - set(bits)))

    def _insert_ranges(self, in_float: frozenset[str]) -> onnx.ModelProto:
        return onnx.load_from_string(insert_ranges(self.model, self.calibration, self.config.quant, in_float))

    def build(self, widths: BitWidths | None = None, *, refine: bool = True) -> _Built:
        """The model with the bit widths of its weights, by default those of the config.

        Args:
            refine: False: plain rounding, for a file of about the same size in no time.
        """
        config = self.config if refine else dataclasses.replace(self.config, refine=RefineConfig())
        bits = self.bits
        if widths is not None:
            chosen = {layer: width for layer, width in widths.items() if width != allocation.FLOAT_BITS}
            bits = {layer: LayerBits(width, bits[layer].activation) for layer, width in chosen.items()}
        stored = quantized_tensors(self.quantized(bits))
        plan = reconstruct(self.model, self.images, config, self.calibration, bits, stored)
        if not refine and self.config.refine.bias:  # which gives a bias to layers without one
            nodes = {node.output[0]: node for node in layer_nodes(self.graph)}
            biased = tuple(with_bias(nodes[layer.output], layer) for layer in plan.layers)
            plan = dataclasses.replace(plan, layers=biased)
        return self.emitted(plan, bits)

    def emitted(self, plan: Plan, bits: dict[str, LayerBits]) -> _Built:
        """The model that a plan describes."""
        emitted = emit(self.quantized(bits), plan)
        named = serialize(emitted)
        return _Built(named, serialize(compact(emitted)) if self.config.quant.compact else named, plan, bits)

    def distilled(self, built: _Built) -> _Built:
        """The model after ``refine.distill``; as it is without."""
        if self.distiller is None:
            return built
        plan, distillation = self.distiller.run(self.quantized(built.bits), built.plan, built.bits)
        return dataclasses.replace(self.emitted(plan, built.bits), distillation=distillation)

    def read_params(self, layer: str, in_float: bool, values: np.ndarray) -> QuantParams | None:
        """How a layer reads its input, with all others quantized; None where that stays float.

        Args:
            in_float: whether the layer itself stays in float.
            values: float32, what it reads.
        """
        bits = {name: of_layer for name, of_layer in self.bits.items() if not (in_float and name == layer)}
        node = next(node for node in layer_nodes(self.graph) if node.output[0] == layer)
        if node.input[0] not in quantized_tensors(self.quantized(bits)):
            return None
        params = ActivationParams(self.graph, bits, self.config, self.calibration)
        return params.read(node, values) if layer in bits else params.stored(node.input[0], values)


def _allocated(
    builder: _Builder,
    accuracy_drop: Callable[[bytes], float] | None,
    target_size: Callable[[bytes], int] | None,
) -> _Built:
    """The best model within ``allocate.budget_bytes``, or the smallest within ``allocate.max_accuracy_drop``.

    Limits that cannot be kept are refused before the sensitivities are measured, which takes minutes.
    """
    config, bits = builder.config, builder.bits
    if not bits:
        raise ExperimentError(
            "`allocate`: the model has no Conv, Gemm or MatMul whose bits it could choose", "allocate=none"
        )
    names = [node.output[0] for node in layer_nodes(builder.graph)]
    allowed = allocation.allowed_widths(config, bits, ends=(names[0], names[-1]))

    def size_of(built: _Built) -> int:
        return target_size(built.named) if target_size else len(built.serialized)

    def file_size(widths: BitWidths) -> int:
        return size_of(builder.build(widths, refine=False))

    any_float = any(allocation.FLOAT_BITS in widths for widths in allowed.values())
    measured = allocation.measured_bytes(allowed, file_size) if target_size or any_float else None

    def choices() -> allocation.Choices:
        packed = sensitivities(builder.model, builder.images, config, allowed, builder.read_params)
        return packed if measured is None else allocation.with_measured_bytes(packed, measured)

    if config.allocate.budget_bytes is not None:
        allocation.check_budget(file_size(allocation.smallest_widths(allowed, measured)), config)
        built = allocation.fit(
            lambda widths: builder.distilled(builder.build(widths)),
            file_size,
            size_of,
            choices(),
            config.allocate.budget_bytes,
        )
        allocation.check_budget(size_of(built), config)
        return built

    assert accuracy_drop is not None
    assert config.allocate.max_accuracy_drop is not None
    widest = {layer: widths[-1] for layer, widths in allowed.items()}
    built = builder.build(widest)
    allocation.check_drop(accuracy_drop(built.serialized), config)
    limit = config.allocate.max_accuracy_drop
    smallest = allocation.shrink(
        lambda widths: built if widths == widest else builder.build(widths),
        lambda candidate: accuracy_drop(candidate.serialized),
        choices(),
        limit,
    )
    distilled = builder.distilled(smallest)
    if distilled is not smallest and (drop := accuracy_drop(distilled.serialized)) > limit:
        log.warning(
            "the distilled model loses %.2f points on the validation images, more than allocate.max_accuracy_drop; the "
            "model before is kept",
            100 * drop,
        )
        return smallest
    return distilled
