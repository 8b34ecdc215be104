"""Values of inner tensors, against NumPy."""

import numpy as np
import pytest
from onnx.parser import parse_model

from resnet8_quant.graphs.tap import tap

BATCH = np.array([[1, -2], [-3, 4]], np.float32)


@pytest.fixture
def model():
    """image + w -> sum, Relu -> scores; ``w`` is listed as an input, as in old models."""
    return parse_model("""<ir_version: 10, opset_import: ["": 21]>
        net (float[2] w, float[n, 2] image) => (float[n, 2] scores) <float[2] w = {1, 10}> {
            sum = Add (image, w)
            scores = Relu (sum)
        }""")


@pytest.mark.parametrize("level", ["none", "all"])
def test_values_come_in_the_order_asked_for(model, level):
    before = model.SerializeToString(deterministic=True)
    total = BATCH + np.float32([1, 10])
    values = {"image": BATCH, "sum": total, "scores": np.maximum(total, 0)}
    for names in (["sum"], ["scores", "image", "sum"], ["image"], ["sum", "sum"], []):
        arrays = tap(model, names, level)(BATCH)
        assert len(arrays) == len(names)
        for name, array in zip(names, arrays, strict=True):
            np.testing.assert_array_equal(array, values[name])
    assert model.SerializeToString(deterministic=True) == before
