"""docs/own_model.md and examples/own_model/ fit together; where torch is installed the page is run, on fewer images."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_model"
PAGE = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")


def load(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS = load(ROOT / "benchmarks" / "own_model.py").commands(PAGE)
IMAGES = load(EXAMPLE / "images.py")


def run(command: str, folder: Path, *more: str) -> str:
    """What a command of the page prints, begun in ``folder``, with the project's own scripts."""
    program, script, *words = shlex.split(command)
    assert program == "python"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESNET8_QUANT_CACHE": str(folder / "cache")}
    line = [sys.executable, "-W", "ignore", ROOT / script, *words, *more]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_runs_every_script_once_and_in_order():
    scripts = [shlex.split(command)[1] for command in COMMANDS]
    names = ["make_images", "train", "export", None, None, "predict"]
    assert scripts == [f"examples/own_model/{name}.py" if name else "run.py" for name in names]
    assert {path.stem for path in EXAMPLE.glob("*.py")} == {*filter(None, names), "images"}
    assert re.findall(r"read`? of `(\S+?)`", PAGE) == ["examples/own_model/images.py"]


def test_the_page_gives_the_run_the_numbers_of_the_application_in_pixels():
    runs = [command for command in COMMANDS if "run.py" in command]
    for command in runs:
        settings = OmegaConf.from_dotlist([word for word in shlex.split(command) if word.startswith("model.")]).model
        np.testing.assert_allclose(settings.mean, np.multiply(IMAGES.MEAN, 255))
        np.testing.assert_allclose(settings.std, np.multiply(IMAGES.STD, 255))
        assert settings.path == str(IMAGES.FOLDER / "model.onnx")
        assert f"data.path={IMAGES.FOLDER / 'images'}" in command


def test_the_application_reads_images_in_the_order_of_predictions(tmp_path):
    for name in ("b/0", "b/1", "a/7", "b/2", "a/9"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), int(name[-1]), np.uint8)).save(tmp_path / f"{name}.png")
    images, labels = IMAGES.read(tmp_path)
    assert labels.tolist() == [0, 1, 0, 1, 1]
    pixels = images.transpose(0, 2, 3, 1) * IMAGES.STD + IMAGES.MEAN
    np.testing.assert_allclose(255 * pixels[:, 0, 0, 0], [7, 0, 9, 1, 2], atol=1e-3)


def test_scripts_print_and_write_where_the_page_says():
    for path in EXAMPLE.glob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        for named in re.findall(r"outputs/own_model/[\w./]+", text):
            assert named.rstrip("./") in PAGE, (path.name, named)


def test_the_page_as_it_is_written_on_few_images(tmp_path):
    pytest.importorskip("torch")
    images, train, export, single, sweep, predict = COMMANDS
    assert "train: 400 images, 4 classes" in run(images, tmp_path, "--data", "sample")
    run(train, tmp_path, "--epochs", "4")
    run(export, tmp_path)
    accuracy = float(re.search(r"FP32 +\| +([\d.]+) %", run(single, tmp_path, "latency.runs=0"))[1])
    assert accuracy > 35  # four classes: the images reach the network as it was trained on them
    said = run(sweep, tmp_path, "latency.runs=0", "calibration.samples_per_class=20")
    (file,) = re.findall(r"^Recommended: .*: (\S+)$", said, re.MULTILINE)
    assert file.startswith("outputs/own_model/sweep/")
    assert "0 predictions differ" in run(predict.replace("FILE", file), tmp_path)
