"""Which runs of a table hold on every CPU, and what ONNX Runtime's default session made of the others.

In: rows. Out: the mark behind an accuracy, and the sentences that say what it means. In the table, `summary.md` and the
report alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from resnet8_quant import terminal
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job

MARK = "*"
NOTE = (
    f"{MARK} On x86 CPUs without VNNI, ONNX Runtime's default session can saturate and answer differently; quant=u8s7 "
    "or deploy=x86 is exact there too."
)


def mark(row: RunResult) -> str:
    """What stands behind an accuracy that does not hold on every CPU; nothing where the row does not say."""
    return MARK if row.portable is False else ""


def notes(jobs: Sequence[Job]) -> list[str]:
    """The sentences below a table of ``jobs``: what the mark means, and the largest loss that was measured."""
    marked = [job for job in jobs if job.ok and mark(job.row)]
    measured = [job for job in marked if job.row.default_session_accuracy is not None]
    if not measured:
        return [NOTE] if marked else []
    worst = max(measured, key=lambda job: (job.row.accuracy or 0.0) - (job.row.default_session_accuracy or 0.0))
    count = "run was" if len(measured) == 1 else "runs were"
    return [NOTE, f"{len(measured):,} such {count} measured in it, at worst {worst.label}: {_there(worst.row)}."]


def in_default_session(row: RunResult) -> str:
    """What a default session on the CPU of the run made of its model, in a sentence; empty where it is not known."""
    if row.default_session_accuracy is None:
        return ""
    return f"In ONNX Runtime's default session on the CPU of this run: {_there(row)}."


def _there(row: RunResult) -> str:
    """Accuracy first, so that no latency is read without it."""
    parts = [f"{terminal.percent(row.default_session_accuracy)} instead of {terminal.percent(row.accuracy)}"]
    if row.default_session_changed is not None:
        plural = "" if row.default_session_changed == 1 else "s"
        parts.append(f"{row.default_session_changed:,} prediction{plural} changed")
    if row.default_session_latency_us_median is not None:
        parts.append(terminal.microseconds(row.default_session_latency_us_median))
    return ", ".join(parts)
