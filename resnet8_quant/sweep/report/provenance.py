"""Where the numbers come from: commands, dates, machines, versions, digests.

In: the jobs of the report. Out: HTML, and the command that runs one of them again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from resnet8_quant import __version__
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.plan import read_plan
from resnet8_quant.sweep.report.evidence import read_record
from resnet8_quant.sweep.report.markup import escape, shortened

MOST = 8  # values that a line lists
ASIDE = ("cache_dir=", "resume=", "hydra.", "tracking")
ASIDE_OF_SWEEPS = ("cache_dir=", "hydra.mode=")  # -m says it


def command(row: RunResult) -> str:
    """The command line of a run, without what only says where it was written."""
    try:
        words = shlex.split(row.overrides or "")
    except ValueError:  # an open quote
        words = [row.overrides or ""]
    kept = [word for word in words if not word.startswith(ASIDE)]
    alone = ["hydra.mode=RUN"] if any(word.startswith("experiment=") for word in kept) else []  # else it would sweep
    return shlex.join(["python", "run.py", *alone, *kept])


def provenance(jobs: Sequence[Job], *, today: datetime | None = None) -> str:
    """A list of definitions about all runs."""
    rows = [job.row for job in jobs if job.ok]
    first = next((job for job in jobs if job.ok), None)
    record = read_record(first.path) if first else {}
    started = sorted(row.started_utc for row in rows if row.started_utc)
    facts: dict[str, Iterable[str]] = {
        "Sweep command": _sweep_commands(jobs),
        "Runs started": [f"{started[0]} to {started[-1]}"] if started else [],
        "Processor": _counted(row.cpu for row in rows),
        "Model": _counted(f"{row.model}, float model sha256 {row.float_model_sha256}" for row in rows),
        "Data": _counted(
            f"{row.data}, {row.eval_images:,} test images, sha256 {row.data_sha256}" for row in rows if row.eval_images
        ),
        "Seeds": [", ".join(map(str, sorted({row.seed for row in rows if row.seed is not None})[:50]))],
        "Latency": [_latency(record, rows)],
        "Versions": [
            *_counted(f"resnet8-quant {row.package_version}, onnxruntime {row.onnxruntime_version}" for row in rows),
            _versions(record),
        ],
        "Report": [f"written {(today or datetime.now(UTC)):%Y-%m-%d %H:%M} UTC by resnet8-quant {__version__}"],
    }
    items = []
    for name, values in facts.items():
        listed = [value for value in values if value]
        if listed:
            shown = "<br>".join(escape(shortened(value)) for value in listed[:MOST])
            rest = f"<br>and {len(listed) - MOST} more" if len(listed) > MOST else ""
            items.append(f"<dt>{name}</dt><dd>{shown}{rest}</dd>")
    return f'<dl class="provenance">{"".join(items)}</dl>'


def _sweep_commands(jobs: Sequence[Job]) -> list[str]:
    """How the sweeps were started, from the file that each has in its folder."""
    commands = []
    for folder in dict.fromkeys(job.path.parent for job in jobs if job.number is not None):
        plan = read_plan(folder)
        if plan is not None:
            study = any(word.startswith("experiment=") for word in plan.overrides)
            kept = [word for word in plan.overrides if not word.startswith(ASIDE_OF_SWEEPS)]
            commands.append(shlex.join(["python", "run.py", *([] if study else ["-m"]), *kept]))
    return list(dict.fromkeys(commands))


def _counted(values: Iterable[str | None]) -> list[str]:
    """Distinct values, the most frequent first; how often each, where there are several."""
    counts = Counter(value for value in values if value)
    return [value if len(counts) == 1 else f"{value} ({count} runs)" for value, count in counts.most_common()]


def _latency(record: dict[str, Any], rows: Sequence[RunResult]) -> str:
    timed = next((row for row in rows if row.latency_us_median is not None), None)
    if timed is None:
        return "not measured"
    settings = record.get("config", {}).get("latency", {}) if isinstance(record.get("config"), dict) else {}
    runs = settings.get("runs") if isinstance(settings, dict) else None
    facts = (
        f"median of {runs} calls" if runs else "",
        f"batch {timed.latency_batch}" if timed.latency_batch else "",
        f"{timed.latency_threads} thread{'' if timed.latency_threads == 1 else 's'}" if timed.latency_threads else "",
    )
    return ", ".join(filter(None, facts)) or "measured"


def _versions(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    if not isinstance(versions, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
