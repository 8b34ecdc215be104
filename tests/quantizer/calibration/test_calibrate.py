"""A range for each tensor: MinMax is onnxruntime's own to the bit, and what the engine decides is what is stored."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import MinMaxCalibrater
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from strategies import PROPERTY

from resnet8_quant.config import Config, DType, Format, Method, QuantConfig
from resnet8_quant.quantizer.calibration.calibrate import OPERATORS, calibrate, calibrated_tensors
from resnet8_quant.quantizer.calibration.report import stored_params
from resnet8_quant.quantizer.quantize import QUANT_TYPES, quantize

# name: (activation type, symmetric, format)
TARGETS = {
    "int8": (DType.int8, False, Format.QDQ),
    "uint8": (DType.uint8, False, Format.QDQ),
    "int16": (DType.int16, False, Format.QDQ),
    "uint16": (DType.uint16, False, Format.QDQ),
    "int8 symmetric": (DType.int8, True, Format.QDQ),
    "uint8 symmetric": (DType.uint8, True, Format.QDQ),
    "int16 symmetric": (DType.int16, True, Format.QDQ),
    "int8 operators": (DType.int8, False, Format.QOperator),
    "uint8 operators": (DType.uint8, False, Format.QOperator),
    "int8 symmetric operators": (DType.int8, True, Format.QOperator),
}


class OneBatch(CalibrationDataReader):
    """All images in one feed."""

    def __init__(self, feed):
        self.feeds = iter([feed])

    def get_next(self):
        return next(self.feeds, None)


def initializers(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def decides(name):
    """Whether onnxruntime lets a tensor's own range decide in QDQ too: it gives a pool's output the input's scale."""
    return name.rpartition("_")[0] not in ("pool", "flatten", "pool_zero", "flatten_zero")


@pytest.mark.parametrize("target", TARGETS)
def test_minmax_equals_onnxruntime_bit_for_bit(model, images, cache, tmp_path, target):
    kind, symmetric, form = TARGETS[target]
    quant = QuantConfig(activation_type=kind, activation_symmetric=symmetric, format=form)
    if kind is DType.uint8:
        quant.weight_type = DType.uint8
    ours = quantize(model, images, Config(quant), cache=cache)
    proto = model.proto()
    add_pre_process_metadata(proto)
    feed = {model.input_spec.name: model.input_spec.prepare(images.batch(0, len(images)))}
    quantize_static(
        proto,
        tmp_path / "theirs.onnx",
        OneBatch(feed),
        quant_format=QuantFormat[form.name],
        op_types_to_quantize=OPERATORS,
        activation_type=QUANT_TYPES[kind],
        weight_type=QuantType.QUInt8 if kind is DType.uint8 else QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": symmetric},
    )
    theirs = onnx.load(tmp_path / "theirs.onnx")
    expected, found = (initializers(proto) for proto in (theirs, onnx.load_from_string(ours.serialized)))
    if form is Format.QDQ:
        expected, found = ({k: v for k, v in stored.items() if decides(k)} for stored in (expected, found))
    # the classifier's bias is in units of its input's scale
    own = {name for name in expected if form is Format.QDQ and "dense" in name and "bias" in name}
    assert sum(name.endswith("_scale") for name in expected) > 20
    assert found.keys() == expected.keys()
    for name in expected.keys() - own:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].tobytes() == expected[name].tobytes(), name


def test_a_pool_has_the_scale_of_its_own_values(model, images, cache):
    for form in Format:
        quantized = quantize(model, images, Config(QuantConfig(format=form)), cache=cache)
        scale, zero_point = stored_params(onnx.load_from_string(quantized.serialized))["pool"]
        assert zero_point == -128
        highest = quantized.calibration.stats["pool"].high
        assert scale == pytest.approx(highest / 255, rel=1e-6)
        assert highest < 0.5 * quantized.calibration.stats["stack3.relu2"].high


@PROPERTY
@given(st.sampled_from(list(Method)), st.sampled_from(sorted(TARGETS)))
def test_the_stored_params_are_those_of_calibration(model, images, cache, configs, method, target):
    kind, symmetric, form = TARGETS[target]
    quant = QuantConfig(activation_type=kind, activation_symmetric=symmetric, format=form)
    quantized = quantize(model, images, Config(quant, configs[method]), cache=cache)
    found = stored_params(onnx.load_from_string(quantized.serialized))
    params = quantized.calibration.params
    others = {name for name, pair in found.items() if pair != (params[name].scale, params[name].zero_point)}
    assert len(found) >= 16
    # the integer kernel of Softmax wants 1/256
    assert others == ({"probabilities"} if form is Format.QOperator else set())
    assert {"nchw", "stack1.conv2", "stack2.skip", "pool", "dense"} <= found.keys()
    for name, (scale, zero_point) in found.items():
        low, high = (float(end) for end in quantized.calibration.ranges[name])
        qmin, qmax = params[name].qmin, params[name].qmax
        low, high = min(low, 0.0), max(high, 0.0)
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        if name not in others:
            assert scale == pytest.approx((high - low) / (qmax - qmin), rel=1e-6), name
            assert abs(qmin - low / scale - zero_point) <= 0.5 + 1e-3, name


@pytest.mark.parametrize("method", Method)
def test_every_tensor_has_a_range(model, images, cache, configs, method):
    tensors = calibrated_tensors(model.proto(), OPERATORS)
    found = calibrate(model, images, Config(calibration=configs[method]), cache=cache)
    assert found.ranges.keys() == found.params.keys() == {*tensors.observed, *tensors.followers, *tensors.fixed}
    assert found.stats.keys() == set(tensors.observed)
    assert all(found.ranges[name] == found.ranges[leader] for name, leader in tensors.followers.items())
    assert found.ranges["probabilities"] == (0, 1)


def test_methods_differ(model, images, cache, configs):
    ranges = {
        method: calibrate(model, images, Config(calibration=config), cache=cache).ranges
        for method, config in configs.items()
    }
    for first in Method:
        for second in Method:
            differ = sum(ranges[first][name] != ranges[second][name] for name in ranges[first])
            assert differ > len(ranges[first]) / 2 or first is second, (first, second)


def test_a_follower_may_follow_another(tiny, small_images, cache):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"]),
        helper.make_node("Clip", ["conv", "", "most"], ["clip"]),
        helper.make_node("Relu", ["clip"], ["scores"]),
    ]
    model = tiny(nodes, {"w": np.ones((2, 2, 1, 1)), "most": 60.0})
    found = calibrate(model, small_images, Config(), cache=cache)
    assert found.ranges["conv"] == found.ranges["clip"] == found.ranges["scores"]
    assert found.ranges["conv"][1] == 60


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("bias", [0.0, 7.25, -7.25])
def test_a_constant_tensor_is_reported_and_quantized(conv, small_images, configs, caplog, method, bias):
    model = conv(weight=np.zeros((2, 2, 3, 3)), bias=(bias, bias))
    for symmetric in (False, True):
        quant = QuantConfig(activation_symmetric=symmetric)
        caplog.clear()
        quantized = quantize(model, small_images, Config(quant, configs[method]))
        assert quantized.contents.quantized_ops >= 1
        assert "the same value in every calibration image: scores" in caplog.text
        for name, (scale, _) in stored_params(onnx.load_from_string(quantized.serialized)).items():
            assert np.isfinite(scale), name
            assert scale > 0, name
    scores = quantized.calibration.ranges["scores"]
    assert scores == (max(bias, 0), max(bias, 0))


@pytest.mark.parametrize("method", [Method.minmax, Method.moving_average])
def test_without_bins_the_ranges_are_the_same(model, images, configs, method, cache):
    found = calibrate(model, images, Config(calibration=configs[method]), cache=cache)
    plain = calibrate(model, images, Config(calibration=replace(configs[method], bins=None)), cache=cache)
    assert plain.ranges == found.ranges
    assert all(seen.histogram is None for seen in plain.stats.values())


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
