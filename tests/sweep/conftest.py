"""Sweeps as a user starts them, small enough to be killed and repeated: the sample, few images, no latency."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet8_quant.results import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
# What may differ between two sweeps of the same command: times, and what depends on the process.
VARYING = {name for name in COLUMNS if name.endswith("_seconds")} | {
    *("started_utc", "peak_rss_mb", "calibration_cached"),
    "config.evaluation.threads",  # this job's share of the cores, where jobs run side by side
}
# Ends a process in the middle of a job: $TEST_CRASH is "HOW:WORD;...", where WORD is one of the job's.
CRASHES = """
import ctypes, os, signal, time
from resnet8_quant.sweep import folders

original = folders.begin

def once(task):
    marker = task.sweep / "killed"
    if marker.exists():
        return False
    marker.write_text("")
    return True

WAYS = {
    "segfault": lambda task: ctypes.string_at(0),
    "memory": lambda task: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda task: os._exit(3),
    "worker": lambda task: once(task) and os.kill(os.getppid(), signal.SIGKILL),
    "sleep": lambda task: time.sleep(600),
    "interrupt": lambda task: once(task) and os.kill(task.plan.pid, signal.SIGINT),
}

def begin(task, digest):
    original(task, digest)
    for pair in os.environ["TEST_CRASH"].split(";"):
        way, _, word = pair.partition(":")
        if word in task.overrides:
            WAYS[way](task)

if os.environ.get("TEST_CRASH"):
    folders.begin = begin
"""


@dataclass(frozen=True)
class Done:
    """A finished command and the sweep's folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "summary.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def refusal(self) -> str:
        """The error, in one line, of a command that must end with a sentence."""
        assert self.code == 1
        assert "Traceback" not in self.err
        return " ".join(self.err.split())

    @property
    def comparable(self) -> list[dict[str, str]]:
        """The rows without what may differ, sorted by job."""
        rows = [{key: value for key, value in row.items() if key not in VARYING} for row in self.rows]
        return sorted(rows, key=lambda row: int(row["job"]))

    def states(self) -> dict[str, int]:
        """{job folder: when its results were written}."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.folder.glob("*/results.csv")}


class Sweeps:
    """Starts sweeps with a cache and a folder of their own."""

    def __init__(self, cache: Path, folder: Path, site: Path) -> None:
        self.cache, self.folder, self.site = cache, folder, site

    def start(self, *words: str, crash: str = "", **options: object) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        paths = os.pathsep.join([str(self.site), str(ROOT)])
        environment |= {"PYTHONPATH": paths, "TEST_CRASH": crash}
        if not any(word.startswith("hydra.sweep.dir=") for word in words):
            words = (*words, f"hydra.sweep.dir={self.folder}")
        if not any(word.startswith("calibration.samples_per_class=") for word in words):
            words = (*words, "calibration.samples_per_class=2")
        command = [sys.executable, "run.py", "-m", *words, "data=sample", "latency.runs=0", f"cache_dir={self.cache}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]

    def __call__(self, *words: str, crash: str = "") -> Done:
        """Start a sweep and wait for its end."""
        with self.start(*words, crash=crash) as process:
            try:
                out, err = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Done(process.returncode, out, err, self.folder)

    def results(self) -> list[Path]:
        return list(self.folder.glob("[0-9]*/results.csv"))


@pytest.fixture(scope="session")
def sweep_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sweeps(sweep_cache: Path, tmp_path: Path) -> Sweeps:
    return sweeps_in(sweep_cache, tmp_path)


@pytest.fixture(scope="module")
def other_sweeps(sweep_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Sweeps]:
    """More folders: each call gives a new one."""
    return lambda: sweeps_in(sweep_cache, tmp_path_factory.mktemp("sweep"))


def sweeps_in(cache: Path, folder: Path) -> Sweeps:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CRASHES)
    return Sweeps(cache, folder / "sweep", site)
