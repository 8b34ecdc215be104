"""Each calibration method against an oracle: NumPy's percentiles, a loop over images, a planted outlier."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from strategies import ACTIVATION_SCHEMES, PROPERTY, TYPES

from resnet8_quant.config import CalibrationConfig, Config, DType, Method
from resnet8_quant.quantizer.calibration.methods import DEFAULTS, METHODS, entropy_threshold, moving_average, percentile
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme
from resnet8_quant.validation import PARAMETERS, validate

CONF = Path(__file__).resolve().parents[3] / "conf" / "calibration"
INT8 = QuantScheme.of_activation(DType.int8, False)
ENTROPY_SCHEMES = st.builds(QuantScheme.of_activation, TYPES, st.booleans(), st.sampled_from([4, 8]))
METHODS_OF_ALL = st.sampled_from(list(Method))


def values_of(name, size=100_000):
    normal = np.random.default_rng(0).normal(size=size)
    return {
        "signed": normal,
        "relu": np.maximum(normal, 0),
        "signed with zeros": np.where(np.arange(size) % 5 < 2, 0, normal),
        "positive": normal - normal.min() + 3,
        "negative": normal - normal.max() - 3,
    }[name].astype(np.float32)


@PROPERTY
@given(
    st.sampled_from(["signed", "signed with zeros", "relu", "positive", "negative"]),
    st.sampled_from([50.0, 90.0, 99.0, 99.9, 100.0]),
)
def test_percentile_equals_numpy_to_one_bin(tensor_stats, name, share):
    values = values_of(name)
    stats = tensor_stats(values)
    ends = percentile(stats, CalibrationConfig(percentile=share), INT8)
    tail = (100 - share) / 2
    for value, q in zip(ends, (tail, 100 - tail), strict=True):  # between order statistics NumPy interpolates
        below, above = (np.percentile(values, q, method=method) for method in ("lower", "higher"))
        assert below - 1.001 * stats.histogram.width <= value <= above + 1.001 * stats.histogram.width
    if name == "relu":
        assert ends[0] == 0
    if share == 100:
        assert ends == (values.min(), values.max())
    mostly_zeros = np.append(np.arange(-5, 5), np.zeros(990))
    assert percentile(tensor_stats(mostly_zeros), CalibrationConfig(percentile=90.0), INT8) == (0, 0)


@PROPERTY
@given(st.floats(1e-6, 1.0), st.integers(1, 40))
def test_moving_average_is_a_loop_over_images(tensor_stats, constant, count):
    rows = np.random.default_rng(3).normal(size=(count, 50)).astype(np.float32)
    low = high = weight = 0.0
    for row in rows:
        weight = (1 - constant) * weight + constant
        low += constant * (float(row.min()) - low)
        high += constant * (float(row.max()) - high)
    config = CalibrationConfig(Method.moving_average, averaging_constant=constant)
    ends = [moving_average(tensor_stats(rows, bins, batch), config, INT8) for bins, batch in ((None, 7), (2048, 1))]
    assert ends[0] == ends[1]
    np.testing.assert_allclose(ends[0], (low / weight, high / weight), rtol=1e-6)
    if constant == 1:
        assert ends[0] == (rows[-1].min(), rows[-1].max())


@PROPERTY
@given(ENTROPY_SCHEMES, st.booleans(), st.sampled_from([1, -1]))
def test_entropy_clips_an_outlier(tensor_stats, configs, scheme, relu, side):
    normal = np.random.default_rng(0).normal(size=200_000)
    values = side * np.append(np.maximum(normal, 0) if relu else normal, 20.0)
    ends = METHODS[Method.entropy](tensor_stats(values, 4096), configs[Method.entropy], scheme)
    low, high = sorted(side * np.array(ends))
    assert 1.5 < high < 10
    assert low == 0 if relu else -6 < low < -1.5


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_on_the_far_side_of_zero(tensor_stats, configs, symmetric):
    for sign, name in ((1, "positive"), (-1, "negative")):
        values, scheme = values_of(name), QuantScheme.of_activation(DType.int8, symmetric)
        ends = METHODS[Method.entropy](tensor_stats(values), configs[Method.entropy], scheme)
        near, far = sorted(np.abs(ends))
        assert near == np.abs(values).min()
        assert np.percentile(np.abs(values), 90) < far <= np.abs(values).max()
        assert np.sign(ends).tolist() == [sign, sign]


def test_entropy_has_nothing_to_choose_where_levels_outnumber_bins(tensor_stats):
    histogram = tensor_stats(np.linspace(-1, 1, 1000), 128).histogram
    assert entropy_threshold(histogram, QuantScheme.of_activation(DType.int16, False)) == np.inf


@PROPERTY
@given(METHODS_OF_ALL, ACTIVATION_SCHEMES, st.sampled_from(["signed", "relu", "positive", "negative"]))
def test_ranges_stay_within_the_extremes(tensor_stats, configs, method, scheme, name):
    stats = tensor_stats(values_of(name, 20_000).reshape(20, -1))
    low, high = METHODS[method](stats, configs[method], scheme)
    assert (low.dtype, high.dtype) == (np.float32, np.float32)
    assert stats.low <= low < high <= stats.high
    if method is Method.minmax:
        assert (low, high) == (stats.low, stats.high)


@PROPERTY
@given(
    METHODS_OF_ALL,
    ACTIVATION_SCHEMES,
    st.sampled_from([0.0, 7.25, -7.25, 1.0, -1.0, 1e-35, 1e30]) | st.floats(-100, 100, width=32),
)
def test_a_constant_tensor_keeps_its_value(tensor_stats, configs, method, scheme, value):
    stats = tensor_stats(np.full((3, 50), value))
    low, high = METHODS[method](stats, configs[method], scheme)
    assert stats.low <= low <= high <= stats.high
    params = QuantParams.of_range(low, high, scheme)
    assert np.isfinite(params.scale)
    assert params.scale > 0
    if abs(value) > 1e-30:
        assert params.low - 0.51 * params.scale <= value <= params.high + 0.51 * params.scale


@pytest.mark.parametrize("method", Method)
def test_the_defaults_of_a_method_are_those_of_its_parameters(tensor_stats, method):
    validate(Config(calibration=CalibrationConfig(method)))
    file = OmegaConf.load(CONF / f"{method.name}.yaml")
    defaults = {name: DEFAULTS[name] for name in PARAMETERS[method].keys() - {"bins"}}
    assert {name: file.get(name, DEFAULTS[name]) for name in defaults} == defaults
    stats = tensor_stats(np.random.default_rng(5).normal(size=(30, 2000)))
    explicit = CalibrationConfig(method, **defaults)
    assert METHODS[method](stats, CalibrationConfig(method), INT8) == METHODS[method](stats, explicit, INT8)
