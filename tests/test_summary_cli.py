"""``python -m resnet8_quant.summary`` and ``resnet8_quant.report``: exit codes, files, messages."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_quant import report, results, summary
from resnet8_quant.results import RunResult


@pytest.fixture
def sweeps(tmp_path: Path) -> Path:
    """Two sweeps of two runs, one of them failed."""
    rows = {
        "a/0_x": RunResult(quant_type="int8", accuracy=0.8, model_bytes=100, seed=1, overrides="quant=int8 seed=1"),
        "a/1_x": RunResult(quant_type="u8s8", accuracy=0.9, model_bytes=200, seed=1, overrides="quant=u8s8 seed=1"),
        "b/0_x": RunResult(quant_type="int8", accuracy=0.85, model_bytes=100, seed=2, overrides="quant=int8 seed=2"),
        "b/1_x": RunResult(status="failed", error="no luck", overrides="quant=w4a8 seed=2"),
    }
    for name, row in rows.items():
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        results.write(row, tmp_path / "sweeps" / name)
    return tmp_path / "sweeps"


def _jobs(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line.split("|")[1].strip() for line in lines[2:]]


def test_table_of_two_sweeps(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([str(sweeps)]) == 0
    out = capsys.readouterr().out
    assert _jobs(out) == ["a/1", "b/0", "a/0", "b/1"]
    assert "Job 1 of b failed: no luck" in out
    assert "4 of 4 runs. 1 of them failed." in out
    assert "w4a8 seed=2" in out


@pytest.mark.parametrize("sort", [["--sort", "model_bytes,-accuracy"], ["--sort=model_bytes,-accuracy"]])
def test_where_sort_and_top(sort: list[str], sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([str(sweeps), "--where", "status == 'ok'", *sort, "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert _jobs(out) == ["b/0", "a/0"]
    assert "2 of 4 runs." in out
    assert summary.main([str(sweeps), "--sort", "-accuracy", "--top", "1"]) == 0
    assert _jobs(capsys.readouterr().out) == ["a/1"]
    assert summary.main([str(sweeps / "a" / "1_x")]) == 0
    assert "1 of 1 run.\n" in capsys.readouterr().out


def test_columns_of_the_table_and_of_the_csv(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in ("Job, Top-1,model_bytes", "job,TOP-1,Model_Bytes"):
        assert summary.main([str(sweeps / "a"), "--columns", columns, "--where", "quant_type == 'u8s8'"]) == 0
        assert "| 1   | 90.00 % |         200 |" in capsys.readouterr().out


def test_csv_and_report_are_written(sweeps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, page = tmp_path / "all.csv", tmp_path / "all.html"
    assert summary.main([str(sweeps), "--csv", str(table), "--report", str(page), "--sort", "-accuracy"]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == [str(sweeps / name) for name in ("a/1_x", "b/0_x", "a/0_x", "b/1_x")]
    assert tuple(rows[0])[2:] == results.COLUMNS
    assert "python run.py quant=u8s8 seed=1" in page.read_text(encoding="utf-8")


def test_mark_survives_a_pipe(sweeps: Path) -> None:
    results.write(RunResult(quant_type="u8s8", accuracy=0.9, portable=False), sweeps / "a" / "1_x")
    command = [sys.executable, "-m", "resnet8_quant.summary", str(sweeps)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "COLUMNS": "80", "LC_ALL": "C"})
    text = done.stdout.decode("ascii")
    assert (done.returncode, text.count("90.00 %*"), text.count("*")) == (0, 1, 2)
    assert "* On x86 CPUs without VNNI, ONNX Runtime's default session can saturate" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "acuracy > 1"], "acuracy"),
        (["--sort", "nothing"], "nothing"),
        (["--columns", "Jobs"], "Job"),
        (["--top", "0"], "--top"),
        (["--top", "many"], "--top"),
        (["--csv", "/dev/null/x"], "cannot write"),
        (["--unknown"], "--unknown"),
        (["--colums", "Job"], "--columns Job"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str], said: str, sweeps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summary.main([str(sweeps), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "try: " in error


@pytest.mark.parametrize("name", ["results.csv", "Per_Class.csv", "run.json", "sweep.json", "model.onnx", "run.log"])
def test_a_runs_own_record_is_not_written_over(
    name: str, sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sweeps / "a" / "0_x" / name
    before = record.read_bytes() if record.exists() else None
    for main, option in ((summary.main, "--csv"), (summary.main, "--report"), (report.main, "--out")):
        assert main([str(sweeps), option, str(record)]) == 1
        problem, _, remedy = " ".join(capsys.readouterr().err.split()).partition("try: ")
        assert f"`{option}`: {record}" in problem
        assert remedy == f"{option} {record.with_name(summary.OUTPUTS[option])}"
        assert (record.read_bytes() if record.exists() else None) == before
    monkeypatch.chdir(sweeps / "a" / "0_x")
    assert summary.main([".", "--csv", f"../0_x/{name}"]) == 1


def test_an_earlier_output_is_written_over(sweeps: Path) -> None:
    for _ in range(2):
        outputs = ["--csv", str(sweeps / "summary.csv"), "--report", str(sweeps / "report.html")]
        assert summary.main([str(sweeps), *outputs]) == report.main([str(sweeps)]) == 0


@pytest.mark.parametrize("place", ["folder", "file/below", "full", "n" * 300, "pipe"])
def test_unwritable_output_names_its_own_option(
    place: str, sweeps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    if place == "full":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
    for main, option in ((summary.main, "--csv"), (summary.main, "--report"), (report.main, "--out")):
        assert main([str(sweeps), option, str(tmp_path / place)]) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert f"error: `{option}`: cannot write {tmp_path / place}" in error
        assert error.endswith(f"{option} FOLDER/{summary.OUTPUTS[option]}")
        assert "hydra" not in error
    assert list(tmp_path.glob(".*.part")) == []


def test_plots_without_their_package_name_it(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert report.main([str(sweeps), "--plots"]) == 1
    assert "try: pip install" in capsys.readouterr().err


def test_help_says_that_where_is_the_users_own_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (summary.main, report.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "pandas evaluates in your own process" in " ".join(capsys.readouterr().out.split())


def test_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([]) == 1
    assert "DIR" in capsys.readouterr().err
    assert summary.main([str(tmp_path / "absent")]) == 1
    assert "is not a folder" in " ".join(capsys.readouterr().err.split())
    assert report.main([str(tmp_path)]) == 1
    assert "no run below" in capsys.readouterr().err


def test_report_beside_the_runs_or_where_asked(
    sweeps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(sweeps)]) == 0
    assert (sweeps / "report.html").is_file()
    assert "4 runs" in capsys.readouterr().out
    assert report.main([str(sweeps), "--where", "seed == 1", "--out", str(tmp_path / "one.html")]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert not (sweeps / "plots").exists()


def test_module_runs_in_a_pipe_that_closes(sweeps: Path) -> None:
    command = f"{sys.executable} -m resnet8_quant.summary {sweeps} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_on_nothing_is_refused_and_a_selection_has_its_own_file(tmp_path: Path) -> None:
    folder = tmp_path / "0_x"
    folder.mkdir()
    results.write(RunResult(accuracy=0.9, model_bytes=10), folder)
    assert report.main([str(tmp_path), "--where", "accuracy > 0.95"]) == 1
    assert list(tmp_path.glob("*.html")) == []
    assert report.main([str(tmp_path), "--where", "accuracy > 0.5"]) == 0
    assert [path.name for path in tmp_path.glob("*.html")] == ["selection.html"]


def test_one_file_for_two_outputs_is_refused(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweeps / "both"
    assert summary.main([str(sweeps), "--csv", str(path), "--report", str(path)]) == 1
    assert f"`--csv` and `--report` are both {path}" in " ".join(capsys.readouterr().err.split())
    assert not path.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_table_that_cannot_be_shown_is_an_error_and_a_closed_pipe_is_none(sweeps: Path) -> None:
    command = [sys.executable, "-m", "resnet8_quant.summary", str(sweeps)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "error: cannot write to stdout" in done.stderr) == (1, True)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
