"""A search as a user starts it: Hydra finds the sweeper, its folder holds what a sweep's does, and what is refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_quant.sweep.plan import Plan, write_plan

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run run.py; ``path`` goes before everything that is installed."""
    paths = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
    command = [sys.executable, "run.py", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_search_leaves_a_front_and_a_summary(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra [search]")
    folder = tmp_path / "out"
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=9", "quant=int8,uint8", "data=sample", "latency.runs=0")
    done = start("-m", *words, f"hydra.sweep.dir={folder}", f"cache_dir={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stderr
    assert "it ends early" in done.stderr  # there are two settings
    assert "2/2 done, 0 failed" in done.stderr
    assert "no other is better in both of accuracy and model_bytes" in done.stderr
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["folder"]: row for row in csv.DictReader(file)}
    assert {row["quant_type"] for row in rows.values()} == {"int8", "uint8"}
    with (folder / "pareto.csv").open(newline="", encoding="utf-8") as file:
        best = list(csv.DictReader(file))
    assert best
    for row in best:
        assert float(row["accuracy"]) == float(rows[row["folder"]]["accuracy"])
        assert row["quant"] == rows[row["folder"]]["quant_type"]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        (None, ("resume={}",)),
        (None, ("hydra.sweep.dir={}",)),
        (2, ("hydra/sweeper=optuna", "hydra.sweep.dir={}")),
    ],
)
def test_a_grid_in_the_folder_of_a_search_is_refused_and_the_other_way_round(
    jobs: int | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    if jobs is not None:
        pytest.importorskip("optuna", reason="needs the extra [search]")
    write_plan(Plan(("quant=int8,u8s8",), jobs, 0), tmp_path)
    before = (tmp_path / "sweep.json").read_text()
    done = start("-m", "quant=int8,uint8", "data=sample", *(word.format(tmp_path) for word in words))
    assert done.returncode == 1
    assert f"holds {'a search' if jobs is None else 'a grid'}, this is" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert (tmp_path / "sweep.json").read_text() == before
    assert not list(tmp_path.glob("[0-9]*"))


def test_without_optuna_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError('as if it were not installed')\n")
    done = start("experiment=search", "data=sample", f"hydra.sweep.dir={tmp_path / 'out'}", path=tmp_path)
    assert done.returncode == 1
    assert "error: the package `optuna` is not installed" in done.stderr
    assert "[search]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    done = start("experiment=search", "hydra.sweeper.n_trails=3", f"hydra.sweep.dir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "n_trails" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
