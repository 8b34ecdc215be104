"""The bundled ResNet8, quantized in each way that is deployed; helpers/ on the path."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.config import CalibrationConfig, Config, ModelConfig
from resnet8_quant.inputs.model import load_model
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bundled ResNet8."""
    return load_model(ModelConfig(), (32, 32, 3), 10, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def sample():
    """All images of the sample: [2000, 32, 32, 3], 1000 for training and 1000 for testing."""
    data = load_sample()
    return np.concatenate([data.train.images, data.test.images])


@pytest.fixture(scope="session")
def resnet8(model, sample):
    """(types, per_channel) -> bytes of the bundled model, quantized with 100 images."""
    from deployed import quant_config

    @functools.cache
    def make(types, per_channel):
        images, quant = CalibrationImages.of(sample[:100]), quant_config(types, per_channel)
        return quantize(model, images, Config(quant, CalibrationConfig(bins=None))).serialized

    return make
