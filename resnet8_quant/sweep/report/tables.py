"""The runs of the page in tables: all of them with what varies, and where their numbers come from.

In: runs and a `Recommendation`. Out: plain text, which the template turns into markup: a `Table` with the settings that
vary, the main measurements, then every other column that varies; facts about commands, dates, machines, versions and
digests; and the command that runs one job again.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from resnet8_quant import __version__, results, terminal
from resnet8_quant.files import LARGEST_RECORD, read_json, read_regular
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, settings, varied
from resnet8_quant.sweep.plan import read_plan
from resnet8_quant.sweep.report.evidence import number
from resnet8_quant.sweep.report.recommendation import Model, Recommendation, flash, ram

MAX_ROWS = 2000
MAX_SETTINGS = 16
MAX_CELL = 400  # characters
MAX_VALUES = 8  # of one fact
NOT_IN_COMMAND = ("cache_dir=", "resume=", "hydra.", "tracking")
NOT_IN_SWEEP_COMMAND = ("cache_dir=", "hydra.mode=")  # -m says it
LAUNCHER = re.compile(r"^ +hydra/launcher: (\S+)$", re.MULTILINE)
# Settings and what a reader has in other columns.
NEVER = ("overrides", "error", "status", "schema_version")


class Cell(NamedTuple):
    """What is shown, the number that it is sorted and filtered by if it is one, and a class for its style."""

    text: str
    value: float | None = None
    style: str = ""


class Column(NamedTuple):
    """A column: title, what it is in the CSV, cells, whether it holds numbers, whether it is hidden at first."""

    title: str
    key: str
    cell: Callable[[Job], Cell]
    number: bool = True
    hidden: bool = False


class Line(NamedTuple):
    """A run: its cells, the place of its model among the candidates, and whether it stands for the model."""

    cells: Sequence[Cell]
    place: int | None
    stands: bool


class Table(NamedTuple):
    """Columns, lines, and the sentences below."""

    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Sequence[str]


def _percent(value: float) -> Cell:
    return Cell(f"{100 * value:.2f}", 100 * value)


def _count(value: float) -> Cell:
    return Cell(f"{value:,.0f}", value)


EMPTY = Cell("")
# Shown where a run has a value: column, its title, how it is shown. Accuracy and latency of the default session stay
# together: no latency of a saturating session without its accuracy.
MEASURED: dict[str, tuple[str, Callable[[Any], Cell]]] = {
    "accuracy": ("Top-1, %", _percent),
    "accuracy_ci_low": ("95 % CI from", _percent),
    "accuracy_ci_high": ("to", _percent),
    "accuracy_delta": ("\N{GREEK CAPITAL LETTER DELTA} float", lambda value: Cell(terminal.points(value), 100 * value)),
    "model_bytes": ("Bytes", _count),
    "latency_us_median": ("Latency, \N{MICRO SIGN}s", _count),
    "flash": ("Flash, bytes", _count),
    "ram": ("RAM, bytes", _count),
    "default_session_accuracy": ("Top-1 in default session, %", _percent),
    "default_session_changed": ("Predictions changed there", _count),
    "default_session_latency_us_median": ("Latency there, \N{MICRO SIGN}s", _count),
    "machine_busy": ("Machine busy", lambda value: Cell("yes" if value else "no")),
}
# Measurements that are one column of the CSV where it has a value, and else another.
EITHER = {"flash": "tflite_bytes, else weights_bytes", "ram": "arena_bytes, else peak_activation_bytes"}


def all_runs(jobs: Sequence[Job], models: Sequence[Model], recommendation: Recommendation | None) -> Table:
    """Every run of ``jobs``, at most MAX_ROWS."""
    places = {id(run): model.place for model in models for run in model.runs}
    stands = {id(model.job) for model in models}
    columns = _columns(jobs, recommendation)
    lines = [
        Line([column.cell(job) for column in columns], places.get(id(job)), id(job) in stands)
        for job in jobs[:MAX_ROWS]
    ]
    return Table(columns, lines, portability.notes(jobs[:MAX_ROWS]))


def _columns(jobs: Sequence[Job], recommendation: Recommendation | None) -> list[Column]:
    tests = recommendation.tests if recommendation else {}
    test_of = {id(run): test for model, test in tests.items() for run in model.runs}

    def status(job: Job) -> Cell:
        if recommendation is not None and any(run is job for run in recommendation.model.runs):
            recommended = Cell("recommended", style="recommended")
            return recommended if job is recommendation.job else Cell("same model as recommended")
        return Cell(job.row.status, style="" if job.ok else "failed")

    def significance(job: Job) -> Cell:
        test = test_of.get(id(job))
        return EMPTY if test is None else Cell(p_value(test.holm), test.holm)

    columns = [
        Column("Job", "job", lambda job: Cell("" if job.number is None else str(job.number), job.number)),
        Column("Status", "status", status, number=False),
    ]
    for key in varied(jobs)[:MAX_SETTINGS]:
        numeric = all(number(settings(job.row).get(key) or "0") is not None for job in jobs)
        columns.append(Column(key, key, partial(_setting, key), numeric))
    for name, (title, cell) in MEASURED.items():
        values = [measured(job.row, name) for job in jobs]
        if any(value is not None and value is not False for value in values):
            columns.append(
                Column(title, EITHER.get(name, name), partial(_measured, name, cell), name != "machine_busy")
            )
    if tests:
        columns.append(Column("p vs best, Holm", "holm", significance))
    for name in results.COLUMNS:
        values = [getattr(job.row, name) for job in jobs]
        if name not in (*NEVER, *MEASURED) and len({*values}) > 1:
            numeric = any(isinstance(value, int | float) for value in values)
            columns.append(Column(name, name, partial(_other, name), numeric, hidden=True))
    return [*columns, Column("folder", "folder", lambda job: Cell(shortened(job.folder)), number=False, hidden=True)]


def measured(row: RunResult, name: str) -> Any:
    """One of MEASURED; None where the run has no such value."""
    return {"flash": flash, "ram": ram}[name](row) if name in EITHER else getattr(row, name)


def _setting(key: str, job: Job) -> Cell:
    value = settings(job.row).get(key)
    return EMPTY if value is None else Cell(shortened(value), number(value))


def _measured(name: str, show: Callable[[Any], Cell], job: Job) -> Cell:
    value = measured(job.row, name)
    cell = EMPTY if value is None else show(value)
    return cell._replace(text=f"{cell.text}{portability.mark(job.row)}") if name == "accuracy" else cell


def _other(name: str, job: Job) -> Cell:
    """Any other column; the number that the table sorts by keeps all its digits."""
    value = getattr(job.row, name)
    if value is None:
        return EMPTY
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(shortened(str(value), 60))
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", value)


def shortened(text: str, longest: int = MAX_CELL) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def p_value(value: float) -> str:
    """A p-value with three digits, as many as matter."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


# ---- where the numbers come from


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
        "Launcher": sorted({*launchers(jobs).values()}),
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


def launchers(jobs: Sequence[Job]) -> dict[Path, str]:
    """The launcher that started the jobs of each sweep's folder, from Hydra's record of one of them."""
    names = {}
    for folder in {job.path.parent: job.path for job in reversed(jobs) if job.number is not None}.values():
        with suppress(OSError, UnicodeDecodeError):
            for name in LAUNCHER.findall(read_regular(folder / ".hydra" / "hydra.yaml", LARGEST_RECORD).decode())[:1]:
                names[folder.parent] = name
    return names


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
