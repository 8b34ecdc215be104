"""Where the numbers come from: commands, dates, machines, versions, digests.

In: the runs of the report. Out: facts in plain text, and the command that runs one of them again.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from resnet8_quant import __version__
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.folders import read_json
from resnet8_quant.sweep.plan import read_plan
from resnet8_quant.sweep.report.tables import shortened

MAX_VALUES = 8  # of one fact
NOT_IN_COMMAND = ("cache_dir=", "resume=", "hydra.", "tracking")
NOT_IN_SWEEP_COMMAND = ("cache_dir=", "hydra.mode=")  # -m says it
LAUNCHER = re.compile(r"^ +hydra/launcher: (\S+)$", re.MULTILINE)


def command(row: RunResult) -> str:
    """The command line of a run, without what only says where it was written."""
    try:
        words = shlex.split(row.overrides or "")
    except ValueError:  # an open quote
        words = [row.overrides or ""]
    kept = [word for word in words if not word.startswith(NOT_IN_COMMAND)]
    alone = ["hydra.mode=RUN"] if any(word.startswith("experiment=") for word in kept) else []  # else it would sweep
    return shlex.join(["python", "run.py", *alone, *kept])


def provenance(jobs: Sequence[Job], *, today: datetime | None = None) -> dict[str, list[str]]:
    """Facts about all runs: name -> values, each the most frequent first; a fact that is not known is left out."""
    rows = [job.row for job in jobs if job.ok]
    started = sorted(row.started_utc for row in rows if row.started_utc)
    busy = sum(bool(row.machine_busy) for row in rows)
    facts: dict[str, list[str]] = {
        "Sweep command": _sweep_commands(jobs),
        "Runs started": [f"{started[0]} to {started[-1]}"] if started else [],
        "Processor": _counted(row.cpu for row in rows),
        "Model": _counted(f"{row.model}, float model sha256 {row.float_model_sha256}" for row in rows),
        "Data": _counted(
            f"{row.data}, {row.eval_images:,} test images, sha256 {row.data_sha256}" for row in rows if row.eval_images
        ),
        "Seeds": [", ".join(map(str, sorted({row.seed for row in rows if row.seed is not None})[:50]))],
        "Latency": [
            *_counted(measurement(row) for row in rows),
            f"{busy} of {len(rows)} runs on a busy machine" if busy else "",
        ],
        "Launcher": launchers(jobs),
        "Versions": [
            *_counted(f"resnet8-quant {row.package_version}, onnxruntime {row.onnxruntime_version}" for row in rows),
            _versions(jobs),
        ],
        "Report": [f"written {(today or datetime.now(UTC)):%Y-%m-%d %H:%M} UTC by resnet8-quant {__version__}"],
    }
    shown = {name: [shortened(value) for value in values if value] for name, values in facts.items()}
    for values in shown.values():
        if len(values) > MAX_VALUES:
            values[MAX_VALUES:] = [f"and {len(values) - MAX_VALUES} more"]
    return {name: values for name, values in shown.items() if values}


def measurement(row: RunResult) -> str:
    """How the latency of a run was measured, in words."""
    if row.latency_us_median is None:
        return "not measured"
    facts = [f"median of {row.latency_runs} calls"] if row.latency_runs else []
    facts += [f"batch {row.latency_batch}"] if row.latency_batch else []
    facts += [f"{row.latency_threads} thread{'' if row.latency_threads == 1 else 's'}"] if row.latency_threads else []
    return ", ".join(facts) or "measured"


def launchers(jobs: Sequence[Job]) -> list[str]:
    """Names of the launchers that started the jobs, from Hydra's record of one job of each sweep."""
    names = set()
    for folder in {job.path.parent: job.path for job in reversed(jobs) if job.number is not None}.values():
        with suppress(OSError, UnicodeDecodeError):
            names.update(LAUNCHER.findall((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))[:1])
    return sorted(names)


def _sweep_commands(jobs: Sequence[Job]) -> list[str]:
    """How the sweeps were started, from the file that each has in its folder."""
    commands = []
    for folder in dict.fromkeys(job.path.parent for job in jobs if job.number is not None):
        plan = read_plan(folder)
        if plan is not None:
            study = any(word.startswith("experiment=") for word in plan.overrides)
            kept = [word for word in plan.overrides if not word.startswith(NOT_IN_SWEEP_COMMAND)]
            commands.append(shlex.join(["python", "run.py", *([] if study else ["-m"]), *kept]))
    return list(dict.fromkeys(commands))


def _counted(values: Iterable[str | None]) -> list[str]:
    """Distinct values, the most frequent first; how often each, where there are several."""
    counts = Counter(filter(None, values))
    if len(counts) == 1:
        return list(counts)
    return [f"{value} ({count} run{'' if count == 1 else 's'})" for value, count in counts.most_common()]


def _versions(jobs: Sequence[Job]) -> str:
    first = next((job for job in jobs if job.ok), None)
    versions = read_json(first.path / "run.json").get("versions") if first else None
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
