"""The bundled model: plain rounding is NumPy's, and each refinement brings the logits closer to the float ones."""

import numpy as np
import onnx
import pytest
from nets import assert_same_integers, quantized_names, simulated
from onnx import helper, numpy_helper
from small_net import ALL, run, with_integers

from resnet8_quant.config import (
    Config,
    DType,
    QuantConfig,
    RefineConfig,
    Rounding,
    Target,
    WeightScale,
)
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.quantizer.refine.reconstruct import reconstruct

GPTQ = RefineConfig("gptq", WeightScale.hessian, Rounding.gptq, Target.outputs, bias=True, activation_ranges=True)
REFINEMENTS = {"none": RefineConfig(), "bias": RefineConfig("bias", bias=True), "gptq": GPTQ}
WIDTHS = {"w4a8": {}, "w4a4": {"activation_bits": 4}}


def few(count):
    """Training images, as many of each class."""
    return CalibrationImages.of(load_sample().train.images[:: 1000 // count])


@pytest.fixture(scope="module")
def plain(model):
    """What quantize_static makes of the model, and its calibration on 200 images."""
    quant = QuantConfig(activation_type=DType.uint8, per_channel=True)
    done = quantize(model, few(200), Config(quant))
    return onnx.load_from_string(done.serialized), done.calibration


@pytest.fixture(scope="module")
def planned(model, plain):
    """(width, refinement) -> its plan and the emitted model; each is made once."""
    models = {}

    def make(width, refinement):
        if (width, refinement) not in models:
            quant = QuantConfig(
                activation_type=DType.uint8, per_channel=True, weight_bits=4, keep_first_last=8, **WIDTHS[width]
            )
            config = REFINEMENTS[refinement]
            plan = reconstruct(model, few(200), Config(quant, refine=config), plain[1])
            models[width, refinement] = plan, emit(plain[0], plan)
        return models[width, refinement]

    return make


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
def test_plain_rounding_is_numpy(model, plain, bits, per_channel):
    quant = QuantConfig(activation_type=DType.uint8, per_channel=per_channel, weight_bits=bits)
    plan = reconstruct(model, few(100), Config(quant), plain[1])
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}
    nodes = {node.output[0]: node for node in model.proto().graph.node}
    assert len(plan.layers) == 10
    for layer in plan.layers:
        node = nodes[layer.output]
        weight = arrays[node.input[1]]
        axes = tuple(i for i in range(weight.ndim) if i != layer.weight.axis)
        largest = np.abs(weight).max(axes, keepdims=True)
        half = 2 ** (bits - 1) - 1
        scale = (largest.astype(np.float64) / half).astype(np.float32)
        expected = np.clip(np.rint(weight.astype(np.float64) / scale), -half - (bits < 8), half)
        np.testing.assert_array_equal(layer.weight.codes, expected)
        np.testing.assert_array_equal(layer.weight.scale, scale.ravel() if per_channel else scale.item())
        np.testing.assert_array_equal(layer.bias, arrays[node.input[2]])
        assert not layer.weight.zero_point.any()
    assert plan.tensors == plain[1].params


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("refinement", ["none", "gptq"])
def test_the_emitted_model_is_the_plan_simulated(model, planned, width, refinement):
    plan, emitted = planned(width, refinement)
    feed = model.input_spec.prepare(load_sample().test.images[:30])
    traced, names = with_integers(emitted)
    found = dict(zip(names, run(traced, {model.input_spec.name: feed}, outputs=list(names.values())), strict=True))
    expected = simulated(model, plan, feed, quantized_names(emitted))
    assert len(expected) >= 17
    assert_same_integers(found, expected)


@pytest.fixture(scope="module")
def error(model, planned):
    """(width, refinement) -> mean squared error of the logits on the test images of the sample."""
    feed = {model.input_spec.name: model.input_spec.prepare(load_sample().test.images)}

    def logits(proto, name):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.graph.output.append(helper.make_empty_tensor_value_info(name))
        return run(copy, feed, ALL, [name])[0].astype(np.float64)

    expected = logits(model.proto(), "dense")

    def measure(width, refinement):
        emitted = planned(width, refinement)[1]
        softmax = next(node for node in emitted.graph.node if node.op_type == "Softmax")
        return float(((logits(emitted, softmax.input[0]) - expected) ** 2).mean())

    return measure


@pytest.mark.parametrize("width", WIDTHS)
def test_each_refinement_brings_the_logits_closer(error, width):
    none, bias, gptq = (error(width, refinement) for refinement in REFINEMENTS)
    print(f"{width}: none {none:.3f}, bias {bias:.3f}, gptq {gptq:.3f}")
    assert bias < 0.8 * none
    assert gptq < 0.25 * none
    assert gptq < 0.5 * bias
