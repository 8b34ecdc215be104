"""A histogram that grows: the same for every split and order of the images, and the one that NumPy counts."""

import numpy as np
import pytest

from resnet8_quant.quantizer.calibration.observer import Batch, NotFinite, Observer

IMAGES = 24


def _values(kind):
    normal = np.random.default_rng(1).normal(size=(IMAGES, 400)).astype(np.float32)
    rising = np.geomspace(1e-3, 1e3, IMAGES, dtype=np.float32)[:, None]
    return {
        "signed": normal,
        "relu": np.maximum(normal, 0),
        "positive": np.abs(normal) + 3,
        "negative": -np.abs(normal) - 3,
        "touching zero from below": np.minimum(normal, 0),
        "rising": normal * rising,
        "falling": normal * rising[::-1],
        "rising relu": np.maximum(normal, 0) * rising,
        "on the edges": np.sign(normal) * np.float32(2.0) ** np.round(normal),
        "tiny": normal * np.float32(1e-35),
        "huge": normal * np.float32(1e35),
        "largest": np.where(normal > 1, np.finfo(np.float32).max, normal),
        "zeros": np.zeros_like(normal),
        "negative zeros": -np.zeros_like(normal),
        "one value": np.full_like(normal, -7.25),
    }[kind]


KINDS = (
    "signed", "relu", "positive", "negative", "touching zero from below", "rising", "falling", "rising relu",
    "on the edges", "tiny", "huge", "largest", "zeros", "negative zeros", "one value",
)  # fmt: skip
parametrized = pytest.mark.parametrize("kind", KINDS)


@parametrized
@pytest.mark.parametrize("batch", [1, 5, 23])
def test_batches_have_no_effect(observation, assert_same, kind, batch):
    values = _values(kind)
    assert_same({"x": observation(values, 512, batch)}, {"x": observation(values, 512)})


@parametrized
def test_the_order_of_the_images_has_no_effect(observation, kind):
    values = _values(kind)
    expected = observation(values, 512, 1)
    for order in (np.arange(IMAGES)[::-1], np.random.default_rng(2).permutation(IMAGES)):
        found = observation(values[order], 512, 1)
        np.testing.assert_array_equal(found.image_lows, expected.image_lows[order])
        np.testing.assert_array_equal(found.image_highs, expected.image_highs[order])
        np.testing.assert_array_equal(found.histogram.counts, expected.histogram.counts)
        for field in ("first", "width", "zeros"):
            assert getattr(found.histogram, field) == getattr(expected.histogram, field)


@parametrized
@pytest.mark.parametrize("bins", [128, 1000, 2048])
def test_counts_are_numpys(observation, kind, bins):
    values = _values(kind)
    found = observation(values, bins, 7)
    histogram = found.histogram
    nonzero = values[values != 0].astype(np.float64)
    # bins are open on the left and closed on the right; NumPy's are the mirror image
    expected = np.histogram(-nonzero, -histogram.edges[::-1])[0][::-1]
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == values.size - nonzero.size
    assert histogram.total == values.size
    assert 0.0 not in values or histogram.zeros == np.count_nonzero(values == 0)
    np.testing.assert_array_equal(found.image_lows, values.min(axis=1))
    np.testing.assert_array_equal(found.image_highs, values.max(axis=1))


@parametrized
@pytest.mark.parametrize("bins", [128, 129, 1000, 2048])
def test_there_are_enough_bins_and_none_is_wasted(observation, kind, bins):
    values, histogram = _values(kind), observation(_values(kind), bins, 7).histogram
    assert np.frexp(histogram.width)[0] == 0.5
    assert np.isclose(histogram.edges / histogram.width, np.rint(histogram.edges / histogram.width)).all()
    limit = np.abs(values).max().astype(np.float64)
    if limit > 2.0**-100:
        assert bins <= limit / histogram.width <= 4 * bins
    if limit > 0:
        assert histogram.counts[0] > 0
        assert histogram.counts[-1] > 0
    else:
        np.testing.assert_array_equal(histogram.counts, [0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bins", [None, 128])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_not_finite_is_refused(bad, bins, place):
    values = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    values.flat[place] = bad
    with pytest.raises(NotFinite):
        Observer(2, bins).update(Batch.of(values, bins is not None), 0, 2)


def test_without_bins_there_is_no_histogram(observation):
    found = observation(_values("signed"), None, 5)
    assert found.histogram is None
    np.testing.assert_array_equal(found.image_lows, _values("signed").min(axis=1))


def test_the_given_extremes_are_kept():
    values = np.ones((1, 3), np.float32)
    observer = Observer(1, None)
    observer.update(Batch.of(values, False), 0, 1)
    found = observer.finish(np.float32(0.5), np.float32(1.5))
    assert (found.low, found.high) == (0.5, 1.5)
