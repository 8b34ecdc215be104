"""Jobs side by side: shared cores, and the crash of one that is a row and not the end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest


def _needs(plugin: str) -> pytest.MarkDecorator:
    """Skip where the plugin is not installed."""
    missing = importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(plugin) is None
    return pytest.mark.skipif(missing, reason=f"{plugin} is not installed")


JOBLIB, SUBMITIT = _needs("hydra_plugins.hydra_joblib_launcher"), _needs("hydra_plugins.hydra_submitit_launcher")


def _errors(done: Any) -> dict[str, str]:
    return {row["overrides"].split()[0]: row["error"] for row in done.rows if row["status"] != "ok"}


@JOBLIB
def test_crashes_under_joblib_are_rows(sweeps: Any) -> None:
    crash = "segfault:seed=1;memory:seed=2;exit:seed=4"
    done = sweeps("seed=0,1,2,3,4,5", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", crash=crash)
    assert done.code == 1
    errors = _errors(done)
    ends = {"seed=1": "SIGSEGV", "seed=2": "SIGKILL", "seed=4": "exit code 3"}
    assert {seed: ends[seed] in error for seed, error in errors.items()} == dict.fromkeys(ends, True)
    assert sorted(row["seed"] for row in done.rows) == list("012345")  # also what crashed says what it was
    (log,) = done.folder.glob("01_seed-1_*/run.log")
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    assert "2 jobs at a time" in done.err
    again = sweeps("seed=0,1,2,3,4,5", "resume=true", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert again.code == 0, again.err
    kept = {name: time for name, time in done.states().items() if name[:2] in ("00", "03", "05")}
    assert len(kept) == 3
    assert kept.items() <= again.states().items()


@JOBLIB
def test_killed_worker_costs_only_time(sweeps: Any) -> None:
    done = sweeps("seed=0,1,2", "hydra/launcher=cores", "hydra.launcher.n_jobs=2", crash="worker:seed=1")
    assert done.code == 0, done.err
    assert (done.folder / "killed").exists()
    assert "a worker was killed" in done.err
    assert [row["status"] for row in done.rows] == ["ok"] * 3


@JOBLIB
def test_parallel_duplicates_run_once_and_share_the_cores(sweeps: Any) -> None:
    words = ("quant=float", "calibration=minmax,entropy,mse,lp", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = sweeps(*words)
    assert done.code == 0, done.err
    assert len(done.states()) == 1
    assert len(done.rows) == len(list(done.folder.glob("[0-9]*"))) == 1
    assert "4/4 done, 0 failed" in done.err
    (record,) = done.folder.glob("*/run.json")
    threads = json.loads(record.read_text())["config"]["evaluation"]["threads"]
    assert threads == json.loads((done.folder / "sweep.json").read_text())["threads"] > 0
    assert f"threads: {threads}" in (record.parent / "run.log").read_text()


@SUBMITIT
def test_crash_under_submitit_is_a_row(sweeps: Any) -> None:
    words = ("seed=0,1,2", "hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2")
    done = sweeps(*words, crash="segfault:seed=0;worker:seed=1")
    assert done.code == 1
    errors = _errors(done)
    assert sorted(errors) == ["seed=0", "seed=1"]
    assert "SIGSEGV" in errors["seed=0"]
    assert "of the queue ended without a result" in errors["seed=1"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("hydra/launcher=joblib", "hydra.launcher.n_jobs=0"), marks=JOBLIB),
        ("hydra.sweeper.max_batch_size=0",),
        ("hydra.sweep.subdir=${hydra.job.num}",),
    ],
)
def test_what_no_job_can_run_with_is_refused_before_the_first(sweeps: Any, words: tuple[str, ...]) -> None:
    done = sweeps("seed=0,1", *words)
    field, _, value = words[-1].partition("=")
    assert f"`{field}` is {value}; valid" in done.refusal
    assert not done.folder.exists()


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("quant=int8,int9", "`quant` is int9"),
        ("calibration.samples_per_class=5,many", "`calibration.samples_per_class`"),
        ("refine.dampin=0.1,0.2", "`refine.dampin`"),
    ],
)
def test_a_wrong_name_anywhere_in_the_grid_leaves_nothing(sweeps: Any, word: str, field: str) -> None:
    done = sweeps("seed=0,1", word)
    assert field in done.refusal
    assert not done.folder.exists()


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=JOBLIB)])
def test_values_that_do_not_go_together_are_a_row(sweeps: Any, launcher: str, tmp_path: Path) -> None:
    for option in ("minmax_int8", "entropy_int8", "minmax_u8s8"):
        path = tmp_path / "conf" / "refine" / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("bias: true\n")
    grid = ("quant=int8,u8s8", "calibration=minmax,entropy", "refine=${calibration}_${quant}")
    done = sweeps(f"--config-dir={path.parents[1]}", *grid, f"hydra/launcher={launcher}")
    assert done.code == 1
    assert [row["status"] for row in done.rows].count("ok") == 3
    (error,) = _errors(done).values()
    assert error.startswith("`refine` is entropy_u8s8; valid are ")


def test_seeds_that_change_nothing_are_named(sweeps: Any) -> None:
    done = sweeps("seed=1,2", "calibration.samples_per_class=100")
    assert done.code == 0
    assert "`seed` changes nothing in this sweep: calibration takes all 1000" in " ".join(done.err.split())
    assert len({row["model_sha256"] for row in done.rows}) == 1
    assert "changes nothing" not in sweeps("seed=1,2", "calibration.samples_per_class=99", "resume=true").err


def test_missing_plugin_names_its_extra(sweeps: Any) -> None:
    (sweeps.site / "sitecustomize.py").write_text("import sys; sys.modules['hydra_plugins'] = None")
    extras = {"joblib": "joblib", "slurm": "slurm", "submitit_local": "slurm", "ray_local": "ray"}
    for launcher, extra in extras.items():
        assert f".[{extra}]" in sweeps("quant=int8", f"hydra/launcher={launcher}").refusal
