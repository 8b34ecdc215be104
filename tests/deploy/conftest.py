"""The bundled ResNet8, quantized in each way that is deployed; helpers/ on the path."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.inputs.sample import load_sample

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def sample():
    """All images of the sample: [2000, 32, 32, 3], 1000 for training and 1000 for testing."""
    data = load_sample()
    return np.concatenate([data.train.images, data.test.images])


@pytest.fixture(scope="session")
def resnet8(model, sample):
    """(types, per_channel) -> bytes of the bundled model, quantized with 100 images."""
    from deployed import quantized

    return functools.cache(lambda types, per_channel: quantized(model, types, per_channel, images=sample[:100]))
