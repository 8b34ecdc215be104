"""deploy=x86 cannot saturate; the targets for VNNI are refused where kernels saturate and 8-bit weights could."""

import importlib

import numpy as np
import onnx
import pytest
from deployed import EXACT, PAD, answers, build, cut_at_logits, integers, pictures, plain, quant_config
from onnx import TensorProto

from resnet8_quant.config import CalibrationConfig, Config, DeployConfig, DType
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

NET = ((16, 3, PAD), (16, 3, PAD))
VNNI = DeployConfig("x86_vnni", DType.uint8, wide_input=True)
AMX = DeployConfig("x86_amx", DType.uint8, wide_input=True, products=True)


def seven_bits(types):
    model = build(NET)
    images = CalibrationImages.of(pictures(model)[:20], np.arange(20), "test")
    quant = quant_config(types, per_channel=types == "u8s8", weight_bits=7)
    return quantize(model, images, Config(quant, CalibrationConfig(samples_per_class=1))).serialized


@pytest.fixture
def saturating(monkeypatch):
    """A CPU whose kernels saturate, as far as deploy is told."""
    monkeypatch.setattr(importlib.import_module("resnet8_quant.deploy.deploy"), "kernels_saturate", lambda: True)


@pytest.mark.parametrize("types", ["int8", "uint8", "u8s8"])
@pytest.mark.parametrize("target", EXACT)
def test_exact_targets_cannot_saturate(types, target):
    model = build(NET)
    deployed, _ = deploy(plain(model, types), EXACT[target], model.input_spec)
    assert saturating_layers(deployed) == ()


def test_layers_that_can_saturate_get_uint8_weights_of_the_same_value():
    model = build(NET)
    serialized, *grid = cut_at_logits(plain(model, "u8s8", True))
    assert saturating_layers(serialized)
    deployed, _ = deploy(serialized, EXACT["x86"], model.input_spec)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(deployed).graph.initializer if len(tensor.dims) > 1}
    assert TensorProto.UINT8 in kinds
    images = pictures(model)
    expected, found = (integers(answers(one, model.input_spec, images), *grid) for one in (serialized, deployed))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", [VNNI, AMX], ids=lambda target: target.name)
@pytest.mark.parametrize("types", ["int8", "uint8", "u8s8"])
def test_seven_bits_stay_portable_on_every_target(saturating, target, types):
    serialized, *grid = cut_at_logits(seven_bits(types))
    model = build(NET)
    deployed, _ = deploy(serialized, target, model.input_spec)  # not refused
    assert saturating_layers(deployed) == ()
    images = pictures(model)
    expected, found = (integers(answers(one, model.input_spec, images), *grid) for one in (serialized, deployed))
    np.testing.assert_array_equal(found, expected)


def test_seven_bits_are_the_same_file_for_both_targets():
    model, serialized = build(NET), seven_bits("u8s8")
    assert deploy(serialized, EXACT["x86"], model.input_spec)[0] == deploy(serialized, VNNI, model.input_spec)[0]


@pytest.mark.parametrize("target", [VNNI, AMX], ids=lambda target: target.name)
def test_eight_bits_are_refused_where_kernels_saturate(saturating, target):
    model = build(NET)
    with pytest.raises(ExperimentError) as caught:
        deploy(plain(model, "u8s8", True), target, model.input_spec)
    assert f"`deploy` is {target.name}" in caught.value.problem
    assert "can saturate" in caught.value.problem
    assert caught.value.remedy.startswith(f"python run.py quant=u8s7 deploy={target.name}")
