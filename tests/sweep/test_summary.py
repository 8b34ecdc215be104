"""The table of a sweep."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, name_choices
from resnet8_quant.sweep.portability import NOTE
from resnet8_quant.sweep.summary import COLUMNS, check_columns, select, summarize, table, write_csv
from resnet8_quant.terminal import markdown


def _row(name: str, accuracy: float, **more: object) -> RunResult:
    types = "float32" if name == "float" else "int8"
    return RunResult(
        quant_type=name, activation_type=types, weight_type=types, accuracy=accuracy, float_accuracy=0.9, **more
    )  # type: ignore[arg-type]


def _jobs(*rows: RunResult) -> list[Job]:
    return [Job(number, f"{number}_x", row, choices=row.quant_type or "") for number, row in enumerate(rows)]


def _run(folder: Path, row: RunResult) -> None:
    folder.mkdir()
    results.write(row, folder)


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_markdown_aligns_escapes_pipes_and_keeps_every_cell_whole() -> None:
    assert markdown(("A", "Number"), [("long name", "1"), ("x", "1234567")]).splitlines() == [
        "| A         |  Number |",
        "|-----------|--------:|",
        "| long name |       1 |",
        "| x         | 1234567 |",
    ]

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
        _run(tmp_path / folder, row)
    assert summarize(tmp_path, ("Job", "Model", "Accuracy"), 4) == 1
    text = (tmp_path / "summary.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == list("3210")
    assert "| 3   |  FP32 |  90.00 % |" in text
    assert "Job 0 failed: no luck" in text
    assert "3 of 4 jobs ok" in capsys.readouterr().out
    header, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert header.split(",") == ["job", "folder", *results.COLUMNS]
    assert [line.split(",")[1] for line in lines] == ["3_d", "2_c", "1_b", "0_a"]


def test_csv_keeps_every_value_as_it_is_in_results_csv(tmp_path: Path) -> None:
    """Integers stay integers and booleans booleans beside empty cells, and floats keep all their digits."""
    jobs = _jobs(
        _row("int8", 0.1 + 0.2, per_channel=True, overrides='quant=int8 x="a,b"', quant_ties=0, model_bytes=10**12),
        RunResult(status="failed", error="no\nluck"),
        _row("u8s8", 1.0, per_channel=False, latency_us_median=1e-07, seed=3),
    )
    write_csv(jobs, tmp_path / "summary.csv")
    written = _csv_rows(tmp_path / "summary.csv")
    assert tuple(written[0])[2:] == results.COLUMNS
    for job, row in zip(jobs, written, strict=True):
        expected = {name: getattr(job.row, name) for name in results.COLUMNS}
        assert row == {"job": str(job.number), "folder": job.folder} | {
            name: "" if value is None else str(value) for name, value in expected.items()
        }


def test_settings_of_any_job_are_columns(tmp_path: Path) -> None:
    settings = [
        {"config.quant.weight_bits": "4", "config.calibration.percentile": "99.9", "config.data.path": "a"},
        {"config.quant.weight_bits": "10", "config.quant.version": "1.10"},
        {},
    ]
    jobs = _jobs(*(_row("int8", 0.8, settings=setting) for setting in settings))
    write_csv(jobs, tmp_path / "summary.csv")
    written = _csv_rows(tmp_path / "summary.csv")
    names = ["calibration.percentile", "data.path", "quant.version", "quant.weight_bits"]
    assert list(written[0])[2 + len(results.COLUMNS) :] == [f"config.{name}" for name in names]
    assert [[row[f"config.{name}"] for name in names] for row in written] == [
        ["99.9", "a", "", "4"],
        ["", "", "1.10", "10"],
        ["", "", "", ""],
    ]
    chosen = select(jobs, where="`config.quant.weight_bits` > 5 and `config.quant.version` == '1.10'")
    assert [job.number for job in chosen] == [1]
    assert [job.number for job in select(jobs, sort="-config.quant.weight_bits")] == [1, 0, 2]  # as numbers


TABLE = _jobs(
    RunResult(quant_type="int8", accuracy=0.9, per_channel=False, model_bytes=100),
    RunResult(quant_type="u8s8", accuracy=0.8, per_channel=True, model_bytes=50),
    RunResult(quant_type="uint8", status="failed", error="no luck"),
)


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ("accuracy > 0.85", [0]),
        ("0.75 < accuracy <= 0.9", [0, 1]),
        ("not accuracy > 0.85", [1, 2]),
        ("quant_type == 'u8s8' or accuracy > 0.85", [0, 1]),
        ("quant_type in ['int8', 'uint8']", [0, 2]),
        ("per_channel", [1]),
        ("not per_channel", [0]),
        ("error.isna()", [0, 1]),
        ("error.notna()", [2]),
        ("model_bytes > 1000 * accuracy - 760", [1]),
        ("quant_type.str.startswith('u')", [1, 2]),
        ("status == 'ok' and job < 1", [0]),
    ],
)
def test_where_is_a_query_of_pandas(expression: str, numbers: list[int]) -> None:
    assert [job.number for job in select(TABLE, where=expression)] == numbers


@pytest.mark.parametrize(
    "expression",
    ["", "accuracy >", "accuracy = 1", "acuracy > 1", "accuracy > '0.5'", "1", "error is None", "(" * 300 + ")" * 300],
)
def test_where_that_pandas_does_not_take_names_the_nearest_columns(expression: str) -> None:
    with pytest.raises(ExperimentError, match="--where") as caught:
        select(TABLE, where=expression)
    nearest = caught.value.problem.rpartition("the nearest columns are ")[2]
    assert nearest.count(",") == 4
    assert "--csv FILE" in nearest
    assert caught.value.remedy.startswith("--where ")
    if "curacy" in expression:
        assert nearest.startswith("accuracy, ")


def test_where_with_a_wrong_name_is_typed_with_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"the nearest columns are accuracy, ") as caught:
        select(TABLE, where="seed == 1 and acuracy > 1")
    assert caught.value.remedy == "--where 'seed == 1 and accuracy > 1'"


def test_order_is_stable_and_empty_cells_come_last() -> None:
    def numbers(sort: str, jobs: list[Job] = TABLE) -> list[int | None]:
        return [job.number for job in select(jobs, sort=sort)]

    assert numbers("accuracy") == [1, 0, 2]
    assert numbers("-accuracy") == numbers("-Accuracy") == [0, 1, 2]
    assert numbers("error, -model_bytes") == [2, 0, 1]
    assert numbers("-accuracy", _jobs(*[RunResult(accuracy=0.5)] * 3)) == [0, 1, 2]
    with pytest.raises(ExperimentError, match="--sort") as caught:
        numbers("-model_byte")
    assert caught.value.remedy == "--sort model_bytes"


def test_an_integer_of_any_size_is_no_crash(tmp_path: Path) -> None:
    jobs = _jobs(RunResult(accuracy=0.5, model_bytes=10**30))
    write_csv(jobs, tmp_path / "summary.csv")
    assert str(10**30) in (tmp_path / "summary.csv").read_text()
    assert select(jobs, where="model_bytes > 5") == jobs


def test_each_model_and_data_set_has_its_own_float_line() -> None:
    rows = [
        {"data": "sample", "data_sha256": "a", "eval_images": 1000, "model": "resnet8", "float_model_sha256": "r"},
        {"data": "cifar10", "data_sha256": "b", "eval_images": 10_000, "model": "resnet8", "float_model_sha256": "r"},
        {"data": "cifar10", "data_sha256": "b", "eval_images": 10_000, "model": "cnn", "float_model_sha256": "c"},
    ]
    pairs = zip(rows * 2, (0.9, 0.88, 0.7) * 2, strict=True)
    jobs = _jobs(*(RunResult(accuracy=0.5, float_accuracy=accuracy, **row) for row, accuracy in pairs))  # type: ignore[arg-type]
    text = " ".join(table(jobs, ("Job", "Data", "Top-1")).split())
    assert "FP32 resnet8 on sample, 1,000 images: 90.00 %." in text
    assert "FP32 resnet8 on cifar10, 10,000 images: 88.00 %." in text
    assert "FP32 cnn on cifar10, 10,000 images: 70.00 %." in text
    assert text.count("FP32") == 3
    assert text.count("exact McNemar test against it, on the same data.") == 1
    one = " ".join(table(jobs[:1], ("Job",)).split())
    assert "FP32: 90.00 %; Delta in points; p: exact McNemar test against it." in one
    own_row = replace(jobs[0], row=replace(jobs[0].row, activation_type="float32"))
    assert "FP32" not in table([own_row, jobs[0]], ("Job",))


def test_float_latency_below_the_table_is_of_all_its_runs() -> None:
    rows = [_row("int8", 0.8, float_latency_us_median=us, float_model_bytes=1000) for us in (100.0, 200.0, 900.0)]
    jobs = _jobs(*rows)
    assert "FP32: 90.00 %, 1,000 B, 200 us;" in table(jobs, ("Job",))


def test_runs_on_a_busy_machine_are_counted_where_times_are_shown() -> None:
    jobs = _jobs(*(_row("int8", 0.8, latency_us_median=10.0, machine_busy=busy) for busy in (True, False)))
    note = "1 of 2 runs were timed on a busy machine (machine_busy)."
    assert note in table(jobs, ("Job", "Latency"))
    assert note not in table(jobs, ("Job", "Top-1"))


def test_single_run_is_named_by_its_folder() -> None:
    single = Job(None, "outputs/runs/2026-01-01_12-00-00", _row("int8", 0.8), Path("/o/runs/2026-01-01_12-00-00"))
    assert "| 2026-01-01_12-00-00 |" in table([single], ("Job",))


@pytest.mark.parametrize(
    ("overrides", "choices"),
    [
        (["quant=int8 seed=1", "quant=u8s8 seed=1"], ["int8", "u8s8"]),
        (["quant=int8 calibration.samples_per_class=10", "quant=int8"], ["samples_per_class=10", "int8"]),
        (["a.x=1 b.x=true z=gptq", "a.x=2 b.x=no z=none"], ["a.x=1 b.x=true gptq", "a.x=2 b.x=no z=none"]),
        (["quant.layers='[a,b]' seed=1", "quant.layers=[a] seed=2"], ["layers=[a,b] seed=1", "layers=[a] seed=2"]),
        (["quant=int8 seed=1"], ["int8 seed=1"]),
        (["a='b", "seed=1", None], ["int8", "seed=1", "int8"]),
    ],
)  # fmt: skip
def test_choices_can_be_read_without_a_heading(overrides: list[str], choices: list[str]) -> None:
    jobs = _jobs(*(RunResult(quant_type="int8", overrides=words) for words in overrides))
    name_choices(jobs)
    assert [job.choices for job in jobs] == choices


def test_settings_that_no_override_names_are_choices() -> None:
    """As of two experiment files, or of the Python API; but not what an override that varies says already."""
    first = {"config.calibration.percentile": "99.9", "config.quant.weight_bits": "4"}
    second = {"config.calibration.percentile": "99.99", "config.quant.weight_bits": "8"}
    jobs = _jobs(
        RunResult(quant_type="w4a8", overrides="quant=w4a8", settings=first),
        RunResult(quant_type="int8", overrides="quant=int8", settings=second),
        RunResult(status="failed", overrides="quant=int8"),
    )
    name_choices(jobs)
    assert [job.choices for job in jobs] == ["w4a8 percentile=99.9", "int8 percentile=99.99", "int8"]


def test_summary_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _run(tmp_path / "0_a", _row("int8", 0.8))
    (tmp_path / "summary.csv").mkdir()  # nothing can take its place
    with pytest.raises(ExperimentError, match=r"cannot write .*summary.csv") as caught:
        summarize(tmp_path, ("Job", "Top-1"), None)
    assert "python -m resnet8_quant.summary" in caught.value.remedy
    assert "80.00 %" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert "80.00 %" in capsys.readouterr().out
    assert "summary.csv" in caplog.text


def test_fault_of_the_report_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet8_quant.sweep.report import page

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(page, "write_report", fail)
    _run(tmp_path / "0_a", _row("int8", 0.8))
    with pytest.raises(ExperimentError, match="ZeroDivisionError: oops"):
        summarize(tmp_path, ("Job",), None)
    assert (tmp_path / "summary.csv").is_file()


def test_plots_are_drawn_where_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    for number, accuracy in enumerate((0.8, 0.9)):
        _run(tmp_path / f"{number}_a", _row("int8", accuracy, model_bytes=1000 + number))
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
    return _jobs(
        _row("u8s7", 0.85, portable=True, latency_us_median=100.0),
        _row("int8", 0.86, portable=False, latency_us_median=100.0, **measured),
        _row("u8s8", 0.87, portable=False, latency_us_median=100.0),
        RunResult(status="failed", error="no luck", portable=False),
    )


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
    measured = "at worst Job 1: 70.00 % instead of 86.00 %, 1,234 predictions changed, 80 us"
    assert f"1 such run was measured in it, {measured}" in words
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
    jobs = _jobs(
        _row("a", 0.9, portable=False, default_session_accuracy=0.9, default_session_changed=0),
        _row("b", 0.8, portable=False, default_session_accuracy=0.75, default_session_changed=1),
    )
    words = " ".join(table(jobs, ("Top-1",)).split())
    assert "2 such runs were measured in it, at worst Job 1: 75.00 % instead of 80.00 %, 1 prediction changed." in words


def test_mark_is_no_bullet_in_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "0_a", _row("int8", 0.8, portable=False))
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

    _run(tmp_path / "0_a", RunResult(status="failed", error="no luck"))
    with (tmp_path / "spare").open("w") as file:
        spare = file.fileno()
        monkeypatch.setattr("sys.stdout", Terminal())
        if isinstance(fault, BrokenPipeError):
            assert summarize(tmp_path, ("Job",), 1) == 1
        else:
            with pytest.raises(ExperimentError, match="cannot write to stdout: No space left on device"):
                summarize(tmp_path, ("Job",), 1)
    assert {"summary.csv", "summary.md", "report.html"} <= {path.name for path in tmp_path.iterdir()}
