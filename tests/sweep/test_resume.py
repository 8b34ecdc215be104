"""A sweep that was killed, damaged or changed runs only what it lacks, and ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable
from subprocess import DEVNULL
from typing import Any

import pytest

GRID = ("quant=float,int8,u8s8", "calibration=minmax,entropy", "calibration.samples_per_class=20")


@pytest.fixture(scope="module")
def whole(other_sweeps: Callable[[], Any]) -> Any:
    """The sweep that nothing interrupts."""
    done = other_sweeps()(*GRID)
    assert done.code == 0, done.err
    return done


def test_what_has_no_effect_runs_once(whole: Any) -> None:
    folders = sorted(path.name for path in whole.folder.glob("[0-9]*"))
    assert [name[:-9] for name in folders] == [
        *("00_float_minmax", "02_int8_minmax", "03_int8_entropy", "04_u8s8_minmax", "05_u8s8_entropy")
    ]
    assert sorted(whole.states()) == sorted(row["folder"] for row in whole.rows) == folders
    assert {row["status"] for row in whole.rows} == {"ok"}
    assert "same settings as job 0" in (whole.folder / folders[0] / "run.log").read_text()


def test_every_job_says_what_it_is(whole: Any) -> None:
    for folder in whole.folder.glob("[0-9]*"):
        record = json.loads((folder / "job.json").read_text())
        assert re.fullmatch("[0-9a-f]{64}", record["digest"])
        assert folder.name.endswith(f"_{record['digest'][:8]}")
        assert record["number"] == int(folder.name[:2])
        assert record["overrides"][-1].startswith("cache_dir=")


def test_run_log_ends_with_what_the_numbers_are_worth(whole: Any) -> None:
    (folder,) = whole.folder.glob("02_*")
    assert "McNemar p = " in (folder / "run.log").read_text()
    assert "McNemar p = " not in whole.err


def test_missing_damaged_failed_and_foreign_rows_run_again(sweeps: Any) -> None:
    words = ("quant=float,int8,u8s8,uint8", *GRID[1:])
    first = sweeps(*words)
    jobs = sorted(path for path in first.folder.glob("[0-9]*") if (path / "results.csv").exists())
    missing, damaged, failed, foreign, gone, cut, kept = (path / "results.csv" for path in jobs)
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    failed.write_text(failed.read_text().replace(",ok,", ",failed,"))
    foreign.write_text(re.sub(r"\n\d+,", "\n1,", foreign.read_text()))
    models = [path.with_name("model.onnx") for path in (gone, cut)]
    contents = [path.read_bytes() for path in models]
    models[0].unlink()
    models[1].write_bytes(contents[1][:1000])
    before = first.states()
    again = sweeps(*words, "resume=true")
    assert again.code == 0, again.err
    assert again.comparable == first.comparable
    after = again.states()
    assert [name for name in after if before.get(name) == after[name]] == [kept.parent.name]
    assert [path.read_bytes() for path in models] == contents
    assert not any("resume" in path.name or "resume" in path.read_text() for path in again.folder.glob("*/job.json"))
    assert all("resume" not in row["overrides"] for row in again.rows)


def test_finished_sweep_runs_nothing(whole: Any, other_sweeps: Callable[[], Any]) -> None:
    before = whole.states()
    done = other_sweeps()(*GRID, f"resume={whole.folder}", f"hydra.sweep.dir={whole.folder}")
    assert done.code == 0, done.err
    assert whole.states() == before


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_killed_sweep_ends_as_one_that_was_not(launcher: str, whole: Any, sweeps: Any) -> None:
    chance = random.Random(launcher)
    words = (*GRID, f"hydra/launcher={launcher}")
    kept: dict[str, int] = {}
    for _ in range(3):
        with sweeps.start(*words, "resume=true", stdout=DEVNULL, stderr=DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not list(sweeps.folder.glob("[0-9]*")) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
        states = {path.parent.name: path.stat().st_mtime_ns for path in sweeps.results()}
        assert kept.items() <= states.items()
        kept = states
    done = sweeps(*words, "resume=true")
    assert done.code == 0, done.err
    assert kept.items() <= done.states().items()
    assert [_anonymous(row) for row in done.comparable] == [_anonymous(row) for row in whole.comparable]


def _anonymous(row: dict[str, str]) -> dict[str, str]:
    """Without the overrides, which name the cache's folder, and without what names the job.

    Jobs 0 and 1 differ in the calibration alone, which float does not read: side by side, either may be what runs.
    """
    left_out = ("overrides", "folder", *(("job", "config.calibration") if row["quant_type"] == "float" else ()))
    return {key: value for key, value in row.items() if not key.startswith(left_out)}


def test_changed_grid_keeps_what_it_still_asks_for(sweeps: Any) -> None:
    first = sweeps("quant=int8,u8s8")
    again = sweeps("quant=float,u8s8,int8", "resume=true")
    assert again.code == 0, again.err
    assert {row["quant_type"] for row in again.comparable} == {"float", "u8s8", "int8"}
    assert first.states().items() <= again.states().items()
    names = sorted(path.name[:-9] for path in again.folder.glob("[0-9]*"))
    assert names == ["00_int8", "01_u8s8", "02_float"]  # 00 was taken


def test_a_sweep_is_not_written_over(whole: Any, other_sweeps: Callable[[], Any]) -> None:
    before = whole.states()
    done = other_sweeps()(*GRID, f"hydra.sweep.dir={whole.folder}")
    assert "holds a sweep already" in done.refusal
    assert "resume=true" in done.err
    assert whole.states() == before
