"""A search as a user starts it: Hydra finds the sweeper, its folder holds what a sweep's does, and what is refused."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from resnet8_quant.sweep.plan import Plan, write_plan

OPTUNA = "hydra/sweeper=optuna"


def test_a_search_leaves_a_front_and_a_summary(sweeps: Any) -> None:
    pytest.importorskip("optuna", reason="needs the extra [search]")
    done = sweeps(OPTUNA, "hydra.sweeper.n_trials=9", "quant=int8,uint8")
    assert done.code == 0, done.err
    assert "it ends early" in done.err  # there are two settings
    assert "2/2 done, 0 failed" in done.err
    assert "no other is better in both of accuracy and model_bytes" in done.err
    rows = {row["folder"]: row for row in done.rows}
    assert {row["quant_type"] for row in rows.values()} == {"int8", "uint8"}
    with (done.folder / "pareto.csv").open(newline="", encoding="utf-8") as file:
        best = list(csv.DictReader(file))
    assert best
    for row in best:
        assert float(row["accuracy"]) == float(rows[row["folder"]]["accuracy"])
        assert row["quant"] == rows[row["folder"]]["quant_type"]


@pytest.mark.parametrize("jobs", [None, 2], ids=str)
def test_a_grid_in_the_folder_of_a_search_is_refused_and_the_other_way_round(jobs: int | None, sweeps: Any) -> None:
    if jobs is not None:
        pytest.importorskip("optuna", reason="needs the extra [search]")
    sweeps.folder.mkdir()
    write_plan(Plan(("quant=int8,u8s8",), jobs, 0), sweeps.folder)
    before = (sweeps.folder / "sweep.json").read_text()
    done = sweeps("quant=int8,uint8", *([OPTUNA] if jobs else [f"resume={sweeps.folder}"]))
    assert f"holds {'a search' if jobs is None else 'a grid'}, this is" in done.refusal
    assert (sweeps.folder / "sweep.json").read_text() == before
    assert not list(sweeps.folder.glob("[0-9]*"))


def test_without_optuna_the_extra_is_named(sweeps: Any) -> None:
    (sweeps.site / "optuna.py").write_text("raise ImportError('as if it were not installed')\n")
    done = sweeps("experiment=search")
    assert "error: the package `optuna` is not installed" in done.refusal
    assert "[search]" in done.err
    assert not done.folder.exists()


def test_an_unknown_field_is_refused(sweeps: Any) -> None:
    done = sweeps("experiment=search", "hydra.sweeper.n_trails=3")
    assert "n_trails" in done.refusal
    assert not done.folder.exists()
