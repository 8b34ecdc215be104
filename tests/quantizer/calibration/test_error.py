"""The error on a histogram is that of the values it counts, and the chosen range is as good as a search's."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import rounded
from strategies import PROPERTY

from resnet8_quant.config import CalibrationConfig, DType, Method
from resnet8_quant.quantizer.calibration.error import clipped_fraction, quantization_errors, signal_to_noise_db
from resnet8_quant.quantizer.calibration.methods import METHODS
from resnet8_quant.quantizer.calibration.observer import Histogram
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, params_of_ranges

SIZE = 30_000
SHAPES = ("gaussian", "relu", "laplace", "negative")


def scheme_of(bits, symmetric):
    return QuantScheme.of_activation(DType.int8 if bits <= 8 else DType.int16, symmetric, bits)


def values_of(shape):
    rng = np.random.default_rng(0)
    return {
        "gaussian": lambda: rng.normal(0.3, 1, SIZE),
        "relu": lambda: np.maximum(rng.normal(size=SIZE), 0),
        "laplace": lambda: np.append(rng.laplace(size=SIZE), 25.0),
        "negative": lambda: -4 - np.abs(rng.normal(size=SIZE)),
    }[shape]().astype(np.float32)


def error_of(values, low, high, scheme, norm=2.0):
    """Mean error of the values quantized with a range."""
    params = QuantParams.of_range(np.float32(low), np.float32(high), scheme)
    return np.mean(np.abs(values.astype(np.float64) - rounded(values, params)[0]) ** norm)


def best_error(values, scheme, norm=2.0):
    """The smallest error among shares of both ends, first coarse and then around the best."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if scheme.symmetric:
        low, high = -max(-low, high), max(-low, high)
    best, shares = np.inf, (1.0, 1.0)
    for factors in (np.geomspace(1, 1 / 32, 14), np.geomspace(1.3, 1 / 1.3, 14)):
        lows, highs = (np.minimum(factors * share, 1.0) for share in shares)
        if scheme.symmetric:
            pairs = zip(lows, lows, strict=True)
        else:
            pairs = itertools.product(lows if low else [1.0], highs if high else [1.0])
        errors = {pair: error_of(values, low * pair[0], high * pair[1], scheme, norm) for pair in pairs}
        shares = min(errors, key=errors.get)
        best = min(best, errors[shares])
    return best


def range_of(stats, scheme, norm=None):
    method = Method.mse if norm is None else Method.lp
    return METHODS[method](stats, CalibrationConfig(method, norm=norm), scheme)


@PROPERTY
@given(st.sampled_from([2, 3, 4, 8, 12]), st.sampled_from([0.5, 1.0, 2.0, 2.4, 4.0, 8.0]), st.booleans())
def test_the_error_is_that_of_values_spread_evenly_in_the_bins(bits, norm, symmetric):
    rng = np.random.default_rng(bits)
    width, first = 0.125, -20
    counts = rng.integers(0, 2000, 64) * (rng.random(64) < 0.8)
    values = np.repeat(first + np.arange(64), counts) * width
    values += np.concatenate([(np.arange(count) + 0.5) / count * width for count in counts if count])
    scheme = scheme_of(bits, symmetric)
    lows, highs = np.array([-2.5, -1.3, 0.0, -2.5, -9.0]), np.array([5.5, 3.1, 5.5, 0.4, 9.0])  # some clip
    scales, zero_points = params_of_ranges(lows, highs, scheme)
    arguments = Histogram(counts, first, width, 12345), scales, zero_points, scheme.qmin, scheme.qmax
    errors = quantization_errors(*arguments, norm)
    for error, scale, zero_point in zip(errors, scales, zero_points, strict=True):
        params = QuantParams(scale, zero_point, scheme.dtype, scheme.qmin, scheme.qmax)
        expected = np.sum(np.abs(values - rounded(values, params)[0]) ** norm)
        assert error == pytest.approx(expected, rel=0.02), (scale, zero_point)
    if norm == 2.0:
        np.testing.assert_array_equal(quantization_errors(*arguments), errors)


@PROPERTY
@given(st.sampled_from([0.0, 9.0, -9.0]), st.booleans(), st.sampled_from([4, 8, 16]), st.sampled_from([1.0, 0.4]))
def test_signal_to_noise_is_numpys(tensor_stats, shift, relu, bits, share):
    values = np.random.default_rng(0).normal(shift, 1, size=200_000)
    values = (np.maximum(values, 0) if relu and shift >= 0 else values).astype(np.float32)
    low, high = values.min() * np.float32(share), values.max() * np.float32(share)
    exact, scheme = values.astype(np.float64), scheme_of(bits, False)
    expected = 10 * np.log10((exact**2).mean() / error_of(values, low, high, scheme))
    params = QuantParams.of_range(low, high, scheme)
    assert signal_to_noise_db(tensor_stats(values).histogram, params) == pytest.approx(expected, abs=0.2)
    assert signal_to_noise_db(tensor_stats(np.zeros(10)).histogram, params) is None


def test_clipped_fraction_counts_what_lies_outside(tensor_stats):
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    histogram = tensor_stats(values).histogram
    for low, high in ((-1.0, 1.0), (-2.5, 0.25), (-9.0, 2.0)):  # edges; the bin that ends at the lower one may hold it
        expected = np.mean((values <= low - histogram.width) | (values > high))
        assert clipped_fraction(histogram, low, high) == expected
    relu = np.maximum(values, 0)
    assert clipped_fraction(tensor_stats(relu).histogram, 0.0, 1.0) == np.mean(relu > 1)
    assert clipped_fraction(tensor_stats(np.zeros(5)).histogram, 0.0, 0.0) == 0
    assert clipped_fraction(tensor_stats([-1.0, 0.3]).histogram, -1.0, 0.3) == 0  # -1 is an edge


@PROPERTY
@given(st.sampled_from([2, 4, 8, 16]), st.booleans(), st.sampled_from(SHAPES), st.sampled_from([None, 1.0, 3.0, 5.0]))
def test_mse_and_lp_are_as_good_as_the_best_of_a_search(tensor_stats, bits, symmetric, shape, norm):
    values, scheme, exponent = values_of(shape), scheme_of(bits, symmetric), norm or 2.0
    # what no value needs is a matter of the zero point: the range ends at zero or at the smallest magnitude
    error = error_of(values, *range_of(tensor_stats(values), scheme, norm), scheme, exponent)
    assert error <= 1.03 * best_error(values, scheme, exponent)
