"""The calibration draw: decided by the seed alone, stratified, without replacement."""

import numpy as np
import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.sampling import draw_stratified, overlapping

LABELS = np.random.default_rng(3).permutation(np.repeat(np.arange(5), [40, 30, 20, 60, 50]))


def test_same_seed_same_draw_whatever_the_global_state():
    np.random.seed(1)  # noqa: NPY002 - the point: global state does not matter
    first = draw_stratified(LABELS, 7, 42)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, draw_stratified(LABELS, 7, 42))


def test_another_seed_another_draw():
    assert not np.array_equal(draw_stratified(LABELS, 7, 42), draw_stratified(LABELS, 7, 43))


@pytest.mark.parametrize("samples", [1, 7, 20])
def test_stratified_sorted_and_without_replacement(samples):
    chosen = draw_stratified(LABELS, samples, 0)
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), [samples] * 5)


def test_all_images_of_a_class_may_be_drawn():
    labels = np.repeat([0, 1], 6)
    np.testing.assert_array_equal(draw_stratified(labels, 6, 9), np.arange(12))


def test_too_many_says_how_many_there_are():
    with pytest.raises(ExperimentError, match=r"samples_per_class` is 21, but class 2 has only 20 ") as caught:
        draw_stratified(LABELS, 21, 0)
    assert "samples_per_class=20" in caught.value.remedy


def test_overlapping_finds_planted_duplicates():
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    test[[2, 11]] = calibration[[29, 0]]
    test[5] = calibration[4]
    test[5, 0, 0, 0] ^= 1  # all but one bit
    np.testing.assert_array_equal(np.flatnonzero(overlapping(calibration, test)), [2, 11])


def test_overlapping_with_nothing():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(overlapping(images[:0], images), [False, False])
    assert overlapping(images, images[:0]).shape == (0,)
