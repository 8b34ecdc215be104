"""The top of the page in words: the recommended run, its numbers, the command that makes it again, and the rule.

In: runs, `Evidence` and a `Recommendation`. Out: a `Headline` of plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from resnet8_quant import terminal
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, settings
from resnet8_quant.sweep.portability import NOTE, in_default_session, mark
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.provenance import command, launchers, measurement
from resnet8_quant.sweep.report.recommendation import LEVEL, UNPAIRED, Recommendation

MINUS = "\N{MINUS SIGN}"
SERIOUS_P, SERIOUS_LOSS = 0.01, 0.01  # a loss of a point that chance does not explain is a warning, whatever its size


@dataclass(frozen=True)
class Headline:
    """What stands at the top.

    Attributes:
        choice: the settings that tell the recommended run from the others.
        label: its number or folder.
        facts: name, value and detail of its main numbers.
        command: the command line that makes it again.
        warnings: sentences that must not be missed.
        sentences: how it compares, and what limits that.
        note: what the mark behind an accuracy means; empty where there is none.
        rule: by which it was chosen.
    """

    choice: str
    label: str
    facts: Sequence[tuple[str, str, str]]
    command: str
    warnings: Sequence[str]
    sentences: Sequence[str]
    note: str
    rule: str


def headline(jobs: Sequence[Job], evidence: Evidence, recommendation: Recommendation) -> Headline:
    """The recommendation in words."""
    job, row = recommendation.job, recommendation.job.row
    failed = sum(not other.ok for other in jobs)
    sentences = [
        _against_best(recommendation),
        _portability(recommendation),
        _against_float(row),
        _identical(recommendation),
        _timing(recommendation),
        _other_seeds(evidence, job),
        *evidence.notes,
        f"Why there is no paired test: {evidence.missing['labels']}."
        if UNPAIRED in recommendation.rule and "labels" in evidence.missing
        else "",
        f"{failed} of {len(jobs)} runs failed; they are listed below." if failed else "",
        "It was chosen by the images that it is judged by: on new images expect slightly less.",
    ]
    marked = mark(row) or mark(recommendation.best.job.row)
    return Headline(
        choice=job.choices,
        label=job.label,
        facts=_facts(recommendation),
        command=command(row),
        warnings=_warnings(recommendation),
        sentences=[sentence for sentence in sentences if sentence],
        note=NOTE if marked else "",
        rule=recommendation.rule,
    )


def _facts(recommendation: Recommendation) -> list[tuple[str, str, str]]:
    row = recommendation.job.row
    low, high = row.accuracy_ci_low, row.accuracy_ci_high
    interval = "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %, 95 % Wilson"
    p = "" if row.mcnemar_p is None else f", p = {row.mcnemar_p:.2g}"
    sizes = row.model_bytes, row.float_model_bytes
    share = f"{100 * sizes[0] / sizes[1]:.0f} % of float" if sizes[0] and sizes[1] else ""
    facts = [
        ("Top-1", terminal.percent(row.accuracy) + mark(row), interval),
        (
            "Against float",
            f"{terminal.points(row.accuracy_delta).replace('-', MINUS)} points"
            if row.accuracy_delta is not None
            else "",
            "" if row.float_accuracy is None else f"float {terminal.percent(row.float_accuracy)}{p}",
        ),
        ("Size", terminal.size(row.model_bytes), share),
    ]
    if row.latency_us_median is not None:
        value = terminal.microseconds(recommendation.model.latency).replace("us", "\N{MICRO SIGN}s")
        ratios = [ratio for run in recommendation.model.runs if (ratio := _times_float(run.row)) is not None]
        speed = f"{median(ratios):.2f} times float" if ratios else ""
        facts.append(("Latency", value, ", ".join(filter(None, (speed, "busy machine" if row.machine_busy else "")))))
    return [fact for fact in facts if fact[1]]


def _against_best(recommendation: Recommendation) -> str:
    counted = f"{recommendation.qualified:,} of {recommendation.compared:,} models qualify."
    best = recommendation.best
    if recommendation.model is best:
        return f"{counted} The recommended run is also the most accurate one."
    accuracy = terminal.percent(best.job.row.accuracy) + mark(best.job.row)
    named = f"{counted} The most accurate is {best.job.label} ({best.job.choices}, {accuracy})"
    test = recommendation.test_of(recommendation.job)
    if test is None or UNPAIRED in recommendation.rule:
        return f"{named}."
    return (
        f"{named}: it alone gets {test.to_wrong} images right, the recommended run alone {test.to_right}; "
        f"p = {test.p:.2g}, corrected {test.holm:.2g}."
    )


def _portability(recommendation: Recommendation) -> str:
    """How portability decided, where it did, and what a default session makes of the recommended run."""
    left_out = recommendation.qualified - recommendation.portable
    measured = in_default_session(recommendation.job.row)
    if not recommendation.portable:
        return f"No run that qualifies is portable, so the choice is among all of them. {measured}".rstrip()
    if not left_out:
        return measured
    was = "is not portable and was" if left_out == 1 else "are not portable and were"
    return f"{left_out:,} of the models that qualify {was} left out. {measured}".rstrip()


def _warnings(recommendation: Recommendation) -> list[str]:
    row, timed = recommendation.job.row, [run for model in recommendation.timed for run in model.runs]
    warnings = []
    if _is_serious(row):
        warnings.append(
            f"It loses {terminal.points(row.accuracy_delta).lstrip('-')} points against the float model, and chance "
            f"does not explain that (p = {row.mcnemar_p:.2g}): that no other run is better does not make it good."
        )
    busy = sum(bool(run.row.machine_busy) for run in timed)
    if busy:
        warnings.append(
            f"Latency decided, and {busy} of the {len(timed)} runs that it decided between were timed on a busy "
            "machine (machine_busy): time them again when nothing else runs."
        )
    parallel = [name for name in launchers(timed) if name != "basic"]
    if parallel:
        warnings.append(
            f"Latency decided, and jobs were started by the launcher {', '.join(parallel)}, which may run several at "
            "the same time: time them again with hydra/launcher=basic."
        )
    return warnings


def _timing(recommendation: Recommendation) -> str:
    """How the latencies were measured, where they decided."""
    timed = [run.row for model in recommendation.timed for run in model.runs]
    ways = dict.fromkeys(measurement(row) for row in timed)
    if not timed:
        return ""
    return f"Latency decided between {len(recommendation.timed):,} equally small models: {'; '.join(ways)}."


def _identical(recommendation: Recommendation) -> str:
    count = len(recommendation.model.runs)
    return "" if count == 1 else f"{count} runs made this same model; the latency is the median of theirs."


def _against_float(row: RunResult) -> str:
    if row.accuracy_delta is None or row.mcnemar_p is None or row.calibration_method is None or _is_serious(row):
        return ""
    if row.mcnemar_p >= LEVEL:
        return "Its difference from the float model is within noise."
    return f"Its {'loss' if row.accuracy_delta < 0 else 'gain'} against the float model is real at the 5 % level."


def _is_serious(row: RunResult) -> bool:
    if row.accuracy_delta is None or row.mcnemar_p is None or row.calibration_method is None:
        return False
    return row.mcnemar_p < SERIOUS_P and row.accuracy_delta <= -SERIOUS_LOSS + 1e-9  # a ratio that was rounded


def _other_seeds(evidence: Evidence, job: Job) -> str:
    """How the same settings do with other seeds: the recommended run may be a lucky draw."""
    own = settings(job.row)
    same = [
        100 * (other.row.accuracy or 0.0)
        for other in evidence.jobs
        if other is not job and settings(other.row) | {"seed": ""} == own | {"seed": ""} and "seed" in own
    ]
    if not same:
        return ""
    spread = f"{min(same):.2f} to {max(same):.2f}, " if len(same) > 1 else ""
    return f"The same settings with other seeds: {fmean(same):.2f} % ({spread}n = {len(same)})."


def _times_float(row: RunResult) -> float | None:
    if row.latency_us_median is None or not row.float_latency_us_median:
        return None
    return row.latency_us_median / row.float_latency_us_median
