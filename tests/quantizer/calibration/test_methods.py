"""Each calibration method against an oracle: NumPy's percentiles, a loop over images, a planted outlier."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from resnet8_quant.config import CalibrationConfig, Config, Method
from resnet8_quant.quantizer.calibration.entropy import entropy_threshold
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.calibration.methods import DEFAULTS, METHODS, moving_average, percentile
from resnet8_quant.validation import PARAMETERS, validate

CONF = Path(__file__).resolve().parents[3] / "conf" / "calibration"
INT8, SYMMETRIC = Levels(-128, 127, False), Levels(-127, 127, True)
LEVELS = [INT8, SYMMETRIC, Levels(0, 255, False), Levels(0, 255, True), Levels(-8, 7, False), Levels(-7, 7, True)]


def _values(kind, size=100_000):
    normal = np.random.default_rng(0).normal(size=size)
    return {
        "signed": normal,
        "relu": np.maximum(normal, 0),
        "signed with zeros": np.where(np.arange(size) % 5 < 2, 0, normal),
        "positive": normal - normal.min() + 3,
        "negative": normal - normal.max() - 3,
    }[kind].astype(np.float32)


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("kind", ["signed", "signed with zeros", "relu", "positive", "negative"])
def test_percentile_equals_numpy_to_one_bin(observation, kind, share):
    values = _values(kind)
    observed = observation(values)
    found = percentile(observed, CalibrationConfig(percentile=share), INT8)
    tail = (100 - share) / 2
    for value, q in zip(found, (tail, 100 - tail), strict=True):  # between order statistics NumPy interpolates
        below, above = (np.percentile(values, q, method=method) for method in ("lower", "higher"))
        assert below - 1.001 * observed.histogram.width <= value <= above + 1.001 * observed.histogram.width
    if kind == "relu":
        assert found[0] == 0


@pytest.mark.parametrize("kind", ["signed", "relu", "positive", "negative"])
def test_percentile_100_is_minmax(observation, kind):
    values = _values(kind, 1000)
    found = percentile(observation(values), CalibrationConfig(percentile=100.0), INT8)
    assert found == (values.min(), values.max())


def test_percentile_of_mostly_zeros_keeps_zero(observation):
    values = np.zeros(1000, np.float32)
    values[:10] = np.arange(-5, 5)
    assert percentile(observation(values), CalibrationConfig(percentile=90.0), INT8) == (0, 0)


@pytest.mark.parametrize("constant", [1e-6, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_moving_average_is_a_loop_over_images(observation, constant, count):
    rows = np.random.default_rng(3).normal(size=(count, 50)).astype(np.float32)
    low = high = weight = 0.0
    for row in rows:
        weight = (1 - constant) * weight + constant
        low += constant * (float(row.min()) - low)
        high += constant * (float(row.max()) - high)
    low, high = low / weight, high / weight
    config = CalibrationConfig(Method.moving_average, averaging_constant=constant)
    found = [moving_average(observation(rows, bins, batch), config, INT8) for bins, batch in ((None, 7), (2048, 1))]
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], (low, high), rtol=1e-6)
    if constant == 1:
        assert found[0] == (rows[-1].min(), rows[-1].max())


def test_moving_average_follows_the_order_of_the_images(observation):
    rows = np.array([[0.0, 1.0], [0.0, 3.0]])
    config = CalibrationConfig(Method.moving_average, averaging_constant=0.25)
    assert moving_average(observation(rows), config, INT8) == (0, np.float32(3.75 / 1.75))
    assert moving_average(observation(rows[::-1]), config, INT8) == (0, np.float32(3.25 / 1.75))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("relu", [False, True])
def test_entropy_clips_an_outlier(observation, configs, levels, side, relu):
    normal = np.random.default_rng(0).normal(size=200_000)
    values = side * np.append(np.maximum(normal, 0) if relu else normal, 20.0)
    ends = METHODS[Method.entropy](observation(values, 4096), configs[Method.entropy], levels)
    low, high = sorted(side * np.array(ends))
    assert 1.5 < high < 10
    assert low == 0 if relu else -6 < low < -1.5


@pytest.mark.parametrize("levels", [INT8, SYMMETRIC], ids=str)
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_entropy_on_the_far_side_of_zero(observation, configs, levels, kind):
    values = _values(kind)
    sign = 1 if kind == "positive" else -1
    found = METHODS[Method.entropy](observation(values), configs[Method.entropy], levels)
    mirrored = METHODS[Method.entropy](observation(-values), configs[Method.entropy], levels)
    near, far = sorted(np.abs(found))
    assert near == np.abs(values).min()
    assert np.percentile(np.abs(values), 90) < far <= np.abs(values).max()
    assert max(np.abs(mirrored)) == pytest.approx(far, rel=0.03)  # a value on an edge changes its bin
    assert np.sign(found).tolist() == [sign, sign]


def test_entropy_has_nothing_to_choose_where_levels_outnumber_bins(observation):
    assert entropy_threshold(observation(np.linspace(-1, 1, 1000), 128).histogram, Levels(-32768, 32767, False)) == (
        np.inf
    )


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("kind", ["signed", "relu", "positive", "negative"])
def test_ranges_stay_within_the_extremes(observation, configs, method, levels, kind):
    values = _values(kind, 20_000).reshape(20, -1)
    observed = observation(values)
    low, high = METHODS[method](observed, configs[method], levels)
    assert (low.dtype, high.dtype) == (np.float32, np.float32)
    assert observed.low <= low < high <= observed.high
    if method is Method.minmax:
        assert (low, high) == (observed.low, observed.high)


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("value", [0.0, 7.25, -7.25, 1.0, -1.0, 1e-35, 1e30, -0.3])
def test_a_constant_tensor_keeps_its_value(observation, configs, method, levels, value):
    observed = observation(np.full((3, 50), value))
    low, high = METHODS[method](observed, configs[method], levels)
    assert observed.low <= low <= high <= observed.high
    grid = Grid.of(low, high, levels)
    assert np.isfinite(grid.scale)
    assert grid.scale > 0
    if abs(value) > 1e-30:
        assert grid.low - grid.scale / 2 <= value <= grid.high + grid.scale / 2


@pytest.mark.parametrize("method", Method)
def test_the_method_alone_is_its_file_in_conf(observation, method):
    alone = CalibrationConfig(method)
    validate(Config(calibration=alone))
    file = OmegaConf.load(CONF / f"{method.name}.yaml")
    read = PARAMETERS[method].keys() - {"bins"}
    assert {name: file[name] for name in read} == {name: DEFAULTS[name] for name in read}
    observed = observation(np.random.default_rng(5).normal(size=(30, 2000)))
    explicit = CalibrationConfig(method, **{name: file[name] for name in read})
    assert METHODS[method](observed, alone, INT8) == METHODS[method](observed, explicit, INT8)


def test_a_default_is_there_for_each_parameter():
    assert DEFAULTS.keys() == {name for known in PARAMETERS.values() for name in known} - {"bins"}
