"""Float model + calibration images -> quantized model, through onnxruntime's quantize_static.

In: a `FloatModel`, uint8 calibration images, the `quant` and `calibration` parts of the config. Out: a `QuantizedModel`
with what was really quantized. The ranges are found by calibration/ and handed to quantize_static as a calibration
cache, its documented way in; quantize_static inserts the Q/DQ pairs or the integer operators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from resnet8_quant.config import AllocateConfig, CalibrationConfig, DType, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.compact import compact
from resnet8_quant.graphs.opset import at_least_opset
from resnet8_quant.graphs.quantization_summary import QuantizationSummary, summarize
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.engine import Calibration, calibrate
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import OLDEST_OPSET, emit
from resnet8_quant.quantizer.mixed_precision.budget import Choice
from resnet8_quant.quantizer.mixed_precision.fit import check_budget, fit, shrink
from resnet8_quant.quantizer.mixed_precision.sensitivity import allowed, sensitivities
from resnet8_quant.quantizer.plan import Plan
from resnet8_quant.quantizer.refine.bits import LayerBits, layer_bits
from resnet8_quant.quantizer.refine.equalize import equalized
from resnet8_quant.quantizer.refine.walk import refine
from resnet8_quant.validation import is_low_bit, is_refined

log = logging.getLogger(__name__)

# What quantize_static quantizes by default, in a fixed order: its own default is a set, whose order varies.
OPERATORS = sorted(set(QLinearOpsRegistry) | set(QDQRegistry))
QUANT_TYPES: dict[DType, QuantType] = {
    kind: getattr(QuantType, f"Q{kind.name.replace('u', 'U').replace('i', 'I')}")
    for kind in DType
    if hasattr(QuantType, f"Q{kind.name.replace('u', 'U').replace('i', 'I')}")
}


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model and how it came about.

    Attributes:
        serialized: ONNX bytes.
        named: the same before ``quant.compact`` took the names.
        contents: what was really quantized.
        calibration: the ranges, and what was observed of each activation.
        seconds: wall time of what came after calibration.
    """

    serialized: bytes
    named: bytes
    contents: QuantizationSummary
    calibration: Calibration
    seconds: float


def quantize(
    model: FloatModel,
    images: CalibrationImages,
    quant: QuantConfig,
    calibration: CalibrationConfig,
    refinement: RefineConfig | None = None,
    allocation: AllocateConfig | None = None,
    drop: Callable[[bytes], float] | None = None,
    *,
    threads: int = 0,
    cache: Path | None = None,
) -> QuantizedModel:
    """Calibrate on ``images`` and quantize ``model``.

    Args:
        model: float, BatchNorm folded.
        images: calibration images from the training set.
        quant: number types and format.
        calibration: method and parameters.
        refinement: what is repaired after calibration; None: nothing.
        allocation: how many bytes the file may have, or how much accuracy it may lose; None: any.
        drop: a model's loss of accuracy on validation images; needed with ``allocation.max_accuracy_drop``.
        threads: during calibration and refinement; 0 for all cores.
        cache: folder for what calibration observes; None: no cache.

    Raises:
        ExperimentError: NaN in an activation, or nothing in the graph could be quantized.
    """
    refinement, allocation = refinement or RefineConfig(), allocation or AllocateConfig()
    if refinement.equalize:
        model = equalized(model)
    found = calibrate(model, images, quant, calibration, OPERATORS, threads=threads, cache=cache)
    calibrated = time.perf_counter()
    serialized = insert_ranges(model, found, quant)
    allocates = allocation.budget_bytes is not None or allocation.max_accuracy_drop is not None
    if is_low_bit(quant) or is_refined(refinement) or allocates:
        draft = _Draft(model, images, quant, calibration, found, serialized, threads)
        made = draft.fitted(refinement, allocation, drop) if allocates else draft.made(refinement)
        named, serialized = made.named, made.serialized
        found = found.regridded(made.plan.tensors, refined=refinement.activation_ranges)
    else:
        named = serialized
        if quant.compact:
            serialized = _compacted(onnx.load_from_string(named))
    contents = summarize(onnx.load_from_string(serialized))
    if quant.compact:
        contents = dataclasses.replace(contents, layers=summarize(onnx.load_from_string(named)).layers)
    if contents.quantized_ops == 0:
        raise ExperimentError(
            f"`model`: none of its {contents.float_ops} operators could be quantized",
            f"onnxruntime quantizes {', '.join(OPERATORS)}",
        )
    log.info(
        "quantized with %s on %d images: %s activations, %s weights%s, %s; %d operators quantized, %d float",
        calibration.method.name,
        len(images),
        contents.activation_type,
        contents.weight_type,
        " per channel" if contents.per_channel else "",
        quant.format.name,
        contents.quantized_ops,
        contents.float_ops,
    )
    return QuantizedModel(serialized, named, contents, found, time.perf_counter() - calibrated)


@dataclass(frozen=True)
class _Made:
    """A model, before and after ``quant.compact``, and the plan that it was made from."""

    named: bytes
    serialized: bytes
    plan: Plan


@dataclass(frozen=True)
class _Draft:
    """What a refined model is made from: the float model, its calibration, and what quantize_static made of them."""

    model: FloatModel
    images: CalibrationImages
    quant: QuantConfig
    calibration: CalibrationConfig
    found: Calibration
    plain: bytes
    threads: int

    def made(self, refinement: RefineConfig, bits: dict[str, LayerBits] | None = None) -> _Made:
        """The model with the integers that ``refinement`` chooses."""
        plan = refine(
            self.model,
            self.images,
            self.quant,
            self.calibration,
            refinement,
            self.found,
            bits=bits,
            threads=self.threads,
        )
        emitted = emit(onnx.load_from_string(self.plain), plan)
        named = bytes(emitted.SerializeToString(deterministic=True))
        return _Made(named, _compacted(emitted) if self.quant.compact else named, plan)

    def fitted(
        self, refinement: RefineConfig, allocation: AllocateConfig, drop: Callable[[bytes], float] | None
    ) -> _Made:
        """The best model within ``allocation.budget_bytes``, or the smallest within ``max_accuracy_drop``."""
        base = layer_bits(self.model.proto().graph, self.quant)
        if not base:
            raise ExperimentError("`allocate`: the model has no Conv, Gemm or MatMul to narrow", "allocate=none")
        widths = sorted(set(allocation.choices))
        narrowest = {
            layer: allowed(layer, [Choice(width, 0.0, width) for width in widths], self.quant, base)[0].bits
            for layer in base
        }

        def bits(widths: dict[str, int]) -> dict[str, LayerBits]:
            return {layer: LayerBits(width, base[layer].activation) for layer, width in widths.items()}

        def draft(widths: dict[str, int]) -> bytes:
            return self.made(RefineConfig(), bits(widths)).serialized

        if allocation.budget_bytes is not None:  # before the work
            check_budget(len(draft(narrowest)), allocation.budget_bytes)
        choices = sensitivities(self.model, self.images, self.quant, refinement, widths)
        choices = {layer: allowed(layer, options, self.quant, base) for layer, options in choices.items()}

        def make(widths: dict[str, int]) -> _Made:
            return self.made(refinement, bits(widths))

        if allocation.budget_bytes is not None:
            return fit(make, draft, choices, allocation.budget_bytes)[0]
        assert drop is not None
        assert allocation.max_accuracy_drop is not None
        return shrink(make, lambda made: drop(made.serialized), choices, allocation.max_accuracy_drop)[0]


def _compacted(model: onnx.ModelProto) -> bytes:
    return bytes(compact(model).SerializeToString(deterministic=True))


def insert_ranges(model: FloatModel, calibration: Calibration, quant: QuantConfig) -> bytes:
    """Run quantize_static with the ranges of ``calibration``; return the checked model's bytes."""
    proto = model.proto()
    if quant.per_channel and _opset(proto) < OLDEST_OPSET:  # a scale for each channel
        proto = at_least_opset(proto, OLDEST_OPSET)
    add_pre_process_metadata(proto)  # inputs.fold did that work; without the mark quantize_static asks for it
    options: dict[str, object] = {"ActivationSymmetric": quant.activation_symmetric}
    if quant.weight_symmetric is not None:
        options["WeightSymmetric"] = quant.weight_symmetric
    chatter = io.StringIO()
    with (
        tempfile.TemporaryDirectory(prefix="resnet8_quant.") as folder,
        contextlib.redirect_stdout(chatter),
        _own_scale_for_average_pools(),
    ):
        cache, output = Path(folder) / "ranges.json", Path(folder) / "model.onnx"
        # a calibration cache is tagged with a method's name; MinMax means "these are the ranges"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, dict(calibration.ranges)), cache)
        quantize_static(
            proto,
            output,
            None,
            quant_format=QuantFormat[quant.format.name],
            op_types_to_quantize=OPERATORS,
            per_channel=quant.per_channel,
            reduce_range=quant.reduce_range,
            activation_type=QUANT_TYPES[quant.activation_type],
            weight_type=QUANT_TYPES[quant.weight_type],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
            calibration_cache_path=cache,
        )
        serialized = output.read_bytes()
    if chatter.getvalue():
        log.debug("onnxruntime: %s", chatter.getvalue())
    onnx.checker.check_model(serialized, full_check=False)
    return serialized


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def _own_scale_for_average_pools() -> Iterator[None]:
    """Let an AveragePool's output have the scale that its own range asks for, in QDQ as in QOperator.

    onnxruntime's table has an entry for QDQ that copies the input's scale to the output. That is right for MaxPool,
    but an average is far smaller than the maximum before it: ResNet8 loses about 20 of 10,000 images. Operators
    without an entry get a scale for each tensor, and the integer kernel takes both.
    """
    entry = QDQRegistry.pop("AveragePool")
    try:
        yield
    finally:
        QDQRegistry["AveragePool"] = entry
