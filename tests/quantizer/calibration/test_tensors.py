"""The tensors that need a range are those for which onnxruntime's own calibrator wants one."""

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization.calibrate import MinMaxCalibrater

from resnet8_quant.quantizer.calibration.tensors import calibrated_tensors
from resnet8_quant.quantizer.quantize import OPERATORS


def theirs(proto, path):
    path.write_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())
    calibrater = MinMaxCalibrater(path, OPERATORS)
    return calibrater.select_tensors_to_calibrate(calibrater.model)[0]


def test_the_bundled_models_are_onnxruntimes(model, tmp_path):
    found = calibrated_tensors(model.proto(), OPERATORS)
    parts = (set(found.observed), set(found.followers), set(found.fixed))
    assert set().union(*parts) == theirs(model.proto(), tmp_path / "model.onnx")
    assert sum(map(len, parts)) == len(set().union(*parts))  # no tensor twice
    assert found.followers["stack1.add"] == "stack1.relu2"
    assert found.fixed == {"probabilities": (0, 1)}
    assert list(found.observed) == sorted(found.observed)


def test_a_relu_with_another_reader_does_not_lead(tiny, tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["shared"]),
        helper.make_node("Relu", ["shared"], ["relu"]),
        helper.make_node("Clip", ["relu", "", "most"], ["clip"]),
        helper.make_node("Add", ["clip", "shared"], ["scores"]),
    ]
    proto = tiny(nodes, {"w": np.ones((2, 2, 1, 1)), "most": 6.0}).proto()
    found = calibrated_tensors(proto, OPERATORS)
    assert found.followers == {"relu": "clip"}
    assert found.observed == ("clip", "image", "scores", "shared")
    assert {*found.observed, *found.followers} == theirs(proto, tmp_path / "model.onnx")


def test_operators_that_are_not_quantized_want_no_range(tiny):
    nodes = [helper.make_node("Exp", ["image"], ["power"]), helper.make_node("Conv", ["power", "w"], ["scores"])]
    found = calibrated_tensors(tiny(nodes, {"w": np.ones((2, 2, 1, 1))}).proto(), OPERATORS)
    assert found.observed == ("power", "scores")
    assert calibrated_tensors(tiny(nodes, {"w": np.ones((2, 2, 1, 1))}).proto(), []).observed == ()
