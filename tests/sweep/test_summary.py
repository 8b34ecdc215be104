"""The table of a sweep, and the advice on a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.advice import advise
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.summary import COLUMNS, Job, check_columns, collect, name_choices, summarize
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


def test_job_without_row_is_failed(tmp_path: Path) -> None:
    (tmp_path / "0_x").mkdir()
    (tmp_path / "10_z").mkdir()
    (tmp_path / "notes").mkdir()
    results.write(_row("int8", 0.8), tmp_path / "10_z")
    assert [(job.number, job.row.status) for job in collect(tmp_path, 2)] == [(0, "failed"), (1, "failed"), (10, "ok")]
    assert [job.number for job in collect(tmp_path, None)] == [0, 10]
    assert "killed" in (collect(tmp_path, None)[0].row.error or "")


def test_unreadable_row_is_failed(tmp_path: Path) -> None:
    (tmp_path / "0_x").mkdir()
    (tmp_path / "0_x" / "results.csv").write_text("a,b\n")
    (job,) = collect(tmp_path, 1)
    assert job.row.status == "failed"
    assert "schema" in (job.row.error or "")


def _choices(*overrides: str | None) -> list[str]:
    jobs = [Job(i, f"{i}_x", RunResult(quant_type="int8", overrides=words)) for i, words in enumerate(overrides)]
    name_choices(jobs)
    return [job.choices for job in jobs]


def test_choices_show_only_what_varies() -> None:
    assert _choices("quant=int8 seed=1 data=sample", "quant=u8s8 seed=1 data=sample") == ["int8", "u8s8"]
    assert _choices("quant=int8 seed=1", "quant=int8 seed=2", "quant=u8s8 seed=1") == ["int8 1", "int8 2", "u8s8 1"]
    assert _choices("quant=int8 seed=1") == ["int8 1"]
    assert _choices(None) == ["int8"]


def test_unknown_column_is_refused() -> None:
    check_columns(tuple(COLUMNS))
    with pytest.raises(ExperimentError, match="Akkuracy"):
        check_columns(("Model", "Akkuracy"))
    with pytest.raises(ExperimentError, match="no column"):
        check_columns(())


def _quantized(**changes: object) -> RunResult:
    values: dict[str, object] = {
        "activation_type": "int8",
        "weight_type": "int8",
        "weight_bits": 8,
        "calibration_method": "minmax",
        "eval_images": 1000,
        "accuracy": 0.88,
        "accuracy_delta": -0.002,
        "kernels": "integer",
        "latency_us_median": 100.0,
        "float_latency_us_median": 200.0,
        "ties": 0,
        "float_ties": 0,
    }
    return RunResult(**{**values, **changes})  # type: ignore[arg-type]


def test_no_advice_when_all_is_well() -> None:
    assert advise(_quantized()) == []
    assert advise(RunResult(status="failed", error="x")) == []
    assert advise(_quantized(accuracy_delta=-0.05, latency_us_median=200.0, ties=1)) == []


def test_collapse_is_a_warning() -> None:
    (sentence,) = advise(_quantized(accuracy=0.1, accuracy_delta=-0.78))
    assert sentence.startswith("WARNING: top-1 of 10.00 % is near chance")


@pytest.mark.parametrize(
    ("bits", "refine", "hint"),
    [
        (8, "none", "quant=u8s8"),
        (4, "none", "refine=best with quant.per_channel=true"),
        (4, "best", "allocate=accuracy"),
    ],
)
def test_large_loss_is_a_warning(bits: int, refine: str, hint: str) -> None:
    (sentence,) = advise(_quantized(accuracy=0.82, accuracy_delta=-0.06, weight_bits=bits, refine=refine))
    assert sentence.startswith("WARNING: top-1 fell by 6.00 points")
    assert hint in sentence


def test_slow_int8_is_told_to_try_u8s8() -> None:
    (sentence,) = advise(_quantized(kernels="mixed", latency_us_median=320.0, compute_kernels=10, integer_kernels=4))
    assert "int8 activations ran 1.6x slower" in sentence
    assert "10 Conv/Gemm, 4 of them integer" in sentence
    assert sentence.endswith("try quant=u8s8.")
    (sentence,) = advise(_quantized(kernels="simulated", latency_us_median=320.0, weight_type="int4"))
    assert "only the file shrinks" in sentence


def test_ties_are_mentioned() -> None:
    (sentence,) = advise(_quantized(ties=7))
    assert sentence.startswith("7 images tie")
    assert advise(_quantized(ties=7, float_ties=7)) == []
