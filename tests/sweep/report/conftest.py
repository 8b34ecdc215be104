"""Sweeps that nobody ran: folders with the files of real runs on the bundled sample, predictions drawn by a seed."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant import results
from resnet8_quant.evaluator.statistics import mcnemar_p, wilson_interval
from resnet8_quant.inputs.dataset import Dataset
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, collect, name_choices
from resnet8_quant.sweep.summary import rank

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FLOAT = "f" * 64
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def data() -> Dataset:
    return load_sample()


@pytest.fixture(scope="session")
def float_predictions(data: Dataset) -> np.ndarray:
    return _changed(data.test.labels, data.test.labels, 120, 0)


@pytest.fixture
def make_run(tmp_path: Path, data: Dataset, float_predictions: np.ndarray) -> MakeRun:
    """A function that makes the run number N with ``wrong`` more images wrong than float."""

    def make(number: int, overrides: str, wrong: int, draw: int = 0, **changes: object) -> Path:
        folder = tmp_path / "sweep" / f"{number}_x"
        folder.mkdir(parents=True)
        labels = data.test.labels
        predictions = _changed(float_predictions, labels, wrong, draw)
        right = predictions == labels
        low, high = wilson_interval(int(right.sum()), len(labels))
        quantized = "quant=float" not in overrides
        row = RunResult(
            quant_type=dict(word.split("=", 1) for word in shlex.split(overrides) if "=" in word).get("quant"),
            activation_type="int8" if quantized else "float32",
            calibration_method="minmax" if quantized else None,
            calibration_overlap=0 if quantized else None,
            model="resnet8",
            data="sample",
            seed=1,
            eval_images=len(labels),
            accuracy=int(right.sum()) / len(labels),
            accuracy_ci_low=low,
            accuracy_ci_high=high,
            float_accuracy=float(np.mean(float_predictions == labels)),
            accuracy_delta=-wrong / len(labels),
            flips_to_wrong=wrong,
            flips_to_right=0,
            mcnemar_p=mcnemar_p(wrong, 0),
            model_bytes=90_000 if quantized else 300_000,
            float_model_bytes=300_000,
            latency_us_median=100.0 if quantized else 200.0,
            float_latency_us_median=200.0,
            model_sha256=f"{number:064x}" if quantized else FLOAT,
            float_model_sha256=FLOAT,
            data_sha256=data.digest,
            onnxruntime_version="1.0",
            package_version="0.1.0",
            cpu="A processor",
            overrides=overrides,
            started_utc="2026-01-01T00:00:00Z",
        )
        np.save(folder / "predictions.npy", predictions)
        np.save(folder / "float_predictions.npy", float_predictions)
        _tables(folder, labels, predictions, float_predictions, quantized)
        record = {"config": {"data": {"kind": "sample"}, "latency": {"runs": 5}}, "versions": {"numpy": "2.0"}}
        (folder / "run.json").write_text(json.dumps(record))
        results.write(dataclasses.replace(row, **changes), folder)  # type: ignore[arg-type]
        return folder

    return make


@pytest.fixture
def jobs_of(tmp_path: Path) -> Callable[[], list[Job]]:
    """A function that reads the sweep as a summary does."""

    def read() -> list[Job]:
        jobs = collect(tmp_path / "sweep", None)
        name_choices(jobs)
        return sorted(jobs, key=rank)

    return read


@pytest.fixture
def grid(make_run: MakeRun, jobs_of: Callable[[], list[Job]]) -> list[Job]:
    """Float and 12 runs: two types, three sizes, two seeds, with few errors more for int8 and for few images."""
    make_run(0, "quant=float", 0)
    number = 1
    for quant, worse in (("int8", 3), ("u8s8", 1)):
        for size in (2, 10, 50):
            for seed in (1, 2):
                words = f"quant={quant} calibration.samples_per_class={size} seed={seed}"
                wrong = worse + 6 // size + seed
                make_run(number, words, wrong, number, calibration_images=10 * size, samples_per_class=size, seed=seed)
                number += 1
    return jobs_of()


def _changed(predictions: np.ndarray, labels: np.ndarray, wrong: int, seed: int) -> np.ndarray:
    """``predictions`` with ``wrong`` right ones replaced by the class after the true one."""
    hit = np.random.default_rng(seed).permutation(np.flatnonzero(predictions == labels))[:wrong]
    changed = predictions.copy()
    changed[hit] = (labels[hit] + 1) % 10
    return changed


def _tables(folder: Path, labels: np.ndarray, predictions: np.ndarray, before: np.ndarray, quantized: bool) -> None:
    lines = ["class_name,images,accuracy,float_accuracy,accuracy_delta"]
    for label, name in enumerate(CLASSES):
        of = labels == label
        new, old = np.mean(predictions[of] == label), np.mean(before[of] == label)
        lines.append(f"{name},{of.sum()},{new},{old},{new - old}")
    (folder / "per_class.csv").write_text("\n".join(lines) + "\n")
    if quantized:
        (folder / "ranges.csv").write_text("tensor,snr_db\ninput,70.1\nrelu,40.5\npool,\n")
