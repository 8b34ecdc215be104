"""The calibration methods: a range from what was observed of a tensor.

In: an `Observation`, the `calibration` part of the config, `Levels`. Out: (low, high), float32, within the extremes.
`METHODS` is the table; conf/calibration has a file for each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet8_quant.config import CalibrationConfig, Method
from resnet8_quant.quantizer.calibration.entropy import entropy_threshold
from resnet8_quant.quantizer.calibration.error import error_range
from resnet8_quant.quantizer.calibration.grid import Levels
from resnet8_quant.quantizer.calibration.observer import Histogram, Observation

Range = tuple[np.float32, np.float32]

# The value of a parameter that the config leaves at None. Each is read by one method, whose file in conf/calibration
# says the same; the values that are valid are in checks.py.
DEFAULTS: dict[str, float] = {"averaging_constant": 0.01, "percentile": 99.999, "norm": 2.4}


def minmax(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """Smallest and largest value: nothing is clipped. Jacob et al., arXiv 1712.05877, section 3."""
    return observed.low, observed.high


def moving_average(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """Exponential moving average of each image's extremes, image after image in the order of the training set.

    Jacob et al., arXiv 1712.05877, section 3.1, who take batches for images; here the batch size has no effect. The
    weights are divided by their sum (Kingma and Ba, arXiv 1412.6980, section 3), or the first image would still count
    more than a third after a hundred.
    """
    weight = _parameter(config, "averaging_constant")
    averages = []
    for values in (observed.image_lows, observed.image_highs):
        age = np.arange(len(values))[::-1]
        weights = (1.0 - weight) ** age
        averages.append(np.float32(values @ weights / weights.sum()))
    return max(averages[0], observed.low), min(averages[1], observed.high)


def percentile(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """Cut (100 - percentile) / 2 percent of the values at each end, exact to one bin.

    At a ReLU output the lower end stays at zero. Wu et al., arXiv 2004.09602, section 4.
    """
    histogram = _histogram(observed)
    # exact zeros are a bin of no width
    zero = min(max(0, -histogram.first), len(histogram.counts))
    cumulated = np.cumsum(np.insert(histogram.counts, zero, histogram.zeros))
    lefts, rights = np.insert(histogram.edges[:-1], zero, 0.0), np.insert(histogram.edges[1:], zero, 0.0)
    cut = cumulated[-1] * (100.0 - _parameter(config, "percentile")) / 200.0
    low = lefts[np.searchsorted(cumulated, cut, side="right")]
    high = rights[np.searchsorted(cumulated, cumulated[-1] - cut, side="left")]
    return _within(observed, low, high)


def entropy(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """The clipping that loses the least information; entropy.py says how."""
    threshold = entropy_threshold(_histogram(observed), levels)
    return _within(observed, -threshold, threshold)


def mse(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """The range with the smallest mean squared error; error.py says how."""
    return _least_error(observed, levels, 2.0)


def lp(observed: Observation, config: CalibrationConfig, levels: Levels) -> Range:
    """The range with the smallest error in another norm: above 2, large errors weigh more."""
    return _least_error(observed, levels, _parameter(config, "norm"))


METHODS: dict[Method, Callable[[Observation, CalibrationConfig, Levels], Range]] = {
    Method.minmax: minmax,
    Method.moving_average: moving_average,
    Method.percentile: percentile,
    Method.entropy: entropy,
    Method.mse: mse,
    Method.lp: lp,
}


def _parameter(config: CalibrationConfig, name: str) -> float:
    value: float | None = getattr(config, name)
    return DEFAULTS[name] if value is None else value


def _histogram(observed: Observation) -> Histogram:
    assert observed.histogram is not None  # checks.py wants bins for the methods that come here
    return observed.histogram


def _least_error(observed: Observation, levels: Levels, norm: float) -> Range:
    low, high = error_range(_histogram(observed), float(observed.low), float(observed.high), levels, norm)
    return _within(observed, low, high)


def _within(observed: Observation, low: float, high: float) -> Range:
    ends = np.clip(np.array([low, high], np.float32), observed.low, observed.high)
    return ends[0], ends[1]
