"""Narrowing one layer alone: all layers, the right bytes, and errors that NumPy and ONNX Runtime confirm."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nets import NETS, PICTURES, net, pictures
from onnx import helper, numpy_helper
from small_net import run

from resnet8_quant.config import Config, DType, QuantConfig, RefineConfig, Rounding, Target, WeightScale
from resnet8_quant.quantizer.mixed_precision.sensitivity import sensitivities
from resnet8_quant.quantizer.plan import layer_nodes

QUANT = QuantConfig(activation_type=DType.uint8, per_channel=True)


def widths_of(model, *widths):
    """The same widths for every layer."""
    return {node.output[0]: list(widths) for node in layer_nodes(model.proto().graph)}


@pytest.fixture(scope="module")
def bundled(model, images):
    return sensitivities(model, images, Config(QUANT), widths_of(model, 2, 3, 4, 8))


def test_narrower_is_worse(bundled):
    found = {layer: [choice.error for choice in options] for layer, options in bundled.items()}
    assert len(found) == 10
    falling = [all(a > b for a, b in pairwise(errors)) for errors in found.values()]
    assert sum(falling) >= 9, found
    for errors in found.values():
        assert errors[0] > 10 * errors[-1] > 0


def test_bytes_are_those_of_the_packed_integers(model, bundled):
    """3 bits are stored in 4."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}
    for node in model.proto().graph.node:
        if node.op_type in ("Conv", "Gemm"):
            size = arrays[node.input[1]].size
            options = bundled[node.output[0]]
            assert [choice.bits for choice in options] == [2, 3, 4, 8]
            assert [choice.payload for choice in options] == [size // 4, size // 2, size // 2, size]


@pytest.mark.parametrize("case", NETS)
def test_the_error_is_that_of_one_rounded_weight(case):
    """The scores of the float model with one weight changed by NumPy."""
    model = NETS[case]()
    feed = model.input_spec.prepare(PICTURES)
    batch = model.input_spec.batch or len(feed)
    feed = feed[: len(feed) // batch * batch]

    def scores(proto):
        return np.concatenate([run(proto, {"image": feed[i : i + batch]})[0] for i in range(0, len(feed), batch)])

    found = sensitivities(model, pictures(), Config(QUANT), widths_of(model, 3))
    expected = scores(model.proto()).astype(np.float64)
    for node in model.proto().graph.node:
        if node.output[0] in found:
            proto = model.proto()
            (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
            array = numpy_helper.to_array(tensor)
            axes = tuple(i for i in range(array.ndim) if i != (0 if node.op_type == "Conv" else 1))
            scale = np.abs(array).max(axes, keepdims=True) / 3
            rounded = np.clip(np.round(array / scale), -4, 3) * scale
            tensor.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32), tensor.name))
            error = ((scores(proto) - expected) ** 2).mean()
            # with a fixed batch the images are a slightly different choice
            tolerance = 0.5 if model.input_spec.batch else 1e-3
            assert found[node.output[0]][0].error == pytest.approx(error, rel=tolerance)


def test_a_search_is_left_out_but_gptq_is_not():
    """best is measured as gptq, which is better than rounding to the nearest."""
    model = NETS["two convolutions"]()
    gptq = RefineConfig("gptq", WeightScale.hessian, Rounding.gptq, Target.outputs, bias=True)
    best = replace(gptq, weight_scale=WeightScale.rounded, rounding=Rounding.descent)
    widths = widths_of(model, 2, 4)
    configs = [Config(QUANT, refine=refinement) for refinement in (RefineConfig(), gptq, best)]
    measured = [sensitivities(model, pictures(), config, widths) for config in configs]
    assert measured[1] == measured[2]
    for layer, options in measured[0].items():
        for plain, refined in zip(options, measured[1][layer], strict=True):
            assert refined.error < plain.error
            assert refined.payload == plain.payload


def test_a_final_softmax_is_left_out():
    """Its scores would hide the error."""
    last = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["logits"])]
    with_softmax = net([*last, helper.make_node("Softmax", ["logits"], ["scores"])], w=np.eye(72, 3) - 0.3)
    without = net([last[0], helper.make_node("Gemm", ["flat", "w"], ["scores"])], w=np.eye(72, 3) - 0.3)
    errors = [
        next(iter(sensitivities(model, pictures(), Config(QUANT), widths_of(model, 2)).values()))[0].error
        for model in (with_softmax, without)
    ]
    assert errors[0] == errors[1] > 0
