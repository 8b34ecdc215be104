"""Quantization parameters are onnxruntime's, and values land where QuantizeLinear and DequantizeLinear put them."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import run_nodes
from onnx import helper
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType
from strategies import ACTIVATION_SCHEMES, PROPERTY, SEEDS

from resnet8_quant.config import DType
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, fake_quantize, params_of_ranges

ENDS = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("dtype", [DType.int8, DType.uint8, DType.int16, DType.uint16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("symmetric", [False, True])
def test_all_bits_of_an_activation_are_onnxruntimes_range(dtype, symmetric):
    scheme = QuantScheme.of_activation(dtype, symmetric)
    expected = get_qmin_qmax_for_qType(getattr(onnx.TensorProto, dtype.name.upper()), symmetric=symmetric)
    assert (scheme.qmin, scheme.qmax) == tuple(int(end) for end in expected)
    assert (scheme.dtype, scheme.symmetric, scheme.bit_width) == (dtype, symmetric, dtype.bits)
    assert scheme.levels == scheme.qmax - scheme.qmin + 1


@PROPERTY
@given(st.sampled_from([DType.int8, DType.uint8]), st.booleans(), st.integers(2, 8))
def test_low_bit_schemes(dtype, symmetric, bits):
    activation = QuantScheme.of_activation(dtype, symmetric, bits)
    weight = QuantScheme.of_weight(dtype, symmetric, bits)
    signed = dtype is DType.int8
    half = 2 ** (bits - 1) if signed else 0
    # the smallest integer is left out of symmetric activations, and of symmetric weights from 8 bits on
    assert (activation.qmin, activation.qmax) == (-half + (signed and symmetric), 2**bits - 1 - half)
    assert (weight.qmin, weight.qmax) == (-half + (signed and symmetric and bits == 8), 2**bits - 1 - half)
    assert activation.dtype is dtype
    assert weight.dtype.name == f"{'' if signed else 'u'}int{2 if bits == 2 else 4 if bits <= 4 else 8}"
    assert activation.bit_width == weight.bit_width == bits


@PROPERTY
@given(ACTIVATION_SCHEMES, ENDS, ENDS)
def test_params_represent_zero_and_cover_their_range(scheme, first, second):
    low, high = sorted((first, second))
    params = QuantParams.of_range(np.float32(low), np.float32(high), scheme)
    assert params.scale.dtype == np.float32
    assert (params.dtype, params.qmin, params.qmax) == (scheme.dtype, scheme.qmin, scheme.qmax)
    assert params.qmin <= params.zero_point <= params.qmax
    reach = 2 * max(-low, high) if scheme.symmetric else max(high, 0) - min(low, 0)
    if reach / (scheme.levels - 1) < np.finfo(np.float32).tiny:
        assert params.scale == 1
        return
    assert params.low <= min(low, 0) + 0.51 * params.scale
    assert params.high >= max(high, 0) - 0.51 * params.scale
    assert params.scale == pytest.approx(reach / (scheme.levels - 1))
    if scheme.symmetric:
        assert params.zero_point == round((scheme.qmin + scheme.qmax) / 2)


@PROPERTY
@given(ACTIVATION_SCHEMES, SEEDS)
def test_params_of_many_ranges_are_those_of_each(scheme, seed):
    rng = np.random.default_rng(seed)
    lows, highs = np.sort(rng.normal(0, 2, (2, 50)), axis=0)
    scales, zero_points = params_of_ranges(lows, highs, scheme)
    single = [
        QuantParams.of_range(np.float32(low), np.float32(high), scheme) for low, high in zip(lows, highs, strict=True)
    ]
    np.testing.assert_allclose(scales, [params.scale for params in single], rtol=1e-6)
    np.testing.assert_array_equal(zero_points, [params.zero_point for params in single])


@PROPERTY
@given(ACTIVATION_SCHEMES)
def test_values_land_where_onnxruntime_puts_them(scheme):
    """QuantizeLinear, Clip, DequantizeLinear; the input is not changed."""
    params = QuantParams.of_range(np.float32(-1.3), np.float32(2.1), scheme)
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 2
    x[0] = [0.0, 1e30, -1e30, 0.5 * params.scale, 1.5 * params.scale, -0.5 * params.scale, 2.1]
    kept = x.copy()
    values = fake_quantize(x, params)
    np.testing.assert_array_equal(x, kept)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("Clip", ["q", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "scale", "zero"], ["y"]),
    ]
    numbers = {"zero": params.zero_point, "low": params.qmin, "high": params.qmax}
    codes = {name: np.asarray(number, scheme.dtype.name) for name, number in numbers.items()}
    feeds = {"x": x, "scale": np.asarray(params.scale), **codes}
    np.testing.assert_array_equal(values, run_nodes(nodes, feeds)[0])
    assert values.dtype == np.float32
    assert len(np.unique(values)) <= params.levels
