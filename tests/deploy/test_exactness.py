"""The integers of deployed models are those of the plain models, bit for bit, whatever the shapes of the layers."""

from collections import Counter

import numpy as np
import onnx
import pytest
from deployed import (
    NETS,
    PAD,
    TARGETS,
    TYPES,
    answers,
    assert_same_integers,
    build,
    cut_at_logits,
    float_operators,
    integers,
    operators,
    pictures,
    plain,
    rewritten,
)

from resnet8_quant.evaluator.kernels import kernel_report


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("uint8", True), ("u8s8", True)])
@pytest.mark.parametrize("name", NETS)
def test_small_nets(name, types, per_channel):
    model = build(**NETS[name])
    expected, models = assert_same_integers(plain(model, types, per_channel), model.input_spec, pictures(model))
    assert len(np.unique(expected)) > 8
    for target, deployed in models.items():
        report = kernel_report(deployed, 1)
        assert report.kernels == "integer", (target, report)
        assert not float_operators(report.ops), (target, report)


@pytest.mark.parametrize(("types", "bits"), [("int8", 4), ("u8s8", 4), ("u8s8", 6)])
def test_activations_of_few_bits(types, bits):
    """The limits of each Clip move with the integers between them."""
    model = build(((16, 3, PAD), (16, 3, PAD)))
    serialized = plain(model, types, True, activation_bits=bits)
    assert operators(serialized).count("Clip") >= 2
    assert_same_integers(serialized, model.input_spec, pictures(model))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
def test_resnet8(resnet8, model, sample, types, per_channel):
    """All of it in integers, and in a file no larger."""
    serialized = resnet8(types, per_channel)
    expected, _ = assert_same_integers(serialized, model.input_spec, sample[-200:])
    assert len(np.unique(expected)) > 100
    for target in TARGETS:
        deployed, _ = rewritten(serialized, target, model.input_spec)
        report = kernel_report(deployed, 1)
        assert (report.kernels, report.integer, report.total) == ("integer", 10, 10), target
        assert not float_operators(report.ops), target
        assert report.ops["com.microsoft.QLinearConv"] == 9
        assert report.ops["com.microsoft.QLinearAdd"] == 3
        assert "Transpose" not in report.ops
        if target != "x86_amx":  # its products take more room, as conf/deploy/x86_amx.yaml says
            assert len(deployed) <= len(serialized), target


@pytest.mark.parametrize("per_channel", [False, True])
def test_top_1_of_all_images(resnet8, model, sample, per_channel):
    serialized = resnet8("int8", per_channel)
    deployed, _ = rewritten(serialized, "x86", model.input_spec)
    own = answers(serialized, model.input_spec, sample, allow_int8=False)  # int8: some Conv in float
    changed = answers(deployed, model.input_spec, sample).argmax(1) != own.argmax(1)
    assert changed.mean() <= 0.001
    # each is an image where the plain model's float Conv rounded otherwise than integers do
    cut, *grid = cut_at_logits(serialized)
    images = sample[changed]
    if len(images):
        exact, rounded = (answers(cut, model.input_spec, images, allow_int8=allow) for allow in (True, False))
        assert (integers(exact, *grid) != integers(rounded, *grid)).any(1).all()


def test_a_deployed_file_is_what_runs(resnet8, model):
    deployed, _ = rewritten(resnet8("int8", False), "x86", model.input_spec)
    running = kernel_report(deployed, 1).ops
    stored = Counter(operators(deployed))
    assert stored == {name.removeprefix("com.microsoft."): count for name, count in running.items()}
    onnx.checker.check_model(deployed)
