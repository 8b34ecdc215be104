"""Narrowing one layer alone: all layers, the right bytes, and errors that NumPy and ONNX Runtime confirm."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nets import NETS, PICTURES, arrays_of, head, net, pictures, run
from onnx import helper, numpy_helper

from resnet8_quant.config import Config, DType, QuantConfig, RefineConfig
from resnet8_quant.quantizer.mixed_precision.sensitivity import sensitivities
from resnet8_quant.quantizer.plan import layer_nodes

QUANT = QuantConfig(activation_type=DType.uint8, per_channel=True)


def measured(model, *widths, images=None, refine=None):
    """{layer: its choices}, with the same widths for every layer."""
    every = {node.output[0]: list(widths) for node in layer_nodes(model.proto().graph)}
    return sensitivities(model, images or pictures(), Config(QUANT, refine=refine or RefineConfig()), every)


def test_narrower_is_worse_in_the_bytes_of_packed_integers(model, images):
    """3 bits are stored in 4."""
    choices = measured(model, 2, 3, 4, 8, images=images)
    assert len(choices) == 10
    errors = {layer: [choice.error for choice in options] for layer, options in choices.items()}
    assert sum(all(a > b for a, b in pairwise(of_layer)) for of_layer in errors.values()) >= 9, errors
    assert all(of_layer[0] > 10 * of_layer[-1] > 0 for of_layer in errors.values())
    arrays = arrays_of(model.proto())
    for node in layer_nodes(model.proto().graph):
        size = arrays[node.input[1]].size
        options = [(choice.bits, choice.payload) for choice in choices[node.output[0]]]
        assert options == [(2, size // 4), (3, size // 2), (4, size // 2), (8, size)]


@pytest.mark.parametrize("case", NETS)
def test_the_error_is_that_of_one_rounded_weight(case):
    """The scores of the float model with one weight changed by NumPy."""
    model = NETS[case]()
    batch = model.input_spec.batch or len(PICTURES)
    feed = model.input_spec.prepare(PICTURES[: len(PICTURES) // batch * batch])

    def scores(proto):
        return np.concatenate([run(proto, {"image": feed[i : i + batch]})[0] for i in range(0, len(feed), batch)])

    choices, expected = measured(model, 3), scores(model.proto()).astype(np.float64)
    for node in layer_nodes(model.proto().graph):
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
        assert choices[node.output[0]][0].error == pytest.approx(error, rel=tolerance)


def test_a_search_is_left_out_but_gptq_is_not():
    """best is measured as gptq, which is better than rounding to the nearest."""
    model = NETS["two convolutions"]()
    gptq = RefineConfig("gptq", "hessian", "gptq", "outputs", bias=True)
    best = replace(gptq, weight_scale="rounded", rounding="descent")
    nearest, compensated, searched = (measured(model, 2, 4, refine=refine) for refine in (RefineConfig(), gptq, best))
    assert compensated == searched
    for layer, options in nearest.items():
        for plain, refined in zip(options, compensated[layer], strict=True):
            assert refined.error < plain.error
            assert refined.payload == plain.payload


def test_a_final_softmax_is_left_out():
    """Its scores would hide the error."""
    weights = {"w_head": np.eye(72, 3) - 0.3, "b_head": np.zeros(3)}
    nodes, without = head("image", 72)[0], net(head("image", 72)[0], **weights)
    nodes[-1].output[0] = "logits"
    with_softmax = net([*nodes, helper.make_node("Softmax", ["logits"], ["scores"])], **weights)
    errors = [next(iter(measured(model, 2).values()))[0].error for model in (with_softmax, without)]
    assert errors[0] == errors[1] > 0
