"""The row of a run: the schema of results.csv, written atomically and read back with its types.

In: measurements. Out: one CSV with a header and one row. Ratios are not percents; what does not apply is empty; a new
column raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing

SCHEMA_VERSION = 5
FILE_NAME = "results.csv"
RECORD = "run.json"
CALIBRATION_FILES = ("ranges.csv", "histograms.npz")
# What a run may leave beside its row and record, which says under "files" what it did leave, with sizes.
FILES = ("model.onnx", "per_class.csv", "predictions.npy", "float_predictions.npy", *CALIBRATION_FILES)


@dataclass(frozen=True, repr=False)
class RunResult:
    """One run. The order of the fields is the order of the columns.

    ``weight_bits`` and ``activation_bits`` are those of most layers; run.json has each. Units are in the names; sizes
    are bytes, accuracies ratios, ``accuracy_delta`` is quantized minus float. The types are what was found in the
    produced graph. ``calibration_overlap`` counts test images that calibration used and the evaluation left out.
    ``quant_ties`` counts images whose largest output is reached by more than one class. ``calibration_cached`` says
    whether ``calibration_seconds`` had no need to run the model. ``evaluation_seconds`` is the quantized model's;
    ``float_evaluation_seconds`` is near zero where the baseline came from the cache. ``peak_rss_mb`` is the process's
    so far: in a sweep it includes earlier jobs.

    ``accuracy`` is that of exact integer arithmetic, the same on every CPU. ``portable`` says that no kernel of ONNX
    Runtime can saturate with this model, so that an application's session gives it too. Where that cannot be said and
    this CPU's kernels saturate, ``default_session_accuracy`` and ``default_session_changed`` (predictions that differ)
    are those of a session with ONNX Runtime's default options, and ``default_session_latency_us_median`` is its time;
    empty elsewhere.

    Latencies are medians of calls that alternate with the float model's, with 95 % bootstrap intervals; ``speedup`` is
    float over quantized. ``latency_iqr_ratio`` is interquartile range over median, ``machine_load`` the processes that
    ran or waited per core when the measurement began, ``other_processes_share`` the share of the cores' time that other
    processes took during it; ``machine_busy`` says that one of them is too high for the figures to be trusted.
    """

    schema_version: int = SCHEMA_VERSION
    status: str = "ok"
    error: str | None = None
    quant_type: str | None = None
    activation_type: str | None = None
    weight_type: str | None = None
    activation_bits: int | None = None
    weight_bits: int | None = None
    per_channel: bool | None = None
    format: str | None = None
    calibration_method: str | None = None
    calibration_sampling: str | None = None
    samples_per_class: int | None = None
    calibration_images: int | None = None
    calibration_overlap: int | None = None
    refine: str | None = None
    deploy: str | None = None
    deploy_input: str | None = None
    deploy_output: str | None = None
    model: str | None = None
    data: str | None = None
    seed: int | None = None
    eval_images: int | None = None
    classes: int | None = None
    accuracy: float | None = None
    accuracy_ci_low: float | None = None
    accuracy_ci_high: float | None = None
    float_accuracy: float | None = None
    accuracy_delta: float | None = None
    changed_predictions: int | None = None
    flips_to_wrong: int | None = None
    flips_to_right: int | None = None
    mcnemar_p: float | None = None
    portable: bool | None = None
    default_session_accuracy: float | None = None
    default_session_changed: int | None = None
    quant_ties: int | None = None
    float_ties: int | None = None
    model_bytes: int | None = None
    float_model_bytes: int | None = None
    weight_payload_bytes: int | None = None
    quantized_ops: int | None = None
    float_ops: int | None = None
    kernels: str | None = None
    conv_gemm_integer: int | None = None
    conv_gemm_total: int | None = None
    provider: str | None = None
    latency_us_median: float | None = None
    latency_us_ci_low: float | None = None
    latency_us_ci_high: float | None = None
    latency_us_p95: float | None = None
    latency_iqr_ratio: float | None = None
    default_session_latency_us_median: float | None = None
    float_latency_us_median: float | None = None
    float_latency_us_p95: float | None = None
    float_latency_iqr_ratio: float | None = None
    speedup: float | None = None
    speedup_ci_low: float | None = None
    speedup_ci_high: float | None = None
    latency_runs: int | None = None
    latency_batch: int | None = None
    latency_threads: int | None = None
    threads_available: int | None = None
    all_threads_latency_us_median: float | None = None
    all_threads_speedup: float | None = None
    all_threads_speedup_ci_low: float | None = None
    all_threads_speedup_ci_high: float | None = None
    throughput_batch: int | None = None
    images_per_second: float | None = None
    float_images_per_second: float | None = None
    throughput_speedup: float | None = None
    throughput_speedup_ci_low: float | None = None
    throughput_speedup_ci_high: float | None = None
    machine_load: float | None = None
    other_processes_share: float | None = None
    machine_busy: bool | None = None
    calibration_seconds: float | None = None
    calibration_cached: bool | None = None
    quantization_seconds: float | None = None
    evaluation_seconds: float | None = None
    float_evaluation_seconds: float | None = None
    latency_seconds: float | None = None
    peak_rss_mb: float | None = None
    model_sha256: str | None = None
    float_model_sha256: str | None = None
    data_sha256: str | None = None
    onnxruntime_version: str | None = None
    package_version: str | None = None
    cpu: str | None = None
    overrides: str | None = None
    started_utc: str | None = None

    def __repr__(self) -> str:
        shown = ("status", "error", "quant_type", "accuracy", "float_accuracy", "model_bytes", "latency_us_median")
        values = (f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None)
        return f"RunResult({', '.join(values)}, ...)"


COLUMNS = tuple(field.name for field in dataclasses.fields(RunResult))
_TYPES = {
    name: next(kind for kind in (bool, int, float, str) if hint in (kind, kind | None))
    for name, hint in get_type_hints(RunResult).items()
}


def write(result: RunResult, folder: Path) -> Path:
    """Write ``folder``/results.csv; it appears whole or not at all."""
    path = folder / FILE_NAME
    row = {name: "" if value is None else value for name, value in dataclasses.asdict(result).items()}
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    return path


def read(path: Path) -> RunResult:
    """Read a results.csv that may have been damaged or come from elsewhere.

    Raises:
        ExperimentError: it is not a row of this schema.
    """
    remedy = "run that job again; a results.csv of another version is read with that version of resnet8-quant"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"{path} cannot be read: {error}", remedy) from error
    if len(rows) != 1 or tuple(rows[0]) != COLUMNS or None in rows[0].values():
        raise ExperimentError(f"{path} is not one row of schema {SCHEMA_VERSION}", remedy)
    values: dict[str, object] = {}
    for name, text in rows[0].items():
        kind = _TYPES[name]
        try:
            if not text:
                values[name] = None
            elif kind is bool:
                values[name] = {"True": True, "False": False}[text]
            else:
                values[name] = kind(text)
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{path}: column `{name}` holds {text!r}, not a {kind.__name__}", remedy) from error
    if values["schema_version"] != SCHEMA_VERSION:
        raise ExperimentError(f"{path} has schema_version {values['schema_version']}, not {SCHEMA_VERSION}", remedy)
    if values["status"] not in ("ok", "failed"):
        raise ExperimentError(f"{path}: column `status` holds {values['status']!r}, not ok or failed", remedy)
    return RunResult(**values)  # type: ignore[arg-type]
