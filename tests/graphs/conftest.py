"""The bundled model and some calibration images."""

import pytest

from resnet8_quant.config import ModelConfig
from resnet8_quant.inputs.model import load_model
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bundled ResNet8."""
    return load_model(ModelConfig(), (32, 32, 3), 10, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def images():
    """24 training images: no power of two, so that batches do not divide them."""
    return CalibrationImages.of(load_sample().train.images[:24])
