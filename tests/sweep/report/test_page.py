"""The page as text: what it says, that nothing from a run becomes markup, what is left out when files are missing."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, name_choices
from resnet8_quant.sweep.plan import Plan, write_plan
from resnet8_quant.sweep.portability import NOTE
from resnet8_quant.sweep.report.chart import Chart, Heat
from resnet8_quant.sweep.report.flips import data_uri
from resnet8_quant.sweep.report.markup import Cell, Column, script_json, table
from resnet8_quant.sweep.report.provenance import command
from resnet8_quant.sweep.report.sections import sections
from resnet8_quant.sweep.report.write import page, write_report

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = "x=</script><script>alert(1)</script>\"'><img/src=x/onerror=alert(2)>&amp;\u2028"


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def _page(jobs: list[Job]) -> Elements:
    return Elements(page(jobs, sections(jobs), "/* plotly */"))


def test_page_of_a_grid_says_the_answer_first(grid: list[Job]) -> None:
    text = page(grid, sections(grid), None)
    found = Elements(text)
    ids = [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    shown = ["answer", "pareto", "grid", "calibration", "classes", "confusion", "layers", "flips", "significance"]
    assert ids == [*shown, "runs", "provenance"]
    words = " ".join(found.words)
    assert "A run qualifies if it is not significantly less accurate" in words
    assert "python run.py quant=" in words
    assert "95 % Wilson" in words
    assert "float model sha256" in words
    assert "corrected by Holm for 12 comparisons" in words
    assert len([1 for tag, _ in found.tags if tag == "tr"]) == 2 + 13 + 13


def test_page_fetches_nothing(grid: list[Job]) -> None:
    found = _page(grid)
    for tag, attributes in found.tags:
        for name in ("src", "href", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#")), (tag, name)
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_flips_are_pictures_with_their_classes(grid: list[Job]) -> None:
    found = _page(grid)
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert 0 < len(pictures) <= 24
    assert all((attributes["src"] or "").startswith("data:image/png;base64,") for attributes in pictures)
    assert {a["class"] for tag, a in found.tags if tag == "figure" and a.get("class")} == {"wrong"}
    changes = [word.split(" \N{RIGHTWARDS ARROW} ") for word in found.words if "\N{RIGHTWARDS ARROW}" in word]
    assert len(changes) == len(pictures)
    assert all((CLASSES.index(before) + 1) % 10 == CLASSES.index(after) for before, after in changes)


def test_hostile_text_stays_text(make_run: MakeRun, jobs_of: Read) -> None:
    harmless = make_run(0, "quant=int8 x=a", 3)
    baseline = _page(jobs_of())
    import shutil

    shutil.rmtree(harmless)
    folder = make_run(0, f"quant=int8 {json.dumps(HOSTILE)}", 3, quant_type=HOSTILE, model=HOSTILE, cpu=HOSTILE)
    (folder / "ranges.csv").write_text("tensor,snr_db\n" + json.dumps(HOSTILE).replace("\\", "") + ",3\n")
    record = {"config": {"data": {"kind": "sample"}}, "versions": {HOSTILE: HOSTILE}}
    (folder / "run.json").write_text(json.dumps(record))
    hostile = _page(jobs_of())
    for tag in ("script", "img", "iframe", "a", "svg"):
        assert hostile.count(tag) == baseline.count(tag), tag
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert any("alert(1)" in word for word in hostile.words)


def test_hostile_failure_and_folder_stay_text() -> None:
    jobs = [
        Job(None, HOSTILE, RunResult(status="failed", error=HOSTILE, overrides=HOSTILE)),
        Job(1, HOSTILE, RunResult(accuracy=0.5, overrides="a=1")),
    ]
    name_choices(jobs)
    found = _page(jobs)
    assert (found.count("script"), found.count("img")) == (3, 0)
    assert "failed" in [attributes.get("id") for tag, attributes in found.tags if tag == "section"]


def test_json_in_a_script_cannot_end_it() -> None:
    value = {HOSTILE: [HOSTILE, float("nan"), float("inf"), 1.5, None, True]}
    text = script_json(value)
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, None, None, 1.5, None, True]}


def test_table_escapes_and_marks_numbers() -> None:
    text = table([Column("<b>", '"k"', True)], [[Cell("<i>", 1.5)], [Cell("", float("nan"))]])
    assert "<b>" not in text
    assert "<i>" not in text
    assert 'data-key="&quot;k&quot;"' in text
    assert text.count("data-v") == 1


def test_long_text_is_shortened() -> None:
    jobs = [Job(0, "0_x", RunResult(status="failed", error="e" * 100_000, overrides="a=" + "b" * 100_000))]
    name_choices(jobs)
    assert len(page(jobs, sections(jobs), None)) < 40_000


def test_missing_pieces_are_left_out_with_a_reason(make_run: MakeRun, jobs_of: Read) -> None:
    folder = make_run(0, "quant=int8", 3, latency_us_median=None, model_bytes=None)
    for path in folder.iterdir():
        if path.name != "results.csv":
            path.unlink()
    found = {section.key: section for section in sections(jobs_of())}
    missing = {key for key, section in found.items() if section.missing}
    assert missing == {"pareto", "grid", "calibration", "classes", "confusion", "layers", "flips", "significance"}
    text = " ".join(_page(jobs_of()).words)
    assert "Not in this report" in text
    for key in missing:
        assert found[key].missing in text, key


def test_only_failed_runs_make_a_page() -> None:
    jobs = [Job(0, "0_x", RunResult(status="failed", error="no luck"))]
    name_choices(jobs)
    words = " ".join(_page(jobs).words)
    assert "nothing to recommend" in words
    assert "no luck" in words


def test_numbers_that_cannot_be_fail_their_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3, accuracy=float("nan"), mcnemar_p=float("inf"))
    make_run(1, "quant=uint8", 3, float_accuracy=None, accuracy_delta=None, accuracy_ci_low=None)
    found = _page(jobs_of())
    assert "column `accuracy` holds nan" in " ".join(found.words)
    assert any("1 of 1 runs qualify" in word for word in found.words)


def test_recommendation_says_float_and_other_seeds(make_run: MakeRun, jobs_of: Read) -> None:
    for number, (seed, wrong) in enumerate(((1, 2), (2, 4), (3, 6))):
        make_run(number, f"quant=int8 seed={seed}", wrong, number)
    words = " ".join(_page(jobs_of()).words)
    assert "difference from the float model is within noise" in words
    assert "The same settings with other seeds: 87.50 % (87.40 to 87.60, n = 2)." in words
    make_run(3, "quant=u8s8 seed=1", 20, model_bytes=100)
    for path in jobs_of():
        if path.row.quant_type == "int8":
            (path.path / "results.csv").unlink()
    words = " ".join(_page(jobs_of()).words)
    assert "Its loss against the float model is real at the 5 % level." in words
    assert "other seeds" not in words


MEASURED = {
    "portable": False,
    "default_session_accuracy": 0.8,
    "default_session_changed": 90,
    "default_session_latency_us_median": 40.0,
}
THERE = (
    "In ONNX Runtime's default session on the CPU of this run: 80.00 % instead of 87.70 %, 90 predictions changed, "
    "40 us."
)


def test_recommendation_prefers_a_portable_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=u8s8", 4, model_bytes=80_000, portable=True)
    make_run(1, "quant=int8", 3, model_bytes=20_000, **MEASURED)
    found = {section.key: section.markup for section in sections(jobs_of())}
    words = " ".join(Elements(found["answer"]).words)
    assert "python run.py quant=u8s8" in words
    assert "1 of the runs that qualify is not portable and was left out." in words
    assert "only the portable ones are considered" in words
    assert "The most accurate is Job 1 (int8, 87.70 %*)" in words
    assert NOTE in words
    for key in ("significance", "runs"):
        cells = Elements(found[key]).words
        assert ("87.70*" in cells, "87.60" in cells, "87.60*" in cells) == (True, True, False)
        assert NOTE in cells
        assert any("at worst Job 1: 80.00 % instead of 87.70 %" in cell for cell in cells)


def test_recommendation_says_that_no_run_is_portable(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=u8s8", 4, model_bytes=80_000, portable=False)
    make_run(1, "quant=int8", 3, model_bytes=20_000, **MEASURED)
    words = " ".join(_page(jobs_of()).words)
    assert "python run.py quant=int8" in words
    assert f"No run that qualifies is portable, so the choice is among all of them. {THERE}" in words
    assert "87.70 %*" in words


def test_default_session_is_shown_with_its_accuracy_only(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3, **MEASURED)
    found = {section.key: section for section in sections(jobs_of())}
    heads = [a["data-key"] for tag, a in Elements(found["runs"].markup).tags if tag == "th"]
    place = heads.index("default_session_accuracy")
    assert heads[place : place + 3] == [key for key in MEASURED if key != "portable"]
    assert {"80.00", "90", "40"} <= set(Elements(found["runs"].markup).words)
    for chart in found["pareto"].drawings:
        assert isinstance(chart, Chart)
        labels = [label for series in chart.series for label in series.hover]
        assert len(labels) == 2
        assert all("Top-1 87.70 %* (" in label and "* not portable" in label and THERE in label for label in labels)


def test_no_mark_and_no_column_where_every_run_is_portable(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=float", 0)
    make_run(1, "quant=u8s8", 3, portable=True)
    found = {section.key: section.markup for section in sections(jobs_of())}
    text = found["answer"] + found["significance"] + found["runs"]
    assert "*" not in text
    assert "default_session" not in text
    assert "left out" not in text
    assert "No run" not in text


def test_twin_is_a_row_and_no_comparison(make_run: MakeRun, jobs_of: Read, tmp_path: Path) -> None:
    make_run(0, "quant=float calibration=minmax", 0)
    twin = tmp_path / "sweep" / "1_y"
    twin.mkdir()
    (twin / "same_as.json").write_text(json.dumps({"folder": "0_x", "overrides": ["quant=float", "calibration=mse"]}))
    words = _page(jobs_of()).words
    assert "duplicate" in words
    assert any("1 of 1 runs qualify" in word for word in words)


def test_twins_fill_their_cells_of_the_grid(make_run: MakeRun, jobs_of: Read, tmp_path: Path) -> None:
    make_run(0, "quant=float calibration=minmax", 0)
    make_run(1, "quant=int8 calibration=minmax", 2)
    make_run(2, "quant=int8 calibration=mse", 4)
    twin = tmp_path / "sweep" / "3_y"
    twin.mkdir()
    (twin / "same_as.json").write_text(json.dumps({"folder": "0_x", "overrides": ["quant=float", "calibration=mse"]}))
    (heat,) = next(section for section in sections(jobs_of()) if section.key == "grid").drawings
    assert isinstance(heat, Heat)
    cells = {(y, x): heat.cells[i][j] for i, y in enumerate(heat.y) for j, x in enumerate(heat.x)}
    assert cells == {
        ("float", "minmax"): "88.00",
        ("float", "mse"): "88.00",
        ("int8", "minmax"): "87.80",
        ("int8", "mse"): "87.60",
    }
    assert "A duplicate has the value" in heat.note


def test_filter_shows_how_it_is_written(grid: list[Job]) -> None:
    (field,) = [attributes for _, attributes in _page(grid).tags if attributes.get("id") == "filter"]
    assert field["placeholder"] == "e.g. int8 accuracy>0.87 status!=failed"


def test_many_rows_are_cut_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet8_quant.sweep.report import tables

    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    jobs = [Job(i, f"{i}_x", RunResult(accuracy=0.5, overrides=f"seed={i}")) for i in range(5)]
    name_choices(jobs)
    assert "The first 3 of 5 runs; summary.csv has all." in " ".join(_page(jobs).words)


def test_report_without_plotly_says_what_to_install(
    grid: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("plotly"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    write_report(grid, tmp_path / "report.html")
    assert "[report]" in caplog.text
    found = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The plots need the package plotly" in " ".join(found.words)


def test_command_runs_one_job_again() -> None:
    words = "quant=int8 'data.path=a b' cache_dir=/x resume=true seed=3"
    assert command(RunResult(overrides=words)) == "python run.py quant=int8 'data.path=a b' seed=3"
    study = command(RunResult(overrides="experiment=seed_table quant=int8"))
    assert study == "python run.py hydra.mode=RUN experiment=seed_table quant=int8"
    assert command(RunResult(overrides="a='b")).startswith("python run.py ")


def test_sweep_command_comes_from_the_sweeps_own_file(grid: list[Job], tmp_path: Path) -> None:
    assert "Sweep command" not in " ".join(_page(grid).words)
    words = ("quant=int8,u8s8", "cache_dir=/x", "hydra/launcher=joblib", "hydra.mode=MULTIRUN")
    write_plan(Plan(words, 12, 1), tmp_path / "sweep")
    assert "python run.py -m quant=int8,u8s8 hydra/launcher=joblib" in _page(grid).words
    write_plan(Plan(("experiment=seed_table",), 3, 1), tmp_path / "sweep")
    assert "python run.py experiment=seed_table" in _page(grid).words


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_thumbnail_is_a_png_of_the_image(channels: int) -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (200, 100, channels), np.uint8)
    small = image[:32, :32]
    with Image.open(io.BytesIO(base64.b64decode(data_uri(small).partition(",")[2]))) as picture:
        assert np.array_equal(np.asarray(picture).reshape(small.shape), small)
    with Image.open(io.BytesIO(base64.b64decode(data_uri(image).partition(",")[2]))) as picture:
        assert picture.size == (48, 96)
