"""RAM and flash of a model: the peak is that of the best order of execution, found by trying all of them."""

from itertools import permutations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resnet8_quant as rq
from resnet8_quant.deploy.memory import Layer, flash_bytes, measure, peak_bytes
from resnet8_quant.inputs.model import RESOURCES


def brute_force(layers, sizes, result):
    """The least peak over all orders in which every layer runs after those that it reads."""
    peaks = []
    for order in permutations(layers):
        alive, peak, valid = {"image"}, sizes["image"], True
        for place, layer in enumerate(order):
            valid = valid and set(layer.inputs) <= alive
            alive.add(layer.output)
            peak = max(peak, sum(sizes[name] for name in alive))
            later = {name for other in order[place + 1 :] for name in other.inputs}
            alive = {name for name in alive if name in later or name == result}
        if valid:
            peaks.append(peak)
    return min(peaks)


@st.composite
def graphs(draw):
    """Up to six layers, each of which reads one or two tensors that come before it; the last one reads all ends."""
    layers, names = [], ["image"]
    for number in range(draw(st.integers(1, 5))):
        inputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        layers.append(Layer(f"t{number}", "Add", 0, 0, 0, 0, tuple(inputs), f"t{number}"))
        names.append(f"t{number}")
    ends = sorted(set(names) - {name for layer in layers for name in layer.inputs})
    layers.append(Layer("end", "Add", 0, 0, 0, 0, tuple(ends), "end"))
    return layers, {name: draw(st.integers(1, 9)) for name in [*names, "end"]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs())
def test_the_peak_is_that_of_the_best_order(graph):
    layers, sizes = graph
    in_order, best = peak_bytes(layers, sizes, "image", "end")
    assert best == brute_force(layers, sizes, "end") <= max(in_order)
    assert in_order[-1] == sum(sizes[name] for name in layers[-1].inputs) + sizes["end"]


@pytest.fixture(scope="module")
def resnet8():
    return measure(onnx.load(next(RESOURCES.glob("*.onnx"))))


def test_resnet8(resnet8):
    """Multiply-accumulates by hand; three images of 32 x 32 x 16 live at the end of the first residual block."""
    conv = [(32, 3, 3, 16), (32, 3, 16, 16), (32, 3, 16, 16), (16, 3, 16, 32), (16, 3, 32, 32), (16, 1, 16, 32)]
    conv += [(8, 3, 32, 64), (8, 3, 64, 64), (8, 1, 32, 64)]
    assert resnet8.macs == sum(size**2 * kernel**2 * ins * outs for size, kernel, ins, outs in conv) + 640
    assert resnet8.peak_activation_bytes == max(resnet8.live_bytes) == 3 * 32 * 32 * 16
    assert {layer.weight_bits for layer in resnet8.layers} == {0, 32}


def test_flash_counts_weights_biases_and_scales(resnet8):
    weighted = [layer for layer in resnet8.layers if layer.weights]
    weights, biases = (sum(getattr(layer, name) for layer in weighted) for name in ("weights", "biases"))
    assert flash_bytes(resnet8.layers, None, False) == 4 * (weights + biases)
    assert flash_bytes(resnet8.layers, [8] * len(weighted), True) == weights + 8 * biases
    assert flash_bytes(resnet8.layers, [4] * len(weighted), False) == weights // 2 + 4 * biases + 4 * len(weighted)


def test_a_quantized_model_has_the_figures_of_its_float_model(resnet8):
    config = rq.compose("quant=int8", "data=sample", "calibration.samples_per_class=1")
    quantized = rq.quantize(rq.load_model(config), rq.load_dataset(config).train, config)
    memory = measure(onnx.load_from_string(quantized.serialized))
    assert (memory.macs, memory.peak_activation_bytes) == (resnet8.macs, resnet8.peak_activation_bytes)
    weights = [sum(layer.weights for layer in figures.layers) for figures in (memory, resnet8)]
    assert weights[0] == weights[1]
    assert {layer.weight_bits for layer in memory.layers} == {0, 8}


def test_a_shape_that_is_not_known_gives_no_figures():
    graph = onnx.parser.parse_graph("g (float[1, N, M, 3] x) => (float[1, N, M, 3] y) { y = Add(x, x) }")
    assert measure(onnx.helper.make_model(graph)) is None
