"""What can go wrong around a sweep: nothing that is finished is lost, and every loss is reported."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant import files, results
from resnet8_quant.config import Config, DataConfig, DataKind, LatencyConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.folders import Task
from resnet8_quant.sweep.job import run_in_sweep
from resnet8_quant.sweep.plan import Plan
from resnet8_quant.sweep.summary import summarize


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_interrupted_sweep_leaves_a_summary(launcher: str, sweeps: Any) -> None:
    words = ("seed=0,1,2,3", f"hydra/launcher={launcher}")
    done = sweeps(*words, crash="interrupt:seed=3")
    assert done.code == 128 + signal.SIGINT
    assert "Traceback" not in done.err
    assert "resume=" in done.err
    finished = {row["overrides"].split()[0] for row in done.rows if row["status"] == "ok"}
    assert 2 <= len(finished) < 4
    again = sweeps(*words, "resume=true")
    assert again.code == 0, again.err
    assert len(again.rows) == 4
    assert done.states().items() <= again.states().items()


def test_terminated_sweep_leaves_a_summary(sweeps: Any) -> None:
    with sweeps.start("seed=0,1,2,3,4,5,6,7") as process:
        deadline = time.monotonic() + 60
        while not sweeps.results() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert (sweeps.folder / "summary.csv").exists()


def test_two_sweeps_started_together_do_not_meet(sweeps: Any) -> None:
    word = f"hydra.sweep.dir={sweeps.folder}/${{now:%Y-%m-%d}}"
    processes = [sweeps.start(f"seed={seed}", word) for seed in (1, 2)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]
    rows = [path.read_text() for path in sweeps.folder.glob("*/*/results.csv")]
    assert len(rows) == len(list(sweeps.folder.glob("*/summary.csv"))) == 2


def _task(sweep: Path, number: int, seed: int) -> Task:
    folder = sweep / f"{number}_seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = DataConfig(kind=DataKind.sample)
    config = Config(data=data, latency=LatencyConfig(runs=0), seed=seed, cache_dir=str(sweep / "cache"))
    return Task(config, sweep, Plan((), 3, 0), folder, (f"seed={seed}",), number, {})


def test_full_disk_costs_the_jobs_that_met_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_sweep(_task(tmp_path, 0, 0))

    def no_space(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "touch", no_space)
        run_in_sweep(_task(tmp_path, 1, 1))
        with pytest.raises(ExperimentError, match="No space left"):
            summarize(tmp_path, ("Job", "Top-1"), 3)
    run_in_sweep(_task(tmp_path, 2, 2))
    assert summarize(tmp_path, ("Job", "Top-1"), 3) == 1
    text = (tmp_path / "summary.md").read_text()
    assert re.search(r"\| 1 +\| +failed", text)
    assert "Job 1 failed: it left no results.csv" in text
    assert not list(tmp_path.rglob("*.part"))
    run_in_sweep(_task(tmp_path, 1, 1))
    assert summarize(tmp_path, ("Job", "Top-1"), 3) == 0


def test_summary_that_somebody_reads_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(name: str) -> None:
        (tmp_path / name).mkdir()
        results.write(RunResult(quant_type="int8", activation_type="int8", accuracy=0.5), tmp_path / name)

    finish("0_a")
    assert summarize(tmp_path, ("Job", "Top-1"), 1) == 0
    with (tmp_path / "summary.csv").open() as reader:
        before = reader.read()
        finish("1_b")
        assert summarize(tmp_path, ("Job", "Top-1"), 2) == 0
        reader.seek(0)
        assert reader.read() == before  # the reader's file is whole, and another one has its name
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 3

    def held(source: Any, target: Any) -> None:  # as Windows does with a file that another program has open
        if Path(target).name == "summary.csv":
            raise PermissionError(errno.EACCES, "another program has it open")
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", held)
    with pytest.raises(ExperimentError, match=r"summary\.csv"):
        summarize(tmp_path, ("Job", "Top-1"), 2)
    assert len(list(tmp_path.glob("*/results.csv"))) == 2
