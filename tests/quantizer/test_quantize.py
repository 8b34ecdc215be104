"""The quantized model: what was asked for, reproducible, and arithmetic that NumPy can follow."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Config, DType, EvaluationConfig, Format, Layout, QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import open_session
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import QDQRegistry, quantize
from resnet8_quant.validation import LEGAL

COMBINATIONS = [
    pytest.param(form, activation, weight, id=f"{form.name}-{activation.name}-{weight.name}")
    for form, table in LEGAL.items()
    for activation, weights in table.items()
    for weight in sorted(weights, key=lambda kind: kind.name)
    if activation is not DType.float32
]


def run(serialized, feed):
    return open_session(serialized, 1).run(None, feed)[0]


def feed_of(model, images):
    return {model.input_spec.name: model.input_spec.prepare(images.batch(0, len(images)))}


def initializers(serialized):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(serialized).graph.initializer}


@pytest.mark.parametrize(("form", "activation", "weight"), COMBINATIONS)
def test_every_legal_combination(model, images, form, activation, weight):
    quant = QuantConfig(activation_type=activation, weight_type=weight, format=form)
    result = quantize(model, images, Config(quant))
    assert (result.contents.activation_type, result.contents.weight_type) == (activation.name, weight.name)
    assert not result.contents.per_channel
    assert result.contents.operators["Conv" if form is Format.QDQ else "QLinearConv"] == [9, 0]
    scores = run(result.serialized, feed_of(model, images))
    assert scores.shape == (len(images), 10)
    assert np.isfinite(scores).all()
    again = quantize(model, images, Config(quant))
    assert again.serialized == result.serialized


@pytest.mark.parametrize("form", Format)
def test_per_channel_is_reported(model, images, form):
    quant = QuantConfig(per_channel=True, format=form)
    assert quantize(model, images, Config(quant)).contents.per_channel


def test_16_bits_and_8_bits_keep_most_answers_of_float(model, images):
    feed = feed_of(model, images)
    expected = run(model.serialized, feed)
    wide = QuantConfig(activation_type=DType.int16, weight_type=DType.int16)
    for quant, tolerance in ((wide, 0.01), (QuantConfig(), 0.3)):
        found = run(quantize(model, images, Config(quant)).serialized, feed)
        assert np.abs(found - expected).mean() < tolerance * expected.std()


def test_weights_are_rounded_to_the_nearest_step(model, images):
    float_weights = initializers(model.serialized)
    serialized = quantize(model, images, Config()).serialized
    stored = initializers(serialized)
    checked = 0
    for node in onnx.load_from_string(serialized).graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        q, scale, zero_point = (stored[name] for name in node.input)
        if q.dtype != np.int8:
            continue
        weight = float_weights[node.input[0].removesuffix("_quantized")]
        dequantized = (q.astype(np.float64) - zero_point) * scale
        assert np.abs(dequantized - weight).max() <= scale / 2 * (1 + 1e-4)
        checked += 1
    assert checked == 10  # 9 convolutions and the classifier


def one_conv():
    rng = np.random.default_rng(5)
    weight, bias = rng.normal(size=(4, 2, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["scores"])],
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    input_spec = InputSpec("image", Layout.NCHW, (6, 6, 2), None, 4, (120.0, 130.0), (60.0, 70.0))
    return FloatModel("conv", proto.SerializeToString(), input_spec, "", "")


@pytest.mark.parametrize("activation", [DType.int8, DType.uint8, DType.uint16])
def test_one_conv_equals_numpy(small_images, activation):
    model = one_conv()
    quant = QuantConfig(activation_type=activation)
    serialized = quantize(model, small_images, Config(quant)).serialized
    stored = initializers(serialized)
    nodes = onnx.load_from_string(serialized).graph.node
    feeding = {node.output[0]: node for node in nodes}
    conv = next(node for node in nodes if node.op_type == "Conv")

    def dequantize(node):
        q, scale, *zero = (stored[name] for name in node.input)
        return (q.astype(np.float64) - (zero[0].astype(np.float64) if zero else 0)) * scale

    def round_trip(x, node):
        scale, zero = (stored[name] for name in node.input[1:])
        limits = np.iinfo(zero.dtype)
        q = np.clip(np.rint(x.astype(np.float32) / scale) + float(zero), limits.min, limits.max)
        return (q - float(zero)) * float(scale), float(scale)

    feed = feed_of(model, small_images)
    x, _ = round_trip(feed["image"], feeding[conv.input[0]])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, dequantize(feeding[conv.input[1]]))
    y += dequantize(feeding[conv.input[2]])[:, None, None]
    expected, step = round_trip(y, next(node for node in nodes if node.input[0] == conv.output[0]))

    (plain,) = new_session(serialized, level="none").run(None, feed)
    off = np.rint(np.abs(plain - expected) / step)
    assert off.max() <= 1  # a sum that lies on a rounding boundary in float32
    assert (off != 0).mean() < 0.01
    np.testing.assert_allclose(run(serialized, feed), expected, atol=1.01 * step)


def test_nothing_to_quantize_is_refused(images):
    graph = helper.make_graph(
        [helper.make_node("Exp", ["image"], ["scores"])],
        "exp",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2, 2, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    input_spec = InputSpec("image", Layout.NHWC, (2, 2, 3), None, 4, std=(255.0,) * 3)
    model = FloatModel("exp", proto.SerializeToString(), input_spec, "", "")
    small = CalibrationImages.of(images.images[:, :2, :2])
    with pytest.raises(ExperimentError, match="none of its 1 operators"):
        quantize(model, small, Config())


@pytest.mark.parametrize("form", Format)
def test_cache_and_threads_have_no_effect_on_the_model(model, images, tmp_path, form):
    quant = QuantConfig(format=form)
    plain = quantize(model, images, Config(quant))
    found = [
        quantize(model, images, Config(quant, evaluation=EvaluationConfig(threads=n)), cache=tmp_path) for n in (3, 2)
    ]
    assert [quantized.calibration.cached for quantized in (plain, *found)] == [False, False, True]
    assert {quantized.serialized for quantized in found} == {plain.serialized}


def test_a_fixed_batch_need_not_be_filled(conv, small_images):
    found = [initializers(quantize(conv(batch), small_images, Config()).serialized) for batch in (None, 8)]
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name], array, err_msg=name)


def test_onnxruntimes_table_of_operators_is_left_as_it_was(conv, small_images):
    before = dict(QDQRegistry)
    quantize(conv(), small_images, Config())
    assert before == QDQRegistry
    with pytest.raises(KeyError):  # float32 is no quantized type
        quantize(conv(), small_images, Config(QuantConfig(weight_type=DType.float32)))
    assert before == QDQRegistry
    assert "AveragePool" in before
