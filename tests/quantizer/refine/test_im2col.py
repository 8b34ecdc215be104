"""Rows times weight is what ONNX Runtime computes; moments are NumPy's."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from resnet8_quant.quantizer.refine import im2col as module
from resnet8_quant.quantizer.refine.im2col import Geometry, im2col, moments

RNG = np.random.default_rng(11)


def by_onnxruntime(node, x, weight):
    """The node alone, on ``x``."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("w", weight))],
        [helper.make_empty_tensor_value_info("y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "w": weight})[0]


SAME = ((3, [1, 1]), (3, [2, 2]), (5, [2, 3]), (2, [1, 2]), (1, [2, 2]))  # ONNX Runtime takes no dilations here
CONVOLUTIONS = {
    "1x1": ((5, 4, 1, 1), {}),
    "1x1 stride": ((5, 4, 1, 1), {"strides": [2, 2]}),
    "3x3": ((5, 4, 3, 3), {}),
    "3x3 pads": ((5, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3 asymmetric pads": ((5, 4, 3, 3), {"pads": [0, 1, 2, 3], "strides": [2, 1]}),
    "5x5 strides": ((5, 4, 5, 5), {"strides": [3, 2], "pads": [2, 2, 2, 2]}),
    "3x5": ((5, 4, 3, 5), {"pads": [1, 0, 0, 2]}),
    "dilations": ((5, 4, 3, 3), {"dilations": [2, 3]}),
    "dilations, strides, pads": ((5, 4, 3, 3), {"dilations": [2, 1], "strides": [1, 2], "pads": [2, 1, 1, 0]}),
    "groups": ((6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "depthwise, twice the channels": ((8, 1, 5, 5), {"group": 4, "pads": [2, 2, 2, 2]}),
    "explicit kernel": ((5, 4, 3, 3), {"kernel_shape": [3, 3], "auto_pad": "NOTSET", "pads": [1, 0, 1, 0]}),
    **{
        f"{auto} {kernel}x{kernel} {strides}": (
            (5, 4, kernel, kernel),
            {"auto_pad": auto, "strides": strides},
        )
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for kernel, strides in SAME
    },
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_rows_times_weight_are_the_convolution(case):
    shape, attributes = CONVOLUTIONS[case]
    x = RNG.normal(size=(3, 4, 11, 10)).astype(np.float32)
    weight = RNG.normal(size=shape).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    expected = by_onnxruntime(node, x, weight)
    geometry = Geometry.of(node, weight, x.shape)
    rows = im2col(x, geometry)
    count, channels, height, width = expected.shape
    assert rows.shape == (count * height * width, geometry.group, weight[0].size)
    grouped = weight.reshape(geometry.group, -1, weight[0].size)
    found = np.einsum("rgk,gok->rgo", rows, grouped).reshape(count, height, width, channels).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["3x3 pads", "5x5 strides", "groups"])
def test_every_line_is_taken_once_by_steps(case):
    shape, attributes = CONVOLUTIONS[case]
    x = RNG.normal(size=(2, 4, 11, 10)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    geometry = Geometry.of(node, np.zeros(shape, np.float32), x.shape)
    whole = im2col(x, geometry)
    parts = np.concatenate([im2col(x, geometry, 3, offset) for offset in range(3)])
    assert parts.shape == whole.shape
    np.testing.assert_array_equal(np.sort(parts.reshape(len(parts), -1), 0), np.sort(whole.reshape(len(parts), -1), 0))


@pytest.mark.parametrize("transposed", [0, 1])
def test_rows_times_weight_are_a_gemm(transposed):
    x = RNG.normal(size=(7, 6)).astype(np.float32)
    weight = RNG.normal(size=(4, 6) if transposed else (6, 4)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)
    rows = im2col(x, Geometry.of(node, weight, x.shape))
    assert rows.shape == (7, 1, 6)
    matrix = weight if transposed else weight.T
    np.testing.assert_allclose(rows[:, 0] @ matrix.T, by_onnxruntime(node, x, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6)], ids=["matrix", "sequence"])
def test_rows_times_weight_are_a_matmul(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    weight = RNG.normal(size=(6, 4)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    rows = im2col(x, Geometry.of(node, weight, x.shape))
    expected = by_onnxruntime(node, x, weight)
    np.testing.assert_allclose((rows[:, 0] @ weight).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_a_matmul_of_four_axes_multiplies_the_last():
    x = RNG.normal(size=(3, 2, 5, 6)).astype(np.float32)
    weight = RNG.normal(size=(6, 4)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    rows = im2col(x, Geometry.of(node, weight, x.shape))
    expected = by_onnxruntime(node, x, weight)
    np.testing.assert_allclose((rows[:, 0] @ weight).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def pair(shape=(70, 4, 8, 8)):
    """A float input and a distorted copy; 70 images are no multiple of the chunk."""
    floating = (RNG.normal(size=shape) + 1.5).astype(np.float32)
    return (np.round(floating * 2) / 2 + 0.1).astype(np.float32), floating


def by_numpy(quantized, floating, geometry):
    """[(mean, float mean, covariance, cross)] of each group, in float64 from all rows at once."""
    a, b = (im2col(x, geometry).astype(np.float64) for x in (quantized, floating))
    found = []
    for g in range(geometry.group):
        both = np.cov(a[:, g].T, b[:, g].T, bias=True)
        size = a.shape[2]
        found.append((a[:, g].mean(0), b[:, g].mean(0), both[:size, :size], both[size:, :size]))
    return found


@pytest.mark.parametrize("case", ["1x1", "3x3 pads", "5x5 strides", "groups", "depthwise"])
def test_moments_are_those_of_numpy(case):
    shape, attributes = CONVOLUTIONS[case]
    quantized, floating = pair()
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    geometry = Geometry.of(node, np.zeros(shape, np.float32), quantized.shape)
    found = moments(quantized, floating, geometry)
    for g, expected in enumerate(by_numpy(quantized, floating, geometry)):
        for name, value in zip(("mean", "float_mean", "covariance", "cross"), expected, strict=True):
            np.testing.assert_allclose(getattr(found, name)[g], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_moments_of_a_matrix():
    quantized, floating = pair((70, 5))
    found = moments(quantized, floating, Geometry())
    ((mean, float_mean, covariance, cross),) = by_numpy(quantized, floating, Geometry())
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-5)
    np.testing.assert_allclose(found.float_mean[0], float_mean, rtol=1e-5)
    np.testing.assert_allclose(found.covariance[0], covariance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.cross[0], cross, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [200, 1000, 2000])
def test_moments_of_some_lines_are_close(monkeypatch, most):
    """A step that is larger than the number of lines still leaves rows."""
    quantized, floating = pair((100, 4, 8, 8))
    geometry = Geometry((3, 3), pads=(1, 1, 1, 1))
    whole = moments(quantized, floating, geometry)
    monkeypatch.setattr(module, "MOST_PATCHES", most)
    part = moments(quantized, floating, geometry)
    for name in ("mean", "float_mean", "covariance", "cross"):
        a, b = getattr(part, name), getattr(whole, name)
        assert np.isfinite(a).all(), name
        assert np.linalg.norm(a - b) < {200: 0.5, 1000: 0.3, 2000: 0.25}[most] * np.linalg.norm(b), name
