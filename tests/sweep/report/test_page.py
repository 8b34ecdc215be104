"""The page as text: what it says, that nothing from a run becomes markup, what is left out when files are missing."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet8_quant import report
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, name_choices
from resnet8_quant.sweep.plan import Plan, write_plan
from resnet8_quant.sweep.portability import NOTE
from resnet8_quant.sweep.report import tables
from resnet8_quant.sweep.report.page import Section, datatables, render, sections, write_report
from resnet8_quant.sweep.report.plots import data_uri
from resnet8_quant.sweep.report.tables import command, provenance

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = "x=</script><script>alert(1)</script>\"'><img/src=x/onerror=alert(2)>&amp;\u2028{{ 7*7 }}"


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text that is shown of the page, also by section."""

    VOID = ("br", "img", "input", "meta", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self.depth_in_hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and (self.depth_in_hidden or "hidden" in dict(attrs)):
            self.depth_in_hidden += 1
        if tag not in ("b", "span", "wbr"):
            self.handle_data(" ")
        if tag == "section":
            self.sections[str(dict(attrs)["id"])] = []

    def handle_endtag(self, tag: str) -> None:
        self.depth_in_hidden -= self.depth_in_hidden > 0

    def handle_data(self, data: str) -> None:
        if self.depth_in_hidden:
            return
        self.words.append(data)
        if self.sections:
            [*self.sections.values()][-1].append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def text(self, section: str = "") -> str:
        return " ".join("".join(self.sections[section] if section else self.words).split())


def test_the_recommended_file_is_named_for_the_terminal(
    make_run: MakeRun, jobs_of: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(0, "quant=u8s8", 4, accuracy=0.87, accuracy_delta=-0.0123, model_bytes=1000)
    page = tmp_path / "page.html"
    folder = jobs_of()[0].path
    assert write_report(jobs_of(), page) == f"Recommended: u8s8, 87.00 % (-1.23), 1,000 B: {folder / 'model.onnx'}"
    shutil.rmtree(folder)
    make_run(0, "quant=u8s8", 4, accuracy=0.87, accuracy_delta=-0.0123, model_bytes=1000, tflite_bytes=900)
    assert write_report(jobs_of(), page) == f"Recommended: u8s8, 87.00 % (-1.23), 900 B: {folder / 'model.tflite'}"
    assert report.main([str(folder), "--out", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Recommended: u8s8, 87.00 %")
    assert write_report(jobs_of(), page, limits={"flash": 1}) == ""


def _page(jobs: list[Job]) -> Elements:
    return Elements(render(jobs, sections(jobs)[0], "/* vega */", ("/* datatables */", "")))


def _by_key(jobs: list[Job]) -> dict[str, Section]:
    return {section.key: section for section in sections(jobs)[0]}


def test_page_of_a_grid_says_the_answer_first(grid: list[Job]) -> None:
    page = _page(grid)
    shown = ["answer", "pareto", "grid", "calibration", "classes", "confusion", "layers", "flips", "significance"]
    assert [*page.sections] == [*shown, "runs", "pair", "provenance"]
    words = page.text()
    assert "A model qualifies if it is not significantly less accurate" in words
    assert "python run.py quant=" in words
    assert "95 % Wilson" in words
    assert "float model sha256" in words
    assert "corrected by Holm for 12 comparisons" in words
    assert page.count("tr") == 2 + 13 + 13


def test_page_fetches_nothing(grid: list[Job]) -> None:
    page = _page(grid)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#")), (tag, name)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_flips_are_pictures_with_their_classes(grid: list[Job]) -> None:
    page = _page(grid)
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert 0 < len(pictures) <= 24
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert {a["class"] for tag, a in page.tags if tag == "figure" and a.get("class")} == {"wrong"}
    arrow = " \N{RIGHTWARDS ARROW} "
    changes = [word.split(arrow) for word in page.words if arrow in word]
    assert len(changes) == len(pictures)
    assert all((CLASSES.index(before) + 1) % 10 == CLASSES.index(after) for before, after in changes)


def test_hostile_text_stays_text(make_run: MakeRun, jobs_of: Read) -> None:
    harmless = make_run(0, "quant=int8 x=a", 3)
    baseline = _page(jobs_of())
    shutil.rmtree(harmless)
    folder = make_run(0, f"quant=int8 {json.dumps(HOSTILE)}", 3, quant_type=HOSTILE, model=HOSTILE, cpu=HOSTILE)
    (folder / "ranges.csv").write_text("tensor,snr_db\n" + json.dumps(HOSTILE).replace("\\", "") + ",3\n")
    record = {"config": {"data": {"kind": "sample"}}, "versions": {HOSTILE: HOSTILE}}
    (folder / "run.json").write_text(json.dumps(record))
    hostile = _page(jobs_of())
    for tag in ("script", "img", "iframe", "a", "svg"):
        assert hostile.count(tag) == baseline.count(tag), tag
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert any("alert(1)" in word and "{{ 7*7 }}" in word for word in hostile.words)


def test_hostile_failure_and_folder_stay_text() -> None:
    jobs = [
        Job(None, HOSTILE, RunResult(status="failed", error=HOSTILE, overrides=HOSTILE)),
        Job(1, HOSTILE, RunResult(accuracy=0.5, overrides="a=1")),
    ]
    name_choices(jobs)
    page = _page(jobs)
    assert (page.count("script"), page.count("img")) == (4, 0)
    assert "failed" in page.sections


def test_long_text_of_failed_runs_is_shortened() -> None:
    jobs = [Job(0, "0_x", RunResult(status="failed", error="e" * 100_000, overrides="a=" + "b" * 100_000))]
    name_choices(jobs)
    assert len(render(jobs, sections(jobs)[0], None, None)) < 60_000
    assert "nothing to recommend" in _page(jobs).text()


def test_missing_pieces_are_left_out_with_a_reason(make_run: MakeRun, jobs_of: Read) -> None:
    folder = make_run(0, "quant=int8", 3, latency_us_median=None, model_bytes=None)
    for path in folder.iterdir():
        if path.name != "results.csv":
            path.unlink()
    missing = {key: section.missing for key, section in _by_key(jobs_of()).items() if section.missing}
    left_out = {"pareto", "grid", "calibration", "classes", "confusion", "layers", "flips", "significance", "pair"}
    assert {*missing} == left_out
    text = _page(jobs_of()).text("left-out")
    assert "Not in this report" in text
    assert all(reason in text for reason in missing.values())


def test_numbers_that_cannot_be_fail_their_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3, accuracy=float("nan"), mcnemar_p=float("inf"))
    make_run(1, "quant=uint8", 3, float_accuracy=None, accuracy_delta=None, accuracy_ci_low=None)
    words = _page(jobs_of()).text()
    assert "column `accuracy` holds nan" in words
    assert "1 of 1 models qualify" in words


def test_recommendation_says_float_and_other_seeds(make_run: MakeRun, jobs_of: Read) -> None:
    for number, (seed, wrong) in enumerate(((1, 2), (2, 4), (3, 6))):
        make_run(number, f"quant=int8 seed={seed}", wrong, number)
    words = _page(jobs_of()).text("answer")
    assert "difference from the float model is within noise" in words
    assert "The same settings with other seeds: 87.50 % (87.40 to 87.60, n = 2)." in words


@pytest.mark.parametrize(("wrong", "serious"), [(8, False), (10, True), (20, True)])
def test_a_significant_loss_of_a_point_is_a_warning_even_where_it_is_the_best(
    wrong: int, serious: bool, make_run: MakeRun, jobs_of: Read
) -> None:
    make_run(0, "quant=u8s8 seed=1", wrong)  # of 1000 images
    words = _page(jobs_of()).text("answer")
    assert (f"Warning: It loses {wrong / 10:.2f} points against the float model" in words) == serious
    assert ("Its loss against the float model is real at the 5 % level." in words) == (not serious)
    assert "within noise" not in words


def test_identical_models_are_one_candidate_and_latency_says_how_it_was_measured(
    make_run: MakeRun, jobs_of: Read
) -> None:
    measured = {"latency_runs": 300, "latency_batch": 1, "latency_threads": 2}
    for number, latency in enumerate((50.0, 120.0, 130.0)):
        make_run(number, f"quant=int8 seed={number}", 3, model_sha256="a" * 64, latency_us_median=latency, **measured)
    folder = make_run(3, "quant=uint8 seed=0", 3, latency_us_median=90.0, machine_busy=True, latency_runs=40)
    record = "hydra:\n  runtime:\n    choices:\n      hydra/launcher: joblib\n"
    for name in ("0_x", "3_x"):
        (folder.parent / name / ".hydra").mkdir()
        (folder.parent / name / ".hydra" / "hydra.yaml").write_text(record)
    page = _page(jobs_of())
    words = page.text("answer")
    assert "python run.py quant=uint8" in words  # 90 us, against a median of 120 and not the luckiest 50
    assert "2 of 2 models qualify" in words
    calls = "median of 40 calls; median of 300 calls, batch 1, 2 threads"
    assert f"Latency decided between 2 equally small models: {calls}" in words
    assert "1 of the 4 runs that it decided between were timed on a busy machine" in words
    assert "the launcher joblib" in words
    assert "busy machine" in words.split("Latency")[1]
    facts = provenance(jobs_of())
    assert facts["Launcher"] == ["joblib"]
    assert facts["Latency"] == [
        "median of 300 calls, batch 1, 2 threads (3 runs)",
        "median of 40 calls (1 run)",
        "1 of 4 runs on a busy machine",
    ]
    make_run(4, "quant=w4a8 seed=0", 3, model_sha256="a" * 64, latency_us_median=1.0, machine_busy=False, **measured)
    (folder / "results.csv").unlink()
    words = _page(jobs_of()).text("answer")
    assert "4 runs made this same model; the latency is the median of theirs." in words
    assert "Latency decided" not in words


IN_DEFAULT_SESSION = {
    "default_session_accuracy": 0.8,
    "default_session_changed": 90,
    "default_session_latency_us_median": 40.0,
}
MEASURED = {"portable": False, **IN_DEFAULT_SESSION}
INSTEAD = "80.00 % instead of 87.70 %, 90 predictions changed, 40 us."
THERE = f"In ONNX Runtime's default session on the CPU of this run: {INSTEAD}"


def test_recommendation_prefers_a_portable_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=u8s8", 4, model_bytes=80_000, portable=True)
    make_run(1, "quant=int8", 3, model_bytes=20_000, **MEASURED)
    page = _page(jobs_of())
    words = page.text("answer")
    assert "python run.py quant=u8s8" in words
    assert "Left out of the models that qualify, because they are not portable: 1." in words
    assert "only the portable ones are considered" in words
    assert "The most accurate is Job 1 (int8, 87.70 %*)" in words
    assert NOTE in words
    for key in ("significance", "runs"):
        cells = page.sections[key]
        assert ("87.70*" in cells, "87.60" in cells, "87.60*" in cells) == (True, True, False)
        assert NOTE in cells
        assert any("at worst Job 1: 80.00 % instead of 87.70 %" in cell for cell in cells)


def test_recommendation_says_that_no_run_is_portable(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=u8s8", 4, model_bytes=80_000, portable=False)
    make_run(1, "quant=int8", 3, model_bytes=20_000, **MEASURED)
    words = _page(jobs_of()).text("answer")
    assert "python run.py quant=int8" in words
    assert f"No run that qualifies is portable, so the choice is among all of them. {THERE}" in words
    assert "87.70 %*" in words


def test_default_session_is_shown_with_its_accuracy_only(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3, **MEASURED)
    parts = _by_key(jobs_of())
    heads = [column.key for column in parts["runs"].content.columns]
    place = heads.index("default_session_accuracy")
    assert heads[place : place + 3] == [*IN_DEFAULT_SESSION]
    assert [cell.text for cell in parts["runs"].content.lines[0].cells[place : place + 3]] == ["80.00", "90", "40"]
    for plot in parts["pareto"].plots:
        (point,) = plot.spec["data"]["values"]
        assert "Top-1 87.70 %* (" in point["hover"]
        assert "* not portable" in point["hover"]
        assert THERE in point["hover"]


def test_no_mark_and_no_column_where_every_run_is_portable(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=float", 0)
    make_run(1, "quant=u8s8", 3, portable=True)
    page = _page(jobs_of())
    text = page.text("answer") + page.text("significance") + page.text("runs")
    for absent in ("*", "default_session", "left out", "No run"):
        assert absent not in text


def test_many_rows_are_cut_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    jobs = [Job(i, f"{i}_x", RunResult(accuracy=0.5, overrides=f"seed={i}")) for i in range(5)]
    name_choices(jobs)
    assert "The first 3 of 5 runs; summary.csv has all." in _page(jobs).text()


def test_report_without_its_extra_says_what_to_install(
    grid: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setattr("resnet8_quant.sweep.report.page.find_spec", lambda name: None)
    write_report(grid, tmp_path / "report.html")
    assert caplog.text.count("[report]") == 2
    assert "The plots need the package vl-convert-python" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_widget_is_what_itables_has() -> None:
    pytest.importorskip("itables")
    bundle = datatables()
    assert bundle is not None
    script, style = bundle
    assert "as default" in script
    assert "</style" not in style


def test_command_runs_one_job_again() -> None:
    words = "quant=int8 'data.path=a b' cache_dir=/x resume=true seed=3"
    assert command(RunResult(overrides=words)) == "python run.py quant=int8 'data.path=a b' seed=3"
    study = command(RunResult(overrides="experiment=seed_table quant=int8"))
    assert study == "python run.py hydra.mode=RUN experiment=seed_table quant=int8"
    assert command(RunResult(overrides="a='b")).startswith("python run.py ")


def test_sweep_command_comes_from_the_sweeps_own_file(grid: list[Job], tmp_path: Path) -> None:
    assert "Sweep command" not in provenance(grid)
    words = ("quant=int8,u8s8", "cache_dir=/x", "hydra/launcher=joblib", "hydra.mode=MULTIRUN")
    write_plan(Plan(words, 12, 1), tmp_path / "sweep")
    assert provenance(grid)["Sweep command"] == ["python run.py -m quant=int8,u8s8 hydra/launcher=joblib"]
    write_plan(Plan(("experiment=seed_table",), 3, 1), tmp_path / "sweep")
    assert provenance(grid)["Sweep command"] == ["python run.py experiment=seed_table"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_thumbnail_is_a_png_of_the_image(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 100, channels), np.uint8)
    small = image[:32, :32]
    shown, halved = (Image.open(io.BytesIO(base64.b64decode(data_uri(i).partition(",")[2]))) for i in (small, image))
    assert np.array_equal(np.asarray(shown).reshape(small.shape), small)
    assert halved.size == (48, 96)


def test_limits_of_the_command_line_are_those_of_the_page(
    grid: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "sweep"), "--out", str(tmp_path / "page.html"), "--max-flash", "60000", "--max-lost", "0.6"]
    assert report.main([*words, "--max-lost", "nan"]) == report.main([*words, "--max-ram", "1.5"]) == 1
    assert report.main(words) == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [a.get("value") for tag, a in page.tags if tag == "input"] == ["60000", "", "0.6"]
    assert "No model is within all of the limits 60,000 bytes of flash, 0.6 points lost." in page.text("answer")
    assert "bytes of flash: no run says how many there are" in page.text("answer")
    assert "confusion" in page.sections  # of the run that is recommended without limits
