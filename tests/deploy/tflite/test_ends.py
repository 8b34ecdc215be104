"""The ends of a .tflite file: bytes or floats in, logits or probabilities out, as TensorFlow Lite Micro has them."""

import numpy as np
import pytest
from test_reference import Net

from resnet8_quant.deploy.tflite import ends
from resnet8_quant.errors import ExperimentError


def classifier(seed=0):
    net = Net(seed, (1, 30))
    weight, bias = net.weights((5, 30), 0, per_channel=False)
    net.then(
        "FULLY_CONNECTED", (net.last, weight, bias), net.activation((1, 5), net.scale(0.05, 0.5)), activation="NONE"
    )
    net.then("SOFTMAX", (net.last,), net.activation((1, 5), np.array([1 / 256], np.float32), -128), beta=1.0)
    return net


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("output", ["int8", "logits", "probabilities"])
def test_ends_agree_with_the_runtime(dtype, output):
    net = classifier()
    ends.set_input(net.model, dtype)
    ends.set_output(net.model, output)
    values = net.random.normal(0, 5, (20, 30)).astype(np.float32)
    outputs = net.check_inputs(ends.feed(net.model, values))
    assert outputs.dtype == (np.float32 if output == "probabilities" else np.int8)


def test_bytes_are_the_codes_plus_128():
    values = np.linspace(-3, 3, 30, dtype=np.float32)[None]
    codes = ends.feed(classifier().model, values)
    changed = classifier()
    ends.set_input(changed.model, "uint8")
    np.testing.assert_array_equal(ends.feed(changed.model, values), codes.astype(np.int16) + 128)


def test_without_a_softmax_there_are_no_probabilities():
    net = classifier()
    ends.set_output(net.model, "logits")
    with pytest.raises(
        ExperimentError, match=r"`deploy.output` is probabilities, but the model ends in FULLY_CONNECTED"
    ):
        ends.set_output(net.model, "probabilities")
