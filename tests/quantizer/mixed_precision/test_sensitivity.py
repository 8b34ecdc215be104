"""Narrowing one layer alone: all layers, the right bytes, and errors that NumPy and ONNX Runtime confirm."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nets import NETS, PICTURES, arrays_of, branching, head, net, pictures, rounded, run, with_outputs
from onnx import helper, numpy_helper

from resnet8_quant.config import AllocateConfig, Config, DType, QuantConfig, RefineConfig
from resnet8_quant.quantizer.mixed_precision.sensitivity import sensitivities
from resnet8_quant.quantizer.plan import layer_nodes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.quantizer.quantize import quantize

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


@pytest.mark.parametrize("case", ["two convolutions", "no bias", "gemm alone", "matmul"])
def test_a_layer_in_float_costs_what_its_input_does(case):
    """Nothing where integers would read the same; else each of the two costs what NumPy says of that input alone."""
    model = NETS[case]()
    (first, *_, last) = [*layer_nodes(model.proto().graph)] * 2
    every = {node.output[0]: [4, 32] for node in layer_nodes(model.proto().graph)}
    narrow, wide = (QuantParams(np.float32(255 / (2**bits - 1)), 0, DType.uint8, 0, 2**bits - 1) for bits in (3, 6))
    of_head = QuantParams(np.float32(0.7), 1, DType.uint8, 0, 7)

    def choices(number, floating):
        options = sensitivities(
            *(model, pictures(), Config(QUANT), every),
            lambda layer, in_float, values: (floating if in_float else number)[layer],
        )
        assert all(integers.bits == 4 and kept.bits == 32 for integers, kept in options.values())
        return options

    plain = choices(dict.fromkeys(every), dict.fromkeys(every))
    assert plain == choices(dict.fromkeys(every, wide), dict.fromkeys(every, wide))
    weights = arrays_of(model.proto())
    for node in (first, last):
        integers, kept = plain[node.output[0]]
        assert kept.error == 0 < integers.error
        assert kept.payload == 4 * weights[node.input[1]].size

    number = dict.fromkeys(every, narrow) | {last.output[0]: of_head if last is not first else narrow}
    differing = choices(number, dict.fromkeys(every, wide) | ({last.output[0]: None} if last is not first else {}))
    feed = model.input_spec.prepare(PICTURES)
    traced = with_outputs(model.proto(), [last.input[0]] if last is not first else [])
    exact = [run(traced, {"image": feed})[0].astype(np.float64)]

    def error(params, node):
        if node is first:
            changed = run(model.proto(), {"image": rounded(feed, params)[0].astype(np.float32)})[0]
        else:
            read = rounded(run(traced, {"image": feed})[1], params)[0]
            changed = read @ weights["w_head"] + weights.get("b_head", 0)
        return ((changed - exact[0]) ** 2).mean()

    for node in (first, last):
        integers, kept = differing[node.output[0]]
        alone = plain[node.output[0]][0].error
        assert integers.error - alone == pytest.approx(error(number[node.output[0]], node), rel=1e-3)
        assert kept.error == (pytest.approx(error(wide, node), rel=1e-3) if node is first else 0)


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_how_a_layer_would_read_its_input(monkeypatch, activation_bits):
    """In float as the tensor is stored without it: with all bits, or not quantized where nothing else reads it."""
    seen = {}

    def capture(model, images, config, widths, read_params):
        values = np.zeros((2, 2), np.float32)
        seen.update({layer: [read_params(layer, kind, values) for kind in (False, True)] for layer in widths})
        raise InterruptedError

    monkeypatch.setattr("resnet8_quant.quantizer.quantize.sensitivities", capture)
    quant = replace(QUANT, activation_bits=activation_bits)
    config = Config(quant, allocate=AllocateConfig("bytes", 100_000, choices=[2, "float"]))
    with pytest.raises(InterruptedError):
        quantize(branching(), pictures(), config)
    bits = activation_bits or 8
    found = {layer: [params and params.bit_width for params in pair] for layer, pair in seen.items()}
    assert found == {"c1": [bits, None], "c2": [bits, 8], "scores": [bits, 8]}


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
    softmax, flatten = (helper.make_node(name, ["logits"], ["scores"]) for name in ("Softmax", "Flatten"))
    with_softmax = net([*nodes, softmax], **weights)
    softmax.output[0] = flatten.input[0] = "probabilities"
    flattened = net([*nodes, softmax, flatten], **weights)
    errors = [next(iter(measured(model, 2).values()))[0].error for model in (with_softmax, flattened, without)]
    assert errors[0] == errors[1] == errors[2] > 0
