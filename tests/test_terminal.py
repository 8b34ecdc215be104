"""What a person reads at the end of a run, and log lines in a window and in a pipe."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from resnet8_quant import terminal
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.terminal import ConsoleHandler, final_lines, log_to_file, show_error, wrapped

PATH = "/a/folder/with/a/long/name/" * 4 + "model.onnx"
OVERRIDES = "quant=w2a8 calibration.samples_per_class=10 data=sample cache_dir=/a/folder/of/mine seed=7"
RESULT = RunResult(
    **{"quant_type": "w2a8", "activation_type": "uint8", "weight_type": "int2", "weight_bits": 2, "activation_bits": 8},
    **{"per_channel": True, "format": "QDQ", "calibration_method": "minmax", "refine": "none", "deploy": "none"},
    **{"eval_images": 1000, "classes": 10, "float_accuracy": 0.88, "accuracy_delta": -0.78},
    **{"accuracy": 0.1, "accuracy_ci_low": 0.0829, "accuracy_ci_high": 0.1202},
    **{"flips_to_wrong": 790, "flips_to_right": 10, "mcnemar_p": 1e-200, "overrides": OVERRIDES},
    **{"model_bytes": 45_000, "float_model_bytes": 317_000, "model_sha256": "a", "float_model_sha256": "b"},
)
COMMAND = f"    python run.py {OVERRIDES} refine=best"


def test_the_end_of_a_run_is_its_table_the_verdict_and_advice() -> None:
    lines = final_lines(RESULT)
    assert lines[:4] == [
        "| Model |   Top-1 |  Delta |     95 % CI |      Size | Latency |",
        "|-------|--------:|-------:|------------:|----------:|--------:|",
        "| FP32  | 88.00 % |        | 85.84-89.87 | 317,000 B |         |",
        "| w2a8  | 10.00 % | -78.00 |  8.29-12.02 |  45,000 B |         |",
    ]
    text = "\n".join(lines)
    assert "790 images flipped to wrong, 10 to right: McNemar p = 1e-200, real at the 5 %\n  level." in text
    assert "WARNING: top-1 of 10.00 % is near chance" in text
    assert COMMAND in text.splitlines()  # whole, so that it can be pasted
    assert all(len(line) <= 80 for line in text.splitlines() if line != COMMAND)


def test_a_run_that_changed_nothing_has_one_row_and_no_verdict() -> None:
    lines = final_lines(replace(RESULT, model_sha256="b", accuracy=0.88, accuracy_delta=0.0, mcnemar_p=1.0))
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["Model", "FP32"]
    assert "McNemar" not in "\n".join(lines)


def test_the_runtimes_of_a_target_have_rows_and_sentences() -> None:
    lite = {"tflite_bytes": 92_000, "tflite_accuracy": 0.1, "tflite_changed": 0, "verified_images": 1000}
    micro = {
        "tflm_accuracy": 0.12,
        "tflm_changed": 3,
        "arena_bytes": 56_112,
        "peak_activation_bytes": 49_152,
        "macs": 7,
    }
    text = "\n".join(final_lines(replace(RESULT, **lite, **micro)))
    assert "| in TFLite Micro | 12.00 % | -76.00 |" in text
    assert "LiteRT differs from the exact integers in 0 of 1,000 predictions." in text
    assert "judge by the accuracy of the runtime" in " ".join(text.split())
    assert "arena in TensorFlow Lite Micro 56,112 B" in text
    alone = "\n".join(final_lines(replace(RESULT, **lite)))
    assert "TFLite Micro" not in alone
    assert "judge by" not in alone


def test_an_asterisk_says_what_was_changed() -> None:
    text = "\n".join(final_lines(replace(RESULT, overrides="quant=w2a8 'quant.layers={dense: {weight_bits: 8}}'")))
    assert "| w2a8* |" in text
    assert "* with quant.layers={dense: {weight_bits: 8}}" in text


class Window(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch):
    """(stream, message) -> what the console handler writes."""
    monkeypatch.setenv("COLUMNS", "80")

    def write(stream: io.StringIO, message: str, **options: object) -> str:
        logger = logging.Logger("a logger of its own")
        logger.addHandler(ConsoleHandler(stream))
        logger.warning("%s", message, **options)
        return stream.getvalue()

    return write


LINE = f"the words of this line are many, and each of them stays whole, also {PATH}, and so it goes on and on and on"


def test_a_log_line_breaks_between_words_in_a_window(logged) -> None:
    lines = logged(Window(), LINE).splitlines()
    assert len(lines) > 2
    assert " ".join(line.strip() for line in lines) == LINE
    assert [line for line in lines if len(line) > 80] == [f"  {PATH},"]


def test_a_log_line_stays_whole_in_a_pipe(logged) -> None:
    assert logged(io.StringIO(), LINE) == LINE + "\n"


def test_a_command_and_a_traceback_stay_whole_in_a_window(logged) -> None:
    assert logged(Window(), f"Try:\n{COMMAND}") == f"Try:\n{COMMAND}\n"
    try:
        raise ValueError("x" + " y" * 100)
    except ValueError:
        assert "x" + " y" * 100 in logged(Window(), "failed", exc_info=True)


def test_log_to_file_reaches_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [logging.FileHandler(tmp_path / "run.log"), ConsoleHandler()]
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    try:
        log_to_file(logging.getLogger("test"), "| a table |\na sentence")
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
    assert (tmp_path / "run.log").read_text() == "| a table |\na sentence\n"
    assert capsys.readouterr() == ("", "")


def test_errors_are_wrapped_and_remedies_below(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(ExperimentError("`quant` is int9; " + "valid are many words " * 8, f"python run.py\n  {PATH}"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: `quant` is int9")
    assert lines[1].startswith("       ")
    assert "  try: python run.py" in lines
    assert wrapped("short") == "short"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        ("percent", 0.87194, "87.19 %"),
        ("points", -0.0053, "-0.53"),
        ("points", 0.0, "0.00"),
        ("size", 97455, "97,455 B"),
        ("microseconds", 231.8, "232 us"),
        ("percent", None, ""),
    ],
)
def test_numbers_in_cells(function: str, value: float | None, text: str) -> None:
    assert getattr(terminal, function)(value) == text


def test_what_a_terminal_would_obey_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show("a\tname \x1b[31mred\x1b]0;title\x07 \x9b1m \u202egnp.exe\nnext line")
    assert capsys.readouterr().out == "a\tname ?[31mred?]0;title? ?1m ?gnp.exe\nnext line\n"
    record = logging.LogRecord("name", logging.INFO, "file", 1, "model %s", ("\x1b[2J",), None)
    assert ConsoleHandler(io.StringIO()).format(record) == "model ?[2J"


def test_stdout_may_be_closed_or_know_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.sys, "stdout", None)
    terminal.show("nobody reads this")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(terminal.sys, "stdout", narrow)
    terminal.show("caf\u00e9 \u4e2d")
    assert narrow.buffer.getvalue() == b"caf? ?\n"  # type: ignore[attr-defined]
