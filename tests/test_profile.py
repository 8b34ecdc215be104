"""``python -m resnet8_quant.profile`` as a user starts it: table, CSV, exit codes, messages, no traces left."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.parser import parse_model

import resnet8_quant as rq
from resnet8_quant.inputs.model import RESOURCES
from resnet8_quant.profile import main, shortened

RESNET8 = RESOURCES / "resnet8.onnx"
LONG = "a_node_whose_name_is_longer_than_its_column"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize, two products with long names that differ in the middle, dequantize; with a free batch."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    text = f"""<ir_version: 10, opset_import: ["": 21]>
        net (float[n, 4] x) => (float[n, 4] y) <float s = {{1}}, uint8 z = {{0}}> {{
            [quantize] q = QuantizeLinear (x, s, z)
            [{LONG}_1_{LONG}] p = QLinearMatMul (q, s, z, w, s, z, s, z)
            [{LONG}_2_{LONG}] r = QLinearMatMul (p, s, z, w, s, z, s, z)
            [dequantize] y = DequantizeLinear (r, s, z)
        }}"""
    proto = parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.uint8), "w"))
    onnx.save(proto, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, which is the one for temporary files too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def profile(*words: object) -> int:
    return main([*map(str, words), "--runs", "3", "--warmup", "1"])


def cells(text: str) -> list[list[str]]:
    """The table's rows without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_as_a_module_in_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet8_quant.profile", str(RESNET8), "--runs", "3", "--warmup", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = cells(done.stdout)
    assert sum(int(row[1]) for row in rows if row[0] == "Conv") == 9
    assert {row[2] for row in rows} == {"float", "layout"}
    assert list(tmp_path.iterdir()) == []


def test_operators_are_summed_and_sorted(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(model, "--csv", "new/profile.csv") == 0
    out = capsys.readouterr().out
    rows = cells(out)
    assert {tuple(row[:3]) for row in rows} == {
        ("QLinearMatMul", "2", "integer"),
        ("QuantizeLinear", "1", "quantize"),
        ("DequantizeLinear", "1", "quantize"),
    }
    times = [float(row[3]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert "Operators: 4, total " in out
    for part in (f"{sum(times):.0f}"[:-1], "integer ", "quantize ", "without the profiler", "new/profile.csv"):
        assert part in out
    table = pandas.read_csv(folder / "new" / "profile.csv")
    assert list(table.columns) == ["operator", "count", "kernel", "median_us", "share"]
    assert list(table["operator"]) == [row[0] for row in rows]
    assert table["share"].sum() == pytest.approx(1, abs=1e-5)
    assert [path.name for path in folder.rglob("*")] == ["new", "profile.csv"]


def test_nodes_in_order_with_shapes(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(model, "--by", "node", "--csv", folder / "nodes.csv", "--batch", 5) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    shown = [row[0] for row in cells(out)]
    assert [shown[0], shown[3]] == ["quantize", "dequantize"]
    assert shown[1] != shown[2]
    with (folder / "nodes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == ["quantize", f"{LONG}_1_{LONG}", f"{LONG}_2_{LONG}", "dequantize"]
    assert rows[0]["inputs"] == "float[5,4] float[] uint8[]"
    assert rows[0]["outputs"] == "uint8[5,4]"
    assert [row["kernel"] for row in rows] == ["quantize", "integer", "integer", "quantize"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.onnx"], "missing.onnx cannot be read (No such file or directory)"),
        (["x" * 300], "cannot be read (File name too long)"),
        (["."], "is a folder"),
        (["/dev/null"], "is not a file"),
        (["text.onnx"], "is not an ONNX model"),
        (["empty.onnx"], "is not an ONNX model, or its graph is empty"),
        ([], "MODEL.onnx"),
        (["MODEL", "--runs", "0"], "argument --runs: '0' is not an integer from 1"),
        (["MODEL", "--runs", "-1"], "argument --runs: '-1' is not an integer from 1"),
        (["MODEL", "--runs", "many"], "argument --runs: 'many'"),
        (["MODEL", "--runs", "1000000"], "`--runs` 1000000 of 4 operators"),
        (["MODEL", "--warmup", "-1"], "argument --warmup"),
        (["MODEL", "--batch", "0"], "argument --batch"),
        (["MODEL", "--batch", "999999999"], "has more than 1024 MiB"),
        (["MODEL", "--threads", "1025"], "argument --threads"),
        (["MODEL", "--by", "bits"], "argument --by: invalid choice: 'bits'"),
        (["MODEL", "--bogus"], "unrecognized arguments: --bogus"),
        (["MODEL", "--csv", "."], "`--csv`: . is a folder"),
        (["MODEL", "--csv", "MODEL"], "is the model itself"),
        (["MODEL", "--csv", "results.csv"], "has the name of a run's own record"),
        (["MODEL", "--csv", "text.onnx/profile.csv"], "`--csv`: cannot write text.onnx/profile.csv"),
        (["MODEL", "--csv", "x" * 300], "File name too long"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words: list[str], message: str, model: Path, folder: Path, capsys) -> None:
    (folder / "text.onnx").write_text("this is no model")
    (folder / "empty.onnx").write_bytes(b"")
    before = model.read_bytes()
    assert main([str(model) if word == "MODEL" else word for word in words]) == 1
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert printed.err.startswith("error: ")
    assert "  try: " in printed.err
    assert printed.out == ""
    assert model.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["empty.onnx", "text.onnx"]


def test_layers_have_macs_weights_and_activations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of the first layers by hand; the sums are those of the row."""
    assert profile(RESNET8, "--by", "layer", "--csv", "layers.csv") == 0
    rows = pandas.read_csv("layers.csv")
    first = rows.iloc[0]
    assert (first.operator, first.macs, first.weights) == ("Conv", 32 * 32 * 9 * 3 * 16, 9 * 3 * 16)
    assert (first.weight_bytes, first.output_bytes) == (4 * (9 * 3 * 16 + 16), 32 * 32 * 16)
    assert (rows.macs.sum(), rows.live_bytes.max()) == (12_501_632, 49_152)
    shown = capsys.readouterr().out
    assert "12,501,632 multiply-accumulates" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_tflite_file_is_shown_by_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flatbuffers", reason="needs the extra [tflite]")
    rq.run(rq.compose("quant=w4a8", "deploy=tflite", "deploy.verify=1", "latency.runs=0", "data=sample"), folder)
    file = folder / "model.tflite"
    assert profile(file, "--csv", "layers.csv") == 0
    rows = pandas.read_csv("layers.csv")
    assert (rows.macs.sum(), rows.live_bytes.max()) == (12_501_632, 49_152)
    packed = rows[rows.weight_bytes < rows.weights]
    assert 0 < len(packed) == pandas.read_csv("results.csv").int4_layers[0]
    capsys.readouterr()
    for words, message in ((("--by", "node"), "a .tflite file is not run by ONNX Runtime"), ((), "cannot be read")):
        assert profile(file, *words) == 1
        assert message in " ".join(capsys.readouterr().err.split())
        file.write_bytes(file.read_bytes()[:5000])


def test_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--by" in capsys.readouterr().out


def test_only_names_that_clash_get_their_position() -> None:
    assert shortened(["conv", "x" * 12], 12) == ["conv", "x" * 12]
    assert shortened(["conv", "same_name_twice", "same_name_twice"], 12) == ["conv", "same_name_~2", "same_name_~3"]


PARTS = st.sampled_from(["same", "xxxx", "..", "~1", "~2", "a|b", "\x1b[31m", "\n", "stack1.conv1.weight_", "é"])


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=6).map("".join), min_size=1, max_size=30))
@example([f"same_beginning_{i}_same_end_of_the_name" for i in range(200)])
@example(["x" * 40, "x" * 41, "xxxxx..xxxxx"])
@example(["x" * 40, "x" * 40, "xxxxxxxxxx~1"])
def test_shortened_names_are_printable_and_never_ambiguous(names: list[str]) -> None:
    short = shortened(names, 12)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= 12
    assert all(name.isprintable() and "|" not in name for name in short)
