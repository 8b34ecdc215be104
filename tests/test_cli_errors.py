"""What the command line refuses, in two sentences, the second of which can be typed; and the console command."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_quant import __version__, terminal
from resnet8_quant.cli import TOOLS, completed, main
from resnet8_quant.errors import ExperimentError, as_typed_here

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        ("quant=int9", "`quant` is int9; valid are float", "python run.py quant=int8"),
        (
            "calibration.samples_per_class=101",
            "`calibration.samples_per_class` is 101",
            "calibration.samples_per_class=100",
        ),
        ("calibration.samples_per_class=many", "`calibration.samples_per_class`", "--help"),
        ("calibration.samples_per_clas=3", "`calibration.samples_per_clas`", "calibration.samples_per_class=3"),
        ("quant=int8 quant=uint8", "`quant` is given twice", "give it once"),
        ("+calibration.foo=1", "`calibration.foo` is not a field", "--help"),
        ("quan=int8", "`quan` is not a field", "python run.py quant=int8"),
        ("sumary", "commands are summary, report and profile", "--help"),
        ("model=onnx", "`model.path`", ""),
        ("quant.weight_bits=four", "`quant.weight_bits`", "--help"),
        ("quant=w4a8 quant.layers={dens:{weight_bits:8}}", "names 'dens'", "'quant.layers={dense: {weight_bits: 8}}'"),
        (
            "allocate=bytes allocate.budget_bytes=100 quant=u8s8",
            "`allocate.budget_bytes` is 100",
            "allocate.budget_bytes=",
        ),
        ("allocate=accuracy", "leaves 0", "samples_per_class=50 allocate.validation_images=250"),
        ("quant=int8,uint8 seed=7", "lists several values", "python run.py -m quant=int8,uint8 seed=7"),
        ("deploy=cortex_m", "`deploy` is cortex_m; valid are arm", "python run.py --help"),
        # the remedy repeats what else was typed
        (
            "quant=w4a8 quant.format=QOperator",
            "`quant.format` is QOperator",
            "python run.py quant=w4a8 quant.format=QDQ",
        ),
    ],
    ids=lambda value: "",
)
def test_a_refusal_is_two_sentences(words: str, problem: str, remedy: str, cache: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "run.py",
        *words.split(),
        "data=sample",
        f"cache_dir={cache}",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error, _, attempt = " ".join(done.stderr.split()).rpartition("error: ")[2].partition(" try: ")
    assert problem in error
    assert remedy in attempt
    assert list(tmp_path.rglob("results.csv")) == []


def test_remedies_repeat_what_else_was_typed() -> None:
    typed = ["seed=7", "quant=w4a8", "'quant.layers={a: {weight_bits: 4}}'"]
    error = completed(ExperimentError("no", "python run.py quant=u8s8 refine=best"), typed)
    assert error.remedy == shlex.join(["python", "run.py", "seed=7", "quant=u8s8", typed[2], "refine=best"])
    assert completed(ExperimentError("no", "seed=8"), typed[:1]).remedy == "python run.py seed=8"
    for remedy in ("python run.py --help", "give it once", "python run.py -m quant=int8", "a=b, or c=d", "it's"):
        assert completed(ExperimentError("no", remedy), typed).remedy == remedy


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
    for tool in TOOLS:
        with pytest.raises(SystemExit):
            main([tool, "--help"])
        assert f"usage: resnet8-quant {tool}" in capsys.readouterr().out


def test_an_option_folder_of_ones_own_and_its_name_in_a_sweep(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "mine.yaml").write_text("# Mine.\nactivation_type: uint8\nweight_bits: 6\n")
    small = ("latency.runs=0", "calibration.samples_per_class=1")
    words = ("-m", "--config-dir", str(tmp_path), "quant=mine,int8", "quant.reduce_range=false", *small)
    command = [
        sys.executable,
        "run.py",
        *words,
        "data=sample",
        f"cache_dir={cache}",
        f"hydra.sweep.dir={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "summary.csv").open(newline="", encoding="utf-8") as file:
        assert {row["quant_type"] for row in csv.DictReader(file)} == {"mine", "int8"}
