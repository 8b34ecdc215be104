"""run.py as a user starts it: exit codes, messages, files."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pytest

from resnet8_quant.results import COLUMNS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """A finished command and the folder it was told to write to."""

    code: int
    out: str
    err: str
    folder: Path


def _command(cache: Path, *words: str) -> list[str]:
    """Flags in ``words`` come first: Hydra's parser takes the overrides in one piece."""
    return [sys.executable, "run.py", *words, "data=sample", "latency.runs=5", f"cache_dir={cache}"]


def _start(cache: Path, folder: Path, *words: str, hash_seed: str = "0", kind: str = "run") -> Done:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"PYTHONHASHSEED": hash_seed}
    command = _command(cache, *words, f"hydra.{kind}.dir={folder}")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr, folder)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return _start(cache, tmp_path_factory.mktemp("first") / "out", "quant=int8", hash_seed="1")


def test_run_shows_a_table(first: Done) -> None:
    assert first.code == 0, first.err
    lines = [line for line in first.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines if "---" not in line] == ["Model", "FP32", "int8"]
    assert max(map(len, lines)) <= 80
    assert "Traceback" not in first.err
    assert first.out.count("McNemar p = ") == (first.folder / "run.log").read_text().count("McNemar p = ") == 1
    assert "McNemar p = " not in first.err


def test_run_writes_one_row_that_pandas_types(first: Done) -> None:
    assert first.code == 0, first.err
    table = pandas.read_csv(first.folder / "results.csv")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 1
    assert pandas.api.types.is_float_dtype(table["accuracy"])
    assert pandas.api.types.is_bool_dtype(table["per_channel"])
    assert pandas.api.types.is_integer_dtype(table["eval_images"])
    assert table["status"][0] == "ok"
    assert table["eval_images"][0] == 1000


def test_row_describes_the_written_model(first: Done) -> None:
    (row,) = _rows(first.folder / "results.csv")
    model = (first.folder / "model.onnx").read_bytes()
    assert row["model_sha256"] == hashlib.sha256(model).hexdigest()
    assert int(row["model_bytes"]) == len(model)
    assert len(np.load(first.folder / "predictions.npy")) == int(row["eval_images"])


def test_run_leaves_no_temporaries(first: Done, cache: Path) -> None:
    assert first.code == 0, first.err
    assert [path for folder in (first.folder, cache) for path in folder.rglob("*.part")] == []
    assert not (first.folder / ".lock").exists()


def test_same_command_gives_the_same_bytes(first: Done, tmp_path: Path) -> None:
    second = _start(tmp_path / "cache", tmp_path / "out", "quant=int8", hash_seed="2")
    assert second.code == 0, second.err
    for name in ("model.onnx", "predictions.npy"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("quant=int9", "quant"),
        ("calibration.samples_per_class=0", "calibration.samples_per_class"),
        ("calibration.samples_per_class=-1", "calibration.samples_per_class"),
        ("calibration.samples_per_class=101", "calibration.samples_per_class"),
        ("calibration.samples_per_class=many", "calibration.samples_per_class"),
        ("calibration.samples_per_clas=3", "calibration.samples_per_clas"),
        ("quant.weight_type=uint8", "quant.weight_type"),
        ("quant=int8 quant=uint8", "quant"),
        ("+calibration.foo=1", "calibration.foo"),
        ("calibration.percentile=5", "calibration.percentile"),
        ("model=onnx", "model.path"),
    ],
)
def test_refused_value_is_one_sentence(words: str, field: str, cache: Path, tmp_path: Path) -> None:
    done = _start(cache, tmp_path / "out", *words.split())
    assert done.code == 1
    assert "error:" in done.err
    assert f"`{field}`" in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.rglob("results.csv")) == []


def test_output_folder_below_a_file_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _start(cache, tmp_path / "file" / "out")
    assert done.code == 1
    assert "error: cannot write" in done.err
    assert "hydra.run.dir" in done.err
    assert "Traceback" not in done.err


def test_sweep_writes_a_summary(cache: Path, tmp_path: Path) -> None:
    done = _start(cache, tmp_path / "out", "-m", "quant=int8,u8s8", kind="sweep")
    assert done.code == 0, done.err
    rows = _rows(done.folder / "summary.csv")
    assert {row["quant_type"] for row in rows} == {"int8", "u8s8"}
    assert [row["status"] for row in rows] == ["ok", "ok"]
    text = (done.folder / "summary.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] in done.out
    assert "u8s8" in text


def test_sweep_goes_on_after_a_failed_job(cache: Path, tmp_path: Path) -> None:
    done = _start(cache, tmp_path / "out", "-m", "calibration.samples_per_class=5,101", kind="sweep")
    assert done.code == 1
    assert "Traceback" not in done.err
    rows = _rows(done.folder / "summary.csv")
    assert [(row["samples_per_class"], row["status"]) for row in rows] == [("5", "ok"), ("101", "failed")]
    assert "calibration.samples_per_class" in rows[1]["error"]


def test_sweep_that_cannot_work_does_not_start(cache: Path, tmp_path: Path) -> None:
    words = ("-m", "quant=int8,uint8", "calibration.samples_per_class=101")
    done = _start(cache, tmp_path / "out", *words, kind="sweep")
    assert done.code == 1
    assert "`calibration.samples_per_class`" in done.err
    assert "Traceback" not in done.err
    assert list((tmp_path / "out").glob("[0-9]*")) == []


def test_experiment_is_the_original_table(cache: Path, tmp_path: Path) -> None:
    done = _start(cache, tmp_path / "out", "experiment=seed_table", kind="sweep")
    assert done.code == 0, done.err
    table = [line for line in done.out.splitlines() if line.startswith("|")]
    assert " ".join(table[0].split()) == "| Model | Accuracy | Delta |"
    models = [line.split("|")[1].strip() for line in table[2:]]
    assert models[0] == "FP32"
    assert sorted(models[1:]) == ["int8", "uint8"]


def test_killed_run_leaves_no_row_and_can_be_repeated(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "out"
    command = _command(cache, "quant=int8", f"hydra.run.dir={folder}")
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 60
        while not folder.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode < 0
    assert folder.exists()
    assert not (folder / "results.csv").exists()
    done = _start(cache, folder, "quant=int8")
    assert done.code == 0, done.err
    assert len(_rows(folder / "results.csv")) == 1


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
def test_information_options_exit_0(words: list[str], cache: Path, tmp_path: Path) -> None:
    done = _start(cache, tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert "samples_per_class" in done.out
    assert not (tmp_path / "out").exists()
