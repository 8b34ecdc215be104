"""The validation split: training images that do not calibrate, and a model's drop of accuracy on them."""

import numpy as np
import pytest

from resnet8_quant.config import AllocateConfig, CalibrationConfig, Config, DataConfig, DataKind, ModelConfig
from resnet8_quant.evaluator.accuracy import Predictions
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.model import load_model
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images
from resnet8_quant.validation_split import accuracy_drop


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load_dataset(DataConfig(kind=DataKind.sample), cache), load_model(ModelConfig(), (32, 32, 3), 10, cache)


def chosen(data, count):
    indices = choose_images(CalibrationConfig(samples_per_class=count), data.train.labels, len(data.test.labels), 0)
    return CalibrationImages.of(data.train.images, indices, "train")


def allocating(count):
    allocate = AllocateConfig("accuracy", max_accuracy_drop=0.1, validation_images=count)
    return Config(allocate=allocate, seed=7)


def test_validation_images_do_not_calibrate(parts, monkeypatch):
    data, model = parts
    images = chosen(data, 60)
    seen = []

    def predict(serialized, input_spec, pictures, **_):
        seen.append(pictures)
        return Predictions(np.zeros(len(pictures), np.int64), 0)

    monkeypatch.setattr("resnet8_quant.evaluator.accuracy.predict", predict)
    for _ in range(2):
        assert accuracy_drop(data.train, model, images, allocating(400))(b"") == 0
    used = {data.train.images[index].tobytes() for index in images.chosen}
    assert len(seen[0]) == 400
    assert not used & {picture.tobytes() for picture in seen[0]}
    np.testing.assert_array_equal(seen[0], seen[2])


def test_the_float_model_loses_nothing(parts):
    data, model = parts
    assert accuracy_drop(data.train, model, chosen(data, 10), allocating(100))(model.serialized) == 0
    assert accuracy_drop(data.train, model, chosen(data, 95), Config()) is None
