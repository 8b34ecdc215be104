"""A job's folder is named by what the job is: equal jobs meet in one folder, and what is finished stays."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from resnet8_quant import results
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.compose import register
from resnet8_quant.sweep.folders import Task, claim, describe_choices, find_or_make, is_whole, read_jobs, record_loss
from resnet8_quant.sweep.grid import job_folder
from resnet8_quant.sweep.plan import Plan

DIGEST = "d" * 64
CONF = Path(__file__).resolve().parents[2] / "conf"
Make = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> Make:
    def make(number: int, plan: Plan, name: str = "00_x") -> Task:
        (tmp_path / name).mkdir(exist_ok=True)
        return Task(Config(), tmp_path, plan, tmp_path / name, (f"seed={number}",), number, {})

    return make


def _finish(folder: Path, names: Sequence[str] = results.FILES) -> None:
    """Leave what a run leaves."""
    for name in names:
        (folder / name).write_bytes(b"whole")
    (folder / results.RECORD).write_text(json.dumps({"files": dict.fromkeys(names, len(b"whole"))}))
    results.write(RunResult(model_bytes=len(b"whole"), overrides="as it ran"), folder)


def _run(task: Task, status: str = "ok") -> str | None:
    """Run a job, if it is to run; why not, else."""
    with claim(task, DIGEST) as reason:
        if reason is None and status == "ok":
            _finish(task.folder)
        elif reason is None:
            results.write(RunResult(status=status, error="no luck"), task.folder)
    return reason


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[0-9]*"))


def test_equal_jobs_have_one_folder_and_each_is_noted(tmp_path: Path) -> None:
    plan = Plan((), 3, 0, varied=("quant", "seed"))
    jobs = [("quant=int8 seed=1", DIGEST), ("quant=int8 seed=2", DIGEST), ("quant=u8s8 seed=1", "e" * 64)]
    first, same, other = (
        find_or_make(tmp_path, plan, number, words.split(), digest, ("quant",))
        for number, (words, digest) in enumerate(jobs)
    )
    assert first == same == "00_int8_seed-1_dddddddd"
    assert _names(tmp_path) == [first, other]
    assert read_jobs(tmp_path) == {0: first, 1: first, 2: other}


def test_equal_jobs_that_start_at_once_meet_in_one_folder(tmp_path: Path) -> None:
    plan = Plan((), 16, 0)
    with ThreadPoolExecutor(8) as pool:
        names = [*pool.map(lambda number: find_or_make(tmp_path, plan, number, [], DIGEST), range(16))]
    assert len(set(names)) == len(_names(tmp_path)) == 1
    assert read_jobs(tmp_path).keys() == set(range(16))


def test_a_taken_number_is_not_used_again(tmp_path: Path) -> None:
    for number, digest in ((0, "a"), (1, "b"), (0, "c"), (1, "d"), (7, "e")):
        find_or_make(tmp_path, Plan((), 2, 0), number, [], digest * 64)
    assert _names(tmp_path) == ["00_aaaaaaaa", "01_bbbbbbbb", "02_cccccccc", "03_dddddddd", "07_eeeeeeee"]


def test_digests_that_begin_alike_are_told_apart(tmp_path: Path, task: Make) -> None:
    plan = Plan((), 101, 0)
    first = find_or_make(tmp_path, plan, 0, [], DIGEST)
    _run(task(0, plan, first))
    assert first == "000_dddddddd"
    assert find_or_make(tmp_path, plan, 1, [], DIGEST[:-1] + "e") == "001_dddddddd"
    assert find_or_make(tmp_path, plan, 2, [], DIGEST) == first


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["quant=int8", "data=sample", "calibration.samples_per_class=10"], "int8_samples_per_class-10"),
        (["calibration.samples_per_class=10", "+quant=ablation/1"], "samples_per_class-10_ablation-1"),
        (["quant={a.*:{weight_bits:4}}"], "a.-weight_bits-4"),
        (["quant=../../x y"], "x-y"),
        (["data=sample"], ""),
        (["quant=" + "x" * 300], "x" * 80),
    ],
)
def test_choices_in_a_name(overrides: list[str], name: str) -> None:
    assert describe_choices(overrides, ("quant", "calibration.samples_per_class"), ("quant", "data")) == name


def test_a_duplicate_does_not_run(task: Make) -> None:
    plan = Plan((), 2, 0)
    first = task(0, plan)
    assert _run(first) is None
    record = json.loads((first.folder / "job.json").read_text())
    assert record == {"digest": DIGEST, "overrides": ["seed=0"], "number": 0, "session": plan.session}
    assert _run(task(1, plan)) == "same settings as job 0: not run again"
    assert json.loads((first.folder / "job.json").read_text()) == record


@pytest.mark.parametrize(("number", "same_start"), [(1, True), (0, True), (0, False), (1, False)])
def test_a_job_that_runs_is_waited_for_unless_it_is_a_duplicate(number: int, same_start: bool, task: Make) -> None:
    plan = Plan((), 2, 0)
    running = threading.Event()

    def run() -> None:
        with claim(task(0, plan), DIGEST):
            running.set()
            time.sleep(0.3)
            _finish(task(0, plan).folder)

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    reason = _run(task(number, plan if same_start else Plan((), 2, 0)))
    waited = (task(0, plan).folder / results.FILE_NAME).exists()
    assert waited != (number == 1 and same_start)
    assert reason == (
        "finished before: not run again" if waited else "same settings as job 0, which runs now: not run again"
    )
    thread.join()


def test_failures_run_again_in_the_next_start_and_not_in_this_one(task: Make) -> None:
    plan = Plan((), 2, 0)
    ran = [_run(task(number, plan), "failed") is None for number in (0, 0, 1)]
    assert ran == [True, False, False]  # also after a worker was killed and the sweep went on
    assert _run(task(1, Plan((), 2, 0))) is None
    assert _run(task(0, Plan((), 2, 0))) == "finished before: not run again"


@pytest.mark.parametrize("name", [*results.FILES, results.RECORD, results.FILE_NAME])
@pytest.mark.parametrize("left", [None, b"who"])
def test_a_run_that_lost_a_file_runs_again(left: bytes | None, name: str, task: Make) -> None:
    job = task(0, Plan((), 1, 0))
    assert _run(job) is None
    path = job.folder / name
    path.unlink() if left is None else path.write_bytes(left)
    assert _run(job) is None
    assert _run(job) is not None


def test_a_run_that_left_less_needs_no_more(tmp_path: Path) -> None:
    """Without a calibration there are no ranges, without bins no histograms."""
    _finish(tmp_path, [name for name in results.FILES if name not in results.CALIBRATION_FILES])
    assert is_whole(tmp_path, RunResult(model_bytes=len(b"whole")))


def test_lost_job_gets_a_row_unless_it_has_one(tmp_path: Path) -> None:
    names = [find_or_make(tmp_path, Plan((), 3, 0), number, [], str(number) * 64) for number in (1, 2)]
    results.write(RunResult(), tmp_path / names[1])
    for number in range(3):
        record_loss(tmp_path, number, ["seed=1"], "cancelled")
    lost, kept = (results.read(tmp_path / name / results.FILE_NAME) for name in names)
    assert (lost.status, lost.error, lost.overrides) == ("failed", "cancelled", "seed=1")
    assert kept.status == "ok"


def test_folder_of_a_composed_job(tmp_path: Path) -> None:
    def folder(number: int | str, *words: str) -> str:
        words = (*words, f"hydra.job.num={number}", f"hydra.sweep.dir={tmp_path}", "cache_dir=x")
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return job_folder(_root_=compose("config", list(words), return_hydra_config=True))

    first = folder(0, "quant=int8")
    assert folder(1, "quant=int8", "seed=42") == first  # which is the default
    assert folder(2, "quant=float", "seed=1") == folder(3, "quant=float", "calibration=mse")  # nothing reads them
    wrong = folder(4, "+calibration.unknown=1")
    assert wrong == folder(5, "+calibration.unknown=1")
    assert _names(tmp_path) == [first, folder(2, "quant=float"), wrong]
    assert "DIGEST" in folder("???")


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ExperimentError, match="not a regular file"), replacing(pipe):
        pass
    assert pipe.is_fifo()
