"""The line that says how far a sweep is."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.progress import progress
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import watch
from resnet8_quant.sweep.watch import WIDTH, Tally, Watch, describe


def _row(folder: Path, name: str, accuracy: float | None, dtype: str = "int8", session: str = "now") -> None:
    (folder / name).mkdir(exist_ok=True)
    status = "ok" if accuracy is not None else "failed"
    (folder / name / "model.onnx").write_bytes(b"whole")
    (folder / name / results.RECORD).write_text('{"files": {"model.onnx": 5}}')
    (folder / name / "job.json").write_text(f'{{"session": "{session}"}}')
    row = RunResult(status=status, accuracy=accuracy, activation_type=dtype, model_bytes=len(b"whole"))
    results.write(row, folder / name)


def test_tally_counts_rows_duplicates_and_failures(tmp_path: Path) -> None:
    tally = Tally(tmp_path, "now")
    tally.look()
    assert (tally.done, tally.failed, tally.best[2]) == (0, 0, "")
    _row(tmp_path, "0_float", 0.95, "float32")
    tally.look()
    assert tally.best == (False, 0.95, "0_float")
    _row(tmp_path, "1_a", 0.8)
    _row(tmp_path, "2_b", 0.9)
    _row(tmp_path, "3_c", None)
    (tmp_path / "4_d").mkdir()
    (tmp_path / "jobs.csv").write_text("0,0_float,a=1\n1,1_a,b=1\n5,1_a,b=2\n6,4_d,c=1\n7,4_d,c=2\n")
    (tmp_path / "notes").mkdir()
    tally.look()
    tally.look()
    assert (tally.done, tally.failed, tally.best) == (5, 1, (True, 0.9, "2_b"))


def test_what_failed_or_lost_a_file_in_an_earlier_start_counts_when_it_has_run_again(tmp_path: Path) -> None:
    _row(tmp_path, "0_a", None, session="before")
    _row(tmp_path, "1_b", 0.5, session="before")
    _row(tmp_path, "2_c", 0.5, session="before")
    (tmp_path / "2_c" / "model.onnx").unlink()
    (tmp_path / "jobs.csv").write_text("0,0_a,a=1\n1,1_b,a=2\n2,1_b,a=2\n")
    grid, search = Tally(tmp_path, "now"), Tally(tmp_path, None)
    for tally in (grid, search):
        tally.look()
    assert (grid.done, grid.failed) == (2, 0)  # 1_b, twice
    assert (search.done, search.failed) == (2, 1)  # which runs no failure again; what is there twice was interrupted
    _row(tmp_path, "0_a", 0.6)
    grid.look()
    assert (grid.done, grid.failed, grid.best) == (3, 0, (True, 0.6, "0_a"))


def test_line_is_short_and_tells_the_time_left(tmp_path: Path) -> None:
    tally = Tally(tmp_path, "now")
    assert describe(tally, 10, 5.0, 0) == "0/10 done, 0 failed"
    tally.done, tally.failed, tally.best = 5, 1, (True, 0.9, "3_" + "x" * 100)
    line = describe(tally, 10, 3600.0, 1)
    assert line.startswith("5/10 done, 1 failed, 1:15:00 left, best 90.00 % (3_xxx")
    assert len(line) == WIDTH
    assert "left" not in describe(tally, 5, 60.0, 1)
    assert describe(tally, None, 60.0, 1).startswith("5/? done")
    assert describe(tally, 3, 60.0, 1).startswith("5/5 done, 1 failed, best")  # resumed with fewer than there are


def test_pipe_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    watching = Watch(Tally(tmp_path, "now"), 1)
    _row(tmp_path, "0_a", 0.5)
    watching.stop()
    assert pipe.getvalue() == "1/1 done, 0 failed, best 50.00 % (0_a)\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_has_one_live_line_below_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(watch, "_LOOK", 0.01)
    watching = Watch(Tally(tmp_path, "now"), 2)
    while "0/2 done" not in terminal.getvalue():
        time.sleep(0.01)
    sys.stderr.write("a [log] line\n")
    with progress("evaluating", 10, "images") as advance:  # a bar would fight for the line
        advance(5)
    watching.stop()
    assert sys.stderr is terminal
    _, _, after = terminal.getvalue().partition("a [log] line\n")
    assert "0/2 done, 0 failed" in after  # drawn again below
    assert "evaluating" not in after
    assert after.endswith("0/2 done, 0 failed\n")
