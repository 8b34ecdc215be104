"""What the plots show, as numbers, and that both drawers take it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, name_choices
from resnet8_quant.sweep.report.chart import MOST_SERIES, Chart, Heat, Series, log_ticks, window
from resnet8_quant.sweep.report.detail import confusion, focus, layer_snr, per_class, selection
from resnet8_quant.sweep.report.evidence import gather
from resnet8_quant.sweep.report.overview import calibration_size, compared_settings, fronts, heat_maps, pareto
from resnet8_quant.sweep.report.plotly_figures import figure
from resnet8_quant.sweep.report.sections import sections

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]


def _jobs(*rows: dict[str, object]) -> list[Job]:
    jobs = [Job(i, f"{i}_x", RunResult(**row), Path(f"{i}_x")) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    name_choices(jobs)
    return jobs


def test_pareto_front_of_worked_points() -> None:
    assert pareto([(3, 5), (1, 1), (2, 4), (2, 3), (4, 5), (5, 4), (1, 0)]) == [1, 2, 0]
    assert pareto([]) == []
    assert pareto([(1, 1), (1, 1)]) == [0]


def test_fronts_mark_the_recommended_run() -> None:
    jobs = _jobs(
        {"accuracy": 0.9, "model_bytes": 2000, "overrides": "quant=a", "float_accuracy": 0.91},
        {"accuracy": 0.8, "model_bytes": 1000, "overrides": "quant=b", "float_accuracy": 0.91},
        {"accuracy": 0.7, "model_bytes": 1500, "overrides": "quant=b", "float_accuracy": 0.91},
    )
    (chart,) = fronts(jobs, jobs[1])  # no latency: one chart
    by_name = {series.name: series for series in chart.series}
    assert list(by_name["Pareto front"].x) == [1.0, 2.0]
    assert (by_name["Recommended"].x, by_name["Recommended"].y) == ([1.0], [80.0])
    assert list(by_name["quant=b"].x) == [1.0, 1.5]
    assert chart.level == ("Float, 91.00 %", 91.0)
    assert "1 run lies below 80.0 %" in chart.note
    assert "Job 2: b" in by_name["quant=b"].hover[1]


def test_fronts_without_sizes_are_none() -> None:
    jobs = _jobs({"accuracy": 0.9})
    assert fronts(jobs, jobs[0]) == []


def test_many_values_share_one_colour() -> None:
    rows = [{"accuracy": 0.9, "model_bytes": 1000 + i, "overrides": f"quant=q{i}"} for i in range(20)]
    jobs = _jobs(*rows)
    names = {series.name for series in fronts(jobs, jobs[0])[0].series}
    assert "other" in names
    assert len(names) == MOST_SERIES + 3  # front, other, recommended


def test_heat_map_holds_means_over_the_rest() -> None:
    rows = [
        {"accuracy": accuracy, "overrides": f"quant={quant} n={n} seed={seed}"}
        for quant, n, seed, accuracy in [
            ("a", 10, 1, 0.5),
            ("a", 10, 2, 0.7),
            ("a", 2, 1, 0.4),
            ("b", 2, 1, 0.3),
        ]
    ]
    (heat,), reason = heat_maps(_jobs(*rows))
    assert (list(heat.x), list(heat.y), reason) == (["2", "10"], ["a", "b"], "")
    assert heat.z[0] == pytest.approx([40.0, 60.0])
    assert (heat.z[1][0], heat.z[1][1]) == (pytest.approx(30.0), None)
    assert "n = 2" in heat.hover[0][1]
    assert "no run" in heat.hover[1][1]


def test_heat_map_counts_a_run_once_in_each_cell() -> None:
    """Seed 2 of float is a twin of seed 1: its cell has the run, not the run twice."""
    jobs = _jobs(
        {"accuracy": 0.5, "overrides": "quant=float n=1 seed=1"},
        {"accuracy": 0.5, "overrides": "quant=float n=1 seed=2"},
        {"accuracy": 0.4, "overrides": "quant=int8 n=2 seed=1"},
        {"accuracy": 0.5, "overrides": "quant=float n=2 seed=1"},
    )
    for job in (jobs[1], jobs[3]):
        job.path, job.twin = jobs[0].path, True
    (heat,), _ = heat_maps(jobs)
    assert heat.z == [[50.0, 50.0], [None, 40.0]]
    assert "n = 1" in heat.hover[0][0]


def test_heat_map_needs_two_settings() -> None:
    maps, reason = heat_maps(_jobs({"accuracy": 0.5, "overrides": "a=1"}, {"accuracy": 0.5, "overrides": "a=2 seed=3"}))
    assert maps == []
    assert "two settings" in reason


def test_settings_of_the_measurement_are_not_compared() -> None:
    rows = [{"overrides": f"quant=a cache_dir={i} latency.runs={i} k={i}"} for i in range(2)]
    assert compared_settings(_jobs(*rows)) == ["k"]


def test_calibration_size_has_a_band_over_seeds(grid: list[Job]) -> None:
    chart, reason = calibration_size(gather(grid).jobs)
    assert chart is not None
    assert reason == ""
    by_name = {series.name: series for series in chart.series}
    line = by_name["u8s8"]
    assert list(line.x) == [20, 100, 500]
    assert line.low[0] == pytest.approx(line.y[0] - 0.05)
    assert line.high[0] == pytest.approx(line.y[0] + 0.05)
    assert "2 seeds" in chart.note
    assert log_ticks(chart) == [20, 100, 500]


def test_calibration_size_needs_sizes(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 1, calibration_images=10)
    chart, reason = calibration_size(jobs_of())
    assert (chart, "does not vary" in reason) == (None, True)


def test_window_hides_outliers_and_says_so() -> None:
    assert window([80.0, 89.0]) == (None, "")
    y_range, sentence = window([10.0, 20.0, 89.0])
    assert y_range is not None
    assert y_range[0] == 79.0
    assert sentence.startswith("2 runs lie below 79.0 %")


def test_ticks_of_a_wide_axis_are_round() -> None:
    chart = Chart("k", "", "", "", (Series("s", [float(x) for x in range(3, 90, 5)], [0.0] * 18),), log_x=True)
    assert log_ticks(chart) == [2, 5, 10, 20, 50, 100]


def test_confusion_difference_of_one_flip(make_run: MakeRun, jobs_of: Read, float_answers: np.ndarray) -> None:
    folder = make_run(0, "quant=int8", 0)
    labels = gather(jobs_of()).labels
    assert labels is not None
    index = int(np.flatnonzero((float_answers == labels) & (labels == 3))[0])
    answers = float_answers.copy()
    answers[index] = 5
    np.save(folder / "predictions.npy", answers)
    _change(folder, "accuracy", float(np.mean(answers == labels)))
    evidence = gather(jobs_of())
    heat, _ = confusion(evidence, evidence.jobs[0])
    assert heat is not None
    changed = {(i, j): value for i, row in enumerate(heat.z) for j, value in enumerate(row) if value}
    assert changed == {(3, 3): -1.0, (3, 5): 1.0}
    assert heat.cells[3][5] == "+1"
    assert "true cat, answer dog" in heat.hover[3][5]


def test_per_class_and_layers_of_a_grid(grid: list[Job]) -> None:
    evidence = gather(grid)
    first = next(job for job in evidence.jobs if job.number == 7)
    heat, _ = per_class(evidence, first)
    assert heat is not None
    assert heat.y[0] == first.choices
    assert len(heat.y) == 6  # of two seeds one
    assert len(heat.x) == 10
    assert sum(value or 0.0 for value in heat.z[0]) == pytest.approx(1000 * (first.row.accuracy_delta or 0.0))
    chart, _ = layer_snr(evidence, first)
    assert chart is not None
    assert (list(chart.series[0].x), list(chart.series[0].y)) == (["input", "relu"], [70.1, 40.5])


def test_focus_is_a_quantized_run(grid: list[Job]) -> None:
    evidence = gather(grid)
    close = focus(evidence, grid[0])
    assert grid[0].row.quant_type == "float"
    assert close is not None
    assert close.row.accuracy == max(job.row.accuracy or 0 for job in grid[1:])
    assert focus(evidence, grid[3]) is grid[3]
    assert close in selection(evidence, close, 1)


@pytest.mark.parametrize("name", ["per_class.csv", "ranges.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"a,b\n1,2\n", b"class_name,images,accuracy,accuracy_delta\nx,1\n"])
def test_damaged_tables_leave_their_section_out(name: str, content: bytes, make_run: MakeRun, jobs_of: Read) -> None:
    (make_run(0, "quant=int8", 3) / name).write_bytes(content)
    found = {section.key: section for section in sections(jobs_of())}
    key = {"per_class.csv": "classes", "ranges.csv": "layers"}[name]
    assert found[key].missing
    assert not found[key].drawings


def test_plotly_takes_every_figure_of_a_grid(grid: list[Job]) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawings = [drawing for section in sections(grid) for drawing in section.drawings]
    assert {drawing.key for drawing in drawings} >= {"pareto_bytes", "pareto_latency", "calibration_size", "confusion"}
    for drawing in drawings:
        json.dumps(figure(drawing), allow_nan=False)
        graph_objects.Figure(figure(drawing))  # refuses what Plotly does not know


def test_labels_are_escaped_for_plotly() -> None:
    bad = '<a href="javascript:alert(1)">x</a>'
    chart = Chart("k", "t", bad, bad, (Series(bad, [bad], [1.0], [f"one\n{bad}"]),), level=(bad, 1.0))
    heat = Heat("h", "t", bad, bad, [bad], [bad], [[1.0]], [["1"]], [[bad]], bad)
    for drawing in (chart, heat):
        text = json.dumps(figure(drawing))
        assert "<a" not in text
        assert "&lt;a" in text
    assert "one<br>&lt;a" in json.dumps(figure(chart))


def test_static_plots_are_whole_files(grid: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from resnet8_quant.sweep.report.static_figures import draw

    drawings = [drawing for section in sections(grid) for drawing in section.drawings]
    hostile = Chart("hostile", r"$\frac{$", "x", "y", (Series("_$b^$", [1, 2], [1.0, 2.0], mark="line"),), log_x=True)
    written = draw([*drawings, hostile, dataclasses.replace(hostile, key="plain", log_x=False)], tmp_path / "plots")
    assert len(written) == 2 * (len(drawings) + 2)
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 600
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert [path.name for path in (tmp_path / "plots").iterdir() if path.name.endswith(".part")] == []


def _change(folder: Path, name: str, value: object) -> None:
    from resnet8_quant import results

    row = results.read(folder / results.FILE_NAME)
    results.write(dataclasses.replace(row, **{name: value}), folder)  # type: ignore[arg-type]
