"""What can saturate, read from weights and types: against arithmetic written out, and against this CPU's kernels."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.parser import parse_model

from resnet8_quant.graphs import session
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.saturation import pair_saturates, saturating_layers, unsigned_weights
from resnet8_quant.graphs.session import differs_by_default, kernels_saturate, open_session

SCALE = 300.0  # of the outputs: what is left of the largest sums fits into a byte


def multiply_add_saturating(codes, weights):
    """VPMADDUBSW on all pairs (2j, 2j + 1), then exact sums; codes [K], weights [outputs, K]."""
    products = codes.astype(np.int64) * weights
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1)))
    return np.clip(products[:, ::2] + products[:, 1::2], -(2**15), 2**15 - 1).sum(axis=1)


def model_of(nodes, shape, constants, dtype="uint8"):
    """A model from ``x`` to ``y``, from nodes as text."""
    model = parse_model(f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g ({dtype}[{",".join(map(str, shape))}] x) => ({dtype}[] y) {{ {nodes} }}""")
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()
    )
    return model.SerializeToString()


def scalars(activation=np.uint8, weight=np.int8):
    one = np.float32(1)
    return {"s": one, "z": activation(0), "ws": one, "wz": weight(0), "ys": np.float32(SCALE)}


def convolution(weight, domain="", group=1, activation=np.uint8):
    """QLinearConv of [n, C, 3, 3] images, or NHWC ones in the domain of Microsoft, with a kernel of up to 3 x 3."""
    channels = weight.shape[1] * group
    operator, last = ("com.microsoft.QLinearConv", ", channels_last = 1") if domain else ("QLinearConv", "")
    attributes = f"kernel_shape = {list(weight.shape[2:])}, group = {group}{last}"
    shape = ["n", 3, 3, channels] if domain else ["n", channels, 3, 3]
    constants = scalars(activation, weight.dtype.type) | {"w": weight}
    nodes = f"y = {operator} <{attributes}> (x, s, z, w, ws, wz, ys, z)"
    return model_of(nodes, shape, constants, np.dtype(activation).name)


MATRICES = {  # of int8 [K, N]
    "QGemm": "y = com.microsoft.QGemm <alpha = 1.0> (x, s, z, w, ws, wz, , ys, z)",
    "QLinearMatMul": "y = QLinearMatMul (x, s, z, w, ws, wz, ys, z)",
}


def matrix(operator, weight):
    return model_of(MATRICES[operator], ["n", weight.shape[0]], scalars() | {"w": weight})


def quantize_dequantize(weight, dtype=np.uint8, limit=None):
    """A Conv between Q/DQ pairs; ``limit``: of a Clip of the integers."""
    zero = dtype(0) if dtype is np.uint8 else dtype(-128)
    constants = scalars() | {"z": zero, "w": weight, "low": zero, "high": dtype(limit or 0)}
    nodes = f"""q = QuantizeLinear (x, s, z) c = Clip (q, low, high)
        d = DequantizeLinear ({"q" if limit is None else "c"}, s, z) wd = DequantizeLinear (w, ws, wz)
        f = Conv <kernel_shape = {list(weight.shape[2:])}> (d, wd)
        fq = QuantizeLinear (f, ys, z) y = DequantizeLinear (fq, ys, z)"""
    return model_of(nodes, ["n", weight.shape[1], 3, 3], constants, "float")


def pair(first, second, values=(127, 127), shape=(8, 4, 3, 3)):
    """int8 weights that are 0 but for two places in the order kernel row, kernel column, channel."""
    outputs, channels, rows, columns = shape
    flat = np.zeros((outputs, rows * columns * channels), np.int8)
    flat[:, first], flat[:, second] = values
    return np.ascontiguousarray(flat.reshape(outputs, rows, columns, channels).transpose(0, 3, 1, 2))


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.integers(1, 255), st.tuples(st.integers(-128, 127), st.integers(-128, 127)))
@example(255, (64, 64))
@example(255, (65, 64))
@example(255, (-64, -64))
@example(255, (-65, -64))
def test_a_pair_saturates_where_some_codes_make_it(largest, weights):
    sums = [np.dot(weights, codes) for codes in itertools.product((0, largest), repeat=2)]
    assert pair_saturates(np.array([weights]), largest) == (min(sums) < -(2**15) or max(sums) > 2**15 - 1)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.sampled_from([127, 255]), st.integers(6, 8), st.integers(0, 2**32 - 1))
def test_what_passes_is_exact_in_the_saturating_instruction(largest, bits, seed):
    weights = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1, 37))
    worst = [np.where(sign * weights > 0, largest, 0) for sign in (-1, 1)]
    same = all((multiply_add_saturating(codes[0], weights) == weights @ codes[0]).all() for codes in worst)
    assert same or pair_saturates(weights, largest)
    if bits < 8:  # 7 bits pass with any activation
        assert not pair_saturates(weights, largest)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (3, 4), (16, 17), (34, 35)])
def test_neighbours_are_found_in_either_alignment(domain, first, second):
    assert saturating_layers(convolution(pair(first, second), domain)) == ("y",)
    assert saturating_layers(convolution(pair(first, second, (64, 63)), domain)) == ()
    assert saturating_layers(convolution(pair(first, second, (127, -128)), domain)) == ()
    assert not first or saturating_layers(convolution(pair(first - 1, second), domain)) == ()  # no neighbours


FULL = np.full((16, 4, 3, 3), 127, np.int8)


def test_types_and_shapes_without_a_saturating_kernel():
    assert saturating_layers(convolution(FULL)) == ("y",)
    assert saturating_layers(convolution(FULL.astype(np.uint8))) == ()
    assert saturating_layers(convolution(FULL, activation=np.int8)) == ()
    assert saturating_layers(convolution(FULL[:, :1], group=16)) == ()  # depthwise


def test_a_clip_lowers_the_largest_code():
    """int8 becomes uint8 on x86, 128 more."""
    for dtype, limit in ((np.uint8, None), (np.uint8, 130), (np.int8, None), (np.int8, 2)):
        assert saturating_layers(quantize_dequantize(FULL, dtype, limit)) == ("f",)
    for dtype, limit in ((np.uint8, 129), (np.int8, 1)):
        assert saturating_layers(quantize_dequantize(FULL, dtype, limit)) == ()


@pytest.mark.parametrize("operator", ["QGemm", "QLinearMatMul"])
def test_matrices_are_read_along_what_they_sum_and_products_exact(operator):
    weight = np.zeros((8, 4), np.int8)
    weight[2:4, 1] = 127
    assert saturating_layers(matrix(operator, weight)) == ("y",)
    assert saturating_layers(matrix(operator, np.ascontiguousarray(weight.T))) == ()
    rng = np.random.default_rng(2)
    weight = rng.integers(-20, 128, (37, 16)).astype(np.int8)
    model = matrix(operator, weight)
    assert saturating_layers(model) == ("y",)
    for images in (1, 5):
        codes = rng.integers(0, 256, (images, 37)).astype(np.uint8)
        np.testing.assert_array_equal(open_session(model, 1).run(None, {"x": codes})[0], exact(codes, weight.T))


def test_weights_that_nodes_make_are_read_too():
    proto = onnx.load_from_string(convolution(FULL))
    proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(FULL.ravel(), "flat"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(FULL.shape), "shape"))
    proto.graph.node.insert(0, helper.make_node("Reshape", ["flat", "shape"], ["w"]))
    model = proto.SerializeToString()
    assert saturating_layers(model) == ("y",)
    assert saturating_layers(unsigned_weights(model)) == ()
    feed = {"x": np.full((1, 4, 3, 3), 255, np.uint8)}
    sessions = open_session(model, 1), new_session(unsigned_weights(model))
    np.testing.assert_array_equal(*(opened.run(None, feed)[0] for opened in sessions))


def exact(codes, rows):
    """The bytes of integer sums of codes [n, K] with rows [outputs, K]."""
    sums = codes.astype(np.int64) @ rows.astype(np.int64).T
    return np.clip(np.rint((sums.astype(np.float32) / np.float32(SCALE)).astype(np.float64)), 0, 255).astype(np.uint8)


def worst_convolutions():
    """(model, feed, exact output [1, outputs]) whose sums saturate where kernels do."""
    for domain, channels in itertools.product(("", "com.microsoft"), (3, 4, 16)):
        for first in (0, 1, 2, 5):
            weight = pair(first, first + 1, shape=(16, channels, 3, 3))
            images = np.full((1, 3, 3, channels) if domain else (1, channels, 3, 3), 255, np.uint8)
            rows = weight.transpose(0, 2, 3, 1).reshape(16, -1)
            yield convolution(weight, domain), images, exact(np.full((1, rows.shape[1]), 255), rows)


def test_exact_sessions_are_exact_and_what_differs_was_foretold():
    """Unsigned weights cannot saturate and compute the same."""
    for model, images, expected in worst_convolutions():
        default, unsigned = new_session(model), unsigned_weights(model)
        assert saturating_layers(unsigned) == ()
        for opened in (open_session(model, 1), new_session(unsigned)):
            np.testing.assert_array_equal(opened.run(None, {"x": images})[0].reshape(1, -1), expected)
        same = default.run(None, {"x": images})[0].reshape(1, -1) == expected
        assert same.all() or (saturating_layers(model) and kernels_saturate())


def assert_exact_for_ones(opened):
    """A session of ``quantize_dequantize(FULL)`` makes of an image of ones what integers do."""
    output = opened.run(None, {"x": np.full((1, 4, 3, 3), 1, np.float32)})[0].ravel() / SCALE
    np.testing.assert_array_equal(output, exact(np.ones((1, 36)), FULL.reshape(16, -1)).ravel())


def test_a_model_that_cannot_saturate_stays_as_it_is():
    model = convolution(pair(0, 1, (64, 63)))
    assert unsigned_weights(model) is model
    assert not differs_by_default(model)


@pytest.mark.skipif("not kernels_saturate()", reason="the kernels of this CPU do not saturate (probe)")
def test_on_a_saturating_cpu_the_default_session_differs():
    model = convolution(pair(0, 1, shape=(16, 4, 3, 3)))
    images = np.full((1, 4, 3, 3), 255, np.uint8)
    assert differs_by_default(model)
    assert (new_session(model).run(None, {"x": images})[0] != open_session(model, 1).run(None, {"x": images})[0]).all()


def test_pairs_that_do_not_load_precisely_are_computed_in_float(monkeypatch):
    """As ONNX Runtime does with an int8 QLinearMatMul on a CPU without VNNI."""
    assert_exact_for_ones(open_session(quantize_dequantize(FULL), 1))
    tried = []

    def refusing(model, *, entries=None, **options):
        tried.append(entries)
        if entries == session.PRECISE:
            raise RuntimeError("types no longer match")
        return new_session(model, entries=entries, **options)

    monkeypatch.setattr(session, "new_session", refusing)
    monkeypatch.setattr(session, "differs_by_default", lambda model: True)
    assert_exact_for_ones(open_session(quantize_dequantize(FULL), 1))
    assert tried == [session.PRECISE, session.SIMULATED]
