"""When a float model counts as guessing, and what is said of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import resnet8_quant as rq
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.chance import chance_level, explain_chance, is_chance
from resnet8_quant.inputs.input_spec import conventions

RNG = np.random.default_rng(0)
SMALL = ("quant=u8s7", "calibration.samples_per_class=5", "latency.runs=0", "evaluation.threads=1")
RESNET8 = Path(rq.__file__).parent / "resources" / "resnet8.onnx"


@pytest.mark.parametrize(
    ("predictions", "labels", "level", "chance"),
    [
        (np.arange(1000) % 10, np.arange(1000) // 100, 0.1, True),  # 10 %
        (np.zeros(1000, int), np.arange(1000) % 10, 0.1, True),
        (np.ones(100, int), np.where(np.arange(100) < 90, 1, 0), 0.9, True),  # 90 %, the share of its only class
        (np.where(np.arange(100) < 88, 1, 0), np.where(np.arange(100) < 90, 1, 0), 0.804, False),
        (1 - np.arange(100) % 2, np.arange(100) % 2, 0.5, True),  # 0 %: worse than guessing
        (np.r_[np.zeros(60, int), np.ones(40, int)], np.r_[np.zeros(100, int)], 0.5, False),  # only one class is there
        (np.arange(20) % 10, np.arange(20) % 10, 0.1, False),
        (np.arange(2), np.arange(2), 0.5, False),  # all right, though two images show little
        (np.array([0, 0, 0, 1, 1, 1]), np.array([1, 0, 0, 0, 1, 1]), 0.5, False),
    ],
)
def test_what_counts_as_chance(predictions, labels, level, chance):
    classes = max(2, int(max(predictions.max(), labels.max())) + 1)
    assert chance_level(predictions, labels, classes) == pytest.approx(level)
    assert is_chance(predictions, labels, classes) is chance


def test_guesses_count_as_chance_in_most_draws():
    """Of 400 models that guess, the interval takes all but a few percent for what they are."""
    draws = [(RNG.integers(0, 4, 300), RNG.choice(4, 300, p=[0.7, 0.1, 0.1, 0.1])) for _ in range(400)]
    assert np.mean([is_chance(*draw, 4) for draw in draws]) > 0.95


def wants(folder: Path, mean: np.ndarray, std: np.ndarray, bgr: bool = False) -> str:
    """ResNet8 behind what undoes a normalization: a model that wants images normalized by ``mean`` and ``std``."""
    model = onnx.load(RESNET8)
    (image,) = model.graph.input
    order = np.array([2, 1, 0] if bgr else [0, 1, 2])
    constants = {"undo_std": std.astype("f4"), "undo_mean": mean.astype("f4"), "order": order}
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == image.name else name for name in node.input]
    nodes = [
        helper.make_node("Mul", [image.name, "undo_std"], ["multiplied"]),
        helper.make_node("Add", ["multiplied", "undo_mean"], ["added"]),
        helper.make_node("Gather", ["added", "order"], ["pixels"], axis=3),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


@pytest.mark.parametrize(("name", "bgr"), [("0 to 1", True), ("-1 to 1", False), ("ImageNet's mean and std", False)])
def test_the_input_that_works_is_named(tmp_path, name, bgr):
    mean, std = next(numbers for usual, *numbers in conventions(3) if usual == name)
    path = wants(tmp_path, np.array(mean), np.array(std), bgr)
    words = (*SMALL, "data=sample", "model=onnx", f"model.path={path}", f"cache_dir={tmp_path / 'cache'}")
    with pytest.raises(ExperimentError, match="the float model is no better than chance: top-1") as caught:
        rq.run(rq.compose(*words), tmp_path / "run")
    problem, remedy = caught.value.problem, caught.value.remedy
    assert "it was fed float32 NHWC from 0 to 255, mean 1" in problem
    # Near ones can do as well on 200 images: what counts is that the model works with the one that is named.
    typed = shlex.split(remedy.partition(", and ")[0])
    assert ("BGR" in remedy) is bgr
    data, config = rq.load_dataset(rq.compose(*words)).test, rq.compose(*words, *typed)
    flipped = rq.Split(data.images[..., ::-1], data.labels) if bgr else data
    assert rq.evaluate(rq.load_model(config), flipped, config).accuracy > 0.8


@pytest.fixture
def untrained(tmp_path) -> tuple[str, ...]:
    """The words of a run of a model that always predicts class 3."""
    model = onnx.load(RESNET8)
    for tensor in model.graph.initializer:
        if (values := numpy_helper.to_array(tensor)).ndim > 1 and values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(0.01 * RNG.normal(size=values.shape).astype("f4"), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    path, cache = f"model.path={tmp_path / 'model.onnx'}", f"cache_dir={tmp_path / 'cache'}"
    return (*SMALL, "data=sample", "model=onnx", path, cache)


def test_an_untrained_model_stops_unless_it_is_allowed(untrained, tmp_path, caplog):
    with pytest.raises(
        ExperimentError, match=r"where guessing gets 1.* none of the usual inputs .0 to 255, 0 to 1"
    ) as e:
        rq.run(rq.compose(*untrained), tmp_path / "run")
    assert not (tmp_path / "run" / "results.csv").exists()
    assert e.value.remedy.endswith("evaluation.allow_chance=true")
    assert rq.run(rq.compose(*untrained, "evaluation.allow_chance=true"), tmp_path / "run").accuracy < 0.2
    caplog.clear()
    rq.run(rq.compose("quant=float", *untrained[2:]), tmp_path / "float")  # says so, and goes on
    assert "no better than chance" in caplog.text


def test_labels_from_1_are_named(tmp_path):
    data = rq.load_dataset(rq.compose("data=sample"))
    few = {"x": np.flatnonzero(data.test.labels < 9), "y": np.flatnonzero(data.train.labels < 9)}
    arrays = {"x_test": data.test.images[few["x"]], "y_test": data.test.labels[few["x"]] + 1}
    arrays |= {"x_train": data.train.images[few["y"]], "y_train": data.train.labels[few["y"]] + 1}
    np.savez(tmp_path / "a.npz", **arrays)
    words = (*SMALL, "data=arrays", f"data.path={tmp_path / 'a.npz'}", f"cache_dir={tmp_path / 'cache'}")
    with pytest.raises(ExperimentError, match=r"with labels that begin at 1 top-1 is 8\d\.") as caught:
        rq.run(rq.compose(*words), tmp_path / "run")
    assert rq.run(rq.compose(*words, caught.value.remedy), tmp_path / "run").float_accuracy > 0.8


def test_classes_in_another_order_are_named(tmp_path):
    """CIFAR-10's classes under names that sort in the reverse order, some of which Hydra and the shell need quoted."""
    names = ["zoo's", "y=(1)", "w,x", "true", *"sponml"]
    data = rq.load_dataset(rq.compose("data=sample"))
    for split in ("train", "test"):
        part = getattr(data, split)
        for i in range(0, 1000, 2):
            folder = tmp_path / "images" / split / names[part.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[i]).save(folder / f"{i}.png")
    words = (*SMALL, "data=folder", f"data.path={tmp_path / 'images'}", f"cache_dir={tmp_path / 'cache'}")
    with pytest.raises(
        ExperimentError, match=r"with the classes in the order zoo's,y=.1.,w,x,true,s,p,o,n,m,l top-1 is 8"
    ) as caught:
        rq.run(rq.compose(*words), tmp_path / "run")
    assert rq.run(rq.compose(*words, *shlex.split(caught.value.remedy)), tmp_path / "run").float_accuracy > 0.8


def test_a_good_model_is_left_alone(model):
    data, config = rq.load_dataset(rq.compose("data=sample")).test, rq.compose("data=sample")
    assert explain_chance(model, rq.evaluate(model, data), data, config) is None
