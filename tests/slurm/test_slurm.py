"""A sweep through sbatch on a real Slurm of this machine: a good job, a refused one, a crash, a cancelled one.

It takes the cluster that answers; as root `RESNET8_QUANT_SLURM=1 pytest tests/slurm` installs, starts and ends one.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _answers() -> bool:
    """Whether a cluster takes jobs."""
    if shutil.which("sbatch") is None:
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=30).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("hydra-submitit-launcher is not installed: pip install -e '.[slurm]'")
    if _answers():
        yield
        return
    if os.environ.get("RESNET8_QUANT_SLURM") != "1":
        pytest.skip("no Slurm answers; RESNET8_QUANT_SLURM=1 installs and starts one, as root")
    done = subprocess.run([HERE / "up.sh"], capture_output=True, text=True, timeout=600)
    if done.returncode:
        subprocess.run([HERE / "down.sh"], timeout=60)
        pytest.fail(f"tests/slurm/up.sh: {done.stderr}")
    before = dict(os.environ)
    for pair in done.stdout.removeprefix("export ").split():
        name, _, value = pair.partition("=")
        os.environ[name] = value.replace("$PATH", before["PATH"])
    yield
    os.environ.clear()
    os.environ.update(before)
    subprocess.run([HERE / "down.sh"], check=True, timeout=60)


def _queue() -> list[str]:
    """Identifiers of the jobs that run."""
    return subprocess.run(
        ["squeue", "-h", "-r", "-t", "running", "-o", "%i"], capture_output=True, text=True, timeout=30, check=True
    ).stdout.split()


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.2)


def test_failed_crashed_and_cancelled_jobs_are_rows(sweeps: Any) -> None:
    words = ("calibration.samples_per_class=20,101,21,22", "hydra/launcher=submitit_slurm")
    slow, crashed = "calibration.samples_per_class=22", "calibration.samples_per_class=21"
    with sweeps.start(*words, crash=f"sleep:{slow};segfault:{crashed}") as process:
        _appears(sweeps.folder, "03_*/job.json")
        _wait_until(lambda: len(list(sweeps.folder.glob("*/results.csv"))) == 3)
        _wait_until(lambda: len(_queue()) == 1)
        subprocess.run(["scancel", *_queue()], check=True, timeout=30)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    rows = {row["overrides"].split()[0].partition("=")[2]: row for row in _rows(sweeps)}
    states = {key: row["status"] for key, row in rows.items()}
    assert states == {"20": "ok", "101": "failed", "21": "failed", "22": "failed"}
    assert "`calibration.samples_per_class` is 101" in rows["101"]["error"]
    assert "SIGSEGV" in rows["21"]["error"]
    assert re.search("cancelled", rows["22"]["error"], re.IGNORECASE)  # who is faster, the worker or Slurm, says it
    again = sweeps(*words, "resume=true")
    assert again.code == 1
    assert sorted(row["status"] for row in again.rows) == ["failed", "ok", "ok", "ok"]


def test_interrupted_sweep_leaves_nothing_in_the_queue(sweeps: Any) -> None:
    with sweeps.start("seed=1,2", "hydra/launcher=submitit_slurm", crash="sleep:seed=2") as process:
        _appears(sweeps.folder, "00_*/results.csv")
        _appears(sweeps.folder, "01_*/job.json")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    _wait_until(lambda: not _queue())
    assert {row["overrides"].split()[0]: row["status"] for row in _rows(sweeps)}["seed=1"] == "ok"


def _appears(folder: Path, pattern: str) -> None:
    _wait_until(lambda: list(folder.glob(pattern)))


def _rows(sweeps: Any) -> list[dict[str, str]]:
    with (sweeps.folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
