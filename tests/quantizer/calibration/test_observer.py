"""A histogram that grows: the same for every split and order of the images, and the one that NumPy counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PROPERTY

from resnet8_quant.quantizer.calibration.observer import Batch, NotFinite, Observer

IMAGES = 24
NORMAL = np.random.default_rng(1).normal(size=(IMAGES, 400)).astype(np.float32)
RISING = np.geomspace(1e-3, 1e3, IMAGES, dtype=np.float32)[:, None]
VALUES = {
    "signed": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "positive": np.abs(NORMAL) + 3,
    "negative": -np.abs(NORMAL) - 3,
    "touching zero from below": np.minimum(NORMAL, 0),
    "rising": NORMAL * RISING,
    "falling": NORMAL * RISING[::-1],
    "rising relu": np.maximum(NORMAL, 0) * RISING,
    "on the edges": np.sign(NORMAL) * np.float32(2.0) ** np.round(NORMAL),
    "tiny": NORMAL * np.float32(1e-35),
    "huge": NORMAL * np.float32(1e35),
    "largest": np.where(NORMAL > 1, np.finfo(np.float32).max, NORMAL),
    "zeros": np.zeros_like(NORMAL),
    "negative zeros": -np.zeros_like(NORMAL),
    "one value": np.full_like(NORMAL, -7.25),
}


@pytest.mark.parametrize("name", VALUES)
@PROPERTY
@given(batch=st.integers(1, IMAGES), order=st.permutations(range(IMAGES)))
def test_neither_batches_nor_order_have_an_effect(tensor_stats, name, batch, order):
    values, order = VALUES[name], np.array(order)
    expected, stats = tensor_stats(values, 512), tensor_stats(values[order], 512, batch)
    np.testing.assert_array_equal(stats.image_lows, expected.image_lows[order])
    np.testing.assert_array_equal(stats.image_highs, expected.image_highs[order])
    np.testing.assert_array_equal(stats.histogram.counts, expected.histogram.counts)
    for field in ("first", "width", "zeros"):
        assert getattr(stats.histogram, field) == getattr(expected.histogram, field)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bins", [128, 129, 2048])
def test_counts_are_numpys_and_no_bin_is_wasted(tensor_stats, name, bins):
    values = VALUES[name]
    stats = tensor_stats(values, bins, 7)
    histogram = stats.histogram
    nonzero = values[values != 0].astype(np.float64)
    # bins are open on the left and closed on the right; NumPy's are the mirror image
    expected = np.histogram(-nonzero, -histogram.edges[::-1])[0][::-1]
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == values.size - nonzero.size
    assert histogram.total == values.size
    assert np.frexp(histogram.width)[0] == 0.5
    assert np.isclose(histogram.edges / histogram.width, np.rint(histogram.edges / histogram.width)).all()
    limit = np.abs(values).max().astype(np.float64)
    if limit > 2.0**-100:
        assert bins <= limit / histogram.width <= 4 * bins
    assert (histogram.counts[[0, -1]] > 0).all() if limit > 0 else histogram.counts.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bins", [None, 128])
def test_not_finite_is_refused(bad, bins):
    for place in (0, 5, 9):
        values = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
        values.flat[place] = bad
        with pytest.raises(NotFinite):
            Observer(2, bins).update(Batch.of(values, bins is not None), 0, 2)


def test_without_bins_there_is_no_histogram_and_the_extremes_are_those_of_the_caller():
    observer = Observer(IMAGES, None)
    observer.update(Batch.of(NORMAL, False), 0, IMAGES)
    stats = observer.finish(np.float32(-0.5), np.float32(1.5))
    assert (stats.low, stats.high, stats.histogram) == (-0.5, 1.5, None)
    np.testing.assert_array_equal(stats.image_lows, NORMAL.min(axis=1))
