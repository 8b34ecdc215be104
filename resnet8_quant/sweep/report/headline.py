"""What the top of the page says about the recommended run, before the template puts it into sentences.

In: runs, `Evidence` and a `Recommendation`. Out: a `Headline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, settings
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.provenance import command, launchers, measurement
from resnet8_quant.sweep.report.recommendation import LEVEL, Recommendation

SERIOUS_P, SERIOUS_LOSS = 0.01, 0.01  # a loss of a point that chance does not explain is a warning, whatever its size


@dataclass(frozen=True)
class Headline:
    """The recommended run, and what a reader must know about it.

    Attributes:
        recommendation: with the run, the most accurate one and the rule.
        command: the command line that makes the run again.
        loss: against float: "serious", "real", "gain", "noise", or "" where it is not known.
        ratio: latency over that of float, the median over the runs of the model; None: not timed.
        timed: how many runs latency decided between; 0: it did not decide.
        measurements: in how many calls and threads they were timed, each way once.
        busy: how many of them on a busy machine.
        parallel: launchers that started some of them and may run several jobs at the same time.
        other_seeds: accuracies of the same settings with other seeds.
        failed, runs: how many runs failed, of how many.
        notes: which runs are left out of comparisons, in sentences.
        unpaired: why there is no paired test; empty where there is one.
    """

    recommendation: Recommendation
    command: str
    loss: str
    ratio: float | None
    timed: int
    measurements: Sequence[str]
    busy: int
    parallel: Sequence[str]
    other_seeds: Sequence[float]
    failed: int
    runs: int
    notes: Sequence[str]
    unpaired: str


def headline(jobs: Sequence[Job], evidence: Evidence, recommendation: Recommendation) -> Headline:
    """The recommendation as the template takes it."""
    job = recommendation.job
    timed = [run for model in recommendation.timed for run in model.runs]
    ratios = [
        run.row.latency_us_median / run.row.float_latency_us_median
        for run in recommendation.model.runs
        if run.row.latency_us_median and run.row.float_latency_us_median
    ]
    return Headline(
        recommendation=recommendation,
        command=command(job.row),
        loss=_loss(job.row),
        ratio=median(ratios) if ratios else None,
        timed=len(timed),
        measurements=list(dict.fromkeys(measurement(run.row) for run in timed)),
        busy=sum(bool(run.row.machine_busy) for run in timed),
        parallel=[name for name in launchers(timed) if name != "basic"],
        other_seeds=_other_seeds(evidence, job),
        failed=sum(not other.ok for other in jobs),
        runs=len(jobs),
        notes=evidence.notes,
        unpaired="" if recommendation.paired else evidence.missing.get("labels", ""),
    )


def _loss(row: RunResult) -> str:
    delta, p = row.accuracy_delta, row.mcnemar_p
    if delta is None or p is None or row.calibration_method is None:
        return ""
    if p < SERIOUS_P and delta <= -SERIOUS_LOSS + 1e-9:  # the ratio was rounded
        return "serious"
    return "noise" if p >= LEVEL else "real" if delta < 0 else "gain"


def _other_seeds(evidence: Evidence, job: Job) -> list[float]:
    """How the same settings do with other seeds: the recommended run may be a lucky draw."""
    own = settings(job.row)
    if "seed" not in own:
        return []
    same = [other for other in evidence.jobs if settings(other.row) | {"seed": ""} == own | {"seed": ""}]
    return [other.row.accuracy or 0.0 for other in same if other is not job]
