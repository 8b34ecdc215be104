"""run.py and the console command as a user starts them: exit codes, messages, files, and refusals in two lines."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
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

from resnet8_quant import __version__, compose, terminal
from resnet8_quant.cli import main
from resnet8_quant.errors import COMMANDS, ExperimentError, as_typed_here, completed, typed_setting
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.results import COLUMNS

ROOT = Path(__file__).resolve().parents[1]
# What a command has unless the test says otherwise: the bundled sample, ten images for calibration, no latency.
DEFAULTS = {"data": "sample", "calibration.samples_per_class": "1", "latency.runs": "0"}
# Columns that are empty without a measurement, and only then.
MEASUREMENT = re.compile(r"(?!default_session).*(latency|speedup|images_per_second|throughput|machine_|threads)")
MEASURED = [name for name in COLUMNS if MEASUREMENT.match(name)]


@dataclass(frozen=True)
class Done:
    """A finished command and the folder it was told to write to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def row(self) -> dict[str, str]:
        assert self.code == 0, self.err
        (row,) = rows(self.folder / "results.csv")
        return row

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run.json").read_text(encoding="utf-8")))

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
    assert list(done.folder.parent.rglob("results.csv")) == []
    error, attempt = done.err.rpartition("error: ")[2].split("\n  try: ")
    assert problem in " ".join(error.split())  # it is wrapped
    assert attempt.strip()
    assert remedy in " ".join(attempt.split())


def test_run_shows_a_table_that_ends_the_log(first: Done) -> None:
    assert first.code == 0, first.err
    assert [line.split("|")[1].strip() for line in first.table if "---" not in line] == ["Model", "FP32", "int8"]
    assert max(map(len, first.table)) <= 80
    text = (first.folder / "run.log").read_text(encoding="utf-8")
    shown, _, paths = first.out.partition("Written to\n")
    assert text.endswith(shown)
    assert text.count("McNemar p = ") == shown.count("McNemar p = ") == 1
    assert not [word for word in ("Traceback", "McNemar") if word in first.err]
    assert [Path(line.strip()).name for line in paths.splitlines()][:2] == ["results.csv", "model.onnx"]


def test_row_describes_the_written_model_and_pandas_types_it(first: Done) -> None:
    table = pandas.read_csv(first.folder / "results.csv")
    settings = ("calibration.samples_per_class", "data.kind", "latency.runs")
    assert tuple(table.columns) == (*COLUMNS, *(f"config.{name}" for name in settings))
    assert len(table) == 1
    assert pandas.api.types.is_float_dtype(table["accuracy"])
    assert pandas.api.types.is_bool_dtype(table["per_channel"])
    assert pandas.api.types.is_integer_dtype(table["eval_images"])
    row = table.iloc[0]
    model = (first.folder / "model.onnx").read_bytes()
    assert (row["status"], row["eval_images"], row["config.latency.runs"]) == ("ok", 1000, 5)
    assert (row["model_sha256"], row["model_bytes"]) == (hashlib.sha256(model).hexdigest(), len(model))
    assert len(np.load(first.folder / "predictions.npy")) == 1000


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
    done = start("quant=int8", "-m", "calibration.samples_per_class=5,101", kind="sweep")  # overrides on both sides
    assert done.code == 1
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
    assert [line.split("|")[1].strip() for line in deployed.table][2:] == ["FP32", "int8*"]
    assert "* with deploy=x86\n" in deployed.out
    assert max(map(len, deployed.table)) <= 80
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


def test_the_written_model_is_the_evaluated_one(deployed: Done) -> None:
    predicted = outputs_of(deployed.folder, load_sample().test.images.astype(np.float32)).argmax(1)
    np.testing.assert_array_equal(predicted, np.load(deployed.folder / "predictions.npy"))
    assert float(deployed.row["accuracy"]) == np.mean(predicted == load_sample().test.labels)


def test_bytes_in_and_labels_out(start: Start) -> None:
    done = start("quant=u8s8", "deploy=x86", "deploy.input=uint8", "deploy.output=label")
    row = done.row
    assert (row["deploy_input"], row["deploy_output"], row["kernels"]) == ("uint8", "label", "integer")
    assert (row["quant_ties"], row["float_ties"] != "") == ("", True)
    assert not [name for name in (*MEASURED, "other_processes_share") if row[name]]
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


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        ("seed=7 quant=int9", "`quant` is int9; valid are float", "python run.py seed=7 quant=int8 data=sample"),
        ("calibration.samples_per_class=101", "`calibration.samples_per_class` is 101", "samples_per_class=100"),
        (
            "calibration.samples_per_class=many",
            "`calibration.samples_per_class`",
            "calibration.samples_per_class=100 d",
        ),
        ("calibration.samples_per_clas=3", "`calibration.samples_per_clas`", "calibration.samples_per_class=3"),
        ("sumary outputs", "commands are summary, report, profile, compare and sensitivity", "run.py summary outputs"),
        ("-m quant=int8,int9", "`quant` is int9", "run.py -m quant=int8,uint8"),
        ("seed=7 --multirn", "unrecognized arguments: --multirn", "run.py seed=7 --multirun"),
        ("-c jb", "invalid choice: 'jb'", "-c job"),
        ("quant=int8 quant=uint8", "`quant` is given twice", "give it once"),
        ("+calibration.foo=1", "`calibration.foo` is not a field", "--help"),
        ("model=onnx", "`model.path`", ""),
        ("quant=w4a8 quant.layers={dens:{weight_bits:8}}", "names 'dens'", "'quant.layers={dense: {weight_bits: 8}}'"),
        ("allocate=bytes allocate.budget_bytes=100 quant=u8s8", "`allocate.budget_bytes` is 100", "budget_bytes="),
        ("allocate=accuracy", "leaves 0", "samples_per_class=50 allocate.validation_images=250"),
        ("quant=int8,uint8 seed=7", "lists several values", "python run.py -m quant=int8,uint8 seed=7"),
        # the remedy repeats what else was typed
        ("quant=w4a8 quant.format=QOperator", "`quant.format` is QOperator", "run.py quant=w4a8 quant.format=QDQ"),
    ],
)
def test_a_refusal_is_two_sentences(words: str, problem: str, remedy: str, tmp_path: Path) -> None:
    places = [f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'out'}"]
    line = [sys.executable, "run.py", *words.split(), "data=sample", *places]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert_refused(Done(done.returncode, done.stdout, done.stderr, tmp_path / "out"), problem, remedy)


def test_remedies_repeat_what_else_was_typed() -> None:
    typed = ["seed=7", "quant=w4a8", "'quant.layers={a: {weight_bits: 4}}'"]
    error = completed(ExperimentError("no", "python run.py quant=u8s8 refine=best"), typed)
    assert error.remedy == shlex.join(["python", "run.py", "seed=7", "quant=u8s8", typed[2], "refine=best"])
    assert completed(ExperimentError("no", "seed=8"), typed[:1]).remedy == "python run.py seed=8"
    error = completed(ExperimentError("no", f"python run.py {typed[2]}"), ["quant.layers.b.weight_bits=1"])
    assert error.remedy == shlex.join(["python", "run.py", *shlex.split(typed[2])])
    for remedy in ("python run.py --help", "give it once", "python run.py -m quant=int8", "a=b, or c=d", "it's"):
        assert completed(ExperimentError("no", remedy), typed).remedy == remedy


NAMES = [
    "New York",
    "zoo's",
    'a"b',
    "b,comma",
    "c (1)=x",
    "[d]",
    "é",
    "中",
    "true",
    "Null",
    "NaN",
    "1e3",
    "1_000",
    "007",
    "-1",
]
NAMES += [
    "12",
    "a/b.c-d",
    "~user",
    "",
    " e ",
    "f\\",
    '\\"',
    "${oc.env:HOME}",
    "\\${g}",
    "$HOME",
    "`h`",
    "i:j",
    "*",
    "%",
    "#",
    "\t",
    "@",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_in_a_remedy_can_be_typed(name):
    """As Hydra and the shell read it."""
    words = typed_setting("data.path", f"/x/{name}/y"), typed_setting("data.classes", [name, "other"])
    script = f"printf '%s\\0' {' '.join(words)}"
    typed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    data = compose("data=folder", *typed).data
    assert (data.path, data.classes) == (f"/x/{name}/y", [name, "other"])
    assert compose("data=folder", *shlex.split(typed_setting("data.path", name))).data.path == name


def test_the_console_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/resnet8-quant"])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resnet8-quant {__version__}\n"
    assert main(["--help"]) == 0
    assert "resnet8-quant -m quant=int8,uint8" in capsys.readouterr().out
    terminal.show_error(ExperimentError("no", "python run.py quant=int8"))
    assert capsys.readouterr().err == "error: no\n  try: resnet8-quant quant=int8\n"
    own = "resnet8-quant --config-dir 'my conf' quant=mine"
    monkeypatch.setattr(sys, "argv", shlex.split(own))
    assert as_typed_here("python run.py quant=mine") == own
    assert as_typed_here("python -m resnet8_quant.profile model.onnx") == "resnet8-quant profile model.onnx"
    for tool in COMMANDS:
        with pytest.raises(SystemExit):
            main([tool, "--help"])
        assert f"usage: resnet8-quant {tool}" in capsys.readouterr().out


def test_an_option_folder_of_ones_own_and_its_name_in_a_sweep(start: Start, tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "mine.yaml").write_text("# Mine.\nactivation_type: uint8\nweight_bits: 6\n")
    words = ("-m", "--config-dir", str(tmp_path), "quant=mine,int8", "quant.reduce_range=false")
    done = start(*words, kind="sweep")
    assert done.code == 0, done.err
    assert {row["quant_type"] for row in rows(done.folder / "summary.csv")} == {"mine", "int8"}


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        (("-m", "seed=range(0,0)"), "the grid has no jobs", "seed=0,1"),
        (("-m", "seed=glob(*)"), "the grid has no jobs", "seed=0,1"),
        (("--multirun", "--run"), "Only one of --run, --multirun", "leave out all but one"),
        (("-m", "seed=range(0,1000000000)"), "the grid has more than 100,000 jobs", "experiment=search"),
        (("-m", "seed=range(0,1e30)"), "the grid has more than 100,000 jobs", "experiment=search"),
        (("-m", "seed=range(0,400)", "quant.weight_bits=range(2,300)"), "more than 100,000 jobs", "experiment=search"),
        (("-m", "seed=range(0,9,0)"), "seed=range(0,9,0) has step 0 and never ends", "seed=range(0,9)"),
        (("-m", "seed="), "`seed`: value ''", "python run.py -m seed=42 "),
        (("seed=99999999999999999999",), "`seed` is 99999999999999999999; valid are 0 to", "seed=42"),
        (("allocate=bytes", "allocate.budget_bytes=1e5"), "`allocate.budget_bytes`: value '100000.0'", "bytes=100000"),
        (("allocate=bytes", "allocate.budget_bytes=1e21"), "`allocate.budget_bytes`: value '1e+21'", "allocate=bytes"),
        (("model=onnx", "model.path=/dev/zero"), "/dev/zero cannot be read as an ONNX file", "model.path=FILE.onnx"),
        (("model=onnx", "model.path='~no_such_user/x'"), "`model.path`: ~no_such_user/x cannot be read", "model.path="),
        (("model=onnx", "model.path=~/no.onnx"), f"{Path.home()}/no.onnx cannot be read", "model.path=FILE.onnx"),
        (("model=onnx", "model.path=~no_such_user/x"), "cannot be read", """'model.path="~no_such_user/x"'"""),
        (("model=onnx", "model.path=my net (1).onnx"), "cannot be read", """'model.path="my net (1).onnx"'"""),
        (
            ("data=arrays", "data.path=/dev/zero"),
            "`data.path`: /dev/zero is neither an .npz file nor a folder",
            "data.path=data.npz",
        ),
    ],
)
def test_corners_of_the_command_line(start: Start, words: tuple[str, ...], problem: str, remedy: str) -> None:
    assert_refused(start(*words), problem, remedy)


def test_run_log_that_is_a_folder_is_a_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "out" / "run.log").mkdir(parents=True)
    assert_refused(start(folder=tmp_path / "out"), "run.log: Is a directory", "hydra.run.dir=FOLDER")


@pytest.mark.parametrize("name", ["run.log", ".hydra/hydra.yaml", "multirun.yaml"])
def test_pipe_in_the_place_of_a_record_is_a_sentence(start: Start, tmp_path: Path, name: str) -> None:
    pipe = tmp_path / "out" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    words = ("-m", f"hydra.sweep.dir={tmp_path / 'out'}") if name == "multirun.yaml" else ()
    done = start(*words, folder=tmp_path / "out")
    assert_refused(done, f"{name}: it is a pipe, not a file", "dir=FOLDER")


def test_pipe_as_another_log_file_is_a_sentence_and_a_device_is_none(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    field = "hydra.job_logging.handlers.file.filename"
    assert_refused(start(f"{field}={tmp_path / 'pipe'}"), "pipe: it is a pipe, not a file", "hydra.run.dir=FOLDER")
    assert start(f"{field}=/dev/null").code == 0


def test_name_of_a_folder_that_is_too_long_is_a_sentence(start: Start, tmp_path: Path) -> None:
    assert_refused(start(folder=tmp_path / ("x" * 300)), "File name too long", "hydra.run.dir=FOLDER")


def test_working_directory_that_was_deleted_is_a_sentence(tmp_path: Path) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {shlex.quote(sys.executable)} {ROOT / 'run.py'} summary x"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert_refused(Done(done.returncode, done.stdout, done.stderr, tmp_path / "out"), "no longer exists", "cd FOLDER")


def test_sweep_with_failed_jobs_exits_with_1_also_where_stdout_is_closed(start: Start, tmp_path: Path) -> None:
    words = ("-m", "model=onnx,resnet8", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    line = shlex.join(command(words, tmp_path / "cache"))
    done = subprocess.run(["bash", "-c", f"{line} >&-"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "sweep" / "summary.csv").exists()
