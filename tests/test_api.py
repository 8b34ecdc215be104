"""The public API as docs/api.md and examples/quickstart.ipynb show it, and its agreement with a run."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resnet8_quant as rq

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("data=sample", "calibration.samples_per_class=2", "latency.runs=0")


def execute(blocks: list[str]) -> str:
    """Run blocks one after the other as a notebook does, and return what they print or show."""
    names: dict[str, Any] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in blocks:
            *statements, last = ast.parse(block).body
            shown = isinstance(last, ast.Expr)
            exec(compile(ast.Module([*statements, *([] if shown else [last])], []), "block", "exec"), names)
            if shown:
                value = eval(compile(ast.Expression(last.value), "block", "eval"), names)  # noqa: S307
                print(*([] if value is None else [repr(value)]))
    return out.getvalue()


def test_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    out = execute(blocks)
    assert len(blocks) == 5
    assert "u8s8+weight_bits=5" in out
    assert "McNemar p = " in out
    assert "`quant` is int9; valid are float, int8" in out
    assert (tmp_path / "quantized.onnx").stat().st_size > 50_000
    assert (tmp_path / "outputs" / "mine" / "results.csv").exists()


def test_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed in order in this process; a Jupyter kernel is not needed."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    out = execute(["".join(cell["source"]) for cell in cells])
    assert out.count("McNemar p = ") == 3
    assert (tmp_path / "outputs" / "quickstart" / "results.csv").exists()


@pytest.mark.parametrize("overrides", [["quant=u8s8", "deploy=x86"], ["quant=w4a8", "refine=bias"]])
def test_a_model_of_the_api_is_that_of_a_run(overrides: list[str], tmp_path: Path) -> None:
    config = rq.compose(*overrides, *SMALL)
    row = rq.run(config, tmp_path / "run")
    data, model = rq.load_dataset(config), rq.load_model(config)
    quantized = rq.quantize(model, data.train, config)
    assert quantized.save(tmp_path / "model.onnx").read_bytes() == (tmp_path / "run" / "model.onnx").read_bytes()
    result, baseline = rq.evaluate(quantized, data.test, config), rq.evaluate(model, data.test)
    np.testing.assert_array_equal(result.predictions, np.load(tmp_path / "run" / "predictions.npy"))
    comparison = rq.compare(result, baseline)
    same = ("accuracy", "float_accuracy", "accuracy_delta", "mcnemar_p", "flips_to_wrong", "flips_to_right")
    assert [getattr(comparison, name) for name in same] == [getattr(row, name) for name in same]
    for value in (config, data, data.test, model, quantized, result, comparison, row):
        assert len(repr(value)) < 600
        assert "\n" not in repr(value)
    assert max(map(len, str(comparison).splitlines())) <= 80


def test_the_row_says_what_was_really_set(tmp_path: Path) -> None:
    config = rq.compose("quant=int8", *SMALL)
    config.quant.weight_bits = 4
    assert rq.run(config, tmp_path / "run").quant_type == "int8+weight_bits=4"


def test_every_function_validates_the_config(tmp_path: Path) -> None:
    config = rq.compose("quant=int8", *SMALL)
    data, model = rq.load_dataset(config), rq.load_model(config)
    config.quant.weight_bits = 9
    for wrong, problem in ((config, "`quant.weight_bits` is 9; valid are 2"), ("quant=int8", "`config` is a str")):
        for call in (
            lambda config: rq.load_dataset(config),
            lambda config: rq.load_model(config),
            lambda config: rq.calibrate(model, data.train, config),
            lambda config: rq.quantize(model, data.train, config),
            lambda config: rq.evaluate(model, data.test, config),
            lambda config: rq.run(config, tmp_path / "run"),
        ):
            with pytest.raises(rq.ExperimentError, match=problem):
                call(wrong)


def test_wrong_calls_are_sentences() -> None:
    config = rq.compose("quant=float", *SMALL)
    data, model = rq.load_dataset(config), rq.load_model(config)
    with pytest.raises(rq.ExperimentError, match="`quant` is float, which quantizes nothing"):
        rq.quantize(model, data.train, config)
    train, test = rq.evaluate(model, data.train), rq.evaluate(model, data.test)
    with pytest.raises(rq.ExperimentError, match="1000 images, `result` on 1000 others"):
        rq.compare(train, test)
    with pytest.raises(rq.ExperimentError, match="samples_per_class` is 0; valid are 1"):
        rq.compose("quant=int8", "calibration.samples_per_class=0")
    with pytest.raises(rq.ExperimentError, match="`config_dir` is nowhere, which is not a folder"):
        rq.compose("quant=int8", config_dir="nowhere")
    with pytest.raises(rq.ExperimentError, match="`quant` is 'int8'; it takes a QuantConfig"):
        rq.Config(quant="int8")  # type: ignore[arg-type]
    for function in (rq.quantize, rq.calibrate, rq.evaluate):
        with pytest.raises(rq.ExperimentError, match="`images` is a ndarray; it takes images with labels"):
            function(model, data.train.images, rq.compose(*SMALL))  # type: ignore[operator]


def test_importing_the_package_loads_none_of_its_libraries() -> None:
    code = (
        "import sys, resnet8_quant as rq; rq.QuantConfig(); assert set(rq.__all__) <= set(dir(rq)); "
        "sys.exit(bool({'numpy', 'onnx', 'onnxruntime', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert all(getattr(rq, name) is not None for name in rq.__all__)
    with pytest.raises(AttributeError):
        _ = rq.nothing
