"""Which configuration to ship, and how sure that is: a stated rule over paired tests.

In: `Evidence`. Out: an `Answer`, with the test of every run against the most accurate one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.portability import is_portable
from resnet8_quant.sweep.report.evidence import Evidence

LEVEL = 0.05
SAME_BYTES, SAME_LATENCY = 1.10, 1.05  # ratios up to which two values count as equal

PORTABLE = (
    "Of those, only the portable ones are considered, if there are any: on x86 CPUs without VNNI the others can answer "
    "differently in ONNX Runtime's default session. "
)
CHOICE = (
    "Of these the smallest file is taken. Files at most 10 % larger than it count as equally small, and of these the "
    "fastest run is taken; medians of the latency at most 5 % above it count as equally fast, and of these the most "
    "accurate run is taken."
)
PAIRED = (
    "A run qualifies if it is not significantly less accurate than the most accurate run: exact McNemar test on the "
    "same images, 5 % level, p corrected by Holm for all runs compared. "
)
UNPAIRED = (
    "A run qualifies if its accuracy lies within the 95 % Wilson interval of the most accurate run. This is a "
    "stand-in: the paired test of the same images needs the labels and every run's predictions. "
)


@dataclass(frozen=True)
class Test:
    """A run against the most accurate one.

    Attributes:
        to_wrong: images that only the most accurate run gets right.
        to_right: images that only this run gets right.
        p: exact McNemar test, two-sided.
        holm: the same, corrected for the number of runs compared.
    """

    job: Job
    to_wrong: int
    to_right: int
    p: float
    holm: float


@dataclass(frozen=True)
class Answer:
    """The recommended run.

    Attributes:
        job: recommended.
        best: the most accurate run; of equals the smallest, then the fastest.
        rule: in words.
        qualified: how many runs are not worse than the best.
        portable: how many of these compute the same on every CPU; 0: ``job`` is chosen among all that qualify.
        compared: out of how many.
        tests: one for each run but the best, in the order of their accuracy; empty where no labels are known.
    """

    job: Job
    best: Job
    rule: str
    qualified: int
    portable: int
    compared: int
    tests: tuple[Test, ...]

    def test_of(self, job: Job) -> Test | None:
        """The test of ``job`` against the best."""
        return next((test for test in self.tests if test.job is job), None)


def recommend(evidence: Evidence) -> Answer | None:
    """The smallest and fastest portable run that is not worse than the best; None where no run has finished."""
    jobs = evidence.jobs
    if not jobs:
        return None
    best = min(jobs, key=_quality)
    tests = tests_against_best(evidence)
    known = {id(job) for job, answers in zip(jobs, evidence.answers, strict=True) if answers is not None}
    if evidence.labels is None or id(best) not in known:
        bar = best.row.accuracy_ci_low
        qualified = [job for job in jobs if job is best or (bar is not None and _accuracy(job) >= bar)]
        return _answer(qualified, best, UNPAIRED, len(jobs), tests)
    worse = {id(test.job) for test in tests if test.holm < LEVEL}
    qualified = [job for job in jobs if id(job) in known - worse]
    return _answer(qualified, best, PAIRED, len(known), tests)


def _answer(qualified: Sequence[Job], best: Job, condition: str, compared: int, tests: tuple[Test, ...]) -> Answer:
    """The run of ``qualified`` to ship; ``condition`` is the sentence about what qualifies."""
    portable = [job for job in qualified if is_portable(job.row)]
    if not any(job.row.calibration_method for job in portable) and any(job.row.calibration_method for job in qualified):
        portable = []  # the float model computes the same everywhere, and is not what was asked for
    rule = condition + PORTABLE + CHOICE
    return Answer(choose(portable or qualified), best, rule, len(qualified), len(portable), compared, tests)


def tests_against_best(evidence: Evidence) -> tuple[Test, ...]:
    """McNemar tests of every run with answers against the most accurate, Holm-corrected, by falling accuracy.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979),
    65-70.
    """
    known = [(job, given) for job, given in zip(evidence.jobs, evidence.answers, strict=True) if given is not None]
    if evidence.labels is None or not known:
        return ()
    known.sort(key=lambda pair: _quality(pair[0]))
    right = np.array([answers == evidence.labels for _, answers in known])
    to_wrong = (right[0] & ~right[1:]).sum(axis=1).tolist()
    to_right = (~right[0] & right[1:]).sum(axis=1).tolist()
    values = [mcnemar_p(*flips) for flips in zip(to_wrong, to_right, strict=True)]
    others = [job for job, _ in known[1:]]
    return tuple(Test(*fields) for fields in zip(others, to_wrong, to_right, values, holm(values), strict=True))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def choose(jobs: Sequence[Job]) -> Job:
    """The smallest of ``jobs``, then the fastest, then the most accurate; see CHOICE."""
    least = min(_bytes(job) for job in jobs)
    small = [job for job in jobs if _bytes(job) <= SAME_BYTES * least]
    lowest = min(_latency(job) for job in small)
    fast = [job for job in small if _latency(job) <= SAME_LATENCY * lowest]
    return min(fast, key=_quality)


def _quality(job: Job) -> tuple[float, float, float]:
    return (-_accuracy(job), _bytes(job), _latency(job))


def _accuracy(job: Job) -> float:
    return job.row.accuracy or 0.0


def _bytes(job: Job) -> float:
    return float("inf") if job.row.model_bytes is None else job.row.model_bytes


def _latency(job: Job) -> float:
    return float("inf") if job.row.latency_us_median is None else job.row.latency_us_median
