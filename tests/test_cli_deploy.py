"""run.py with deploy=...: the row, the written model, the same answers from every target; refusals in two lines."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from resnet8_quant.inputs.sample import load_sample

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("latency_us_median", "latency_us_p95", "float_latency_us_median", "speedup", "latency_iqr_ratio")
MEASURED += ("threads_available", "all_threads_latency_us_median", "all_threads_speedup", "throughput_batch")
MEASURED += ("images_per_second", "float_images_per_second", "throughput_speedup")
MEASURED += ("latency_runs", "latency_batch", "latency_threads", "machine_load", "machine_busy", "latency_seconds")


@dataclass(frozen=True)
class Done:
    """A finished command, and the folder it was told to write to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def row(self) -> dict[str, str]:
        """The only row of results.csv."""
        (row,) = rows(self.folder / "results.csv")
        return row


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Words -> what came of them; on the bundled sample, with ten images for calibration."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*words, kind="run"):
        folder = tmp_path_factory.mktemp("out") / "out"
        common = ["data=sample", "calibration.samples_per_class=1", f"cache_dir={cache}"]
        command = [sys.executable, "run.py", *words, *common, f"hydra.{kind}.dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr, folder)

    return run


@pytest.fixture(scope="module")
def deployed(start):
    """The bundled model, deployed for x86 and measured."""
    done = start("quant=int8", "deploy=x86", "latency.runs=5", "latency.throughput_batch=2")
    assert done.code == 0, done.err
    return done


def outputs_of(folder, feed):
    """What onnxruntime itself, with its defaults, makes of the written model."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    return session.run(None, {value.name: feed})[0]


def test_row_says_what_was_deployed(deployed):
    row = deployed.row
    assert (row["status"], row["quant_type"], row["deploy"]) == ("ok", "int8", "x86")
    assert (row["deploy_input"], row["deploy_output"], row["provider"]) == ("float32", "same", "CPU")
    assert (row["activation_type"], row["weight_type"], row["portable"]) == ("uint8", "uint8", "True")
    assert (row["kernels"], row["conv_gemm_integer"], row["conv_gemm_total"]) == ("integer", "10", "10")
    assert (row["activation_bits"], row["weight_bits"], row["format"]) == ("8", "8", "QDQ")
    assert row["float_ops"] == "0"
    assert int(row["quantized_ops"]) > 10
    operators = json.loads((deployed.folder / "run.json").read_text(encoding="utf-8"))["runtime_operators"]
    assert operators["com.microsoft.QLinearConv"] == 9


def test_row_says_how_fast(deployed):
    row = deployed.row
    assert not [name for name in MEASURED if row[name] == ""]
    for name in ("latency_us", "speedup"):
        low, high = float(row[f"{name}_ci_low"]), float(row[f"{name}_ci_high"])
        assert 0 < low <= float(row["latency_us_median" if name == "latency_us" else name]) <= high
    assert (row["latency_runs"], row["latency_batch"], row["throughput_batch"]) == ("5", "1", "2")
    assert row["machine_busy"] in ("True", "False")


def test_the_written_model_is_the_one_that_was_judged(deployed):
    serialized = (deployed.folder / "model.onnx").read_bytes()
    assert hashlib.sha256(serialized).hexdigest() == deployed.row["model_sha256"]
    assert len(serialized) == int(deployed.row["model_bytes"])
    found = outputs_of(deployed.folder, load_sample().test.images.astype(np.float32)).argmax(1)
    np.testing.assert_array_equal(found, np.load(deployed.folder / "predictions.npy"))
    assert float(deployed.row["accuracy"]) == np.mean(found == load_sample().test.labels)


def test_the_table_says_what_it_was_deployed_for(deployed):
    table = [line for line in deployed.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table][2:] == ["FP32", "int8*"]
    assert "* with deploy=x86\n" in deployed.out
    assert max(map(len, table)) <= 80
    assert "Traceback" not in deployed.err


def test_bytes_in_and_labels_out(start):
    words = ("quant=u8s8", "deploy=x86", "deploy.input=uint8", "deploy.output=label", "latency.runs=0")
    done = start(*words)
    assert done.code == 0, done.err
    row = done.row
    assert (row["deploy_input"], row["deploy_output"], row["kernels"]) == ("uint8", "label", "integer")
    assert row["quant_ties"] == ""
    assert row["float_ties"] != ""
    assert not [
        name for name in (*MEASURED, "latency_us_ci_low", "speedup_ci_low", "other_processes_share") if row[name]
    ]
    found = outputs_of(done.folder, load_sample().test.images)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.load(done.folder / "predictions.npy"))


def test_all_targets_answer_alike(start):
    done = start("-m", "quant=int8", "deploy=none,x86,arm", "latency.runs=0", kind="sweep")
    assert done.code == 0, done.err
    found = {row["deploy"]: row for row in rows(done.folder / "summary.csv")}
    assert set(found) == {"none", "x86", "arm"}
    assert {row["status"] for row in found.values()} == {"ok"}
    kinds = {name: row["activation_type"] for name, row in found.items()}
    assert kinds == {"none": "int8", "x86": "uint8", "arm": "int8"}
    accuracy = {name: float(row["accuracy"]) for name, row in found.items()}
    assert accuracy["x86"] == accuracy["arm"]
    assert abs(accuracy["x86"] - accuracy["none"]) <= 0.002  # the plain model computes some Conv in float
    assert int(found["x86"]["model_bytes"]) <= int(found["none"]["model_bytes"])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["quant=float", "deploy=x86"], "`deploy` is x86, but the model has no QuantizeLinear"),
        (["deploy.input=uint8"], "`deploy.input` is uint8, but deploy=none rewrites nothing"),
        (["deploy=x86", "deploy.activation_type=int16"], "`deploy.activation_type` is int16; valid are uint8, int8"),
        (["deploy=x86", "evaluation.providers=[NoSuchExecutionProvider]"], "this build of ONNX Runtime has"),
        (["evaluation.providers=[]"], "`evaluation.providers` is []; this build of ONNX Runtime has"),
        (["deploy=riscv"], "`deploy`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_two_lines(start, words, problem):
    done = start(*words, "latency.runs=0")
    assert_refused(done, problem)


def test_a_quantized_file_is_deployed_as_it_is(start):
    plain = start("quant=u8s8", "latency.runs=0")
    words = ("quant=float", "deploy=x86", "model=onnx", f"model.path={plain.folder / 'model.onnx'}")
    done = start(*words, "latency.runs=0")
    assert done.code == 0, done.err
    row = done.row
    assert (row["deploy"], row["kernels"], row["calibration_method"]) == ("x86", "integer", "")
    assert (row["activation_type"], row["weight_type"], row["portable"]) == ("uint8", "uint8", "True")
    answers = [np.load(run.folder / "predictions.npy") for run in (plain, done)]
    np.testing.assert_array_equal(*answers)  # all integers already


def test_a_model_that_is_deployed_already(start, deployed):
    words = ("quant=float", "deploy=x86", "model=onnx", f"model.path={deployed.folder / 'model.onnx'}")
    assert_refused(start(*words, "latency.runs=0"), "`deploy`: the model has integer operators already")


def assert_refused(done, problem):
    """Exit code 1, what is wrong, what to type, nothing else."""
    assert done.code == 1
    assert "Traceback" not in done.err
    error, remedy = done.err.split("\n  try: ")
    text = " ".join(error.rpartition("error: ")[2].split())  # it is wrapped
    assert problem in text
    assert remedy.strip()
    assert max(map(len, f"error: {error.rpartition('error: ')[2]}\n  try: {remedy}".splitlines())) <= 80
    assert not (done.folder / "results.csv").exists()
