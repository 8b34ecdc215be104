"""Equalization keeps the function and evens out the ranges; what it must not touch stays."""

import numpy as np
import pytest
from nets import PICTURES, head, net
from onnx import helper, numpy_helper
from small_net import OFF, run

from resnet8_quant.quantizer.refine.equalize import equalize


def conv(read, name, **attributes):
    biased = attributes.pop("bias", True)
    inputs = [read, f"w_{name}", *([f"b_{name}"] if biased else [])]
    return helper.make_node("Conv", inputs, [name], auto_pad="SAME_UPPER", **attributes)


def uneven(shape, seed):
    """Weights whose output channels differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.exp(2 * rng.normal(size=(shape[0], 1, 1, 1))) / np.sqrt(np.prod(shape[1:]))


def three(middle="Relu", extra=(), outputs=(), width=4, group=1, **changed):
    """c1 - Relu - c2 - Relu - c3 - Gemm, with room for changes."""
    last, weights = head("r3", width * 36)
    nodes = [
        conv("image", "c1"),
        helper.make_node(middle, ["c1"], ["r1"]),
        conv("r1", "c2", group=group),
        helper.make_node("Relu", ["c2"], ["r2"]),
        conv("r2", "c3", bias=False),
        helper.make_node("Relu", ["c3"], ["r3"]),
        *extra,
        *last,
    ]
    arrays = {
        "w_c1": uneven((width, 2, 3, 3), 1),
        "b_c1": np.linspace(-1, 1, width),
        "w_c2": uneven((width, width // group, 3, 3), 2),
        "b_c2": np.linspace(1, -1, width),
        "w_c3": uneven((width, width, 1, 1), 3),
    }
    return net(nodes, outputs=(("scores", (3,)), *outputs), **(arrays | changed | weights))


def arrays_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}


def ranges(before, after):
    """Of the output channels of one weight and the input channels of the next."""
    return np.abs(before).max(axis=(1, 2, 3)), np.abs(after).max(axis=(0, 2, 3))


def assert_same_function(first, second):
    feed = {"image": first.input_spec.prepare(PICTURES[:10])}
    for a, b in zip(run(first.serialized, feed, OFF), run(second.serialized, feed, OFF), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_a_chain_ends_even():
    model = three()
    done = equalize(model)
    assert_same_function(model, done)
    assert done.digest != model.digest
    before, after = arrays_of(model), arrays_of(done)
    for first, second in (("w_c1", "w_c2"), ("w_c2", "w_c3")):
        a, b = ranges(before[first], before[second])
        assert np.abs(np.log(a / b)).max() > 1
        a, b = ranges(after[first], after[second])
        np.testing.assert_allclose(a, b, rtol=1e-3)
    for name in ("w_head", "b_head"):
        np.testing.assert_array_equal(after[name], before[name])
    assert all(array.dtype == np.float32 for array in after.values())
    assert equalize(model).serialized == done.serialized


def test_one_scale_fits_better_afterwards():
    """What it is for: less is lost where a weight has one scale."""

    def lost(model):
        feed = {"image": model.input_spec.prepare(PICTURES)}
        proto = model.proto()
        for tensor in proto.graph.initializer:
            if tensor.name.startswith("w_c"):
                array = numpy_helper.to_array(tensor)
                scale = np.abs(array).max() / 7
                tensor.CopyFrom(
                    numpy_helper.from_array((np.round(array / scale) * scale).astype(np.float32), tensor.name)
                )
        return np.mean((run(proto, feed)[0] - run(model.serialized, feed)[0]) ** 2)

    assert lost(equalize(three())) < 0.5 * lost(three())


UNTOUCHED = {
    "the Relu is read twice": (
        lambda: three(
            extra=[helper.make_node("Add", ["r1", "r3"], ["sum"]), helper.make_node("Identity", ["sum"], ["also"])],
            outputs=(("also", (4, 6, 6)),),
        ),
        ["w_c1", "b_c1"],
    ),
    "the Relu is an output": (lambda: three(outputs=(("r1", (4, 6, 6)),)), ["w_c1", "b_c1"]),
    "the Conv is an output": (lambda: three(outputs=(("c1", (4, 6, 6)),)), ["w_c1", "b_c1"]),
    "an activation that does not scale": (lambda: three("Sigmoid"), ["w_c1", "b_c1"]),
    "groups": (lambda: three(group=2), ["w_c1", "b_c1", "w_c2", "b_c2", "w_c3"]),
}


@pytest.mark.parametrize("why", UNTOUCHED)
def test_what_others_see_stays(why):
    make, names = UNTOUCHED[why]
    model = make()
    done = equalize(model)
    assert_same_function(model, done)
    before, after = arrays_of(model), arrays_of(done)
    for name in names:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_dead_channels_stay_finite():
    """A channel that is zero on either side keeps its weights, the others are equalized."""
    w1, w2 = uneven((4, 2, 3, 3), 1), uneven((4, 4, 3, 3), 2)
    w1[0], w2[:, 1] = 0, 0
    model = three(w_c1=w1, w_c2=w2)
    done = equalize(model)
    assert_same_function(model, done)
    after = arrays_of(done)
    assert all(np.isfinite(array).all() for array in after.values())
    np.testing.assert_allclose(after["w_c1"][:2], w1[:2], rtol=1e-6)
    a, b = ranges(after["w_c1"], after["w_c2"])
    np.testing.assert_allclose(a[2:], b[2:], rtol=1e-3)


def test_a_bias_with_two_readers_stays():
    model = three()
    proto = model.proto()
    proto.graph.node[2].input[2] = "b_c1"
    shared = type(model)(model.name, proto.SerializeToString(), model.input_spec, "shared", "")
    assert_same_function(shared, equalize(shared))


def test_the_bundled_model_keeps_its_logits(model):
    """Its pairs are the two Convs of each block."""
    done = equalize(model)
    before, after = arrays_of(model), arrays_of(done)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    proto = model.proto()
    outputs = {node.output[0] for node in proto.graph.node if set(node.input) & moved}
    assert outputs == {f"stack{stack}.conv{number}" for stack in (1, 2, 3) for number in (1, 2)}
    rng = np.random.default_rng(0)
    feed = {model.input_spec.name: model.input_spec.prepare(rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))}
    a, b = (run(m.serialized, feed, OFF)[0] for m in (model, done))
    np.testing.assert_allclose(b, a, atol=1e-4)
