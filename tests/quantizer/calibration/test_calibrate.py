"""A range for each tensor: MinMax is onnxruntime's own to the bit, and what the engine decides is what is stored."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import arrays_of, net
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.calibrate import MinMaxCalibrater
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from strategies import PROPERTY

from resnet8_quant.config import Config, DType, Format, Method, QuantConfig
from resnet8_quant.quantizer.calibration.calibrate import OPERATORS, calibrate, calibrated_tensors
from resnet8_quant.quantizer.calibration.report import stored_params
from resnet8_quant.quantizer.insert_ranges import QUANT_TYPES
from resnet8_quant.quantizer.quantize import quantize

# (type, symmetric, format) of activations that onnxruntime quantizes
TARGETS = [(dtype, symmetric, Format.QDQ) for dtype in (DType.int8, DType.int16) for symmetric in (False, True)]
TARGETS += [(DType.uint8, False, Format.QDQ), (DType.uint8, True, Format.QDQ), (DType.uint16, False, Format.QDQ)]
TARGETS += [(DType.int8, symmetric, Format.QOperator) for symmetric in (False, True)]
TARGETS += [(DType.uint8, False, Format.QOperator)]


class OneBatch(CalibrationDataReader):
    """All images in one feed."""

    def __init__(self, feed):
        self.feeds = iter([feed])

    def get_next(self):
        return next(self.feeds, None)


def is_shared(name):
    """Whether QDQ has another range than a tensor's own: onnxruntime gives a pool's output the input's scale."""
    return name.rpartition("_")[0] in ("pool", "flatten", "pool_zero", "flatten_zero")


@pytest.mark.parametrize(("dtype", "symmetric", "form"), TARGETS)
def test_minmax_equals_onnxruntime_bit_for_bit(model, images, cache, tmp_path, dtype, symmetric, form):
    weight = DType.uint8 if dtype is DType.uint8 else DType.int8
    quant = QuantConfig(activation_type=dtype, weight_type=weight, activation_symmetric=symmetric, format=form)
    ours = quantize(model, images, Config(quant), cache=cache)
    proto = model.proto()
    add_pre_process_metadata(proto)
    quantize_static(
        proto,
        tmp_path / "theirs.onnx",
        OneBatch({model.input_spec.name: model.input_spec.prepare(images.batch(0, len(images)))}),
        quant_format=QuantFormat[form.name],
        op_types_to_quantize=OPERATORS,
        activation_type=QUANT_TYPES[dtype],
        weight_type=QUANT_TYPES[weight],
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": symmetric},
    )
    expected, stored = (
        {name: array for name, array in arrays_of(proto).items() if form is Format.QOperator or not is_shared(name)}
        for proto in (onnx.load(tmp_path / "theirs.onnx"), onnx.load_from_string(ours.serialized))
    )
    assert sum(name.endswith("_scale") for name in expected) > 20
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        if form is Format.QDQ and "dense" in name and "bias" in name:
            continue  # the classifier's bias is in units of its input's scale
        assert (stored[name].dtype, stored[name].tobytes()) == (array.dtype, array.tobytes()), name


def test_a_pool_has_the_scale_of_its_own_values(model, images, cache):
    for form in Format:
        quantized = quantize(model, images, Config(QuantConfig(format=form)), cache=cache)
        scale, zero_point = stored_params(onnx.load_from_string(quantized.serialized))["pool"]
        assert zero_point == -128
        highest = quantized.calibration.stats["pool"].high
        assert scale == pytest.approx(highest / 255, rel=1e-6)
        assert highest < 0.5 * quantized.calibration.stats["stack3.relu2"].high


@PROPERTY
@given(st.sampled_from(list(Method)), st.sampled_from(TARGETS))
def test_the_stored_params_are_those_of_calibration(model, images, cache, configs, method, target):
    dtype, symmetric, form = target
    quant = QuantConfig(activation_type=dtype, activation_symmetric=symmetric, format=form)
    quantized = quantize(model, images, Config(quant, configs[method]), cache=cache)
    stored, params = stored_params(onnx.load_from_string(quantized.serialized)), quantized.calibration.params
    others = {name for name, pair in stored.items() if pair != (params[name].scale, params[name].zero_point)}
    assert len(stored) >= 16
    # the integer kernel of Softmax wants 1/256
    assert others == ({"probabilities"} if form is Format.QOperator else set())
    assert {"nchw", "stack1.conv2", "stack2.skip", "pool", "dense"} <= stored.keys()


def test_every_tensor_has_a_range_and_methods_differ(model, images, cache, configs):
    tensors = calibrated_tensors(model.proto(), OPERATORS)
    calibrations = {
        method: calibrate(model, images, Config(calibration=config), cache=cache) for method, config in configs.items()
    }
    for first, one in calibrations.items():
        assert one.ranges.keys() == one.params.keys() == {*tensors.observed, *tensors.followers, *tensors.fixed}
        assert one.stats.keys() == set(tensors.observed)
        assert all(one.ranges[name] == one.ranges[leader] for name, leader in tensors.followers.items())
        assert one.ranges["probabilities"] == (0, 1)
        for second, other in calibrations.items():
            differ = sum(one.ranges[name] != other.ranges[name] for name in one.ranges)
            assert differ > len(one.ranges) / 2 or first is second, (first, second)


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("bias", [0.0, 7.25, -7.25])
def test_a_constant_tensor_is_reported_and_quantized(conv, small_images, configs, caplog, method, bias):
    model = conv(weight=np.zeros((2, 2, 3, 3)), bias=(bias, bias))
    quantized = quantize(model, small_images, Config(calibration=configs[method]))
    assert "the same value in every calibration image: scores" in caplog.text
    for name, (scale, _) in stored_params(onnx.load_from_string(quantized.serialized)).items():
        assert 0 < scale < np.inf, name
    assert quantized.calibration.ranges["scores"] == (max(bias, 0), max(bias, 0))


def theirs(proto, path):
    path.write_bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())
    calibrater = MinMaxCalibrater(path, OPERATORS)
    return calibrater.select_tensors_to_calibrate(calibrater.model)[0]


def test_the_tensors_of_the_bundled_model_are_onnxruntimes(model, tmp_path):
    tensors = calibrated_tensors(model.proto(), OPERATORS)
    parts = (set(tensors.observed), set(tensors.followers), set(tensors.fixed))
    assert set().union(*parts) == theirs(model.proto(), tmp_path / "model.onnx")
    assert sum(map(len, parts)) == len(set().union(*parts))  # no tensor twice
    assert tensors.followers["stack1.add"] == "stack1.relu2"
    assert tensors.fixed == {"probabilities": (0, 1)}
    assert list(tensors.observed) == sorted(tensors.observed)


def tiny(*nodes, most=6.0):
    """A model from (operator, inputs, output) of each node."""
    weights = {"w": np.ones((2, 2, 1, 1)), "most": np.array(most)}
    built = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes]
    return net(built, outputs={"scores": (2, None, None)}, **weights)


def test_a_follower_may_follow_another(small_images, cache):
    clip = ("Clip", ["conv", "", "most"], "clip")
    model = tiny(("Conv", ["image", "w"], "conv"), clip, ("Relu", ["clip"], "scores"), most=60.0)
    ranges = calibrate(model, small_images, Config(), cache=cache).ranges
    assert ranges["conv"] == ranges["clip"] == ranges["scores"]
    assert ranges["conv"][1] == 60


def test_a_relu_with_another_reader_does_not_lead(tmp_path):
    clip, add = ("Clip", ["relu", "", "most"], "clip"), ("Add", ["clip", "shared"], "scores")
    proto = tiny(("Conv", ["image", "w"], "shared"), ("Relu", ["shared"], "relu"), clip, add).proto()
    tensors = calibrated_tensors(proto, OPERATORS)
    assert tensors.followers == {"relu": "clip"}
    assert tensors.observed == ("clip", "image", "scores", "shared")
    assert {*tensors.observed, *tensors.followers} == theirs(proto, tmp_path / "model.onnx")


def test_operators_that_are_not_quantized_want_no_range():
    proto = tiny(("Exp", ["image"], "power"), ("Conv", ["power", "w"], "scores")).proto()
    assert calibrated_tensors(proto, OPERATORS).observed == ("power", "scores")
