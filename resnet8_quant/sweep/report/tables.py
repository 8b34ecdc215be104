"""The table of all runs: the settings that vary, the main measurements, then every other column that varies.

In: runs and a `Recommendation`. Out: a `Table` of plain text, which the template turns into markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from resnet8_quant import results, terminal
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, settings, varied
from resnet8_quant.sweep.report.evidence import number
from resnet8_quant.sweep.report.recommendation import Recommendation

MAX_ROWS = 2000
MAX_SETTINGS = 16
MAX_CELL = 400  # characters
# Columns that every table of runs has; the others appear where they vary.
FIXED = ("accuracy", "accuracy_ci_low", "accuracy_ci_high", "accuracy_delta", "model_bytes", "latency_us_median")
# These stay together: no latency of a saturating session without its accuracy.
DEFAULT_SESSION = ("default_session_accuracy", "default_session_changed", "default_session_latency_us_median")
BUSY = ("machine_busy",)
NEVER = ("overrides", "error", "status", "schema_version", *FIXED, *DEFAULT_SESSION, *BUSY)
TITLES = {
    "accuracy": "Top-1, %",
    "accuracy_ci_low": "95 % CI from",
    "accuracy_ci_high": "to",
    "accuracy_delta": "\N{GREEK CAPITAL LETTER DELTA} float",
    "model_bytes": "Bytes",
    "latency_us_median": "Latency, \N{MICRO SIGN}s",
    "default_session_accuracy": "Top-1 in default session, %",
    "default_session_changed": "Predictions changed there",
    "default_session_latency_us_median": "Latency there, \N{MICRO SIGN}s",
    "machine_busy": "Machine busy",
}


class Column(NamedTuple):
    """A column: its title, its name in the CSV, whether it holds numbers, whether it is hidden at first."""

    title: str
    key: str
    number: bool = False
    hidden: bool = False


class Cell(NamedTuple):
    """What is shown, the number that it is sorted and filtered by if it is one, and a class for its style."""

    text: str
    value: float | None = None
    style: str = ""


EMPTY = Cell("")


class Table(NamedTuple):
    """Columns, rows, and the sentences below."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str]


def all_runs(jobs: Sequence[Job], recommendation: Recommendation | None) -> Table:
    """Every run of ``jobs``, at most MAX_ROWS."""
    keys = varied(jobs)[:MAX_SETTINGS]
    numeric = {key for key in keys if all(number(settings(job.row).get(key) or "0") is not None for job in jobs)}
    fixed = [*FIXED]
    fixed += DEFAULT_SESSION if any(job.row.default_session_accuracy is not None for job in jobs) else ()
    fixed += BUSY if any(job.row.machine_busy for job in jobs) else ()
    more = [name for name in results.COLUMNS if name not in NEVER and len({getattr(j.row, name) for j in jobs}) > 1]
    numbers = {name for name in more if any(isinstance(getattr(job.row, name), int | float) for job in jobs)}
    tests = {id(run): test for test in recommendation.tests for run in test.model.runs} if recommendation else {}
    columns = [
        Column("Job", "job", True),
        Column("Status", "status"),
        *(Column(key, key, key in numeric) for key in keys),
        *(Column(TITLES[name], name, name not in BUSY) for name in fixed),
        *([Column("p vs best, Holm", "holm", True)] if tests else []),
        *(Column(name, name, name in numbers, True) for name in more),
        Column("folder", "folder", hidden=True),
    ]
    rows = []
    for job in jobs[:MAX_ROWS]:
        setting, test = settings(job.row), tests.get(id(job))
        cells = [Cell("" if job.number is None else str(job.number), job.number), _status(job, recommendation)]
        cells += [Cell(shortened(setting[key]), number(setting[key])) if key in setting else EMPTY for key in keys]
        cells += [_fixed(job, name) for name in fixed]
        cells += [EMPTY if test is None else Cell(p_value(test.holm), test.holm)] if tests else []
        cells += [_value(getattr(job.row, name)) for name in more]
        rows.append([*cells, Cell(shortened(job.folder))])
    return Table(columns, rows, portability.notes(jobs[:MAX_ROWS]))


def shortened(text: str, longest: int = MAX_CELL) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _status(job: Job, recommendation: Recommendation | None) -> Cell:
    if recommendation is not None and any(run is job for run in recommendation.model.runs):
        recommended = Cell("recommended", style="recommended")
        return recommended if job is recommendation.job else Cell("same model as recommended")
    return Cell(job.row.status, style="" if job.ok else "failed")


def _fixed(job: Job, name: str) -> Cell:
    """A measurement as it is shown, and its number in the unit of the heading."""
    value = getattr(job.row, name)
    if value is None:
        return EMPTY
    if name in BUSY:
        return Cell("yes" if value else "no")
    if name == "accuracy_delta":
        return Cell(terminal.points(value), 100 * value)
    if "accuracy" in name:
        mark = portability.mark(job.row) if name == "accuracy" else ""
        return Cell(f"{100 * value:.2f}{mark}", 100 * value)
    return Cell(f"{value:,.0f}", value)


def _value(value: object) -> Cell:
    """Any other value; the number that the table sorts by keeps all its digits."""
    if value is None:
        return EMPTY
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(shortened(str(value), 60))
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", value)


def p_value(value: float) -> str:
    """A p-value with three digits, as many as matter."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
