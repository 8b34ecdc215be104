"""The result of a run: the schema of results.csv, written atomically and read back with its types.

In: measurements and the settings that they belong to. Out: one CSV with a header and one row: the fixed columns, then a
column `config.GROUP.FIELD` for each setting that differs from its default, sorted. Ratios are not percents; what does
not apply is empty; a new fixed column raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import read_regular, replacing

SCHEMA_VERSION = 9
FILE_NAME = "results.csv"
RECORD = "run.json"
CALIBRATION_FILES = ("ranges.csv", "histograms.npz")
ANALYSIS_FILES = ("layers.csv", "tensors.csv")  # of analyze=layers
QDQ = "qdq.onnx"
# What a run may leave beside its row and record, which says under "files" what it did leave, with sizes.
FILES = (
    "model.onnx",
    QDQ,
    "model.tflite",
    "per_class.csv",
    "predictions.npy",
    "float_predictions.npy",
    *CALIBRATION_FILES,
)

NO_SETTINGS = ("tracking",)  # groups that only say where runs are logged
# A value longer than this is written as its SHA-256, so that equal values stay equal; run.json has the value itself.
LONGEST_SETTING = 1000
LARGEST_FILE = 2**20  # bytes, of a file from elsewhere
MOST_SETTINGS = 200  # columns of settings, in a file from elsewhere
_SETTING = re.compile(r"config(\.[a-z][a-z0-9_]{0,63}){2}", re.ASCII)
# Columns of which a value outside of 0 to 1, or not above 0, cannot be true.
RATIOS = ("accuracy", "float_accuracy", "default_session_accuracy", "non_integer_time_share")
ABOVE_0 = ("model_bytes", "float_model_bytes", "latency_us_median", "default_session_latency_us_median", "eval_images")


@dataclass(frozen=True, repr=False)
class RunResult:
    """One run. The order of the fields is the order of the columns.

    ``weight_bits`` and ``activation_bits`` are those of most layers, 32 in float; run.json has each. Units are in the
    names; sizes are bytes, accuracies ratios, ``accuracy_delta`` is quantized minus float. The types are those of the
    produced graph; ``weight_type`` has float32 where a layer was kept in float. ``distill_images`` training images were
    learned from, without labels, in ``distill_steps`` steps; empty without ``refine.distill``. ``calibration_overlap``
    counts test images that calibration used and the evaluation left out.
    ``quant_ties`` counts images whose largest output is reached by more than one class. ``calibration_cached`` says
    whether ``calibration_seconds`` had no need to run the model. ``evaluation_seconds`` is the quantized model's;
    ``float_evaluation_seconds`` is near zero where the baseline came from the cache. ``peak_rss_mb`` is the process's
    so far: in a sweep it includes earlier jobs.

    ``accuracy`` is that of exact integer arithmetic, the same on every CPU. ``portable`` says that no kernel of ONNX
    Runtime can saturate with this model, so that an application's session gives it too. Where that cannot be said and
    this CPU's kernels saturate, ``default_session_accuracy`` and ``default_session_changed`` (predictions that differ)
    are those of a session with ONNX Runtime's default options, and ``default_session_latency_us_median`` is its time;
    empty elsewhere.

    ``quantized_ops``, ``float_ops`` and ``kernels`` are those of the graph that ONNX Runtime runs, where conversions
    between types and operators that only move numbers are neither; ``non_integer_time_share`` is the share of the
    operators' time that is not spent in integer kernels: float ones, conversions and moves. It is empty where no
    latency is measured.

    Latencies are medians of calls that alternate with the float model's, with 95 % bootstrap intervals; ``speedup`` is
    float over quantized. ``latency_iqr_ratio`` is interquartile range over median, ``machine_load`` the processes that
    ran or waited per core when the measurement began, ``other_processes_share`` the share of the cores' time that other
    processes took during it; ``machine_busy`` says that one of them is too high for the figures to be trusted.

    ``weights_bytes`` (weights, int32 biases, scales), ``peak_activation_bytes`` (one byte a value, best order of
    execution) and ``macs`` are what a target that computes in integers needs for one image. With ``deploy=tflite``,
    on the first ``verified_images``: ``tflite_accuracy`` is LiteRT's and ``tflm_accuracy`` TensorFlow Lite Micro's,
    ``..._changed`` counts predictions that differ from the exact ones and ``..._mcnemar_p`` says whether that is for
    the better or the worse, ``tflm_max_step_difference`` is the largest
    difference of an output in steps, ``arena_bytes`` the memory that TensorFlow Lite Micro took.

    ``settings`` is column -> text of the settings that differ from their defaults, as ``settings_of`` gives them.
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
    distill_images: int | None = None
    distill_steps: int | None = None
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
    weights_bytes: int | None = None
    peak_activation_bytes: int | None = None
    macs: int | None = None
    tflite_bytes: int | None = None
    tflite_accuracy: float | None = None
    tflite_changed: int | None = None
    tflite_mcnemar_p: float | None = None
    tflm_accuracy: float | None = None
    tflm_changed: int | None = None
    tflm_mcnemar_p: float | None = None
    tflm_max_step_difference: int | None = None
    verified_images: int | None = None
    int4_layers: int | None = None
    arena_bytes: int | None = None
    quantized_ops: int | None = None
    float_ops: int | None = None
    kernels: str | None = None
    conv_gemm_integer: int | None = None
    conv_gemm_total: int | None = None
    non_integer_time_share: float | None = None
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
    settings: dict[str, str] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        shown = ("status", "error", "quant_type", "accuracy", "float_accuracy", "model_bytes", "latency_us_median")
        values = (f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None)
        return f"RunResult({', '.join(values)}, ...)"


COLUMNS = tuple(column.name for column in dataclasses.fields(RunResult) if column.name != "settings")
_HINTS = get_type_hints(RunResult)
_TYPES = {
    name: next(kind for kind in (bool, int, float, str) if _HINTS[name] in (kind, kind | None)) for name in COLUMNS
}


def settings_of(config: Config) -> dict[str, str]:
    """The settings that differ from their dataclass defaults, sorted: {"config.calibration.percentile": "99.9"}.

    Strings and the names of enums are written as they are, everything else as JSON. ``seed`` has a column of its own;
    where things are kept (``cache_dir``, ``resume``, ``tracking``) is left out.
    """
    defaults = Config()
    return {
        f"config.{group.name}.{setting.name}": _text(value)
        for group in sorted(dataclasses.fields(config), key=lambda group: group.name)
        if dataclasses.is_dataclass(default := getattr(defaults, group.name)) and group.name not in NO_SETTINGS
        for setting in sorted(dataclasses.fields(default), key=lambda setting: setting.name)
        if (value := getattr(getattr(config, group.name), setting.name)) != getattr(default, setting.name)
    }


def qdq_file(config: Config) -> str:
    """The file with a run's Q/DQ model: model.onnx, or one beside it where that has no names or other operators."""
    return QDQ if config.quant.compact or config.deploy.activation_type is not None else "model.onnx"


def write(result: RunResult, folder: Path) -> Path:
    """Write ``folder``/results.csv; it appears whole or not at all."""
    path = folder / FILE_NAME
    values = {name: getattr(result, name) for name in COLUMNS} | dict(sorted(result.settings.items()))
    # csv itself leaves a lone carriage return bare, which ends a row for every reader.
    bare = any("\r" in str(value) for value in values.values())
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
        writer.writerow(values)
        writer.writerow("" if value is None else value for value in values.values())
    return path


def read(path: Path) -> RunResult:
    """Read a results.csv that may have been damaged or come from elsewhere.

    Raises:
        ExperimentError: it is not a row of this schema.
    """
    remedy = "run that job again; a results.csv of another version is read with that version of resnet8-quant"
    try:
        content = read_regular(path, LARGEST_FILE).decode()
        rows = list(csv.reader(io.StringIO(content, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"{path} cannot be read: {error}", remedy) from error
    version = dict(zip(*rows, strict=False)).get("schema_version", "") if len(rows) == 2 else ""
    if re.fullmatch(r"\d{1,5}", version) and int(version) != SCHEMA_VERSION:
        raise ExperimentError(f"{path} has schema version {version}, this resnet8-quant reads {SCHEMA_VERSION}", remedy)
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or tuple(rows[0][: len(COLUMNS)]) != COLUMNS:
        raise ExperimentError(f"{path} is not one row of schema {SCHEMA_VERSION}", remedy)
    names = rows[0][len(COLUMNS) :]
    unknown = [name for name in names if not _SETTING.fullmatch(name)]
    if unknown or len(set(names)) < len(names) or len(names) > MOST_SETTINGS:
        reason = f"an unknown column `{unknown[0][:80]}`" if unknown else "too many columns, or one of them twice"
        raise ExperimentError(f"{path} has {reason}", remedy)
    texts = dict(zip(rows[0], rows[1], strict=True))
    values = {name: _value(path, name, texts[name], remedy) for name in COLUMNS}
    if values["schema_version"] != SCHEMA_VERSION:
        raise ExperimentError(f"{path} has schema_version {values['schema_version']}, not {SCHEMA_VERSION}", remedy)
    if values["status"] not in ("ok", "failed"):
        raise ExperimentError(f"{path}: column `status` holds {values['status']!r}, not ok or failed", remedy)
    settings = {name: texts[name] for name in names if texts[name]}
    return RunResult(**values, settings=settings)  # type: ignore[arg-type]


def _value(path: Path, name: str, text: str, remedy: str) -> object:
    """The value of a fixed column in its type; None where it is empty."""
    kind = _TYPES[name]
    if not text:
        return None
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise ExperimentError(f"{path}: column `{name}` holds {text[:80]!r}, not a {kind.__name__}", remedy) from error


def _text(value: object) -> str:
    """A setting as the text of a cell, never empty."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str) and value:
        text = value
    else:
        text = json.dumps(value, default=lambda part: getattr(part, "name", str(part)))
    return text if len(text) <= LONGEST_SETTING else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def read_result(folder: Path) -> RunResult | None:
    """The row of a run's folder; None where it is missing, damaged, or cannot be true."""
    try:
        return sound_row(folder / FILE_NAME)
    except ExperimentError:
        return None


def sound_row(file: Path) -> RunResult:
    """The row of a results.csv whose numbers can be what they say: finite, ratios between 0 and 1, sizes above 0.

    Raises:
        ExperimentError: it is not one.
    """
    row = read(file)
    for name, value in vars(row).items():
        if value is not None and not _is_possible(name, value):
            raise ExperimentError(f"{FILE_NAME}: column `{name}` holds {value}", "run that job again")
    return row


def _is_possible(name: str, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if name in RATIOS:
        return bool(0 <= value <= 1)
    if name in ABOVE_0:
        return bool(value > 0)
    return name != "default_session_changed" or value >= 0
