"""Statistics against published values, against sums that are written out, and on predictions that hypothesis finds."""

from fractions import Fraction
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from resnet8_quant.evaluator.accuracy import Evaluation
from resnet8_quant.evaluator.statistics import ClassRow, compare, mcnemar_p, wilson_interval

NAMES = ("cat", "dog", "owl", "cow")
counts = st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.floats(0.5, 0.999))
def test_wilson_ends_are_where_the_score_test_just_rejects(count, confidence):
    correct, total = count
    low, high = wilson_interval(correct, total, confidence)
    assert 0 <= low <= correct / total <= high <= 1
    assert wilson_interval(total - correct, total, confidence) == pytest.approx((1 - high, 1 - low))
    for end in (low, high):
        if end not in (0.0, 1.0):
            score = abs(correct / total - end) / sqrt(end * (1 - end) / total)
            assert score == pytest.approx(ndtri((1 + confidence) / 2), rel=1e-6)
    assert (low == 0.0) == (correct == 0)
    assert (high == 1.0) == (correct == total)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct, total):
    with pytest.raises(ValueError, match=f"{correct} correct of {total}"):
        wilson_interval(correct, total)


@given(st.integers(0, 900), st.integers(0, 900))
def test_mcnemar_is_twice_the_smaller_tail_of_the_binomial(to_wrong, to_right):
    flips = to_wrong + to_right
    tail = sum(comb(flips, flipped) for flipped in range(min(to_wrong, to_right) + 1))
    expected = float(min(Fraction(1), Fraction(2 * tail, 2**flips)))
    assert mcnemar_p(to_wrong, to_right) == pytest.approx(expected, rel=1e-9)


def test_compare_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 3], np.uint8)
    quantized = Evaluation(np.array([0, 1, 0, 1, 0, 3]), labels, NAMES, ties=2)
    original = Evaluation(np.array([0, 0, 1, 1, 2, 1]), labels, NAMES, ties=1)
    comparison = compare(quantized, original)
    assert (comparison.accuracy, comparison.float_accuracy, comparison.accuracy_delta) == (4 / 6, 3 / 6, 1 / 6)
    assert (comparison.accuracy_ci_low, comparison.accuracy_ci_high) == wilson_interval(4, 6)
    assert (comparison.flips_to_wrong, comparison.flips_to_right, comparison.changed_predictions) == (1, 2, 4)
    assert (comparison.mcnemar_p, comparison.significant) == (1.0, False)
    assert (comparison.quant_ties, comparison.float_ties) == (2, 1)
    assert comparison.per_class == (
        ClassRow("cat", 3, 2 / 3, 2 / 3, 0.0),
        ClassRow("dog", 2, 1 / 2, 1 / 2, 0.0),
        ClassRow("owl", 0, None, None, None),
        ClassRow("cow", 1, 1.0, 0.0, 1.0),
    )
    assert quantized.per_class == pytest.approx({"cat": 2 / 3, "dog": 1 / 2, "owl": np.nan, "cow": 1.0}, nan_ok=True)
    assert str(comparison) == (
        "top-1 66.67 % (float 50.00 %, +16.67 points), 95 % CI 30.00-90.32 %\n"
        "1 images flipped to wrong, 2 to right\n"
        "McNemar p = 1: within noise"
    )


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=300))
def test_compare_is_consistent(rows):
    labels, a, b = np.array(rows).T
    comparison = compare(Evaluation(a, labels, NAMES), Evaluation(b, labels, NAMES))
    mirrored = compare(Evaluation(b, labels, NAMES), Evaluation(a, labels, NAMES))
    assert comparison.accuracy == np.mean(a == labels)
    assert comparison.accuracy_delta == pytest.approx(comparison.accuracy - comparison.float_accuracy)
    assert comparison.accuracy_delta == -mirrored.accuracy_delta
    assert comparison.mcnemar_p == mirrored.mcnemar_p
    assert comparison.flips_to_wrong + comparison.flips_to_right <= comparison.changed_predictions
    assert sum(row.images for row in comparison.per_class) == len(labels)
    assert sum(row.images * (row.accuracy or 0) for row in comparison.per_class) == pytest.approx((a == labels).sum())


def test_compare_refuses_what_is_not_comparable():
    two, three = np.zeros(2, np.int64), np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="different images: 2 and 3"):
        compare(Evaluation(two, two, NAMES), Evaluation(three, three, NAMES))
    with pytest.raises(ValueError, match="different classes"):
        compare(Evaluation(two, two, NAMES), Evaluation(two, two, ("cat", "dog")))
    with pytest.raises(ValueError, match="0 correct of 0"):
        compare(Evaluation(two[:0], two[:0], NAMES), Evaluation(two[:0], two[:0], NAMES))
    with pytest.raises(ValueError, match="3 predictions, 2 labels"):
        Evaluation(three, two, NAMES)


def test_evaluation_is_short():
    labels = np.zeros(1000, np.int64)
    assert repr(Evaluation(labels, labels, NAMES, 3)) == "Evaluation(accuracy=1.0000, images=1000, ties=3)"
    assert "per_class" not in repr(compare(Evaluation(labels, labels, NAMES), Evaluation(labels, labels, NAMES)))
