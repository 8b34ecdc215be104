"""The files of one run, written so that results.csv exists only beside whole files that belong to it.

In: a finished run's row, predictions, model bytes and details. Out: model.onnx, predictions.npy, per_class.csv,
run.json and, last, results.csv.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from resnet8_quant import results
from resnet8_quant.config import Config
from resnet8_quant.evaluator.accuracy import Predictions
from resnet8_quant.evaluator.kernels import KernelReport
from resnet8_quant.evaluator.statistics import ClassRow
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult


def write_outputs(
    folder: Path,
    config: Config,
    result: RunResult,
    per_class: tuple[ClassRow, ...],
    predictions: Predictions,
    serialized: bytes,
    kernels: KernelReport,
    details: dict[str, Any],
) -> None:
    """Write the outputs; results.csv last, so that where it exists the others are whole and belong to it."""
    (folder / results.FILE_NAME).unlink(missing_ok=True)  # of an earlier run in the same, explicitly chosen folder
    with replacing(folder / "model.onnx") as temporary:
        temporary.write_bytes(serialized)
    with replacing(folder / "predictions.npy") as temporary, temporary.open("wb") as file:
        np.save(file, predictions.labels)
    with replacing(folder / "per_class.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(ClassRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in per_class)
    record = {
        "result": dataclasses.asdict(result),
        "config": dataclasses.asdict(config, dict_factory=_plain),
        "versions": {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "hydra-core", "resnet8-quant")},
        "runtime_operators": kernels.ops,
        **details,
    }
    with replacing(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    results.write(result, folder)


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in pairs}
