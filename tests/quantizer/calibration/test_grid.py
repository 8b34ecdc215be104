"""Grids are onnxruntime's; the error on a histogram is that of the values it counts."""

import numpy as np
import pytest

from resnet8_quant.config import DType
from resnet8_quant.quantizer.calibration.grid import (
    Grid,
    Levels,
    candidate_grids,
    clipped_fraction,
    rounding_errors,
    signal_to_noise_db,
)
from resnet8_quant.quantizer.calibration.observer import Histogram

INT8, SYMMETRIC = Levels(-128, 127, False), Levels(-127, 127, True)


def rounded(values, scale, zero_point, levels):
    """What QuantizeLinear and DequantizeLinear make of values."""
    q = np.clip(np.rint(values / scale) + zero_point, levels.lowest, levels.highest)
    return (q - zero_point) * scale


@pytest.mark.parametrize(
    ("kind", "symmetric", "lowest", "highest"),
    [
        (DType.int8, False, -128, 127),
        (DType.int8, True, -127, 127),
        (DType.uint8, False, 0, 255),
        (DType.uint8, True, 0, 255),
        (DType.int16, False, -32768, 32767),
        (DType.int16, True, -32767, 32767),
        (DType.uint16, False, 0, 65535),
    ],
)
def test_levels_of_a_type(kind, symmetric, lowest, highest):
    levels = Levels.of(kind, symmetric)
    assert (levels.lowest, levels.highest, levels.symmetric) == (lowest, highest, symmetric)
    assert levels.count == highest - lowest + 1


@pytest.mark.parametrize("levels", [INT8, SYMMETRIC, Levels(0, 255, False), Levels(0, 255, True), Levels(-2, 1, False)])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-5.0, -2.0), (-7.0, 0.0)])
def test_a_grid_holds_zero_and_covers_its_range(levels, low, high):
    grid = Grid.of(np.float32(low), np.float32(high), levels)
    assert grid.scale.dtype == np.float32
    assert levels.lowest <= grid.zero_point <= levels.highest
    assert grid.low <= min(low, 0) + 0.51 * grid.scale
    assert grid.high >= max(high, 0) - 0.51 * grid.scale
    reach = 2 * max(-low, high) if levels.symmetric else max(high, 0) - min(low, 0)
    assert grid.scale == pytest.approx(reach / (levels.count - 1))
    if levels.symmetric:
        assert grid.zero_point == round((levels.lowest + levels.highest) / 2)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-45])
def test_a_range_of_nothing_has_a_scale(value):
    for levels in (INT8, SYMMETRIC):
        assert Grid.of(np.float32(value), np.float32(value), levels).scale == 1


@pytest.mark.parametrize("levels", [INT8, SYMMETRIC, Levels(0, 255, False), Levels(0, 255, True), Levels(-8, 7, False)])
def test_candidate_grids_are_grids(levels):
    rng = np.random.default_rng(0)
    lows, highs = rng.normal(-1, 2, 200), rng.normal(1, 2, 200)
    lows, highs = np.minimum(lows, highs), np.maximum(lows, highs)
    scales, zero_points = candidate_grids(lows, highs, levels)
    grids = [Grid.of(np.float32(low), np.float32(high), levels) for low, high in zip(lows, highs, strict=True)]
    np.testing.assert_allclose(scales, [grid.scale for grid in grids], rtol=1e-6)
    np.testing.assert_array_equal(zero_points, [grid.zero_point for grid in grids])


@pytest.mark.parametrize("norm", [0.5, 1.0, 2.0, 2.4, 4.0, 8.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_error_is_that_of_values_spread_evenly_in_the_bins(bits, norm, symmetric):
    rng = np.random.default_rng(bits)
    width, first = 0.125, -20
    counts = rng.integers(0, 2000, 64) * (rng.random(64) < 0.8)
    histogram = Histogram(counts, first, width, 12345)
    values = np.repeat(first + np.arange(64), counts) * width
    values += np.concatenate([(np.arange(count) + 0.5) / count * width for count in counts if count])
    half = 1 << (bits - 1)
    levels = Levels(1 - half if symmetric else -half, half - 1, symmetric)
    lows, highs = np.array([-2.5, -1.3, 0.0, -2.5, -9.0]), np.array([5.5, 3.1, 5.5, 0.4, 9.0])  # some clip
    scales, zero_points = candidate_grids(lows, highs, levels)
    found = rounding_errors(histogram, scales, zero_points, levels, norm)
    for i, (scale, zero_point) in enumerate(zip(scales, zero_points, strict=True)):
        expected = np.sum(np.abs(values - rounded(values, scale, zero_point, levels)) ** norm)
        assert found[i] == pytest.approx(expected, rel=0.02), (scale, zero_point)


def test_the_default_norm_is_the_square():
    histogram = Histogram(np.array([3, 4]), -1, 0.5, 0)
    arguments = histogram, np.array([0.2]), np.array([0.0]), INT8
    assert rounding_errors(*arguments) == rounding_errors(*arguments, 2.0)


@pytest.mark.parametrize("kind", ["signed", "relu", "positive", "negative"])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_signal_to_noise_is_numpys(observation, kind, bits, share):
    normal = np.random.default_rng(0).normal(size=200_000)
    values = {"signed": normal, "relu": np.maximum(normal, 0), "positive": normal + 9, "negative": normal - 9}[kind]
    values = values.astype(np.float32)
    levels = Levels(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, False)
    grid = Grid.of(values.min() * np.float32(share), values.max() * np.float32(share), levels)
    exact = values.astype(np.float64)
    noise = exact - rounded(exact, float(grid.scale), grid.zero_point, levels)
    expected = 10 * np.log10((exact**2).sum() / (noise**2).sum())
    assert signal_to_noise_db(observation(values).histogram, grid) == pytest.approx(expected, abs=0.2)


def test_zeros_have_no_signal(observation):
    assert signal_to_noise_db(observation(np.zeros(10)).histogram, Grid.of(np.float32(0), np.float32(0), INT8)) is None


def test_clipped_fraction_counts_what_lies_outside(observation):
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    histogram = observation(values).histogram
    assert clipped_fraction(histogram, values.min(), values.max()) == 0
    for low, high in ((-1.0, 1.0), (-2.5, 0.25), (-9.0, 2.0)):  # edges; the bin that ends at the lower one may hold it
        expected = np.mean((values <= low - histogram.width) | (values > high))
        assert clipped_fraction(histogram, low, high) == expected
    relu = np.maximum(values, 0)
    assert clipped_fraction(observation(relu).histogram, 0.0, 1.0) == np.mean(relu > 1)
    assert clipped_fraction(observation(relu).histogram, 0.0, relu.max()) == 0
    assert clipped_fraction(observation(np.zeros(5)).histogram, 0.0, 0.0) == 0
    assert clipped_fraction(observation([-1.0, 0.3]).histogram, -1.0, 0.3) == 0  # -1 is an edge
