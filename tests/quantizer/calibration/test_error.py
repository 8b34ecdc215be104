"""The error methods against a search that rounds the values themselves."""

import itertools

import numpy as np
import pytest

from resnet8_quant.config import CalibrationConfig, Method
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.calibration.methods import METHODS

SIZE = 30_000


def _levels(bits, symmetric):
    half = 1 << (bits - 1)
    return Levels(1 - half if symmetric else -half, half - 1, symmetric)


def _values(kind):
    rng = np.random.default_rng(0)
    return {
        "gaussian": lambda: rng.normal(0.3, 1, SIZE),
        "relu": lambda: np.maximum(rng.normal(size=SIZE), 0),
        "laplace": lambda: np.append(rng.laplace(size=SIZE), 25.0),
        "negative": lambda: -4 - np.abs(rng.normal(size=SIZE)),
    }[kind]().astype(np.float32)


def _error(values, low, high, levels, norm=2.0):
    """Mean error of the values on the grid of a range."""
    grid = Grid.of(np.float32(low), np.float32(high), levels)
    scale = float(grid.scale)
    exact = values.astype(np.float64)
    q = np.clip(np.rint(exact / scale) + grid.zero_point, levels.lowest, levels.highest)
    return np.mean(np.abs(exact - (q - grid.zero_point) * scale) ** norm)


def _best_error(values, levels, norm=2.0):
    """The smallest error among shares of both ends, first coarse and then around the best."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if levels.symmetric:
        low, high = -max(-low, high), max(-low, high)
    best, found = np.inf, (1.0, 1.0)
    for factors in (np.geomspace(1, 1 / 32, 14), np.geomspace(1.3, 1 / 1.3, 14)):
        lows, highs = (np.minimum(factors * share, 1.0) for share in found)
        if levels.symmetric:
            pairs = zip(lows, lows, strict=True)
        else:
            pairs = itertools.product(lows if low else [1.0], highs if high else [1.0])
        errors = {pair: _error(values, low * pair[0], high * pair[1], levels, norm) for pair in pairs}
        found = min(errors, key=errors.get)
        best = min(best, errors[found])
    return best


@pytest.mark.parametrize("kind", ["gaussian", "relu", "laplace", "negative"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
def test_mse_is_as_good_as_the_best_of_a_search(observation, bits, symmetric, kind):
    values, levels = _values(kind), _levels(bits, symmetric)
    low, high = METHODS[Method.mse](observation(values), CalibrationConfig(Method.mse), levels)
    # what no value needs is a matter of the grid: the range ends at zero or at the smallest magnitude
    assert _error(values, low, high, levels) <= 1.02 * _best_error(values, levels)


@pytest.mark.parametrize("norm", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_lp_is_as_good_as_the_best_of_a_search(observation, norm, symmetric):
    values, levels = _values("laplace"), _levels(4, symmetric)
    low, high = METHODS[Method.lp](observation(values), CalibrationConfig(Method.lp, norm=norm), levels)
    assert _error(values, low, high, levels, norm) <= 1.03 * _best_error(values, levels, norm)


@pytest.mark.parametrize("kind", ["gaussian", "relu", "laplace", "negative"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_lp_of_norm_2_is_mse(observation, kind, symmetric):
    observed, levels = observation(_values(kind)), _levels(8, symmetric)
    mse = METHODS[Method.mse](observed, CalibrationConfig(Method.mse), levels)
    assert METHODS[Method.lp](observed, CalibrationConfig(Method.lp, norm=2.0), levels) == mse


@pytest.mark.parametrize("kind", ["gaussian", "relu", "laplace"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_larger_norm_gives_a_wider_range(observation, kind, bits, symmetric):
    observed, levels = observation(_values(kind)), _levels(bits, symmetric)
    widths = [
        np.subtract(*METHODS[Method.lp](observed, CalibrationConfig(Method.lp, norm=norm), levels)[::-1])
        for norm in (1.0, 2.0, 4.0, 8.0)
    ]
    for narrow, wide in itertools.pairwise(widths):
        assert wide >= 0.985 * narrow  # the steps of the search
    assert widths[-1] > widths[0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_few_bits_clip_and_many_do_not(observation, symmetric):
    observed = observation(_values("gaussian"))
    highs = [
        METHODS[Method.mse](observed, CalibrationConfig(Method.mse), _levels(bits, symmetric))[1]
        for bits in (2, 4, 8, 16)
    ]
    assert sorted(highs) == highs
    assert highs[0] < 0.6 * observed.high
    assert highs[-1] > 0.97 * observed.high
