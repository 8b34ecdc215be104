"""run.py as a user starts it: exit codes, messages, files; deployed and low-bit models; refusals in two lines."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas
import pytest

from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.results import COLUMNS

ROOT = Path(__file__).resolve().parents[1]
# What a command has unless the test says otherwise: the bundled sample, ten images for calibration, no latency.
DEFAULTS = {"data": "sample", "calibration.samples_per_class": "1", "latency.runs": "0"}
SINGLE = ("latency_us_median", "latency_us_p95", "float_latency_us_median", "speedup", "latency_iqr_ratio")
THREADS = ("threads_available", "all_threads_latency_us_median", "all_threads_speedup", "throughput_batch")
BATCH = ("images_per_second", "float_images_per_second", "throughput_speedup", "latency_runs", "latency_batch")
MEASURED = (*SINGLE, *THREADS, *BATCH, "latency_threads", "machine_load", "machine_busy", "latency_seconds")


@dataclass(frozen=True)
class Done:
    """A finished command and the folder it was told to write to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def row(self) -> dict[str, str]:
        """The only row of results.csv."""
        assert self.code == 0, self.err
        (row,) = rows(self.folder / "results.csv")
        return row

    @property
    def record(self) -> dict[str, Any]:
        """run.json."""
        record: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return record

    @property
    def table(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("|")]


Start = Callable[..., Done]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command(words: tuple[str, ...], cache: Path) -> list[str]:
    """Flags in ``words`` come first: Hydra's parser takes the overrides in one piece."""
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    defaults = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in keys]
    return [sys.executable, "run.py", *words, *defaults, f"cache_dir={cache}"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Words -> what came of them, in a new folder."""
    common = tmp_path_factory.mktemp("cache")

    def run(*words: str, kind: str = "run", folder: Path | None = None, cache: Path = common, seed: str = "0") -> Done:
        environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"PYTHONHASHSEED": seed}
        folder = folder or tmp_path_factory.mktemp("out") / "out"
        line = [*command(words, cache), f"hydra.{kind}.dir={folder}"]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr, folder)

    return run


@pytest.fixture(scope="module")
def first(start: Start) -> Done:
    return start("quant=int8", "latency.runs=5", seed="1")


@pytest.fixture(scope="module")
def deployed(start: Start) -> Done:
    """The bundled model, deployed for x86 and measured."""
    return start("quant=int8", "deploy=x86", "latency.runs=5", "latency.throughput_batch=2")


def assert_refused(done: Done, problem: str, remedy: str = "") -> None:
    """Exit code 1, what is wrong, what to type, nothing else."""
    assert done.code == 1
    assert "Traceback" not in done.err
    error, attempt = done.err.rpartition("error: ")[2].split("\n  try: ")
    assert problem in " ".join(error.split())  # it is wrapped
    assert attempt.strip()
    assert remedy in " ".join(attempt.split())
    assert list(done.folder.parent.rglob("results.csv")) == []


def test_run_shows_a_table(first: Done) -> None:
    assert first.code == 0, first.err
    assert [line.split("|")[1].strip() for line in first.table if "---" not in line] == ["Model", "FP32", "int8"]
    assert max(map(len, first.table)) <= 80
    assert "Traceback" not in first.err
    assert first.out.count("McNemar p = ") == (first.folder / "run.log").read_text().count("McNemar p = ") == 1
    assert "McNemar p = " not in first.err


def test_run_log_ends_with_what_the_terminal_shows(first: Done) -> None:
    text = (first.folder / "run.log").read_text(encoding="utf-8")
    shown, _, paths = first.out.partition("Written to\n")
    assert text.endswith(shown)
    assert "McNemar p = " in shown
    assert [Path(line.strip()).name for line in paths.splitlines()][:2] == ["results.csv", "model.onnx"]


def test_run_writes_one_row_that_pandas_types(first: Done) -> None:
    assert first.code == 0, first.err
    table = pandas.read_csv(first.folder / "results.csv")
    assert tuple(table.columns) == (
        *COLUMNS,
        *("config.calibration.samples_per_class", "config.data.kind", "config.latency.runs"),
    )
    assert table["config.latency.runs"][0] == 5
    assert len(table) == 1
    assert pandas.api.types.is_float_dtype(table["accuracy"])
    assert pandas.api.types.is_bool_dtype(table["per_channel"])
    assert pandas.api.types.is_integer_dtype(table["eval_images"])
    assert table["status"][0] == "ok"
    assert table["eval_images"][0] == 1000


def test_row_describes_the_written_model(first: Done) -> None:
    row = first.row
    model = (first.folder / "model.onnx").read_bytes()
    assert row["model_sha256"] == hashlib.sha256(model).hexdigest()
    assert int(row["model_bytes"]) == len(model)
    assert len(np.load(first.folder / "predictions.npy")) == int(row["eval_images"])


def test_same_command_gives_the_same_bytes(first: Done, start: Start, tmp_path: Path) -> None:
    second = start("quant=int8", "latency.runs=5", cache=tmp_path / "cache", folder=tmp_path / "out", seed="2")
    assert second.code == 0, second.err
    assert [path for folder in (first.folder, tmp_path) for path in folder.rglob("*.part")] == []
    assert not (first.folder / ".lock").exists()
    for name in ("model.onnx", "predictions.npy"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_output_folder_below_a_file_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start(folder=tmp_path / "file" / "out")
    assert done.code == 1
    assert "error: cannot write" in done.err
    assert "hydra.run.dir" in done.err
    assert "Traceback" not in done.err


def test_sweep_writes_a_summary_and_all_targets_agree(start: Start) -> None:
    done = start("-m", "quant=int8", "deploy=none,x86,arm", kind="sweep")
    assert done.code == 0, done.err
    text = (done.folder / "summary.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] in done.out
    assert "arm" in text
    targets = {row["deploy"]: row for row in rows(done.folder / "summary.csv")}
    assert set(targets) == {"none", "x86", "arm"}
    assert {row["status"] for row in targets.values()} == {"ok"}
    types = {name: row["activation_type"] for name, row in targets.items()}
    assert types == {"none": "int8", "x86": "uint8", "arm": "int8"}
    accuracy = {name: float(row["accuracy"]) for name, row in targets.items()}
    assert accuracy["x86"] == accuracy["arm"]
    assert abs(accuracy["x86"] - accuracy["none"]) <= 0.002  # the plain model computes some Conv in float
    assert int(targets["x86"]["model_bytes"]) <= int(targets["none"]["model_bytes"])


def test_sweep_goes_on_after_a_failed_job(start: Start) -> None:
    done = start("-m", "calibration.samples_per_class=5,101", kind="sweep")
    assert done.code == 1
    assert "Traceback" not in done.err
    jobs = rows(done.folder / "summary.csv")
    assert [(row["samples_per_class"], row["status"]) for row in jobs] == [("5", "ok"), ("101", "failed")]
    assert "calibration.samples_per_class" in jobs[1]["error"]


def test_sweep_that_cannot_work_does_not_start(start: Start) -> None:
    words = ("-m", "quant=int8,uint8", "calibration.samples_per_class=101")
    done = start(*words, kind="sweep")
    assert done.code == 1
    assert "`calibration.samples_per_class`" in done.err
    assert "Traceback" not in done.err
    assert list(done.folder.glob("[0-9]*")) == []


def test_experiment_is_the_original_table(start: Start) -> None:
    done = start("experiment=seed_table", kind="sweep")
    assert done.code == 0, done.err
    assert " ".join(done.table[0].split()) == "| Model | Accuracy | Delta |"
    models = [line.split("|")[1].strip() for line in done.table[2:]]
    assert models[0] == "FP32"
    assert sorted(models[1:]) == ["int8", "uint8"]


def test_killed_run_leaves_no_row_and_can_be_repeated(start: Start, tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "out"
    line = command(("quant=int8", f"hydra.run.dir={folder}"), cache)
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line, cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 60
        while not folder.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode < 0
    assert folder.exists()
    assert not (folder / "results.csv").exists()
    assert start("quant=int8", cache=cache, folder=folder).row["status"] == "ok"


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--version"]])
def test_information_options_exit_0(words: list[str], start: Start) -> None:
    done = start(*words)
    assert done.code == 0, done.err
    assert "samples_per_class" in done.out or words == ["--version"]
    assert not done.folder.exists()


def outputs_of(folder: Path, feed: np.ndarray) -> np.ndarray:
    """What onnxruntime itself, with its defaults, makes of the written model."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    return np.asarray(session.run(None, {value.name: feed})[0])


def test_row_of_a_deployed_model(deployed: Done) -> None:
    row = deployed.row
    assert (row["status"], row["quant_type"], row["deploy"]) == ("ok", "int8", "x86")
    assert (row["deploy_input"], row["deploy_output"], row["provider"]) == ("float32", "same", "CPU")
    assert (row["activation_type"], row["weight_type"], row["portable"]) == ("uint8", "uint8", "True")
    assert (row["kernels"], row["conv_gemm_integer"], row["conv_gemm_total"]) == ("integer", "10", "10")
    assert (row["activation_bits"], row["weight_bits"], row["format"]) == ("8", "8", "QDQ")
    assert row["float_ops"] == "0"
    assert int(row["quantized_ops"]) > 10
    assert deployed.record["runtime_operators"]["com.microsoft.QLinearConv"] == 9
    assert not [name for name in MEASURED if row[name] == ""]
    for name in ("latency_us", "speedup"):
        low, high = float(row[f"{name}_ci_low"]), float(row[f"{name}_ci_high"])
        assert 0 < low <= float(row["latency_us_median" if name == "latency_us" else name]) <= high
    assert (row["latency_runs"], row["latency_batch"], row["throughput_batch"]) == ("5", "1", "2")
    assert row["machine_busy"] in ("True", "False")


def test_the_table_says_what_it_was_deployed_for(deployed: Done) -> None:
    assert [line.split("|")[1].strip() for line in deployed.table][2:] == ["FP32", "int8*"]
    assert "* with deploy=x86\n" in deployed.out
    assert max(map(len, deployed.table)) <= 80
    assert "Traceback" not in deployed.err


def test_the_written_model_is_the_evaluated_one(deployed: Done) -> None:
    predicted = outputs_of(deployed.folder, load_sample().test.images.astype(np.float32)).argmax(1)
    np.testing.assert_array_equal(predicted, np.load(deployed.folder / "predictions.npy"))
    assert float(deployed.row["accuracy"]) == np.mean(predicted == load_sample().test.labels)


def test_bytes_in_and_labels_out(start: Start) -> None:
    done = start("quant=u8s8", "deploy=x86", "deploy.input=uint8", "deploy.output=label")
    row = done.row
    assert (row["deploy_input"], row["deploy_output"], row["kernels"]) == ("uint8", "label", "integer")
    assert (row["quant_ties"], row["float_ties"] != "") == ("", True)
    assert not [name for name in (*MEASURED, "latency_us_ci_low", "other_processes_share") if row[name]]
    predicted = outputs_of(done.folder, load_sample().test.images)
    assert predicted.dtype == np.int64
    np.testing.assert_array_equal(predicted, np.load(done.folder / "predictions.npy"))


def test_a_quantized_file_is_deployed_as_it_is(start: Start) -> None:
    plain = start("quant=u8s8")
    words = ("quant=float", "deploy=x86", "model=onnx")
    done = start(*words, f"model.path={plain.folder / 'model.onnx'}")
    row = done.row
    assert (row["deploy"], row["kernels"], row["calibration_method"]) == ("x86", "integer", "")
    assert (row["activation_type"], row["weight_type"], row["portable"]) == ("uint8", "uint8", "True")
    # all integers already, so the predictions stay
    np.testing.assert_array_equal(*(np.load(run.folder / "predictions.npy") for run in (plain, done)))
    again = start(*words, f"model.path={done.folder / 'model.onnx'}")
    assert_refused(again, "`deploy`: the model has integer operators already")


def test_one_layer_keeps_its_bits(start: Start) -> None:
    done = start("quant=w4a8", "quant.keep_first_last=null", "quant.layers={dense: {weight_bits: 8}}")
    assert (done.row["quant_type"], done.row["weight_bits"], done.row["activation_bits"]) == (
        "w4a8+keep_first_last=null+layers",
        "4",
        "8",
    )
    assert [layer["weight_type"] for layer in done.record["layers"]] == ["int4"] * 9 + ["int8"]


def test_a_pattern_and_its_footnote(start: Start) -> None:
    done = start("quant=u8s8", "quant.layers={stack1.*: {weight_bits: 2, activation_bits: 6}}")
    assert "stack1.*: {weight_bits: 2, activation_bits: 6}" in done.row["overrides"]
    narrow = [layer for layer in done.record["layers"] if layer["weight_type"] == "int2"]
    assert [layer["activation_bits"] for layer in narrow] == [6, 6]


def test_a_budget_and_a_refinement(start: Start) -> None:
    done = start("quant=u8s8", "quant.compact=true", "refine=bias", "allocate=bytes", "allocate.budget_bytes=50000")
    assert done.row["refine"] == "bias"
    assert 45_000 < int(done.row["model_bytes"]) <= 50_000
    assert done.record["layers"][-1]["output"] == "dense"  # the file has short names, the record the model's
