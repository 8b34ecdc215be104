"""The table of a sweep."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.portability import NOTE
from resnet8_quant.sweep.summary import COLUMNS, check_columns, summarize, table
from resnet8_quant.terminal import markdown


def _row(name: str, accuracy: float, **more: object) -> RunResult:
    types = "float32" if name == "float" else "int8"
    return RunResult(
        quant_type=name, activation_type=types, weight_type=types, accuracy=accuracy, float_accuracy=0.9, **more
    )  # type: ignore[arg-type]


def test_markdown_aligns_and_keeps_every_cell_whole() -> None:
    assert markdown(("A", "Number"), [("long name", "1"), ("x", "1234567")]).splitlines() == [
        "| A         |  Number |",
        "|-----------|--------:|",
        "| long name |       1 |",
        "| x         | 1234567 |",
    ]


def test_markdown_escapes_pipes_and_columns_are_three_wide() -> None:
    assert markdown(("A", "B"), [("x|y", "1")]).splitlines() == ["| A    |   B |", "|------|----:|", "| x\\|y |   1 |"]
    assert markdown(("A", "B"), []).splitlines() == ["| A   |   B |", "|-----|----:|"]


def test_order_baseline_then_accuracy_then_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "0_a": RunResult(status="failed", error="no luck", quant_type="uint8"),
        "1_b": _row("low", 0.8),
        "2_c": _row("high", 0.95),
        "3_d": _row("float", 0.9),
    }
    for folder, row in rows.items():
        (tmp_path / folder).mkdir()
        results.write(row, tmp_path / folder)
    assert summarize(tmp_path, ("Job", "Model", "Accuracy"), 4) == 1
    text = (tmp_path / "summary.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == list("3210")
    assert "| 3   |  FP32 |  90.00 % |" in text
    assert "Job 0 failed: no luck" in text
    assert "3 of 4 jobs ok" in capsys.readouterr().out
    header, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert header.split(",") == ["job", "folder", *results.COLUMNS]
    assert [line.split(",")[1] for line in lines] == ["3_d", "2_c", "1_b", "0_a"]


def test_csv_has_every_column_with_its_value(tmp_path: Path) -> None:
    (tmp_path / "0_a").mkdir()
    row = _row("int8", 0.1 + 0.2, per_channel=True, overrides='quant=int8 x="a,b"', quant_ties=0)
    results.write(row, tmp_path / "0_a")
    assert summarize(tmp_path, tuple(COLUMNS), None) == 0
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        (back,) = csv.DictReader(file)
    assert (back["job"], back["folder"], back["accuracy"], back["quant_ties"]) == ("0", "0_a", repr(0.1 + 0.2), "0")
    assert (back["per_channel"], back["overrides"], back["error"]) == ("True", row.overrides, "")
    assert tuple(back)[2:] == results.COLUMNS


def test_summaries_of_two_sweeps_concatenate(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.8), ("b", 0.7)):
        (tmp_path / name / "0_x").mkdir(parents=True)
        results.write(_row("int8", accuracy), tmp_path / name / "0_x")
        summarize(tmp_path / name, ("Job",), None)
    first, second = ((tmp_path / name / "summary.csv").read_text().splitlines() for name in "ab")
    assert first[0] == second[0]
    assert len(first) == len(second) == 2


def test_summary_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0_a").mkdir()
    results.write(_row("int8", 0.8), tmp_path / "0_a")
    (tmp_path / "summary.csv").mkdir()  # nothing can take its place
    with pytest.raises(ExperimentError, match=r"cannot write .*summary.csv") as caught:
        summarize(tmp_path, ("Job", "Top-1"), None)
    assert "python -m resnet8_quant.summary" in caught.value.remedy
    assert "80.00 %" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert "80.00 %" in capsys.readouterr().out
    assert "summary.csv" in caplog.text


def test_fault_of_the_report_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet8_quant.sweep.report import write

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(write, "write_report", fail)
    (tmp_path / "0_a").mkdir()
    results.write(_row("int8", 0.8), tmp_path / "0_a")
    with pytest.raises(ExperimentError, match="ZeroDivisionError: oops"):
        summarize(tmp_path, ("Job",), None)
    assert (tmp_path / "summary.csv").is_file()


def test_plots_are_drawn_where_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, accuracy in enumerate((0.8, 0.9)):
        (tmp_path / f"{number}_a").mkdir()
        results.write(_row("int8", accuracy, model_bytes=1000 + number), tmp_path / f"{number}_a")
    summarize(tmp_path, ("Job",), None)
    assert not (tmp_path / "plots").exists()
    summarize(tmp_path, ("Job",), None, plots=True)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"pareto_bytes.png", "pareto_bytes.svg"}


@pytest.fixture
def saturating() -> list[Job]:
    """One run that is portable, two that are not, of which one was measured in a default session, and a failed one."""
    measured = {
        "default_session_accuracy": 0.7,
        "default_session_changed": 1234,
        "default_session_latency_us_median": 80.2,
    }
    rows = [
        _row("u8s7", 0.85, portable=True, latency_us_median=100.0),
        _row("int8", 0.86, portable=False, latency_us_median=100.0, **measured),
        _row("u8s8", 0.87, portable=False, latency_us_median=100.0),
        RunResult(status="failed", error="no luck", portable=False),
    ]
    return [Job(number, f"{number}_x", row, choices=row.quant_type or "") for number, row in enumerate(rows)]


def test_accuracy_that_does_not_hold_everywhere_is_marked(saturating: list[Job]) -> None:
    text = table(saturating, ("Choices", "Top-1", "Latency"))
    assert text.splitlines()[:6] == [
        "| Choices |    Top-1 | Latency |",
        "|---------|---------:|--------:|",
        "| u8s7    | 85.00 %  |  100 us |",
        "| int8    | 86.00 %* |  100 us |",
        "| u8s8    | 87.00 %* |  100 us |",
        "|         |  failed  |         |",
    ]
    words = " ".join(text.split())
    assert words.count(NOTE) == 1
    measured = (
        "1 such run was measured in it, at worst Job 1: 70.00 % instead of 86.00 %, 1,234 predictions changed, 80 us"
    )
    assert measured in words
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_mark_without_a_measurement_and_no_mark(saturating: list[Job]) -> None:
    assert table(saturating[2:3], ("Top-1",)).split("\n\n")[2:] == [  # after the table and the float model
        "* On x86 CPUs without VNNI, ONNX Runtime's default session can saturate and\n"
        "  answer differently; quant=u8s7 or deploy=x86 is exact there too."
    ]
    unmarked = [saturating[0], Job(9, "9_x", _row("float", 0.9)), saturating[3]]  # a float row does not say
    assert "*" not in table(unmarked, tuple(COLUMNS))


@pytest.mark.parametrize(
    ("columns", "marked"),
    [
        (("Choices", "accuracy"), "| u8s8    |    0.87* |"),
        (("Size", "Choices"), "|      |   u8s8* |"),
        (("portable", "Latency"), "| False*   |  100 us |"),
    ],
)
def test_mark_in_a_table_without_top_1(columns: tuple[str, ...], marked: str, saturating: list[Job]) -> None:
    text = table(saturating, columns)
    assert marked in text.splitlines()
    assert text.count("*") == 3  # two runs and the sentence
    assert NOTE in " ".join(text.split())


def test_worst_of_several_measurements_is_named() -> None:
    rows = [
        _row("a", 0.9, portable=False, default_session_accuracy=0.9, default_session_changed=0),
        _row("b", 0.8, portable=False, default_session_accuracy=0.75, default_session_changed=1),
    ]
    words = " ".join(table([Job(i, f"{i}_x", row) for i, row in enumerate(rows)], ("Top-1",)).split())
    assert "2 such runs were measured in it, at worst Job 1: 75.00 % instead of 80.00 %, 1 prediction changed." in words


def test_mark_is_no_bullet_in_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0_a").mkdir()
    results.write(_row("int8", 0.8, portable=False), tmp_path / "0_a")
    assert summarize(tmp_path, ("Job", "Top-1"), None) == 0
    shown, written = capsys.readouterr().out, (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| 0   | 80.00 %* |" in shown
    assert "| 0   | 80.00 %* |" in written
    assert "\n* On x86 CPUs" in shown
    assert "\n\\* On x86 CPUs" in written


def test_unknown_column_is_refused() -> None:
    check_columns(tuple(COLUMNS))
    with pytest.raises(ExperimentError, match="Akkuracy"):
        check_columns(("Model", "Akkuracy"))
    with pytest.raises(ExperimentError, match="no column"):
        check_columns(())


@pytest.mark.parametrize("fault", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_files_are_written_whatever_becomes_of_the_terminal(
    fault: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            raise fault

        def fileno(self) -> int:
            return spare

    (tmp_path / "0_a").mkdir()
    results.write(RunResult(status="failed", error="no luck"), tmp_path / "0_a")
    with (tmp_path / "spare").open("w") as file:
        spare = file.fileno()
        monkeypatch.setattr("sys.stdout", Terminal())
        if isinstance(fault, BrokenPipeError):
            assert summarize(tmp_path, ("Job",), 1) == 1
        else:
            with pytest.raises(ExperimentError, match="cannot write to stdout: No space left on device"):
                summarize(tmp_path, ("Job",), 1)
    assert {"summary.csv", "summary.md", "report.html"} <= {path.name for path in tmp_path.iterdir()}
