"""Each set of settings runs once in a sweep, whoever comes first; what a start finds is judged by its digest."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.compose import _short
from resnet8_quant.sweep.ledger import (
    INDEX,
    Place,
    Turn,
    finished,
    left_by_another_grid,
    missing,
    rebuild_index,
    retire,
    turn,
)
from resnet8_quant.sweep.plan import Plan

DIGEST = "d" * 64


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Place]:
    def make(number: int, plan: Plan, name: str = "x") -> Place:
        folder = tmp_path / f"{number}_{name}"
        folder.mkdir(exist_ok=True)
        return Place(tmp_path, plan, folder, (f"number={number}",), number)

    return make


def _finish(folder: Path) -> None:
    """Leave what a run leaves."""
    for name in results.FILES:
        (folder / name).write_bytes(b"whole")
    (folder / results.RECORD).write_text(json.dumps({"files": dict.fromkeys(results.FILES, len(b"whole"))}))
    results.write(RunResult(model_bytes=len(b"whole"), overrides="as it ran"), folder)


def _run(place: Place, status: str = "ok") -> Turn:
    with turn(place, DIGEST) as (what, _):
        if what is Turn.run and status == "ok":
            _finish(place.folder)
        elif what is Turn.run:
            results.write(RunResult(status=status, error="no luck"), place.folder)
    return what


def test_first_runs_second_refers_to_it(place: Callable[..., Place]) -> None:
    plan = Plan((), 2, 0)
    first, second = place(0, plan), place(1, plan)
    assert _run(first) is Turn.run
    assert json.loads((first.folder / "job.json").read_text()) == {
        "digest": DIGEST,
        "overrides": ["number=0"],
        "number": 0,
    }
    assert _run(second) is Turn.twin
    record = json.loads((second.folder / "same_as.json").read_text())
    assert record == {"folder": "0_x", "overrides": ["number=1"]}
    assert not (second.folder / "job.json").exists()


def test_second_refers_to_the_first_while_it_runs(place: Callable[..., Place]) -> None:
    plan = Plan((), 2, 0)
    running, done = threading.Event(), threading.Event()

    def run() -> None:
        with turn(place(0, plan), DIGEST):
            running.set()
            done.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    assert _run(place(1, plan)) is Turn.twin
    done.set()
    thread.join()


def test_earlier_process_in_the_same_folder_is_waited_for(place: Callable[..., Place]) -> None:
    old, new = Plan((), 1, 0), Plan((), 1, 0)
    running = threading.Event()

    def run() -> None:
        with turn(place(0, old), DIGEST):
            running.set()
            time.sleep(0.2)
            _finish(place(0, old).folder)

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    assert _run(place(0, new)) is Turn.finished
    thread.join()


@pytest.mark.parametrize(("status", "expected"), [("ok", Turn.finished), ("failed", Turn.run)])
def test_next_start_runs_what_failed(place: Callable[..., Place], status: str, expected: Turn) -> None:
    _run(place(0, Plan((), 1, 0)), status)
    assert _run(place(0, Plan((), 1, 0))) is expected


def test_start_after_a_killed_worker_leaves_failures_alone(place: Callable[..., Place]) -> None:
    _run(place(0, Plan((), 1, 0)), "failed")
    assert _run(place(0, Plan((), 1, 0, retry_failed=False))) is Turn.finished


def test_results_follow_their_job_to_another_number(place: Callable[..., Place], tmp_path: Path) -> None:
    first = place(0, Plan((), 1, 0))
    _run(first)
    (first.folder / "run.log").write_text("earlier")
    plan = Plan((), 3, 0, left=("0_x",))
    assert _run(place(2, plan)) is Turn.finished
    assert not first.folder.exists()
    assert finished(tmp_path / "2_x", DIGEST)
    assert (tmp_path / "2_x" / "run.earlier.log").read_text() == "earlier"
    assert json.loads((tmp_path / "2_x" / "job.json").read_text())["number"] == 2
    assert results.read(tmp_path / "2_x" / results.FILE_NAME).overrides == "number=2"
    assert _run(place(1, plan)) is Turn.twin


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("ran", [0, 1])
def test_results_stay_where_the_same_grid_made_them(
    place: Callable[..., Place], tmp_path: Path, ran: int, order: tuple[int, int]
) -> None:
    """Of two equal jobs of a resumed sweep, a parallel launcher may start either one first."""
    before = Plan((), 2, 0)
    assert _run(place(ran, before)) is Turn.run
    assert _run(place(1 - ran, before)) is Turn.twin
    path = tmp_path / f"{ran}_x" / results.FILE_NAME
    written = path.stat().st_mtime_ns
    left = left_by_another_grid(tmp_path, [("number=0",), ("number=1",)])
    again = Plan((), 2, 0, left=left)
    turns = {number: _run(place(number, again)) for number in order}
    assert turns == {ran: Turn.finished, 1 - ran: Turn.twin}
    assert path.stat().st_mtime_ns == written
    assert json.loads((tmp_path / f"{1 - ran}_x" / "same_as.json").read_text())["folder"] == f"{ran}_x"


def test_folders_of_another_grid_are_told_by_words_and_number(place: Callable[..., Place], tmp_path: Path) -> None:
    for number in range(3):
        with turn(place(number, Plan((), 3, 0)), f"{number}" * 64):
            pass
    (tmp_path / "7_twin").mkdir()
    assert left_by_another_grid(tmp_path, [("number=0",), ("number=2",)]) == ("1_x", "2_x")
    assert left_by_another_grid(tmp_path, []) == ("0_x", "1_x", "2_x")


def test_lost_index_is_made_anew(place: Callable[..., Place], tmp_path: Path) -> None:
    _run(place(0, Plan((), 1, 0)))
    for path in (tmp_path / INDEX).iterdir():
        path.unlink()
    (tmp_path / INDEX).rmdir()
    rebuild_index(tmp_path)
    assert _run(place(5, Plan((), 1, 0, left=("0_x",)))) is Turn.finished


def test_another_digest_in_the_folder_runs(place: Callable[..., Place], tmp_path: Path) -> None:
    _run(place(0, Plan((), 1, 0)))
    assert not finished(tmp_path / "0_x", "e" * 64)
    with turn(place(0, Plan((), 1, 0)), "e" * 64) as (what, _):
        assert what is Turn.run
        assert not (tmp_path / "0_x" / results.FILE_NAME).exists()


@pytest.mark.parametrize("name", [*results.FILES, results.RECORD])
def test_a_run_that_lost_a_file_runs_again(name: str, place: Callable[..., Place], tmp_path: Path) -> None:
    _run(place(0, Plan((), 1, 0)))
    (tmp_path / "0_x" / name).unlink()
    assert not finished(tmp_path / "0_x", DIGEST)
    assert _run(place(1, Plan((), 2, 0, left=("0_x",)))) is Turn.run  # nor does another job take its results
    assert finished(tmp_path / "1_x", DIGEST)


def test_a_run_that_left_less_needs_no_more(place: Callable[..., Place], tmp_path: Path) -> None:
    """Without a calibration there are no ranges, without bins no histograms."""
    _run(place(0, Plan((), 1, 0)))
    for name in results.CALIBRATION_FILES:
        (tmp_path / "0_x" / name).unlink()
    left = dict.fromkeys(set(results.FILES) - set(results.CALIBRATION_FILES), len(b"whole"))
    (tmp_path / "0_x" / results.RECORD).write_text(json.dumps({"files": left}))
    assert finished(tmp_path / "0_x", DIGEST)


@pytest.mark.parametrize(
    ("name", "left"),
    [("model.onnx", b"who"), ("predictions.npy", b"w"), ("run.json", b""), ("run.json", b'{"files": []}')],
)
def test_a_run_one_of_whose_files_was_cut_runs_again(
    name: str, left: bytes, place: Callable[..., Place], tmp_path: Path
) -> None:
    _run(place(0, Plan((), 1, 0)))
    (tmp_path / "0_x" / name).write_bytes(left)
    assert _run(place(0, Plan((), 1, 0))) is Turn.run
    assert _run(place(0, Plan((), 1, 0))) is Turn.finished


def test_lost_job_gets_a_row_unless_it_has_one(tmp_path: Path) -> None:
    for name in ("1_a", "2_b"):
        (tmp_path / name).mkdir()
    results.write(RunResult(), tmp_path / "2_b")
    missing(tmp_path, 1, ["seed=1"], "cancelled")
    missing(tmp_path, 2, ["seed=2"], "cancelled")
    missing(tmp_path, 3, ["seed=3"], "never started")
    row = results.read(tmp_path / "1_a" / results.FILE_NAME)
    assert (row.status, row.error, row.overrides) == ("failed", "cancelled", "seed=1")
    assert results.read(tmp_path / "2_b" / results.FILE_NAME).status == "ok"


def test_impossible_numbers_are_not_finished(place: Callable[..., Place]) -> None:
    first = place(0, Plan((), 1, 0))
    assert _run(first) is Turn.run
    assert finished(first.folder, DIGEST)
    for accuracy in (9.0, float("nan")):
        results.write(RunResult(accuracy=accuracy, model_bytes=5), first.folder)
        assert not finished(first.folder, DIGEST)


def test_a_twin_follows_the_run_that_moves(place: Callable[..., Place]) -> None:
    before = Plan((), 2, 0)
    assert _run(place(0, before)) is Turn.run
    twin = place(1, before)
    assert _run(twin) is Turn.twin
    assert _run(place(2, Plan((), 3, 0, left=("0_x", "1_x")))) is Turn.finished
    assert json.loads((twin.folder / "same_as.json").read_text())["folder"] == "2_x"


def test_what_another_grid_left_without_results_is_hidden(place: Callable[..., Place], tmp_path: Path) -> None:
    old = Plan((), 3, 0)
    failed, good = place(0, old, "failed"), place(1, old, "good")
    for folder, status in ((failed.folder, "failed"), (good.folder, "ok")):
        results.write(RunResult(status=status, error=None if status == "ok" else "no luck"), folder)
    assert _run(place(0, Plan((), 1, 0), "new")) is Turn.run
    retire(tmp_path, lambda number, name: number >= 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != INDEX) == [
        ".old_0_failed",
        "0_new",
        "1_good",
    ]
    assert (tmp_path / ".old_0_failed" / "results.csv").exists()


@pytest.mark.parametrize("damage", ["{", "[]", ""])
def test_damaged_entries_of_the_index_are_written_anew(
    place: Callable[..., Place], tmp_path: Path, damage: str
) -> None:
    assert _run(place(0, Plan((), 1, 0))) is Turn.run
    (tmp_path / INDEX / f"{DIGEST}.json").write_text(damage)
    rebuild_index(tmp_path)
    assert _run(place(1, Plan((), 1, 0, left=("0_x",)))) is Turn.finished


def test_long_names_that_are_cut_stay_apart() -> None:
    one, other = _short("x" * 120 + "int8"), _short("x" * 120 + "uint8")
    assert one != other
    assert len(one) == len(other) == 100
    assert _short("quant-int8") == "quant-int8"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ExperimentError, match="not a regular file"), replacing(pipe):
        pass
    assert pipe.is_fifo()
