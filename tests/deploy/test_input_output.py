"""The two ends of a deployed model: bytes in, the caller's choice out, with the same integers in between."""

import numpy as np
import onnx
import pytest
from deployed import (
    NETS,
    PAD,
    TARGETS,
    build,
    cut_at_logits,
    float_operators,
    integers,
    operators,
    pictures,
    plain,
    predictions,
    quantized,
    rewritten,
    session,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet8_quant.config import DeployInput, DeployOutput, Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.graphs.quantization_summary import summarize

TWO_LAYERS = ((16, 3, PAD), (8, 3, PAD))
LAST_OPERATOR = {"same": "DequantizeLinear", "logits": "QGemm", "probabilities": "Softmax", "label": "ArgMax"}
LAST = {"Gemm": {}, "transposed": {"last": "transposed"}, "MatMul": {"last": "MatMul"}, "no pool": NETS["no pool"]}


def output_of(serialized, input_spec, images, target, output):
    """What a deployed model returns."""
    return predictions(rewritten(serialized, target, input_spec, output=output)[0], input_spec, images)


@pytest.mark.parametrize("ends", [("Softmax",), ()])
@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("last", LAST)
def test_outputs_of_small_nets(last, target, ends):
    model = build(**{"convolutions": TWO_LAYERS, "ends": ends, **LAST[last]})
    images = pictures(model)
    serialized = plain(model, "int8")
    cut, scale, zero_point = cut_at_logits(serialized)
    expected = integers(predictions(cut, model.input_spec, images), scale, zero_point)
    same, logits, probabilities, label = (
        output_of(serialized, model.input_spec, images, target, DeployOutput[output]) for output in LAST_OPERATOR
    )
    np.testing.assert_array_equal(same, predictions(serialized, model.input_spec, images))
    np.testing.assert_array_equal(np.clip(np.rint(logits / np.float32(scale)) + zero_point, -128, 127), expected)
    exact = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    np.testing.assert_allclose(probabilities, exact / exact.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, logits.argmax(1))


@pytest.mark.parametrize("output", LAST_OPERATOR)
def test_the_output_is_described_as_it_is(output):
    model = build(TWO_LAYERS)
    deployed, _ = rewritten(plain(model, "u8s8"), "x86", model.input_spec, output=DeployOutput[output])
    (described,) = session(deployed).get_outputs()
    assert described.name == "probabilities"
    scores_or_label = ("tensor(float)", [5]), ("tensor(int64)", [])
    assert (described.type, described.shape[1:]) == scores_or_label[output == "label"]
    assert operators(deployed)[-1] == LAST_OPERATOR[output]
    assert not float_operators(kernel_report(deployed, 1).ops)


@pytest.mark.parametrize("output", [DeployOutput.logits, DeployOutput.probabilities, DeployOutput.label])
@pytest.mark.parametrize("ends", [("Softmax", "Flatten"), ("Sigmoid",), ("LogSoftmax",)])
def test_an_end_that_is_not_logits_is_refused(ends, output):
    model = build(TWO_LAYERS, ends=ends)
    with pytest.raises(ExperimentError, match=rf"`deploy.output` is {output.name}, but the model ends in"):
        rewritten(plain(model, "u8s8"), "x86", model.input_spec, output=output)


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("u8s8", True)])
def test_outputs_of_resnet8(resnet8, model, sample, types, per_channel):
    """With 8-bit outputs classes tie, with sums they do not."""
    images, serialized = sample[-300:], resnet8(types, per_channel)
    cut, *grid = cut_at_logits(serialized)
    expected = integers(predictions(cut, model.input_spec, images), *grid)
    logits, label = (
        output_of(serialized, model.input_spec, images, "x86", output)
        for output in (DeployOutput.logits, DeployOutput.label)
    )
    limits = (-128, 127) if types == "int8" else (0, 255)
    steps = np.abs(np.clip(np.rint(logits / np.float32(grid[0])) + grid[1], *limits) - expected)
    assert steps.max() <= 1
    assert np.mean(steps > 0) < 0.001
    np.testing.assert_array_equal(label, logits.argmax(1))
    plain_label = predictions(serialized, model.input_spec, images).argmax(1)
    changed = np.flatnonzero(label != plain_label)
    assert len(changed) <= 0.02 * len(images)
    assert np.abs(expected[changed, label[changed]] - expected[changed, plain_label[changed]]).max(initial=0) <= 1


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(
    target=st.sampled_from(sorted(TARGETS)),
    brightness=st.sampled_from([1, 3]),  # with 1 the scale of the input is 1, with 3 it is not
    layout=st.sampled_from([Layout.NHWC, Layout.NCHW]),
    mean=st.none() | st.just((120.5, 110.25, 99.0)),
    std=st.none() | st.just((60.1, 50.3, 40.7)),
    channels=st.sampled_from([1, 3]),
    batch=st.none() | st.just(4),
    output=st.sampled_from([DeployOutput.same, DeployOutput.logits]),
)
def test_bytes_give_what_floats_give(target, brightness, layout, mean, std, channels, batch, output):
    normalization = {name: numbers[:channels] for name, numbers in (("mean", mean), ("std", std)) if numbers}
    model = build(TWO_LAYERS, layout=layout, channels=channels, batch=batch, **normalization)
    images = pictures(model)
    serialized = quantized(model, "int8", images=images // brightness)
    floats, input_spec = rewritten(serialized, target, model.input_spec, output=output)
    uint8, raw = rewritten(serialized, target, model.input_spec, output=output, input=DeployInput.uint8)
    assert (input_spec.raw, raw.raw) == (False, True)
    assert raw.prepare(images).dtype == np.uint8
    assert session(uint8).get_inputs()[0].type == "tensor(uint8)"
    np.testing.assert_array_equal(predictions(uint8, raw, images), predictions(floats, input_spec, images))


def test_bytes_that_are_the_integers_need_no_operator():
    model = build(TWO_LAYERS)
    deployed, _ = rewritten(plain(model, "int8"), "x86", model.input_spec, input=DeployInput.uint8)
    assert not {"QuantizeLinear", "Cast", "Transpose"}.intersection(operators(deployed))
    assert summarize(onnx.load_from_string(deployed)).float_ops == 0


@pytest.mark.parametrize("layout", [Layout.NHWC, Layout.NCHW])
@pytest.mark.parametrize(("mean", "std"), [(None, 255.0), (128.0, 64.0), (128.0, None), (0.0, 1.0)])
def test_a_normalization_that_the_first_scale_says_costs_nothing(mean, std, layout, caplog):
    caplog.set_level("INFO")
    numbers = {name: (value,) * 3 for name, value in (("mean", mean), ("std", std)) if value is not None}
    model = build(TWO_LAYERS, size=(8, 6), layout=layout, **numbers)
    images = pictures(model)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    serialized = quantized(model, "u8s8", images=images)
    floats, input_spec = rewritten(serialized, "x86", model.input_spec)
    taken, raw = rewritten(serialized, "x86", model.input_spec, input=DeployInput.uint8)
    assert not {"QuantizeLinear", "Cast", "Sub", "Div"}.intersection(operators(taken))
    assert "are in the first scale and zero point and cost nothing" in caplog.text
    np.testing.assert_array_equal(predictions(taken, raw, images), predictions(floats, input_spec, images))


@pytest.mark.parametrize(
    ("target", "mean", "std", "brightness", "reason"),
    [
        ("x86", (120.0, 110.0, 99.0), None, 1, "model.mean differs between channels"),
        ("x86", None, (60.1, 50.3, 40.7), 1, "model.std differs between channels"),
        ("x86", (127.5,) * 3, (127.5,) * 3, 1, "model.mean is no whole number"),
        ("x86", (128.0,) * 3, (64.0,) * 3, 3, "the calibrated range is not that of pixels"),
        ("arm", None, (255.0,) * 3, 1, "activations are int8"),
    ],
)
@pytest.mark.parametrize("layout", [Layout.NHWC, Layout.NCHW])
def test_another_normalization_stays_in_float_and_is_said_to(target, mean, std, brightness, reason, layout, caplog):
    caplog.set_level("INFO")
    numbers = {name: values for name, values in (("mean", mean), ("std", std)) if values}
    model = build(TWO_LAYERS, size=(8, 6), layout=layout, **numbers)
    images = pictures(model)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    serialized = quantized(model, "int8", images=images // brightness)
    floats, input_spec = rewritten(serialized, target, model.input_spec)
    taken, raw = rewritten(serialized, target, model.input_spec, input=DeployInput.uint8)
    assert "Cast" in operators(taken)
    assert f"whose integers are not the pixels ({reason}" in caplog.text
    np.testing.assert_array_equal(predictions(taken, raw, images), predictions(floats, input_spec, images))


def test_bytes_are_no_int8():
    """Calibrated with dark images, symmetric int8 has scale 1 and zero point 0 too, but ends at 127."""
    model = build(TWO_LAYERS)
    images = pictures(model)
    serialized = quantized(model, "int8", images=np.minimum(images, 127), activation_symmetric=True)
    floats, input_spec = rewritten(serialized, "arm", model.input_spec)
    taken, raw = rewritten(serialized, "arm", model.input_spec, input=DeployInput.uint8)
    graph = Graph(onnx.load_from_string(floats))
    (first,) = graph.consumers("image")
    assert [graph.array(name).item() for name in first.input[1:3]] == [1, 0]
    np.testing.assert_array_equal(predictions(taken, raw, images), predictions(floats, input_spec, images))
