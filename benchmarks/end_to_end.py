"""What a whole run and a whole sweep cost beyond their numeric work, in seconds and in memory.

Starts run.py as a user does, in a process of its own and with outputs in a temporary folder: once to warm up, N times
alone, and once as a sweep of 12 jobs. Out: a Markdown table of the measured values and the goals.
"""

from __future__ import annotations

import argparse
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
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant import results  # noqa: E402
from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.machine import cpu_description  # noqa: E402

SINGLE = ("quant=int8",)
GRID = ("quant=int8,uint8", "calibration=minmax,percentile", "calibration.samples_per_class=10,20,50")
JOBS = 12
# The columns that time numeric work; float_evaluation_seconds is 0.0 where the predictions came from the cache.
NUMERIC = ("calibration", "quantization", "evaluation", "float_evaluation", "latency")
GOAL_SINGLE_S, GOAL_MEMORY_MB, GOAL_JOB_S = 2.0, 700, 0.3


@dataclass(frozen=True)
class Measured:
    """One process of run.py: its time from start to exit, its numeric work's share, and its peak memory."""

    wall: float
    numeric: float
    peak_mb: float

    @property
    def beyond(self) -> float:
        return self.wall - self.numeric


def measured(words: list[str], folder: Path, jobs: int, pattern: str) -> Measured:
    """Run run.py with ``words`` and read the rows that it left in ``folder``; ends the benchmark if it failed."""
    command = [sys.executable, "run.py", *words]
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
    try:
        rows = [results.read(path) for path in sorted(folder.glob(pattern))]
    except ExperimentError as error:
        sys.exit(f"{said}\n{error}")
    if len(rows) != jobs or any(row.status != "ok" for row in rows):
        sys.exit(f"{said}\n{len(rows)} rows of {jobs}, or a failed one: {shlex.join(command)}")
    numeric = sum(getattr(row, f"{name}_seconds") or 0.0 for row in rows for name in NUMERIC)
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB elsewhere
    return Measured(wall, numeric, usage.ru_maxrss * unit / 1e6)


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def table(singles: list[Measured], sweep: Measured) -> str:
    """The Markdown table; medians with the smallest and the largest value."""
    start = median(run.beyond for run in singles)
    rows = [
        ("Single run: wall", spread([run.wall for run in singles]), ""),
        ("Single run: numeric", spread([run.numeric for run in singles]), ""),
        ("Single run: beyond the numeric work", spread([run.beyond for run in singles]), f"{GOAL_SINGLE_S:.1f} s"),
        ("Single run: peak memory", f"{max(run.peak_mb for run in singles):.0f} MB", f"{GOAL_MEMORY_MB} MB"),
        (f"Sweep of {JOBS}: wall", f"{sweep.wall:.2f} s", ""),
        (f"Sweep of {JOBS}: numeric", f"{sweep.numeric:.2f} s", ""),
        (f"Sweep of {JOBS}: beyond, per job", f"{sweep.beyond / JOBS:.3f} s", f"{GOAL_JOB_S} s"),
        (f"Sweep of {JOBS}: the same less one single run's", f"{(sweep.beyond - start) / JOBS:.3f} s", ""),
        (f"Sweep of {JOBS}: peak memory", f"{sweep.peak_mb:.0f} MB", ""),
    ]
    lines = ["| What | Measured | Goal |", "|------|---------:|-----:|"]
    return "\n".join([*lines, *(f"| {what} | {value} | {goal} |" for what, value, goal in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="single runs after the warm-up (default 5)")
    parser.add_argument("--data", choices=("cifar10", "sample"), default="cifar10", help="default cifar10")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    data = f"data={options.data}"
    with tempfile.TemporaryDirectory() as temporary:
        singles = []
        for index in range(options.runs + 1):
            folder = Path(temporary) / str(index)
            singles.append(measured([*SINGLE, data, f"hydra.run.dir={folder}"], folder, 1, results.FILE_NAME))
        folder = Path(temporary) / "sweep"
        sweep = measured(["-m", *GRID, data, f"hydra.sweep.dir={folder}"], folder, JOBS, f"*/{results.FILE_NAME}")
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/end_to_end.py', *sys.argv[1:]])}\n")
    print(table(singles[1:], sweep))


if __name__ == "__main__":
    main()
