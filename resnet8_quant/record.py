"""The files of one run, written so that results.csv exists only beside whole files that belong to it.

In: a finished run's row, predictions, model bytes, calibration and details. Out: model.onnx, predictions.npy and
float_predictions.npy (int64 [N]), per_class.csv, ranges.csv and histograms.npz where there was a calibration, run.json
and, last, results.csv.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from resnet8_quant import results
from resnet8_quant.config import Config, DType, Sampling
from resnet8_quant.evaluator.accuracy import Predictions
from resnet8_quant.evaluator.kernels import KernelReport
from resnet8_quant.evaluator.statistics import ClassRow
from resnet8_quant.files import replacing
from resnet8_quant.machine import runtime_version
from resnet8_quant.results import RunResult

if TYPE_CHECKING:
    from resnet8_quant.graphs.quantization_summary import LayerSummary, QuantizationSummary
    from resnet8_quant.quantizer.quantize import QuantizedModel

PACKAGES = ("onnx", "numpy", "hydra-core")


def write_outputs(
    folder: Path,
    config: Config,
    result: RunResult,
    per_class: tuple[ClassRow, ...],
    answers: dict[str, Predictions],
    serialized: bytes,
    kernels: KernelReport,
    quantized: QuantizedModel | None,
    details: dict[str, Any],
) -> None:
    """Write the outputs; results.csv last, so that where it exists the others are whole and belong to it.

    ``answers`` are written as NAME.npy each.
    """
    # of an earlier run in the same, explicitly chosen folder
    for name in (results.FILE_NAME, *results.CALIBRATION_FILES):
        (folder / name).unlink(missing_ok=True)
    with replacing(folder / "model.onnx") as temporary:
        temporary.write_bytes(serialized)
    for name, predictions in answers.items():
        with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, predictions.labels)
    with replacing(folder / "per_class.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(ClassRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in per_class)
    if quantized is not None:
        from resnet8_quant.quantizer.calibration.report import write_histograms, write_ranges

        write_ranges(quantized.calibration, onnx.load_from_string(quantized.named), folder / "ranges.csv")
        write_histograms(quantized.calibration, folder / "histograms.npz")
    record = {
        "result": dataclasses.asdict(result),
        "config": dataclasses.asdict(config, dict_factory=_plain),
        "versions": {"onnxruntime": runtime_version()} | {name: version(name) for name in PACKAGES},
        "runtime_operators": kernels.ops,
        "files": {name: (folder / name).stat().st_size for name in results.FILES if (folder / name).exists()},
        **details,
    }
    with replacing(folder / results.RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    results.write(result, folder)


def calibration_columns(config: Config, quantized: QuantizedModel, images: int) -> dict[str, Any]:
    """Columns of the row that say how a model was calibrated and what that cost.

    Args:
        config: of the run.
        quantized: what it made.
        images: how many calibrated.
    """
    calibration = quantized.calibration
    listed = config.calibration.sampling is Sampling.mlperf_tiny
    return {
        "format": config.quant.format.name,
        "per_channel": quantized.contents.per_channel,
        "calibration_method": config.calibration.method.name,
        "calibration_sampling": config.calibration.sampling.name,
        "samples_per_class": None if listed else config.calibration.samples_per_class,
        "calibration_images": images,
        "calibration_seconds": round(calibration.seconds, 4),
        "calibration_cached": calibration.cached,
        "quantization_seconds": round(quantized.seconds, 4),
    }


def contents_columns(contents: QuantizationSummary, layers: Sequence[LayerSummary]) -> dict[str, Any]:
    """Columns of the row that say what the file holds.

    Args:
        contents: of the file.
        layers: with integer weights, as they were quantized; a deployed file keeps fewer bits in wider types.
    """
    shared = ("activation_type", "weight_type", "quantized_ops", "float_ops", "weight_payload_bytes")
    columns: dict[str, Any] = {name: getattr(contents, name) for name in shared}
    for name in ("weight_bits", "activation_bits"):  # that most layers have, of equals the wider one
        widths = sorted((getattr(layer, name) for layer in layers), reverse=True)
        columns[name] = max(widths, key=widths.count) if widths else DType.float32.bits
    return columns


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in pairs}
