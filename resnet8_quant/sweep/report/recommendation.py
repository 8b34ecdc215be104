"""Which configuration to ship, and how sure that is: a stated rule over paired tests, among models within limits.

In: `Evidence` and limits. Out: a `Recommendation`, with the test of every model against the most accurate one. The page
picks by the same rule when a limit changes: recommend() in templates/page.js, from what `Model` holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

import numpy as np

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.portability import mark
from resnet8_quant.sweep.report.evidence import Evidence

LEVEL = 0.05
SAME_BYTES, SAME_LATENCY = 1.10, 1.05  # ratios up to which two values count as equal
Limits = Mapping[str, float]  # at most so many of UNITS; none is as good as a very large one
UNITS = {"flash": "bytes of flash", "ram": "bytes of RAM", "lost": "points lost"}

_CHOICE = (
    "Of those, only the portable ones are considered, if there are any: on x86 CPUs without VNNI the others can answer "
    "differently in ONNX Runtime's default session. Of these the smallest file is taken. Files at most 10 % larger "
    "than it count as equally small, and of these the fastest model is taken; medians of the latency at most 5 % above "
    "it count as equally fast, and of these the most accurate model is taken. Runs that made the same model file count "
    "once, with the median of their latencies. A model that is not within the limits takes no part at all."
)
# By what a model qualifies -> the rule in words.
RULES = {
    "test": "A model qualifies if it is not significantly less accurate than the most accurate one: exact McNemar test "
    f"on the same images, 5 % level, p corrected by Holm for all models compared. {_CHOICE}",
    "interval": "A model qualifies if its accuracy lies within the 95 % Wilson interval of the most accurate one. This "
    f"is a stand-in: the paired test of the same images needs the labels and every run's predictions. {_CHOICE}",
    "loss": f"A model qualifies if it loses at most the points of the limit against float. {_CHOICE}",
}


def flash(row: RunResult) -> int | None:
    """Bytes of flash: the file for the target where the run wrote one, else weights, biases and scales."""
    return row.weights_bytes if row.tflite_bytes is None else row.tflite_bytes


def ram(row: RunResult) -> int | None:
    """Bytes of RAM: the arena where the run measured it, else the activations that are alive at the same time."""
    return row.peak_activation_bytes if row.arena_bytes is None else row.arena_bytes


@dataclass(eq=False)
class Model:
    """One model file.

    Attributes:
        job: the run that stands for all ``runs`` that made it.
        predictions: its predicted classes, if known.
        place: in the list of all models, which is in the order of their quality.
        flips: where it is the most accurate within some limits, and the labels are known: for each model of the list
            the images that only this one, and that only that one gets right.
    """

    job: Job
    runs: tuple[Job, ...]
    predictions: np.ndarray | None
    place: int = 0
    flips: Sequence[tuple[int, int]] = ()

    @property
    def accuracy(self) -> float:
        return self.job.row.accuracy or 0.0

    @property
    def bytes(self) -> float:
        return math.inf if self.job.row.model_bytes is None else self.job.row.model_bytes

    @cached_property
    def latency(self) -> float:
        """Microseconds, the median over the runs; infinite where none was timed."""
        timed = [job.row.latency_us_median for job in self.runs if job.row.latency_us_median is not None]
        return median(timed) if timed else math.inf

    @property
    def quality(self) -> tuple[float, float, float]:
        """The smallest of several is the most accurate; of equals the smallest file, then the fastest."""
        return (-self.accuracy, self.bytes, self.latency)

    @cached_property
    def needs(self) -> dict[str, float | None]:
        """What limits are set on; None where the run does not say."""
        row = self.job.row
        lost = None if row.accuracy_delta is None else round(-100 * row.accuracy_delta, 6) + 0.0  # no -0
        return {"flash": flash(row), "ram": ram(row), "lost": lost}

    def fits(self, limits: Limits, but: str = "") -> bool:
        """Whether the model is within all ``limits``, not looking at the one named ``but``."""
        return all(
            name == but or ((need := self.needs[name]) is not None and need <= most) for name, most in limits.items()
        )


class PairedTest(NamedTuple):
    """A model against the most accurate one.

    Attributes:
        to_wrong, to_right: images that only the most accurate model, and that only this model gets right.
        p, holm: exact McNemar test, two-sided; the same, corrected for the number of models compared.
    """

    to_wrong: int
    to_right: int
    p: float
    holm: float


@dataclass(frozen=True)
class Recommendation:
    """The model to ship.

    Attributes:
        model, best: recommended, and the most accurate one within the limits.
        basis: by which of RULES models qualified.
        fitting: how many models are within the limits.
        compared, qualified: how many of these could qualify, and how many do.
        portable: how many of these compute the same on every CPU; 0: ``model`` is chosen among all that qualify.
        timed: the equally small models among which latency decided; empty where it did not.
        tests: of each model but the best, in the order of their accuracy; empty where no labels are known.
    """

    model: Model
    best: Model
    basis: str
    fitting: int
    compared: int
    qualified: int
    portable: int
    timed: tuple[Model, ...]
    tests: dict[Model, PairedTest]

    @property
    def job(self) -> Job:
        return self.model.job


def models_of(evidence: Evidence) -> list[Model]:
    """The models of ``evidence`` by falling quality.

    Runs that made the same file are one model; a run whose digest is not known stands alone.
    """
    groups: dict[object, list[int]] = {}
    for place, job in enumerate(evidence.jobs):
        groups.setdefault(job.row.model_sha256 or place, []).append(place)
    models = []
    for places in groups.values():
        # A run with predictions stands for those that lost theirs, and then one that wrote the file for the target.
        first = max(
            places,
            key=lambda i: (evidence.predictions[i] is not None, evidence.jobs[i].row.tflite_bytes is not None),
        )
        runs = tuple(evidence.jobs[place] for place in places)
        models.append(Model(evidence.jobs[first], runs, evidence.predictions[first]))
    models.sort(key=lambda model: model.quality)
    for place, model in enumerate(models):
        model.place = place
    if evidence.labels is None or not models:
        return models
    unknown = np.full(len(evidence.labels), -1)
    predictions = [unknown if model.predictions is None else model.predictions for model in models]
    right = np.array(predictions) == evidence.labels
    totals = right.sum(axis=1)
    for model in _best_within_some_limits(models):
        if model.predictions is not None:
            both = np.count_nonzero(right & right[model.place], axis=1)
            model.flips = list(zip((totals[model.place] - both).tolist(), (totals - both).tolist(), strict=True))
    return models


def _best_within_some_limits(models: Sequence[Model]) -> list[Model]:
    """The models that no more accurate one beats in everything that a limit is set on."""
    front: list[tuple[list[float], Model]] = []
    for model in models:
        needs = [math.inf if need is None else need for need in model.needs.values()]
        if not any(all(a <= b for a, b in zip(other, needs, strict=True)) for other, _ in front):
            front.append((needs, model))
    return [model for _, model in front]


def recommend(models: Sequence[Model], limits: Limits) -> Recommendation | None:
    """The smallest and fastest portable model within ``limits`` that is not worse than the best one within them.

    Returns:
        None where no model is within the limits, or there is none at all.
    """
    fitting = compared = [model for model in models if model.fits(limits)]
    if not fitting:
        return None
    best, tests = fitting[0], _tests_against_best(fitting)
    if "lost" in limits:
        basis, qualified = "loss", fitting
    elif best.flips:
        basis, compared = "test", [best, *tests]
        qualified = [best, *(model for model, test in tests.items() if test.holm >= LEVEL)]
    else:
        basis, bar = "interval", best.job.row.accuracy_ci_low
        qualified = [model for model in fitting if model is best or (bar is not None and model.accuracy >= bar)]
    portable = [model for model in qualified if not mark(model.job.row)]
    quantized = [model for model in qualified if model.job.row.calibration_method]
    if quantized and not any(model.job.row.calibration_method for model in portable):
        portable = []  # the float model computes the same everywhere, and is not what was asked for
    chosen, timed = choose(portable or qualified)
    counts = (len(fitting), len(compared), len(qualified), len(portable))
    return Recommendation(chosen, best, basis, *counts, timed, tests)


def _tests_against_best(fitting: Sequence[Model]) -> dict[Model, PairedTest]:
    """McNemar tests of every model with predictions against the first, the most accurate one, Holm-corrected.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979),
    65-70.
    """
    best, *others = fitting
    known = [model for model in others if model.predictions is not None] if best.flips else []
    flips = [best.flips[model.place] for model in known]
    p = [mcnemar_p(*pair) for pair in flips]
    tests = [PairedTest(*pair, *values) for pair, values in zip(flips, zip(p, holm(p), strict=True), strict=True)]
    return dict(zip(known, tests, strict=True))


def shortfalls(models: Sequence[Model], limits: Limits) -> tuple[dict[str, float | None], bool]:
    """Where no model fits: what each limit would have to be.

    Returns:
        Names of the limits that are too small -> the least that would do; None where no run says. With the others as
        they are, if any model meets those, so that one of them is enough (True); else by itself, and all have to be
        larger (False). None at all where each limit is met by some model, and no two of three by one.
    """
    least: dict[str, float | None] = {}
    others_hold = False
    for name, most in limits.items():
        meeting = [model for model in models if model.fits(limits, but=name)]
        needs = [need for model in meeting or models if (need := model.needs[name]) is not None]
        if not needs or min(needs) > most:
            least[name] = min(needs, default=None)
            others_hold = others_hold or bool(meeting)
    return least, others_hold


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def choose(models: Sequence[Model]) -> tuple[Model, tuple[Model, ...]]:
    """The smallest of ``models``, then the fastest, then the most accurate; see _CHOICE.

    Returns:
        The model; and the equally small ones, where some of them were left out for their latency.
    """
    smallest = min(model.bytes for model in models)
    small = [model for model in models if model.bytes <= SAME_BYTES * smallest]
    lowest = min(model.latency for model in small)
    fast = [model for model in small if model.latency <= SAME_LATENCY * lowest]
    return min(fast, key=lambda model: model.quality), tuple(small) if len(fast) < len(small) else ()
