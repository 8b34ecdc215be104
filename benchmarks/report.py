"""What the report of many runs and the summary of very many cost, in seconds and bytes.

Makes runs in a temporary folder, with the files that a real one leaves and 10,000 test images of noise, and then starts
`python -m resnet8_quant.report` and `python -m resnet8_quant.summary` as a user does, each in a process of its own.
Out: a Markdown table of the measured values and the goals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant import results  # noqa: E402
from resnet8_quant.evaluator.statistics import mcnemar_p, wilson_interval  # noqa: E402
from resnet8_quant.inputs.arrays import load_arrays  # noqa: E402
from resnet8_quant.machine import cpu_description  # noqa: E402
from resnet8_quant.results import RunResult  # noqa: E402

IMAGES, CLASSES = 10_000, 10
QUANTS = {"int8": (94_391, 340.0), "uint8": (94_281, 330.0), "u8s8": (99_031, 140.0), "w4a8": (60_863, 138.0)}
METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
SIZES = (5, 10, 30, 100, 300)
TENSORS = [f"stack{i}.{name}" for i in range(1, 6) for name in ("relu1", "conv2", "skip", "relu2")]
PACKAGES = ("numpy", "pandas", "jinja2", "itables", "vl-convert-python")
GOAL_REPORT_S, GOAL_REPORT_MB, GOAL_SUMMARY_S = 15.0, 8.0, 10.0


@dataclass(frozen=True)
class Truth:
    """What all runs share: the data file, its digest, the labels and the float model's answers."""

    path: Path
    digest: str
    labels: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One process: seconds from start to exit, and its peak memory."""

    wall: float
    peak_mb: float


def make_truth(folder: Path, generator: np.random.Generator) -> Truth:
    """Images of noise, labels, and answers of which 87 % are right."""
    path = folder / "data.npz"
    labels = generator.integers(0, CLASSES, IMAGES)
    images = generator.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    np.savez(path, x_train=images[:CLASSES], y_train=np.arange(CLASSES), x_test=images, y_test=labels)
    return Truth(path, load_arrays(str(path)).digest, labels, changed(labels, 0.13, generator))


def changed(answers: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """``answers`` with another class for about ``share`` of the images."""
    other = (answers + generator.integers(1, CLASSES, len(answers))) % CLASSES
    return np.where(generator.random(len(answers)) < share, other, answers)


def make_runs(folder: Path, count: int, truth: Truth, generator: np.random.Generator, *, whole: bool) -> None:
    """``count`` runs of a grid, more of it by more seeds; ``whole``: with all files, not results.csv alone."""
    seeds = range(-(-count // (len(QUANTS) * len(METHODS) * len(SIZES))))
    grid = itertools.islice(itertools.product(seeds, QUANTS, METHODS, SIZES), count)
    for number, (seed, quant, method, size) in enumerate(grid):
        words = f"quant={quant} calibration={method} calibration.samples_per_class={size} seed={seed}"
        run = folder / f"{number}_{words.replace(' ', '_').replace('=', '-')}"
        run.mkdir(parents=True)
        answers = changed(truth.answers, 0.05 if quant == "w4a8" else 0.01, generator) if whole else truth.answers
        row = make_row(words, quant, method, size, seed, answers, truth, generator)
        if whole:
            make_files(run, answers, truth, generator)
        results.write(row, run)


def make_row(
    words: str,
    quant: str,
    method: str,
    size: int,
    seed: int,
    answers: np.ndarray,
    truth: Truth,
    generator: np.random.Generator,
) -> RunResult:
    """The row that belongs to ``answers``."""
    right, float_right = answers == truth.labels, truth.answers == truth.labels
    to_wrong, to_right = int((float_right & ~right).sum()), int((right & ~float_right).sum())
    low, high = wilson_interval(int(right.sum()), IMAGES)
    count, latency = QUANTS[quant]
    return RunResult(
        quant_type=quant,
        activation_type="uint8" if quant != "int8" else "int8",
        weight_type="int8",
        weight_bits=4 if quant == "w4a8" else 8,
        activation_bits=8,
        format="QDQ",
        calibration_method=method,
        samples_per_class=size,
        calibration_images=size * CLASSES,
        calibration_overlap=0,
        model="resnet8",
        data="arrays",
        seed=seed,
        eval_images=IMAGES,
        accuracy=int(right.sum()) / IMAGES,
        accuracy_ci_low=low,
        accuracy_ci_high=high,
        float_accuracy=int(float_right.sum()) / IMAGES,
        accuracy_delta=(to_right - to_wrong) / IMAGES,
        flips_to_wrong=to_wrong,
        flips_to_right=to_right,
        mcnemar_p=mcnemar_p(to_wrong, to_right),
        model_bytes=count + int(generator.integers(100)),
        float_model_bytes=314_591,
        kernels="integer",
        latency_us_median=round(latency * generator.uniform(0.97, 1.1), 2),
        latency_us_p95=round(latency * 1.3, 2),
        float_latency_us_median=200.0,
        model_sha256=f"{abs(hash(words)):064x}",
        float_model_sha256="0" * 64,
        data_sha256=truth.digest,
        onnxruntime_version=version("onnxruntime"),
        package_version="0.1.0",
        cpu=cpu_description(),
        overrides=words,
        started_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )


def make_files(run: Path, answers: np.ndarray, truth: Truth, generator: np.random.Generator) -> None:
    """The files beside results.csv that the report reads."""
    np.save(run / "predictions.npy", answers.astype(np.int64))
    np.save(run / "float_predictions.npy", truth.answers.astype(np.int64))
    right, before = answers == truth.labels, truth.answers == truth.labels
    lines = ["class_name,images,accuracy,float_accuracy,accuracy_delta"]
    for label in range(CLASSES):
        of = truth.labels == label
        new, old = right[of].mean(), before[of].mean()
        lines.append(f"class {label},{of.sum()},{new},{old},{new - old}")
    (run / "per_class.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    noise = [
        f"{name},{value:.2f}" for name, value in zip(TENSORS, generator.uniform(30, 45, len(TENSORS)), strict=True)
    ]
    (run / "ranges.csv").write_text("\n".join(["tensor,snr_db", *noise]) + "\n", encoding="utf-8")
    record = {"config": {"data": {"kind": "arrays", "path": str(truth.path)}, "latency": {"runs": 300}}, "versions": {}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")


def measured(words: list[str]) -> Measured:
    """Run a module of the package with ``words``; ends the benchmark if it failed."""
    command = [sys.executable, "-m", *words]
    with tempfile.TemporaryFile() as output:
        clock = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)  # unlike wait(), it tells this one child's peak memory
        wall = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"{said}\nexit code {process.returncode}: {shlex.join(command)}")
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB elsewhere
    return Measured(wall, usage.ru_maxrss * unit / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="of the report (default 1000)")
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="of the summary (default 10000)")
    options = parser.parse_args()
    if min(options.runs, options.rows) < 1:
        parser.error("--runs and --rows must be at least 1")
    generator = np.random.default_rng(42)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truth = make_truth(folder, generator)
        make_runs(folder / "runs", options.runs, truth, generator, whole=True)
        make_runs(folder / "rows", options.rows, truth, generator, whole=False)
        page = folder / "report.html"
        report = measured(["resnet8_quant.report", str(folder / "runs"), "--out", str(page)])
        size = page.stat().st_size / 1e6
        plots = measured(["resnet8_quant.report", str(folder / "runs"), "--out", str(page), "--plots"])
        rows = str(folder / "rows")
        table = measured(["resnet8_quant.summary", rows, "--csv", str(folder / "summary.csv")])
        best = ["--where", "accuracy > 0.86 and quant_type != 'w4a8'", "--sort", "-accuracy", "--top", "20"]
        chosen = measured(["resnet8_quant.summary", rows, *best])
    lines = [
        (f"Report of {options.runs:,} runs", f"{report.wall:.2f} s", f"{GOAL_REPORT_S:.0f} s"),
        (f"Report of {options.runs:,} runs: the page", f"{size:.2f} MB", f"{GOAL_REPORT_MB:.0f} MB"),
        (f"Report of {options.runs:,} runs: peak memory", f"{report.peak_mb:.0f} MB", ""),
        (f"Report of {options.runs:,} runs, with the plots as files", f"{plots.wall:.2f} s", ""),
        (f"Summary of {options.rows:,} runs", f"{table.wall:.2f} s", f"{GOAL_SUMMARY_S:.0f} s"),
        (f"Summary of {options.rows:,} runs: filtered, sorted, first 20", f"{chosen.wall:.2f} s", ""),
        (f"Summary of {options.rows:,} runs: peak memory", f"{table.peak_mb:.0f} MB", ""),
    ]
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in PACKAGES)}")
    print(f"Command: {shlex.join(['python', 'benchmarks/report.py', *sys.argv[1:]])}\n")
    print("| What | Measured | Goal |\n|------|---------:|-----:|")
    print("\n".join(f"| {what} | {value} | {goal} |" for what, value, goal in lines))


if __name__ == "__main__":
    main()
