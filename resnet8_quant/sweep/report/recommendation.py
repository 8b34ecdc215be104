"""The top of the page: the recommended run, its numbers, the command that makes it again, and the rule.

In: jobs, `Evidence` and an `Answer`. Out: HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from resnet8_quant import terminal
from resnet8_quant.sweep.collect import Job, settings
from resnet8_quant.sweep.portability import NOTE, in_default_session, mark
from resnet8_quant.sweep.report.answer import LEVEL, UNPAIRED, Answer
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.markup import escape
from resnet8_quant.sweep.report.provenance import command

MINUS = "\N{MINUS SIGN}"


def headline(jobs: Sequence[Job], evidence: Evidence, answer: Answer) -> str:
    """The answer in full."""
    row = answer.job.row
    facts = [
        ("Top-1", terminal.percent(row.accuracy) + mark(row), _interval(answer.job)),
        ("Against float", _points(row.accuracy_delta), _float(answer.job)),
        ("Size", terminal.size(row.model_bytes), _share(row.model_bytes, row.float_model_bytes)),
    ]
    if row.latency_us_median is not None:
        median = terminal.microseconds(row.latency_us_median).replace("us", "\N{MICRO SIGN}s")
        facts.append(("Latency", median, _speed(row.latency_us_median, row.float_latency_us_median)))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for name, value, detail in facts
        if value
    )
    sentences = [
        _against_best(answer),
        _portability(answer),
        _against_float(answer.job),
        _other_seeds(evidence, answer.job),
        *evidence.notes,
    ]
    if UNPAIRED in answer.rule and "labels" in evidence.missing:
        sentences.append(f"Why there is no paired test: {evidence.missing['labels']}.")
    failed = sum(not job.ok for job in jobs)
    if failed:
        sentences.append(f"{failed} of {len(jobs)} runs failed; they are listed below.")
    sentences.append("It was chosen by the images that it is judged by: on new images expect slightly less.")
    return (
        f'<p class="choice">{escape(answer.job.choices)} <span>{escape(answer.job.label)}</span></p>'
        f'<dl class="facts">{shown}</dl>'
        f'<div class="command"><code id="command">{escape(command(row))}</code>'
        '<button type="button" id="copy" hidden>Copy</button></div>'
        f"<p>{escape(' '.join(filter(None, sentences)))}</p>"
        f"{_note(answer)}"
        f"<details open><summary>The rule</summary><p>{escape(answer.rule)}</p></details>"
    )


def _against_best(answer: Answer) -> str:
    counted = f"{answer.qualified:,} of {answer.compared:,} runs qualify."
    accuracy = terminal.percent(answer.best.row.accuracy) + mark(answer.best.row)
    best = f"{answer.best.label} ({answer.best.choices}, {accuracy})"
    if answer.job is answer.best:
        return f"{counted} The recommended run is also the most accurate one."
    test = answer.test_of(answer.job)
    if test is None or UNPAIRED in answer.rule:
        return f"{counted} The most accurate is {best}."
    return (
        f"{counted} The most accurate is {best}: it alone gets {test.to_wrong} images right, the recommended run alone "
        f"{test.to_right}; p = {test.p:.2g}, corrected {test.holm:.2g}."
    )


def _portability(answer: Answer) -> str:
    """How portability decided, where it did, and what a default session makes of the recommended run."""
    left_out = answer.qualified - answer.portable
    said = in_default_session(answer.job.row)
    if not answer.portable:
        return f"No run that qualifies is portable, so the choice is among all of them. {said}".rstrip()
    if not left_out:
        return said
    was = "is not portable and was" if left_out == 1 else "are not portable and were"
    return f"{left_out:,} of the runs that qualify {was} left out. {said}".rstrip()


def _note(answer: Answer) -> str:
    """What the mark behind an accuracy means; nothing where there is none."""
    marked = mark(answer.job.row) or mark(answer.best.row)
    return f'<p class="note">{escape(NOTE)}</p>' if marked else ""


def _against_float(job: Job) -> str:
    delta, p = job.row.accuracy_delta, job.row.mcnemar_p
    if delta is None or p is None or job.row.calibration_method is None:
        return ""
    if p >= LEVEL:
        return "Its difference from the float model is within noise."
    return f"Its {'loss' if delta < 0 else 'gain'} against the float model is real at the 5 % level."


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


def _interval(job: Job) -> str:
    low, high = job.row.accuracy_ci_low, job.row.accuracy_ci_high
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %, 95 % Wilson"


def _points(delta: float | None) -> str:
    return "" if delta is None else f"{terminal.points(delta).replace('-', MINUS)} points"


def _float(job: Job) -> str:
    row = job.row
    if row.float_accuracy is None:
        return ""
    p = "" if row.mcnemar_p is None else f", p = {row.mcnemar_p:.2g}"
    return f"float {terminal.percent(row.float_accuracy)}{p}"


def _share(count: int | None, original: int | None) -> str:
    return f"{100 * count / original:.0f} % of float" if count and original else ""


def _speed(median: float, original: float | None) -> str:
    return f"{median / original:.2f} times float" if original else ""
