"""Equalization keeps the function and evens out the ranges; what it must not touch stays."""

import numpy as np
import pytest
from nets import OFF, PICTURES, arrays_of, conv, head, net, run
from onnx import helper

from resnet8_quant.quantizer.refine.equalize import equalize


def uneven(shape, seed):
    """Weights whose output channels differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.exp(2 * rng.normal(size=(shape[0], 1, 1, 1))) / np.sqrt(np.prod(shape[1:]))


def three(middle="Relu", extra=(), group=1, outputs=(), second_bias="b2", **changed):
    """c1 - Relu - c2 - Relu - c3 - Gemm, with room for changes."""
    last, weights = head("r3", 4 * 36)
    nodes = [
        conv("image", "w1", "c1", "b1"),
        helper.make_node(middle, ["c1"], ["r1"]),
        conv("r1", "w2", "c2", second_bias, group=group),
        helper.make_node("Relu", ["c2"], ["r2"]),
        conv("r2", "w3", "c3"),
        helper.make_node("Relu", ["c3"], ["r3"]),
        *extra,
        *last,
    ]
    arrays = {"w1": uneven((4, 2, 3, 3), 1), "w2": uneven((4, 4 // group, 3, 3), 2), "w3": uneven((4, 4, 1, 1), 3)}
    biases = {"b1": np.linspace(-1, 1, 4), "b2": np.linspace(1, -1, 4)}
    shapes = {"scores": (3,)} | dict.fromkeys(outputs, (4, 6, 6))
    return net(nodes, outputs=shapes, **(arrays | biases | changed | weights))


def unevenness(before, after):
    """Ratio of the ranges of each output channel of one weight to those of the input channels of the next, as a log."""
    return np.abs(np.log(np.abs(before).max(axis=(1, 2, 3)) / np.abs(after).max(axis=(0, 2, 3))))


def equalized(model, pixels=PICTURES[:10]):
    """The arrays before and after; the outputs stay."""
    done = equalize(model)
    feed = {model.input_spec.name: model.input_spec.prepare(pixels)}
    for a, b in zip(run(model.serialized, feed, OFF), run(done.serialized, feed, OFF), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())
    return arrays_of(model.proto()), arrays_of(done.proto())


def test_a_chain_ends_even():
    model = three()
    before, after = equalized(model)
    for first, second in (("w1", "w2"), ("w2", "w3")):
        assert unevenness(before[first], before[second]).max() > 1
        assert unevenness(after[first], after[second]).max() < 1e-3
    for name in ("w_head", "b_head"):
        np.testing.assert_array_equal(after[name], before[name])
    assert all(array.dtype == np.float32 for array in after.values())
    assert equalize(model).serialized == equalize(model).serialized
    assert equalize(model).digest != model.digest


ALSO_READ = [helper.make_node("Add", ["r1", "r3"], ["sum"]), helper.make_node("Identity", ["sum"], ["also"])]
FIRST = ["w1", "b1"]
UNTOUCHED = {
    "the Relu is read twice": (lambda: three(extra=ALSO_READ, outputs=["also"]), FIRST),
    "the Relu is an output": (lambda: three(outputs=["r1"]), FIRST),
    "the Conv is an output": (lambda: three(outputs=["c1"]), FIRST),
    "an activation that does not scale": (lambda: three("Sigmoid"), FIRST),
    "a bias with two readers": (lambda: three(second_bias="b1"), ["b1"]),
}


@pytest.mark.parametrize("why", UNTOUCHED)
def test_what_others_see_stays(why):
    make, names = UNTOUCHED[why]
    before, after = equalized(make())
    for name in names:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize("group", [2, 4])
def test_groups_end_even(group):
    """4 groups of 4 channels: a depthwise Conv, whose output i reads input i alone."""
    model = three(group=group)
    before, after = equalized(model)
    each = 4 // group
    for arrays, even in ((before, False), (after, True)):
        into = np.zeros((4, 4, 3, 3))  # the same Conv without groups
        for output in range(4):
            start = output // each * each
            into[output, start : start + each] = arrays["w2"][output]
        assert (unevenness(arrays["w1"], into).max() < 1e-3) == even
        assert (unevenness(into, arrays["w3"]).max() < 1e-3) == even


def test_dead_channels_stay_finite():
    """A channel that is zero on either side keeps its weights, the others are equalized."""
    w1, w2 = uneven((4, 2, 3, 3), 1), uneven((4, 4, 3, 3), 2)
    w1[0], w2[:, 1] = 0, 0
    _, after = equalized(three(w1=w1, w2=w2))
    assert all(np.isfinite(array).all() for array in after.values())
    np.testing.assert_allclose(after["w1"][:2], w1[:2], rtol=1e-6)
    assert unevenness(after["w1"][2:], after["w2"][:, 2:]).max() < 1e-3


def test_a_chain_of_depthwise_convolutions(mobilenet):
    """Every Conv of MobileNet changes, and rounding with one scale for a whole weight loses less in each."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    before, after = equalized(mobilenet, pixels)

    def error(weight):
        scale = np.abs(weight).max() / 127
        channels = np.square(np.round(weight / scale) * scale - weight).sum(axis=(1, 2, 3))
        return np.mean(channels / np.square(weight).sum(axis=(1, 2, 3)).clip(1e-12))

    convolutions = [name for name, array in before.items() if array.ndim == 4]
    assert len(convolutions) == 21
    assert all(error(after[name]) < 0.8 * error(before[name]) for name in convolutions)


def test_the_bundled_model_keeps_its_scores(model):
    """Its pairs are the two Convs of each block."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    before, after = equalized(model, pixels)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    outputs = {node.output[0] for node in model.proto().graph.node if set(node.input) & moved}
    assert outputs == {f"stack{stack}.conv{number}" for stack in (1, 2, 3) for number in (1, 2)}
