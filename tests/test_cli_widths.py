"""run.py with few bits: widths on the command line, refinements, a budget."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Words -> exit code, stderr, the row, run.json; on the bundled sample, with ten images for calibration."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*words):
        folder = tmp_path_factory.mktemp("run") / "out"
        common = ["data=sample", "calibration.samples_per_class=1", "latency.runs=0", f"cache_dir={cache}"]
        command = [sys.executable, "run.py", *common, *words, f"hydra.run.dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        if done.returncode:
            return done.returncode, done.stderr, None, None
        with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        return done.returncode, done.stderr, row, json.loads((folder / "run.json").read_text(encoding="utf-8"))

    return run


def test_one_layer_keeps_its_bits(start):
    layer = "quant.layers={dense: {weight_bits: 8}}"
    code, err, row, details = start("quant=w4a8", "quant.keep_first_last=null", layer)
    assert code == 0, err
    assert (row["quant_type"], row["weight_bits"], row["activation_bits"]) == (
        "w4a8+keep_first_last=null+layers",
        "4",
        "8",
    )
    layers = details["layers"]
    assert [layer["weight_type"] for layer in layers] == ["int4"] * 9 + ["int8"]


def test_a_pattern_and_its_footnote(start):
    code, err, row, details = start("quant=u8s8", "quant.layers={stack1.*: {weight_bits: 2, activation_bits: 6}}")
    assert code == 0, err
    narrow = [layer for layer in details["layers"] if layer["weight_type"] == "int2"]
    assert [layer["activation_bits"] for layer in narrow] == [6, 6]
    assert "stack1.*: {weight_bits: 2, activation_bits: 6}" in row["overrides"]


def test_a_budget_and_a_refinement(start):
    words = ("quant=u8s8", "quant.compact=true", "refine=bias", "allocate=bytes", "allocate.budget_bytes=50000")
    code, err, row, details = start(*words)
    assert code == 0, err
    assert details["layers"][-1]["output"] == "dense"  # the file has short names, the record the model's
    assert row["refine"] == "bias"
    assert 45_000 < int(row["model_bytes"]) <= 50_000
