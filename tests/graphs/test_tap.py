"""Values of inner tensors, against NumPy."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.graphs.tap import tap

BATCH = np.array([[1, -2], [-3, 4]], np.float32)


@pytest.fixture
def model():
    """image + w -> sum, Relu -> scores; ``w`` is listed as an input, as in old models."""
    nodes = [helper.make_node("Add", ["image", "w"], ["sum"]), helper.make_node("Relu", ["sum"], ["scores"])]
    described = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"image": ["n", 2], "w": [2], "scores": ["n", 2]}.items()
    }
    weights = [numpy_helper.from_array(np.float32([1, 10]), "w")]
    graph = helper.make_graph(nodes, "net", [described["w"], described["image"]], [described["scores"]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


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
    onnx.checker.check_model(model)
