"""The record of one run: its row is put together here, and its files are written.

In: a `FinishedRun`, what the stations of a run return. Out: a `RunResult`; and in the run's folder model.onnx,
predictions.npy and float_predictions.npy (int64 [N]), per_class.csv, ranges.csv and histograms.npz where there was a
calibration, qdq.onnx where model.onnx is not the Q/DQ model with names, run.json and, last, results.csv: where it
exists the others are whole and belong to it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from resnet8_quant import __version__, results
from resnet8_quant.config import Config, DType, Sampling
from resnet8_quant.deploy.memory import FLOAT_BITS, Memory, flash_bytes
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator import sensitivity
from resnet8_quant.evaluator.accuracy import Evaluation
from resnet8_quant.evaluator.kernels import RuntimeCheck
from resnet8_quant.evaluator.sensitivity import Sensitivity
from resnet8_quant.evaluator.statistics import ClassRow, Comparison, mcnemar_p
from resnet8_quant.files import replacing, sha256_bytes
from resnet8_quant.graphs.partly_quantized import WEIGHT_SUFFIX
from resnet8_quant.graphs.quantization_summary import WEIGHTED
from resnet8_quant.inputs.dataset import Dataset
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import cpu_description, peak_rss_mb, runtime_version
from resnet8_quant.options import derive_name, quant_name
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.results import RunResult

if TYPE_CHECKING:
    from resnet8_quant.deploy.tflite.target import Target
    from resnet8_quant.graphs.quantization_summary import LayerSummary, QuantizationSummary
    from resnet8_quant.quantizer.quantize import QuantizedModel

TARGET_FILES = ("model.tflite", "model.cc", "model.h", "c/model.c", "c/test.c")
PACKAGES = ("onnx", "numpy", "hydra-core")
_SHARED = [column.name for column in dataclasses.fields(Comparison) if column.name in results.COLUMNS]


@dataclass(frozen=True)
class Prepared:
    """What a run starts from: dataset, float model, calibration images (None: no calibration), cache folder."""

    data: Dataset
    model: FloatModel
    images: CalibrationImages | None
    cache: Path


@dataclass(frozen=True)
class FinalModel:
    """The model that a run evaluates and writes to model.onnx.

    Attributes:
        serialized: ONNX bytes.
        input_spec: what it expects at its input.
        summary: what is quantized in it.
        layers: with integer weights, as they were quantized; a deployed file keeps fewer bits in wider types.
    """

    serialized: bytes
    input_spec: InputSpec
    summary: QuantizationSummary
    layers: Sequence[LayerSummary]


@dataclass(frozen=True)
class FinishedRun:
    """What the stations of a run return; ``overlap`` and ``quantized`` are None without calibration.

    Attributes:
        overrides: of the command line.
        started: when it began, UTC.
        overlap: number of test images that calibration used and the evaluation left out.
        final: the model that was evaluated; the float model itself where nothing was quantized or deployed.
        baseline: evaluation of the float model.
        evaluation: of the final model.
        speed: columns of both models; empty where it was not measured.
        memory: of the float model's graph; None where a shape is not known.
        target: the .tflite file and what the runtimes made of it; None without deploy=tflite.
        sensitivity: which layer hurts; None without analyze=layers.
    """

    config: Config
    overrides: str
    started: datetime
    prepared: Prepared
    overlap: int | None
    quantized: QuantizedModel | None
    final: FinalModel
    baseline: Evaluation
    evaluation: Evaluation
    comparison: Comparison
    runtime: RuntimeCheck
    speed: dict[str, Any]
    memory: Memory | None
    target: Target | None
    sensitivity: Sensitivity | None = None


def result_of(run: FinishedRun) -> RunResult:
    """Put the row of a finished run together."""
    data, model, kernels = run.prepared.data, run.prepared.model, run.runtime.kernels
    return RunResult(
        **_request_columns(run.config, run.overrides, run.started),
        model=model.name,
        data=data.name,
        calibration_overlap=run.overlap,
        eval_images=len(run.evaluation.labels),
        classes=model.input_spec.classes,
        float_model_bytes=len(model.serialized),
        float_model_sha256=model.digest,
        data_sha256=data.digest,
        **_calibration_columns(run),
        **_model_columns(run),
        **{name: getattr(run.comparison, name) for name in _SHARED},
        portable=run.runtime.portable,
        default_session_accuracy=run.runtime.default_session_accuracy,
        default_session_changed=run.runtime.default_session_changed,
        quantized_ops=kernels.quantized_ops,
        float_ops=kernels.float_ops,
        kernels=kernels.kernels,
        conv_gemm_integer=kernels.integer,
        conv_gemm_total=kernels.total,
        provider="+".join(name.removesuffix("ExecutionProvider") for name in run.config.evaluation.providers),
        **_memory_columns(run),
        **_target_columns(run),
        **run.speed,
        evaluation_seconds=round(run.evaluation.seconds, 4),
        float_evaluation_seconds=round(run.baseline.seconds, 4),
        peak_rss_mb=peak_rss_mb(),
    )


def failed_row(config: Config, error: Exception, overrides: str) -> RunResult:
    """The row of a job that could not run: its settings, and why not."""
    problem = error.problem if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
    return RunResult(
        status="failed",
        error=" ".join(problem.split()),
        **_request_columns(config, overrides, datetime.now(UTC)),
        calibration_method=config.calibration.method.name,
        samples_per_class=config.calibration.samples_per_class,
        model=config.model.kind.name,
        data=config.data.kind.name,
    )


def write_outputs(folder: Path, run: FinishedRun, result: RunResult) -> None:
    """Write the files of a run; results.csv last."""
    # of an earlier run in the same, explicitly chosen folder
    for name in (results.FILE_NAME, results.QDQ, *TARGET_FILES, *results.CALIBRATION_FILES, *results.ANALYSIS_FILES):
        (folder / name).unlink(missing_ok=True)
    with replacing(folder / "model.onnx") as temporary:
        temporary.write_bytes(run.final.serialized)
    for name, content in (run.target.files if run.target else {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    for name, evaluation in {"predictions": run.evaluation, "float_predictions": run.baseline}.items():
        with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, evaluation.predictions)
    with replacing(folder / "per_class.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, [column.name for column in dataclasses.fields(ClassRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in run.comparison.per_class)
    if run.quantized is not None:
        from resnet8_quant.quantizer.calibration.report import write_histograms, write_ranges

        if (name := results.qdq_file(run.config)) != "model.onnx":
            with replacing(folder / name) as temporary:
                temporary.write_bytes(run.quantized.named)
        named = onnx.load_from_string(run.quantized.named)
        write_ranges(run.quantized.calibration, named, folder / "ranges.csv")
        write_histograms(run.quantized.calibration, folder / "histograms.npz")
    if run.sensitivity is not None:
        sensitivity.write(run.sensitivity, folder)
    with replacing(folder / results.RECORD) as temporary:
        temporary.write_text(json.dumps(_record(folder, run, result), indent=2) + "\n", encoding="utf-8")
    results.write(result, folder)


def _record(folder: Path, run: FinishedRun, result: RunResult) -> dict[str, Any]:
    """The content of run.json."""
    record = {
        "result": dataclasses.asdict(result),
        "config": dataclasses.asdict(run.config, dict_factory=_plain),
        "versions": {"onnxruntime": runtime_version()} | {name: version(name) for name in PACKAGES},
        "runtime_operators": run.runtime.kernels.ops,
        "files": {name: (folder / name).stat().st_size for name in results.FILES if (folder / name).exists()},
        "operators": run.final.summary.operators,
        "layers": _layers(run),
        "float_layers": list(_float_layers(run)),
        "saturating_layers": list(run.runtime.saturating_layers),
    }
    if run.quantized is not None:
        record["qdq_sha256"] = sha256_bytes(run.quantized.named)
    if run.prepared.images is not None:
        record["calibration_indices_sha256"] = sha256_bytes(run.prepared.images.chosen.astype("<i8").tobytes())
    return record


def _layers(run: FinishedRun) -> list[dict[str, Any]]:
    """The layers with integer weights, each with its name in the float graph, as quant.layers has it.

    Which tensor a quantized layer computes depends on what was fused into it; its weight keeps the name.
    """
    names: dict[str, list[str]] = {}  # several where layers share a weight
    for node in run.prepared.model.proto().graph.node:
        if node.op_type in WEIGHTED:
            for read in node.input[:2]:
                names.setdefault(f"{read}{WEIGHT_SUFFIX}", []).append(node.output[0])
    return [
        {"name": names[layer.weight].pop(0) if names.get(layer.weight) else layer.output} | dataclasses.asdict(layer)
        for layer in run.final.layers
    ]


def _request_columns(config: Config, overrides: str, started: datetime) -> dict[str, Any]:
    """Settings, versions, CPU and time: known before the run."""
    return {
        "quant_type": quant_name(config.quant),
        "refine": derive_name("refine", config.refine),
        "deploy": derive_name("deploy", config.deploy),
        "deploy_input": config.deploy.input.name,
        "deploy_output": config.deploy.output.name,
        "seed": config.seed,
        "onnxruntime_version": runtime_version(),
        "package_version": __version__,
        "cpu": cpu_description(),
        "overrides": overrides or None,
        "started_utc": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "settings": results.settings_of(config),
    }


def _calibration_columns(run: FinishedRun) -> dict[str, Any]:
    """How the model was calibrated and what that cost; empty where it was not."""
    if run.quantized is None or run.prepared.images is None:
        return {}
    config, calibration, distillation = run.config.calibration, run.quantized.calibration, run.quantized.distillation
    listed = config.sampling is Sampling.mlperf_tiny
    return {
        "format": run.config.quant.format.name,
        "per_channel": run.quantized.summary.per_channel,
        "calibration_method": config.method.name,
        "calibration_sampling": config.sampling.name,
        "samples_per_class": None if listed else config.samples_per_class,
        "calibration_images": len(run.prepared.images),
        "calibration_seconds": round(calibration.seconds, 4),
        "calibration_cached": calibration.cached,
        "quantization_seconds": round(run.quantized.seconds, 4),
        "distill_images": distillation.images if distillation else None,
        "distill_steps": distillation.steps if distillation else None,
    }


def _float_layers(run: FinishedRun) -> tuple[str, ...]:
    """Layers that stayed in float among quantized ones."""
    return run.quantized.float_layers if run.quantized else ()


def _model_columns(run: FinishedRun) -> dict[str, Any]:
    """What the written file holds."""
    model = run.final
    shared = ("activation_type", "weight_type", "weight_payload_bytes")
    columns: dict[str, Any] = {name: getattr(model.summary, name) for name in shared}
    kept = _float_layers(run)
    for name in ("weight_bits", "activation_bits"):  # mode over layers; ties go to the wider
        bits = sorted((getattr(layer, name) for layer in model.layers), reverse=True)
        bits = [FLOAT_BITS] * len(kept) + bits if name == "weight_bits" else bits
        columns[name] = max(bits, key=bits.count) if bits else FLOAT_BITS
    if kept:
        columns["weight_type"] = "+".join(sorted({*columns["weight_type"].split("+"), DType.float32.name}))
    columns |= {"model_bytes": len(model.serialized), "model_sha256": sha256_bytes(model.serialized)}
    return columns


def _target_columns(run: FinishedRun) -> dict[str, Any]:
    """What the runtimes of the target made of the images, against the exact integers; empty without deploy=tflite."""
    if run.target is None:
        return {}
    columns: dict[str, Any] = dict(run.target.columns)
    for name, predictions in run.target.predictions.items():
        labels, exact = run.evaluation.labels[: len(predictions)], run.evaluation.predictions[: len(predictions)]
        correct, exact_correct = predictions == labels, exact == labels
        to_wrong, to_right = int((exact_correct & ~correct).sum()), int((correct & ~exact_correct).sum())
        columns |= {
            f"{name}_accuracy": float(correct.mean()),
            f"{name}_changed": int((predictions != exact).sum()),
            f"{name}_mcnemar_p": mcnemar_p(to_wrong, to_right),
        }
    return columns


def _memory_columns(run: FinishedRun) -> dict[str, Any]:
    """What a target needs for the model: flash for its weights, RAM for its activations, multiply-accumulates."""
    if run.memory is None:
        return {}
    layers, names = run.final.layers, [layer.name for layer in run.memory.layers if layer.weights]
    kept = _float_layers(run)
    columns = {"macs": run.memory.macs}
    if not kept:  # else they depend on where the runtime goes over to float
        columns["peak_activation_bytes"] = (1 if layers else 4) * run.memory.peak_activation_bytes
    if run.quantized is None or not layers:  # of a model that was quantized before, the order is the same
        bits = [layer.weight_bits for layer in layers] or None
    else:
        widths = {layer["name"]: layer["weight_bits"] for layer in _layers(run)} | dict.fromkeys(kept, FLOAT_BITS)
        bits = [widths[name] for name in names if name in widths]
    if bits is None or len(bits) == len(names):  # else a layer stayed in float that nobody asked to
        per_channel = any(layer.per_channel for layer in layers)
        columns["weights_bytes"] = flash_bytes(run.memory.layers, bits, per_channel)
    return columns


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in pairs}
