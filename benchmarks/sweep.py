"""What a sweep costs: 24 jobs one after the other, side by side on all cores, and as 24 separate processes.

Starts run.py as a user does, with outputs in a temporary folder, after a warm-up that fills the cache of calibration
histograms and float predictions. Out: a Markdown table of the measured values and the goals.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant import results  # noqa: E402
from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.machine import cpu_description, usable_cores  # noqa: E402

GRID = {
    "calibration": ("minmax", "percentile", "entropy"),
    "quant": ("int8", "uint8"),
    "calibration.samples_per_class": ("10", "20", "50", "100"),
}
JOBS = 24
GOAL_PARALLEL, GOAL_SERIAL = 1.7, 3.0


@dataclass(frozen=True)
class Measured:
    """A way to run the grid: its wall time, and the processor time of all its processes, in seconds."""

    wall: float
    processor: float


def run(words: list[str]) -> str:
    """Run run.py to its end; what it printed. Ends the benchmark if it failed."""
    command = [sys.executable, "run.py", *words]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nexit code {done.returncode}: {shlex.join(command)}")
    return done.stderr


@contextmanager
def timed(into: list[Measured]) -> Iterator[None]:
    before, clock = os.times(), time.perf_counter()
    yield
    wall, after = time.perf_counter() - clock, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    into.append(Measured(wall, used))


def check(folder: Path) -> None:
    """End the benchmark unless each job left a good row."""
    try:
        rows = [results.read(path) for path in folder.glob(f"*/{results.FILE_NAME}")]
    except ExperimentError as error:
        sys.exit(str(error))
    if len(rows) != JOBS or any(row.status != "ok" for row in rows):
        sys.exit(f"{len(rows)} rows of {JOBS}, or a failed one, in {folder}")


def as_sweep(folder: Path, *words: str) -> Measured:
    """The grid as one sweep."""
    measured: list[Measured] = []
    grid = [f"{key}={','.join(values)}" for key, values in GRID.items()]
    with timed(measured):
        run(["-m", *grid, *words, f"hydra.sweep.dir={folder}"])
    check(folder)
    return measured[0]


def as_processes(folder: Path, *words: str) -> Measured:
    """The grid as one process for each job, one after the other."""
    measured: list[Measured] = []
    with timed(measured):
        for number, values in enumerate(itertools.product(*GRID.values())):
            job = [f"{key}={value}" for key, value in zip(GRID, values, strict=True)]
            run([*job, *words, f"hydra.run.dir={folder / str(number)}"])
    check(folder)
    return measured[0]


def table(serial: Measured, parallel: Measured, one_thread: Measured, separate: Measured) -> str:
    """The Markdown table."""
    cores = usable_cores()
    rows = [
        ("serial: one after the other, all cores for each", serial, "", ""),
        (
            f"joblib: {cores} at a time, 1 thread each",
            parallel,
            f"{serial.wall / parallel.wall:.2f} x serial",
            f"{GOAL_PARALLEL} x",
        ),
        (
            "serial with 1 thread each",
            one_thread,
            f"joblib is {one_thread.wall / parallel.wall:.2f} x as fast",
            "",
        ),
        (
            f"{JOBS} separate processes",
            separate,
            f"serial is {separate.wall / serial.wall:.2f} x as fast",
            f"{GOAL_SERIAL:.0f} x",
        ),
    ]
    lines = ["| How | Wall | Processor | Ratio | Goal |", "|-----|-----:|----------:|------:|-----:|"]
    return "\n".join(
        [
            *lines,
            *(f"| {how} | {m.wall:.1f} s | {m.processor:.1f} s | {ratio} | {goal} |" for how, m, ratio, goal in rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar10", "sample"), default="cifar10", help="default cifar10")
    parser.add_argument("--latency-runs", type=int, default=300, metavar="N", help="latency.runs (default 300)")
    options = parser.parse_args()
    words = [f"data={options.data}", f"latency.runs={options.latency_runs}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        methods = f"calibration={','.join(GRID['calibration'])}"
        sizes = f"calibration.samples_per_class={','.join(GRID['calibration.samples_per_class'])}"
        run(["-m", methods, sizes, *words, f"hydra.sweep.dir={folder / 'warm'}"])
        run(["quant=float", *words, "evaluation.threads=1", f"hydra.run.dir={folder / 'warm1'}"])
        serial = as_sweep(folder / "serial", *words)
        parallel = as_sweep(folder / "parallel", *words, "hydra/launcher=joblib")
        one_thread = as_sweep(folder / "one", *words, "evaluation.threads=1")
        separate = as_processes(folder / "separate", *words)
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, joblib {version('joblib')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/sweep.py', *sys.argv[1:]])}\n")
    print(table(serial, parallel, one_thread, separate))


if __name__ == "__main__":
    main()
