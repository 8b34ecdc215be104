"""Is the difference real? Confidence intervals and the paired test between two models on the same images.

In: the predictions of two models and the true labels. Out: accuracies, flips, p-value, one row per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from resnet8_quant.evaluator.accuracy import Predictions


@dataclass(frozen=True)
class ClassRow:
    """One class; ratios are None where the data has no image of it.

    Attributes:
        images: number of images of this class.
        accuracy: ratio of them that the model gets right.
        accuracy_delta: accuracy minus float_accuracy.
    """

    class_name: str
    images: int
    accuracy: float | None
    float_accuracy: float | None
    accuracy_delta: float | None


@dataclass(frozen=True)
class Comparison:
    """A model against its float original on the same images; ratios, not percents.

    Attributes:
        accuracy: top-1 of the model.
        accuracy_ci_low: lower end of its 95 % Wilson interval.
        accuracy_ci_high: upper end.
        float_accuracy: top-1 of the float model.
        accuracy_delta: accuracy minus float_accuracy.
        flips_to_wrong: images that only the float model gets right.
        flips_to_right: images that only the model gets right.
        changed_predictions: images with another answer, right or wrong.
        mcnemar_p: p-value of the flips under "both models are equally good".
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
    per_class: tuple[ClassRow, ...]


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion, which also holds near 0 and 1.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.

    Args:
        right: successes, 0..total.
        total: trials, at least 1.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: the counts are impossible.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ratio = right / total
    center = ratio + z * z / (2 * total)
    half_width = z * (ratio * (1 - ratio) / total + (z / (2 * total)) ** 2) ** 0.5
    scale = 1 + z * z / total
    # The ends are exactly 0 and 1 there, but rounding errors would leave a remainder.
    low = 0.0 if right == 0 else (center - half_width) / scale
    high = 1.0 if right == total else (center + half_width) / scale
    return low, high


def mcnemar_p(to_wrong: int, to_right: int) -> float:
    """Two-sided p-value of the exact conditional McNemar test; 1.0 when nothing flipped.

    If both models are equally good, a flip goes either way with probability 1/2: the smaller count is binomial.
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), 153-157; the exact form as in M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test
    for binary matched-pairs data", BMC Medical Research Methodology 13 (2013), 91.

    Args:
        to_wrong: images that only the first model gets right.
        to_right: images that only the second model gets right.
    """
    from scipy.special import bdtr

    flips = to_wrong + to_right
    return min(1.0, 2 * float(bdtr(min(to_wrong, to_right), flips, 0.5))) if flips else 1.0


def compare(
    predictions: Predictions,
    float_predictions: Predictions,
    labels: np.ndarray,
    classes: int,
    class_names: Sequence[str] | None = None,
) -> Comparison:
    """Compare a model with its float original.

    Args:
        predictions: of the model, N images.
        float_predictions: of the float model, the same images in the same order.
        labels: integer [N], the truth, 0..classes-1.
        classes: number of classes.
        class_names: one per class; None: their numbers.

    Raises:
        ValueError: the lengths differ, or there is no image.
    """
    count = len(labels)
    if not len(predictions.labels) == len(float_predictions.labels) == count:
        raise ValueError(f"{len(predictions.labels)}, {len(float_predictions.labels)} predictions, {count} labels")
    right = predictions.labels == labels
    float_right = float_predictions.labels == labels
    to_wrong = int((float_right & ~right).sum())
    to_right = int((right & ~float_right).sum())
    low, high = wilson_interval(int(right.sum()), count)
    names = class_names or [str(number) for number in range(classes)]
    table = zip(
        names,
        *(np.bincount(labels[chosen], minlength=classes).tolist() for chosen in (slice(None), right, float_right)),
        strict=True,
    )
    return Comparison(
        accuracy=int(right.sum()) / count,
        accuracy_ci_low=low,
        accuracy_ci_high=high,
        float_accuracy=int(float_right.sum()) / count,
        accuracy_delta=(to_right - to_wrong) / count,
        flips_to_wrong=to_wrong,
        flips_to_right=to_right,
        changed_predictions=int((predictions.labels != float_predictions.labels).sum()),
        mcnemar_p=mcnemar_p(to_wrong, to_right),
        quant_ties=predictions.ties,
        float_ties=float_predictions.ties,
        per_class=tuple(_class_row(*row) for row in table),
    )


def _class_row(name: str, images: int, right: int, float_right: int) -> ClassRow:
    if images == 0:
        return ClassRow(name, 0, None, None, None)
    return ClassRow(name, images, right / images, float_right / images, (right - float_right) / images)
