"""Statistics against published values and against sums that are written out."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from resnet8_quant.evaluator.accuracy import Predictions
from resnet8_quant.evaluator.statistics import ClassRow, compare, mcnemar_p, wilson_interval


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_wilson_ends_are_where_the_score_test_just_rejects(confidence):
    from scipy.special import ndtri

    for right in range(1, 40):
        for end in wilson_interval(right, 40, confidence):
            assert abs(right / 40 - end) / (end * (1 - end) / 40) ** 0.5 == pytest.approx(ndtri((1 + confidence) / 2))


def test_wilson_at_the_edges():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    for right, total in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"{right} right of {total}"):
            wilson_interval(right, total)


def exact_p(to_wrong: int, to_right: int) -> float:
    """Twice the smaller tail of Binomial(n, 1/2), in integers."""
    flips = to_wrong + to_right
    tail = sum(comb(flips, flipped) for flipped in range(min(to_wrong, to_right) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**flips)))


def test_mcnemar_of_ten_against_three():
    assert mcnemar_p(10, 3) == pytest.approx(2 * (1 + 13 + 78 + 286) / 2**13)


def test_mcnemar_equals_the_written_out_sum():
    for to_wrong in range(25):
        for to_right in range(25):
            assert mcnemar_p(to_wrong, to_right) == pytest.approx(exact_p(to_wrong, to_right), rel=1e-12)
    for to_wrong, to_right in ((115, 85), (600, 500), (700, 700), (0, 900)):
        assert mcnemar_p(to_wrong, to_right) == pytest.approx(exact_p(to_wrong, to_right), rel=1e-9)


def test_mcnemar_without_flips_is_one():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(4, 4) == 1.0


def test_compare_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 3], np.uint8)
    quantized = Predictions(np.array([0, 1, 0, 1, 0, 3]), ties=2)
    original = Predictions(np.array([0, 0, 1, 1, 2, 1]), ties=1)
    comparison = compare(quantized, original, labels, 4, ["cat", "dog", "owl", "cow"])
    assert comparison.accuracy == 4 / 6
    assert comparison.float_accuracy == 3 / 6
    assert comparison.accuracy_delta == 1 / 6
    assert (comparison.accuracy_ci_low, comparison.accuracy_ci_high) == wilson_interval(4, 6)
    assert (comparison.flips_to_wrong, comparison.flips_to_right, comparison.changed_predictions) == (1, 2, 4)
    assert comparison.mcnemar_p == 1.0
    assert (comparison.quant_ties, comparison.float_ties) == (2, 1)
    assert comparison.per_class == (
        ClassRow("cat", 3, 2 / 3, 2 / 3, 0.0),
        ClassRow("dog", 2, 1 / 2, 1 / 2, 0.0),
        ClassRow("owl", 0, None, None, None),
        ClassRow("cow", 1, 1.0, 0.0, 1.0),
    )
    assert [row.class_name for row in compare(quantized, original, labels, 4).per_class] == ["0", "1", "2", "3"]


def test_compare_is_consistent_on_random_answers():
    rng = np.random.default_rng(0)
    labels, a, b = rng.integers(0, 10, (3, 1000))
    comparison = compare(Predictions(a, 0), Predictions(b, 0), labels, 10)
    assert comparison.accuracy_delta == pytest.approx(comparison.accuracy - comparison.float_accuracy)
    assert comparison.accuracy_ci_low < comparison.accuracy < comparison.accuracy_ci_high
    assert sum(row.images for row in comparison.per_class) == 1000
    assert sum(row.images * row.accuracy for row in comparison.per_class) == pytest.approx((a == labels).sum())


def test_compare_refuses_different_lengths_and_wrong_names():
    two, three = Predictions(np.zeros(2, np.int64), 0), Predictions(np.zeros(3, np.int64), 0)
    with pytest.raises(ValueError, match="2, 3 predictions, 3 labels"):
        compare(two, three, np.zeros(3, np.int64), 10)
    with pytest.raises(ValueError):
        compare(two, two, np.zeros(2, np.int64), 10, ["cat"])
    with pytest.raises(ValueError):
        compare(Predictions(np.zeros(0, np.int64), 0), Predictions(np.zeros(0, np.int64), 0), np.zeros(0, np.int64), 10)
