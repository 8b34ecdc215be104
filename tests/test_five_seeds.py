"""benchmarks/five_seeds.py: means and ranges over the seeds, and what it refuses to average."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.five_seeds import read_runs, sources, table
from resnet8_quant.errors import ExperimentError

COMMON = {
    "status": "ok",
    "deploy": "none",
    "model": "resnet8",
    "data": "cifar10",
    "eval_images": 10_000,
    "cpu": "a CPU",
    "onnxruntime_version": "1.32.0",
    "machine_busy": False,
}


def run(job: int, quant: str, seed: int, accuracy: float, **other: object) -> dict[str, object]:
    """A row of summary.csv."""
    return COMMON | {
        "job": job,
        "quant_type": quant,
        "calibration_method": "minmax",
        "refine": "none",
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_delta": accuracy - 0.9,
        "model_bytes": 100_000,
        "latency_us_median": 80.0 + seed,
        "portable": True,
        "model_sha256": f"{quant}{seed}",
        **other,
    }


def sweep(folder: Path, *runs: dict[str, object]) -> Path:
    folder.mkdir()
    pd.DataFrame(runs).to_csv(folder / "summary.csv", index=False)
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_range_of_each_configuration_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    same = {"model_sha256": "f", "calibration_method": None, "model_bytes": 300_000}
    eight = sweep(
        tmp_path / "eight",
        run(3, "int8", 2, 0.899, portable=False),
        run(2, "int8", 1, 0.897, portable=False, model_bytes=100_008),
        run(0, "float", 1, 0.9, **same),
        run(1, "float", 1, 0.9, **same),
    )
    low = sweep(tmp_path / "low", *(run(i, "w4a8", i, 0.88 + i / 1000, refine="best") for i in (1, 2, 3)))
    runs = read_runs([eight, low])
    assert [cells(line) for line in table(runs).splitlines()[2:]] == [
        ["FP32", "90.00 %", "0.00", "300,000 B", "81 us", "every CPU"],
        ["int8", "89.80 % (89.70-89.90)", "-0.20", "100,008 B", "82 us", "not without VNNI"],
        ["w4a8 refine=best", "88.20 % (88.10-88.30)", "-1.80", "100,000 B", "82 us", "every CPU"],
    ]
    assert "mean of seeds 1, 2, 3" in sources(runs)
    assert "busy in 0 of 7 runs" in sources(runs)


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path: Path) -> None:
    column = "config.quant.compact"
    mixed = sweep(tmp_path / "mixed", run(0, "int8", 1, 0.9, **{column: True}), run(1, "int8", 2, 0.9))
    with pytest.raises(ExperimentError, match=r"config\.quant\.compact"):
        table(read_runs([mixed]))
    twice = sweep(tmp_path / "twice", run(0, "int8", 1, 0.9), run(1, "int8", 1, 0.8, model_sha256="another"))
    with pytest.raises(ExperimentError, match="quant=int8"):
        table(read_runs([twice]))


def test_sweeps_that_do_not_belong_into_one_table_are_refused(tmp_path: Path) -> None:
    one = sweep(tmp_path / "one", run(0, "int8", 1, 0.9))
    other = sweep(tmp_path / "other", run(0, "int8", 2, 0.9, cpu="another CPU"))
    with pytest.raises(ExperimentError, match="differ in cpu"):
        read_runs([one, other])
    failed = sweep(tmp_path / "failed", run(0, "int8", 1, 0.9, status="failed"))
    with pytest.raises(ExperimentError, match="1 of 1 jobs failed"):
        read_runs([failed])
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_runs([tmp_path / "missing"])
