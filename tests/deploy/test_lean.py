"""The two ends of a deployed model: bytes in, the caller's choice out, with the same integers in between."""

import numpy as np
import onnx
import pytest
from deployed import (
    NETS,
    PAD,
    TARGETS,
    answers,
    build,
    cut_at_logits,
    float_operators,
    integers,
    operators,
    pictures,
    plain,
    quant_config,
    rewritten,
    session,
)
from onnx import TensorProto

from resnet8_quant.config import CalibrationConfig, Config, DeployInput, DeployOutput, Layout
from resnet8_quant.deploy.graph import Graph
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

TWO_LAYERS = ((16, 3, PAD), (8, 3, PAD))
MEAN, STD = (120.5, 110.25, 99.0), (60.1, 50.3, 40.7)
LAST = {"Gemm": {}, "transposed": {"last": "transposed"}, "MatMul": {"last": "MatMul"}, "no pool": NETS["no pool"]}


def given(serialized, input_spec, images, target, wanted):
    """The answers of a deployed model."""
    return answers(rewritten(serialized, target, input_spec, give=wanted)[0], input_spec, images)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("last", LAST)
def test_outputs_of_small_nets(last, target, softmax):
    model = build(**{"convolutions": TWO_LAYERS, "softmax": softmax, **LAST[last]})
    images = pictures(model)
    serialized = plain(model, "int8")
    cut, scale, zero_point = cut_at_logits(serialized)
    expected = integers(answers(cut, model.input_spec, images), scale, zero_point)
    same, logits, probabilities, label = (
        given(serialized, model.input_spec, images, target, wanted)
        for wanted in (DeployOutput.same, DeployOutput.logits, DeployOutput.probabilities, DeployOutput.label)
    )
    np.testing.assert_array_equal(same, answers(serialized, model.input_spec, images))
    np.testing.assert_array_equal(np.clip(np.rint(logits / np.float32(scale)) + zero_point, -128, 127), expected)
    exact = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    np.testing.assert_allclose(probabilities, exact / exact.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, logits.argmax(1))


@pytest.mark.parametrize("wanted", DeployOutput)
def test_the_output_is_described_as_it_is(wanted):
    model = build(TWO_LAYERS)
    deployed, _ = rewritten(plain(model, "u8s8"), "x86", model.input_spec, give=wanted)
    (output,) = session(deployed).get_outputs()
    assert output.name == "probabilities"
    label = wanted is DeployOutput.label
    assert (output.type, output.shape[1:]) == (("tensor(int64)", []) if label else ("tensor(float)", [5]))
    onnx.checker.check_model(onnx.load_from_string(deployed), full_check=False)
    last = {
        DeployOutput.same: "DequantizeLinear",
        DeployOutput.logits: "QGemm",
        DeployOutput.probabilities: "Softmax",
        DeployOutput.label: "ArgMax",
    }
    assert operators(deployed)[-1] == last[wanted]
    assert not float_operators(kernel_report(deployed, 1).ops)


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("u8s8", True)])
def test_outputs_of_resnet8(resnet8, model, sample, types, per_channel):
    images = sample[-300:]
    serialized = resnet8(types, per_channel)
    cut, scale, zero_point = cut_at_logits(serialized)
    plain_logits = integers(answers(cut, model.input_spec, images), scale, zero_point)
    plain_label = answers(serialized, model.input_spec, images).argmax(1)
    logits, probabilities, label = (
        given(serialized, model.input_spec, images, "x86", wanted)
        for wanted in (DeployOutput.logits, DeployOutput.probabilities, DeployOutput.label)
    )
    limits = (-128, 127) if types == "int8" else (0, 255)
    steps = np.abs(np.clip(np.rint(logits / np.float32(scale)) + zero_point, *limits) - plain_logits)
    assert steps.max() <= 1
    assert np.mean(steps > 0) < 0.001
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(label, logits.argmax(1))
    np.testing.assert_array_equal(label, probabilities.argmax(1))
    changed = np.flatnonzero(label != plain_label)
    assert len(changed) <= 0.02 * len(images)  # with 8-bit outputs classes tie, with sums they do not
    gaps = plain_logits[changed, label[changed]] - plain_logits[changed, plain_label[changed]]
    assert np.abs(gaps).max() <= 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("calibrated", ["bright", "dark"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": Layout.NCHW},
        {"mean": MEAN, "std": STD},
        {"mean": MEAN, "std": STD, "layout": Layout.NCHW},
        {"std": STD},
        {"batch": 4},
        {"channels": 1, "mean": (100.0,)},
    ],
    ids=str,
)
def test_bytes_give_what_floats_give(options, calibrated, target):
    model = build(TWO_LAYERS, **options)
    images = pictures(model)
    shown = CalibrationImages.of(images if calibrated == "bright" else images // 3)
    serialized = quantize(model, shown, Config(quant_config("int8"), CalibrationConfig(bins=None))).serialized
    for wanted in (DeployOutput.same, DeployOutput.logits):
        floats, input_spec = rewritten(serialized, target, model.input_spec, give=wanted)
        taken, raw = rewritten(serialized, target, model.input_spec, give=wanted, take=DeployInput.uint8)
        assert (input_spec.raw, raw.raw) == (False, True)
        assert raw.prepare(images).dtype == np.uint8
        assert session(taken).get_inputs()[0].type == "tensor(uint8)"
        np.testing.assert_array_equal(answers(taken, raw, images), answers(floats, input_spec, images))


def test_bytes_that_are_the_integers_need_no_operator():
    model = build(TWO_LAYERS)
    deployed, _ = rewritten(plain(model, "int8"), "x86", model.input_spec, take=DeployInput.uint8)
    assert not {"QuantizeLinear", "Cast", "Transpose"}.intersection(operators(deployed))


def test_bytes_are_no_int8():
    """Calibrated with dark images, symmetric int8 has scale 1 and zero point 0 too, but ends at 127."""
    model = build(TWO_LAYERS)
    images = pictures(model)
    quant = quant_config("int8", activation_symmetric=True)
    shown = CalibrationImages.of(np.minimum(images, 127))
    serialized = quantize(model, shown, Config(quant, CalibrationConfig(bins=None))).serialized
    floats, input_spec = rewritten(serialized, "arm", model.input_spec)
    taken, raw = rewritten(serialized, "arm", model.input_spec, take=DeployInput.uint8)
    graph = Graph(onnx.load_from_string(floats))
    (first,) = graph.readers("image")
    assert [graph.array(name).item() for name in first.input[1:3]] == [1, 0]
    np.testing.assert_array_equal(answers(taken, raw, images), answers(floats, input_spec, images))


def test_the_input_of_resnet8_as_bytes(resnet8, model, sample):
    images = sample[-50:]
    floats, input_spec = rewritten(resnet8("int8", False), "x86", model.input_spec)
    taken, raw = rewritten(resnet8("int8", False), "x86", model.input_spec, take=DeployInput.uint8)
    np.testing.assert_array_equal(answers(taken, raw, images), answers(floats, input_spec, images))
    assert onnx.load_from_string(taken).graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


@pytest.mark.parametrize("name", ["rows move", "rows move, transposed", "no pool"])
def test_rows_are_moved_instead_of_pixels(name):
    """That the integers stay the same is shown in test_exactness."""
    model = build(**NETS[name])
    deployed, _ = rewritten(plain(model, "int8"), "x86", model.input_spec)
    assert "Transpose" not in operators(deployed)


def test_a_matrix_that_cannot_be_moved_leaves_the_pixels_to_be():
    model = build(**NETS["MatMul, no pool"])  # no QGemm
    deployed, _ = rewritten(plain(model, "int8"), "x86", model.input_spec)
    assert "Transpose" in operators(deployed)
