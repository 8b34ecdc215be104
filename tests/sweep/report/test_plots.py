"""What the plots show, as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet8_quant import results
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, name_choices
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.figures import MAX_SERIES, Plot
from resnet8_quant.sweep.report.page import sections
from resnet8_quant.sweep.report.plots import (
    NO_MAPS,
    calibration_size,
    confusion,
    focus,
    heat_maps,
    layer_harm,
    layer_snr,
    pareto,
    per_class,
    selection,
    trade_offs,
)
from resnet8_quant.sweep.report.recommendation import models_of

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]


def _jobs(*rows: dict[str, object]) -> list[Job]:
    jobs = [Job(i, f"{i}_x", RunResult(**row), Path(f"{i}_x")) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    name_choices(jobs)
    return jobs


def _values(plot: Plot, layer: int | None = None) -> list[dict[str, Any]]:
    """The points that a plot, or one of its layers, is drawn from."""
    values: list[dict[str, Any]] = (plot.spec if layer is None else plot.spec["layer"][layer])["data"]["values"]
    return values


def _plots(drawn: list[Plot] | str) -> list[Plot]:
    assert not isinstance(drawn, str), drawn
    return drawn


def _trade_offs(jobs: list[Job], recommended: int = 0) -> list[Plot] | str:
    models = models_of(Evidence(jobs, [None] * len(jobs)))
    return trade_offs(jobs, models, next(model for model in models if model.job is jobs[recommended]))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_pareto_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    front = pareto(points)
    unbeaten = {
        (x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }  # fmt: skip
    assert {points[i] for i in front} == unbeaten
    assert len(front) == len(unbeaten)  # of equal points one
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_trade_off_marks_the_recommended_run() -> None:
    jobs = _jobs(
        {"accuracy": 0.9, "model_bytes": 2000, "overrides": "quant=a", "float_accuracy": 0.91},
        {"accuracy": 0.8, "model_bytes": 1000, "overrides": "quant=b", "float_accuracy": 0.91},
        {"accuracy": 0.7, "model_bytes": 1500, "overrides": "quant=b", "float_accuracy": 0.91},
    )
    (plot,) = _plots(_trade_offs(jobs, 1))  # no latency: one plot
    points = _values(plot)
    assert [point["x"] for point in points if point["front"]] == [2.0, 1.0]
    assert [(point["x"], point["series"]) for point in points] == [(2.0, "quant=a"), (1.0, "quant=b"), (1.5, "quant=b")]
    assert "Job 2: b" in points[2]["hover"]
    (level,) = _values(plot, 5)
    assert plot.spec["params"][0] == {"name": "recommended", "value": points[1]["place"]}
    assert level == {"y": 91.0, "name": "Float, 91.00 %"}
    assert "1 run lies below 80.0 %" in plot.note
    assert _trade_offs(_jobs({"accuracy": 0.9})) == "no sizes, no latencies"


def test_busy_machine_is_said_where_latency_is_drawn() -> None:
    row = {"accuracy": 0.9, "model_bytes": 1000, "latency_us_median": 10.0}
    jobs = _jobs({**row, "machine_busy": True}, {**row, "machine_busy": False})
    by_size, by_latency = _plots(_trade_offs(jobs, 1))
    assert "busy" not in by_size.note
    assert "1 of 2 runs were timed on a busy machine." in by_latency.note
    assert ["busy" in point["hover"] for point in _values(by_latency)] == [True, False]


def test_many_values_share_one_colour() -> None:
    rows = [{"accuracy": 0.9, "model_bytes": 1000 + i, "overrides": f"quant=q{i}"} for i in range(20)]
    jobs = _jobs(*rows)
    names = {point["series"] for point in _values(_plots(_trade_offs(jobs))[0])}
    assert "other" in names
    assert len(names) == MAX_SERIES + 1


def test_heat_map_holds_means_over_the_rest() -> None:
    rows = [
        {"accuracy": accuracy, "overrides": f"quant={quant} n={n} seed={seed} latency.runs={n} cache_dir={seed}"}
        for quant, n, seed, accuracy in [("a", 10, 1, 0.5), ("a", 10, 2, 0.7), ("a", 2, 1, 0.4), ("b", 2, 1, 0.3)]
    ]
    (plot,) = _plots(heat_maps(_jobs(*rows)))  # how latency is measured, and the cache, make no difference
    cells = {(cell["y"], cell["x"]): cell for cell in _values(plot)}
    assert {place: cell["z"] for place, cell in cells.items()} == pytest.approx(
        {("a", "2"): 40.0, ("a", "10"): 60.0, ("b", "2"): 30.0}
    )
    assert "n = 2" in cells["a", "10"]["hover"]
    x, y = (plot.spec["layer"][0]["encoding"][axis]["scale"]["domain"] for axis in "xy")
    assert (x, y) == (["2", "10"], ["a", "b"])


def test_heat_map_needs_two_settings() -> None:
    jobs = _jobs({"accuracy": 0.5, "overrides": "a=1"}, {"accuracy": 0.5, "overrides": "a=2 seed=3"})
    assert heat_maps(jobs) == NO_MAPS


def test_calibration_size_has_a_band_over_seeds(grid: list[Job]) -> None:
    (plot,) = _plots(calibration_size(gather(grid).jobs))
    line = [point for point in _values(plot) if point["series"] == "u8s8"]
    assert [point["x"] for point in line] == [20, 100, 500]
    assert (line[0]["low"], line[0]["high"]) == pytest.approx((line[0]["y"] - 0.05, line[0]["y"] + 0.05))
    assert "2 seeds" in plot.note
    assert plot.spec["encoding"]["x"]["axis"]["values"] == [20, 100, 500]

    assert calibration_size(grid[:2]) == "the number of calibration images does not vary"


def test_confusion_difference_of_one_flip(make_run: MakeRun, jobs_of: Read, float_predictions: np.ndarray) -> None:
    folder = make_run(0, "quant=int8", 0)
    labels = gather(jobs_of()).labels
    assert labels is not None
    predictions = float_predictions.copy()
    predictions[np.flatnonzero((float_predictions == labels) & (labels == 3))[0]] = 5
    np.save(folder / "predictions.npy", predictions)
    row = results.read(folder / results.FILE_NAME)
    results.write(dataclasses.replace(row, accuracy=float(np.mean(predictions == labels))), folder)
    evidence = gather(jobs_of())
    (plot,) = _plots(confusion(evidence, evidence.jobs[0]))
    changed = {(cell["y"], cell["x"]): cell for cell in _values(plot) if cell["z"]}
    assert {place: (cell["z"], cell["text"]) for place, cell in changed.items()} == {
        ("cat", "cat"): (-1, "-1"),
        ("cat", "dog"): (1, "+1"),
    }
    assert "true cat, predicted dog" in changed["cat", "dog"]["hover"]


def test_per_class_and_layers_of_a_grid(grid: list[Job]) -> None:
    evidence = gather(grid)
    first = next(job for job in evidence.jobs if job.number == 7)
    (plot,) = _plots(per_class(evidence, first))
    cells = _values(plot)
    rows = list(dict.fromkeys(cell["y"] for cell in cells))
    assert (rows[0], len(rows), len(cells)) == (first.choices, 6, 60)  # of two seeds one, ten classes
    assert sum(cell["z"] for cell in cells[:10]) == pytest.approx(1000 * (first.row.accuracy_delta or 0.0))
    (plot,) = _plots(layer_snr(evidence, first))
    assert [(point["x"], point["y"]) for point in _values(plot)[:2]] == [("input", 70.1), ("relu", 40.5)]


def test_the_harm_of_layers_is_drawn_of_the_first_run_that_was_analyzed(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3)
    folder = make_run(1, "quant=u8s8", 5)
    parts = ("weights", "activations", "both", "kept_float")
    names = [f"{part}_{column}" for part in parts for column in ("kl", "flips", "accuracy")]
    rows = [
        ["conv", *[0.3, 7, 0.5] * 3, 0.1, 2, 0.75, 0.5],
        ["(others)", "", "", "", *[0.2, 6, 0.5] * 2, 0.6, 9, 0.5, 0.5],
    ]
    lines = [["layer", *names, "quantized_kl"], *rows]
    (folder / "layers.csv").write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    evidence = gather(jobs_of())
    first, second = evidence.jobs
    (plot,) = layer_harm(evidence, first)
    cells = {(cell["y"], cell["x"]): cell for cell in _values(plot)}
    assert len(cells) == 7  # what no layer reads has no weights
    assert cells["conv", "weights"]["z"] == 0.3
    assert cells["conv", "gained in float"]["z"] == pytest.approx(0.4)
    assert cells["(others)", "gained in float"]["z"] == pytest.approx(-0.1)
    assert cells["conv", "input"]["hover"] == "conv: input\nKL 0.3000, 7 flips, 50.00 %"
    assert second.label in plot.note
    (folder / "layers.csv").write_text("layer\nconv\n")
    assert layer_harm(evidence, first) == []


def test_focus_is_a_quantized_run(grid: list[Job]) -> None:
    evidence = gather(grid)
    assert grid[0].row.quant_type == "float"
    assert focus(evidence, grid[0]) is grid[1]  # the most accurate
    assert focus(evidence, grid[3]) is grid[3]
    assert selection(evidence, grid[1], 1) == [grid[1]]


@pytest.mark.parametrize(("name", "key"), [("per_class.csv", "classes"), ("ranges.csv", "layers")])
@pytest.mark.parametrize("content", [b"", b"\xff", b"a,b\n1,2\n", b"class_name,images,accuracy,accuracy_delta\nx,1\n"])
def test_damaged_tables_leave_their_section_out(
    name: str, key: str, content: bytes, make_run: MakeRun, jobs_of: Read
) -> None:
    (make_run(0, "quant=int8", 3) / name).write_bytes(content)
    section = next(section for section in sections(jobs_of())[0] if section.key == key)
    assert section.missing
    assert not section.plots
