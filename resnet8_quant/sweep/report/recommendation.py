"""Which configuration to ship, and how sure that is: a stated rule over paired tests.

In: `Evidence`. Out: a `Recommendation`, with the test of every model against the most accurate one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.portability import mark
from resnet8_quant.sweep.report.evidence import Evidence

LEVEL = 0.05
SAME_BYTES, SAME_LATENCY = 1.10, 1.05  # ratios up to which two values count as equal

PORTABLE = (
    "Of those, only the portable ones are considered, if there are any: on x86 CPUs without VNNI the others can answer "
    "differently in ONNX Runtime's default session. "
)
CHOICE = (
    "Of these the smallest file is taken. Files at most 10 % larger than it count as equally small, and of these the "
    "fastest model is taken; medians of the latency at most 5 % above it count as equally fast, and of these the most "
    "accurate model is taken. Runs that made the same model file count once, with the median of their latencies."
)
PAIRED = (
    "A model qualifies if it is not significantly less accurate than the most accurate one: exact McNemar test on the "
    "same images, 5 % level, p corrected by Holm for all models compared. "
)
UNPAIRED = (
    "A model qualifies if its accuracy lies within the 95 % Wilson interval of the most accurate one. This is a "
    "stand-in: the paired test of the same images needs the labels and every run's predictions. "
)


@dataclass(frozen=True)
class Model:
    """One model file, the runs that made it, the one that stands for all, and the predicted classes if known."""

    job: Job
    runs: tuple[Job, ...]
    predictions: np.ndarray | None

    @property
    def accuracy(self) -> float:
        return self.job.row.accuracy or 0.0

    @property
    def bytes(self) -> float:
        return math.inf if self.job.row.model_bytes is None else self.job.row.model_bytes

    @property
    def latency(self) -> float:
        """Microseconds, the median over the runs; infinite where none was timed."""
        timed = [job.row.latency_us_median for job in self.runs if job.row.latency_us_median is not None]
        return median(timed) if timed else math.inf

    @property
    def quality(self) -> tuple[float, float, float]:
        """The smallest of several is the most accurate; of equals the smallest file, then the fastest."""
        return (-self.accuracy, self.bytes, self.latency)


@dataclass(frozen=True)
class PairedTest:
    """A model against the most accurate one.

    Attributes:
        to_wrong, to_right: images that only the most accurate model, and that only this model gets right.
        p, holm: exact McNemar test, two-sided; the same, corrected for the number of models compared.
    """

    model: Model
    to_wrong: int
    to_right: int
    p: float
    holm: float


@dataclass(frozen=True)
class Recommendation:
    """The model to ship.

    Attributes:
        model, best: recommended, and the most accurate one.
        paired: whether paired tests decided what qualifies.
        qualified: how many models are not worse than the best.
        portable: how many of these compute the same on every CPU; 0: ``model`` is chosen among all that qualify.
        compared: out of how many.
        timed: the equally small models among which latency decided; empty where it did not.
        tests: one for each model but the best, in the order of their accuracy; empty where no labels are known.
    """

    model: Model
    best: Model
    paired: bool
    qualified: int
    portable: int
    compared: int
    timed: tuple[Model, ...]
    tests: tuple[PairedTest, ...]

    @property
    def job(self) -> Job:
        return self.model.job

    @property
    def rule(self) -> str:
        """By which the model was chosen, in words."""
        return (PAIRED if self.paired else UNPAIRED) + PORTABLE + CHOICE

    def test_of(self, job: Job) -> PairedTest | None:
        """The test of the model that ``job`` made against the best."""
        return next((test for test in self.tests if any(run is job for run in test.model.runs)), None)


def recommend(evidence: Evidence) -> Recommendation | None:
    """The smallest and fastest portable model that is not worse than the best; None where no run has finished."""
    models = distinct_models(evidence)
    if not models:
        return None
    best = min(models, key=lambda model: model.quality)
    tests = tests_against_best(evidence, models)
    paired = evidence.labels is not None and best.predictions is not None
    if paired:
        compared = [model for model in models if model.predictions is not None]
        worse = {id(test.model) for test in tests if test.holm < LEVEL}
        qualified = [model for model in compared if id(model) not in worse]
    else:
        compared, bar = models, best.job.row.accuracy_ci_low
        qualified = [model for model in models if model is best or (bar is not None and model.accuracy >= bar)]
    portable = [model for model in qualified if not mark(model.job.row)]
    quantized = [model for model in qualified if model.job.row.calibration_method]
    if quantized and not any(model.job.row.calibration_method for model in portable):
        portable = []  # the float model computes the same everywhere, and is not what was asked for
    chosen, timed = choose(portable or qualified)
    return Recommendation(chosen, best, paired, len(qualified), len(portable), len(compared), timed, tests)


def distinct_models(evidence: Evidence) -> list[Model]:
    """The runs of ``evidence`` by the model file that they made; one whose digest is not known stands alone."""
    groups: dict[object, list[int]] = {}
    for place, job in enumerate(evidence.jobs):
        groups.setdefault(job.row.model_sha256 or place, []).append(place)
    models = []
    for places in groups.values():
        # A run with predictions stands for those that lost theirs.
        first = next((place for place in places if evidence.predictions[place] is not None), places[0])
        runs = tuple(evidence.jobs[place] for place in places)
        models.append(Model(evidence.jobs[first], runs, evidence.predictions[first]))
    return models


def tests_against_best(evidence: Evidence, models: Sequence[Model]) -> tuple[PairedTest, ...]:
    """McNemar tests of every model with predictions against the most accurate, Holm-corrected, by falling accuracy.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979),
    65-70.
    """
    known = sorted((model for model in models if model.predictions is not None), key=lambda model: model.quality)
    if evidence.labels is None or not known:
        return ()
    right = np.array([model.predictions == evidence.labels for model in known])
    to_wrong = (right[0] & ~right[1:]).sum(axis=1).tolist()
    to_right = (~right[0] & right[1:]).sum(axis=1).tolist()
    values = [mcnemar_p(*flips) for flips in zip(to_wrong, to_right, strict=True)]
    columns = (known[1:], to_wrong, to_right, values, holm(values))
    return tuple(PairedTest(*fields) for fields in zip(*columns, strict=True))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def choose(models: Sequence[Model]) -> tuple[Model, tuple[Model, ...]]:
    """The smallest of ``models``, then the fastest, then the most accurate; see CHOICE.

    Returns:
        The model; and the equally small ones, where some of them were left out for their latency.
    """
    smallest = min(model.bytes for model in models)
    small = [model for model in models if model.bytes <= SAME_BYTES * smallest]
    lowest = min(model.latency for model in small)
    fast = [model for model in small if model.latency <= SAME_LATENCY * lowest]
    return min(fast, key=lambda model: model.quality), tuple(small) if len(fast) < len(small) else ()
