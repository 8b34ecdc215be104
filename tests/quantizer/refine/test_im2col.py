"""Patches times weight are what ONNX Runtime computes; moments are NumPy's."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import run_nodes
from onnx import helper
from strategies import PROPERTY

from resnet8_quant.quantizer.refine import im2col as module
from resnet8_quant.quantizer.refine.im2col import Geometry, im2col, moments

RNG = np.random.default_rng(11)
X = RNG.normal(size=(3, 4, 11, 10)).astype(np.float32)
ONE_TO_THREE = st.lists(st.integers(1, 3), min_size=2, max_size=2)
PADDINGS = st.one_of(
    st.fixed_dictionaries({"pads": st.lists(st.integers(0, 3), min_size=4, max_size=4), "dilations": ONE_TO_THREE}),
    # ONNX Runtime takes no dilations here
    st.fixed_dictionaries({"auto_pad": st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])}),
)


@PROPERTY
@given(
    kernel=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    strides=ONE_TO_THREE,
    padding=PADDINGS,
    group=st.sampled_from([1, 2, 4]),
    explicit=st.booleans(),
    step=st.integers(2, 4),
)
def test_patches_times_weight_are_the_convolution(kernel, strides, padding, group, explicit, step):
    dilations = padding.get("dilations", [1, 1])
    assume(all((k - 1) * d < size for k, d, size in zip(kernel, dilations, X.shape[2:], strict=True)))
    weight = RNG.normal(size=(8, 4 // group, *kernel)).astype(np.float32)
    attributes = padding | {"strides": strides, "group": group} | ({"kernel_shape": kernel} if explicit else {})
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    expected = run_nodes([node], {"x": X, "w": weight})[0]
    geometry = Geometry.of(node, weight, X.shape)
    patches = im2col(X, geometry)
    count, channels, height, width = expected.shape
    assert patches.shape == (count * height * width, group, weight[0].size)
    grouped = weight.reshape(group, -1, weight[0].size)
    outputs = np.einsum("rgk,gok->rgo", patches, grouped).reshape(count, height, width, channels)
    np.testing.assert_allclose(outputs.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)

    # with a step, every line of the output is still taken once over all offsets
    parts = np.concatenate([im2col(X, geometry, step, offset) for offset in range(step)]).reshape(len(patches), -1)
    np.testing.assert_array_equal(np.sort(parts, 0), np.sort(patches.reshape(len(patches), -1), 0))


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6), (3, 2, 5, 6)])  # of four axes that are no image, too, the last
def test_patches_times_weight_are_the_matrix_product(shape):
    x, weight = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=(6, 4)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    patches = im2col(x, Geometry.of(node, weight, x.shape))
    expected = run_nodes([node], {"x": x, "w": weight})[0]
    np.testing.assert_allclose((patches[:, 0] @ weight).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def pair(shape=(70, 4, 8, 8)):
    """A float input and a distorted copy; 70 images are no multiple of the chunk."""
    floating = (RNG.normal(size=shape) + 1.5).astype(np.float32)
    return (np.round(floating * 2) / 2 + 0.1).astype(np.float32), floating


GEOMETRIES = {
    "1x1": Geometry(),
    "3x3 pads": Geometry((3, 3), pads=(1, 1, 1, 1)),
    "5x5 strides": Geometry((5, 5), strides=(3, 2), pads=(2, 2, 2, 2)),
    "groups": Geometry((3, 3), pads=(1, 1, 1, 1), group=2),
    "depthwise": Geometry((3, 3), strides=(2, 2), group=4),
    "matrix": Geometry(spatial=False),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_moments_are_those_of_numpy(case):
    """In float64 from all patches at once."""
    geometry = GEOMETRIES[case]
    quantized, floating = pair((70, 5) if case == "matrix" else (70, 4, 8, 8))
    about_mean = moments(quantized, floating, geometry)
    about_zero = about_mean.about_zero()
    a, b = (im2col(x, geometry).astype(np.float64) for x in (quantized, floating))
    size = a.shape[2]
    for g in range(geometry.group):
        both = np.cov(a[:, g].T, b[:, g].T, bias=True)
        for computed, expected in (
            (about_mean.mean, a[:, g].mean(0)),
            (about_mean.float_mean, b[:, g].mean(0)),
            (about_mean.covariance, both[:size, :size]),
            (about_mean.cross, both[size:, :size]),
            (about_zero.covariance, a[:, g].T @ a[:, g] / len(a)),
            (about_zero.cross, b[:, g].T @ a[:, g] / len(a)),
        ):
            np.testing.assert_allclose(computed[g], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("most", "tolerance"), [(200, 0.5), (1000, 0.3), (2000, 0.25)])
def test_moments_of_some_lines_are_close(monkeypatch, most, tolerance):
    """A step that is larger than the number of lines still leaves patches."""
    quantized, floating = pair((100, 4, 8, 8))
    whole = moments(quantized, floating, GEOMETRIES["3x3 pads"])
    monkeypatch.setattr(module, "MOST_PATCHES", most)
    part = moments(quantized, floating, GEOMETRIES["3x3 pads"])
    for name in ("mean", "float_mean", "covariance", "cross"):
        a, b = getattr(part, name), getattr(whole, name)
        assert np.isfinite(a).all(), name
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b), name
