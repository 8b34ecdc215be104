"""allocate=accuracy: the smallest model within a loss, by bisection; no validation image calibrates."""

import itertools
import json

import numpy as np
import pytest

from resnet8_quant.config import AllocateConfig, CalibrationConfig, DataConfig, DataKind, EvaluationConfig, ModelConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.model import load_model
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.mixed_precision.budget import Choice
from resnet8_quant.quantizer.mixed_precision.fit import shrink
from resnet8_quant.quantizer.sampling import choose_images
from resnet8_quant.validation_split import accuracy_drop

WIDTHS = (2, 4, 8)
SIZES = {"a": 1000, "b": 300, "c": 5000}
WEIGHT = {"a": 3.0, "b": 1.0, "c": 5.0}
CHOICES = {
    layer: [Choice(bits, WEIGHT[layer] * 4.0**-bits, size * bits // 8) for bits in WIDTHS]
    for layer, size in SIZES.items()
}


def payload(widths):
    return sum(SIZES[layer] * bits // 8 for layer, bits in widths.items())


def loss(widths):
    return sum(WEIGHT[layer] * 4.0**-bits for layer, bits in widths.items())


def made(widths):
    return json.dumps(widths).encode()


def drop(model):
    return loss(json.loads(model))


@pytest.mark.parametrize("most", [0.6, 0.4, 0.2, 0.05, 0.01])
def test_within_the_loss_and_nearly_the_smallest(most):
    model, widths = shrink(made, drop, CHOICES, most)
    assert model == made(widths)
    assert loss(widths) <= most
    every = (dict(zip(SIZES, bits, strict=True)) for bits in itertools.product(WIDTHS, repeat=3))
    smallest = min(payload(found) for found in every if loss(found) <= most)
    assert payload(widths) <= smallest + 0.06 * payload(dict.fromkeys(SIZES, 8))


def test_a_loss_that_no_width_keeps_says_the_best():
    with pytest.raises(ExperimentError, match=r"`allocate.max_accuracy_drop` is 1e-06.*lose 0\.0001") as caught:
        shrink(made, drop, CHOICES, 1e-6)
    assert "allocate.max_accuracy_drop=0.001" in caught.value.remedy


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load_dataset(DataConfig(kind=DataKind.sample), cache), load_model(ModelConfig(), (32, 32, 3), 10, cache)


def chosen(data, count):
    indices = choose_images(CalibrationConfig(samples_per_class=count), data.train.labels, len(data.test.labels), 0)
    return CalibrationImages.of(data.train.images, indices, "train")


def test_held_out_images_do_not_calibrate(parts, monkeypatch):
    data, model = parts
    images = chosen(data, 60)
    seen = []

    def predict(serialized, input_spec, pictures, **_):
        seen.append(pictures)
        return type("Found", (), {"labels": np.zeros(len(pictures))})

    monkeypatch.setattr("resnet8_quant.validation_split.predict", predict)
    allocation = AllocateConfig("accuracy", max_accuracy_drop=0.1, validation_images=400)
    for _ in range(2):
        assert accuracy_drop(data, model, images, allocation, EvaluationConfig(), 7)(b"") == 0
    used = {data.train.images[index].tobytes() for index in images.chosen}
    assert len(seen[0]) == 400
    assert not used & {picture.tobytes() for picture in seen[0]}
    np.testing.assert_array_equal(seen[0], seen[2])


def test_the_float_model_loses_nothing_and_too_few_images_are_refused(parts):
    data, model = parts
    allocation = AllocateConfig("accuracy", max_accuracy_drop=0.1, validation_images=100)
    assert accuracy_drop(data, model, chosen(data, 10), allocation, EvaluationConfig(), 7)(model.serialized) == 0
    with pytest.raises(ExperimentError, match=r"`allocate.validation_images` is 100, but 950 of 1000 training images"):
        accuracy_drop(data, model, chosen(data, 95), allocation, EvaluationConfig(), 7)
