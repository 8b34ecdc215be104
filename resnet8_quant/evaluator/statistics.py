"""Is the difference real? Confidence intervals and the paired test between two models on the same images.

In: the evaluations of two models. Out: accuracies, flips, p-value, one row per class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from resnet8_quant.evaluator.accuracy import Evaluation


@dataclass(frozen=True)
class ClassRow:
    """One class; ratios are None where the data has no image of it.

    Attributes:
        images: number of images of this class.
        accuracy: ratio of them that the model predicts correctly.
        accuracy_delta: accuracy minus float_accuracy.
    """

    class_name: str
    images: int
    accuracy: float | None
    float_accuracy: float | None
    accuracy_delta: float | None


@dataclass(frozen=True)
class Comparison:
    """A model against its float original on the same images; ratios, not percents. ``print`` shows it in three lines.

    Attributes:
        accuracy: top-1 of the model.
        accuracy_ci_low: lower end of its 95 % Wilson interval.
        accuracy_ci_high: upper end.
        float_accuracy: top-1 of the float model.
        accuracy_delta: accuracy minus float_accuracy.
        flips_to_wrong: images that only the float model predicts correctly.
        flips_to_right: images that only the model predicts correctly.
        changed_predictions: images with another prediction, correct or not.
        mcnemar_p: p-value of the exact McNemar test: how likely so unequal flips are if both are equally good.
        quant_ties: images whose largest output is shared by several classes; None where only the class is output.
        float_ties: the same for the float model.
        per_class: one row per class, in order.
    """

    accuracy: float
    accuracy_ci_low: float
    accuracy_ci_high: float
    float_accuracy: float
    accuracy_delta: float
    flips_to_wrong: int
    flips_to_right: int
    changed_predictions: int
    mcnemar_p: float
    quant_ties: int | None
    float_ties: int | None
    per_class: tuple[ClassRow, ...] = field(repr=False)

    @property
    def significant(self) -> bool:
        """Whether the difference is real at the 5 % level."""
        return self.mcnemar_p < 0.05

    def __str__(self) -> str:
        significance = "real at the 5 % level" if self.significant else "within noise"
        return (
            f"top-1 {100 * self.accuracy:.2f} % (float {100 * self.float_accuracy:.2f} %, "
            f"{100 * self.accuracy_delta:+.2f} points), 95 % CI {100 * self.accuracy_ci_low:.2f}-"
            f"{100 * self.accuracy_ci_high:.2f} %\n{self.flips_to_wrong} images flipped to wrong, "
            f"{self.flips_to_right} to right\n"
            f"McNemar p = {self.mcnemar_p:.3g}: {significance}"
        )


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    It holds all proportions p that the score test does not reject, |correct/total - p| <= z sqrt(p (1 - p) / total).
    So it keeps its coverage near 0 and 1, where the interval of the normal approximation shrinks to nothing.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927), 209-212.

    Args:
        correct: successes, 0..total.
        total: trials, at least 1.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: the counts are impossible.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ratio = correct / total
    center = ratio + z * z / (2 * total)
    half_width = z * (ratio * (1 - ratio) / total + (z / (2 * total)) ** 2) ** 0.5
    scale = 1 + z * z / total
    # The ends are exactly 0 and 1 there, but rounding errors would leave a remainder.
    low = 0.0 if correct == 0 else (center - half_width) / scale
    high = 1.0 if correct == total else (center + half_width) / scale
    return low, high


def mcnemar_p(to_wrong: int, to_right: int) -> float:
    """Two-sided p-value of the exact conditional McNemar test; 1.0 when nothing flipped.

    Only the images that one of the two models predicts correctly tell which is better. If both are equally good, each
    of these n flips goes either way with probability 1/2, so the smaller count is Binomial(n, 1/2) and p is twice its
    lower tail.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), 153-157; the exact form as in M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test
    for binary matched-pairs data", BMC Medical Research Methodology 13 (2013), 91.

    Args:
        to_wrong: images that only the first model predicts correctly.
        to_right: images that only the second model predicts correctly.
    """
    from scipy.special import bdtr

    flips = to_wrong + to_right
    return min(1.0, 2 * float(bdtr(min(to_wrong, to_right), flips, 0.5))) if flips else 1.0


def compare(evaluation: Evaluation, float_evaluation: Evaluation) -> Comparison:
    """Compare a model with its float original.

    Args:
        evaluation: of the model.
        float_evaluation: of the float model, on the same images in the same order.

    Raises:
        ValueError: they are of different images or classes, or there is no image.
    """
    labels, count = evaluation.labels, len(evaluation.labels)
    if not np.array_equal(labels, float_evaluation.labels):
        raise ValueError(f"evaluations of different images: {count} and {len(float_evaluation.labels)}")
    if evaluation.class_names != float_evaluation.class_names:
        raise ValueError(f"different classes: {evaluation.class_names} and {float_evaluation.class_names}")
    correct, float_correct = evaluation.correct, float_evaluation.correct
    to_wrong = int((float_correct & ~correct).sum())
    to_right = int((correct & ~float_correct).sum())
    low, high = evaluation.accuracy_interval
    images, per_class = evaluation.counts()
    table = zip(evaluation.class_names, images, per_class, float_evaluation.counts()[1], strict=True)
    return Comparison(
        accuracy=evaluation.accuracy,
        accuracy_ci_low=low,
        accuracy_ci_high=high,
        float_accuracy=float_evaluation.accuracy,
        accuracy_delta=(to_right - to_wrong) / count,
        flips_to_wrong=to_wrong,
        flips_to_right=to_right,
        changed_predictions=int((evaluation.predictions != float_evaluation.predictions).sum()),
        mcnemar_p=mcnemar_p(to_wrong, to_right),
        quant_ties=evaluation.ties,
        float_ties=float_evaluation.ties,
        per_class=tuple(_class_row(*row) for row in table),
    )


def _class_row(name: str, images: int, correct: int, float_correct: int) -> ClassRow:
    if images == 0:
        return ClassRow(name, 0, None, None, None)
    return ClassRow(name, images, correct / images, float_correct / images, (correct - float_correct) / images)
