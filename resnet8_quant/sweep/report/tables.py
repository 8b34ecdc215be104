"""The tables of the page: significance against the best, every run with all that varies, failed runs.

In: jobs and an `Answer`. Out: HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from resnet8_quant import results, terminal
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, settings, varied
from resnet8_quant.sweep.report.answer import LEVEL, Answer, Test
from resnet8_quant.sweep.report.markup import Cell, Column, escape, shortened, table

MOST_TESTS = 60
MOST_ROWS = 2000
MOST_FAILURES = 50
MOST_SETTINGS = 16
# Columns that every table of runs has; the others appear where they vary.
FIXED = ("accuracy", "accuracy_ci_low", "accuracy_ci_high", "accuracy_delta", "model_bytes", "latency_us_median")
# These stay together: no latency of a saturating session without its accuracy.
DEFAULT_SESSION = ("default_session_accuracy", "default_session_changed", "default_session_latency_us_median")
NEVER = ("overrides", "error", "status", "schema_version", *FIXED, *DEFAULT_SESSION)
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
}


def significance(answer: Answer) -> str:
    """The runs by falling accuracy with their test against the best."""
    columns = (
        Column("Run", "run"),
        Column("Settings", "settings"),
        Column("Top-1, %", "accuracy", True),
        Column("Points to best", "difference", True),
        Column("Only best right", "to_wrong", True),
        Column("Only this right", "to_right", True),
        Column("p", "p", True),
        Column("p, Holm", "holm", True),
        Column("Verdict", "verdict"),
    )
    rows = [[*_run(answer.best), _accuracy(answer.best), *[Cell("")] * 5, Cell("the best")]]
    rows += [_test(test, answer.best) for test in answer.tests[:MOST_TESTS]]
    return table(columns, rows) + _notes([answer.best, *(test.job for test in answer.tests[:MOST_TESTS])])


def _test(test: Test, best: Job) -> list[Cell]:
    difference = 100 * ((test.job.row.accuracy or 0.0) - (best.row.accuracy or 0.0))
    return [
        *_run(test.job),
        _accuracy(test.job),
        Cell(f"{difference:+.2f}" if difference else "0.00", difference),
        Cell(f"{test.to_wrong:,}", test.to_wrong),
        Cell(f"{test.to_right:,}", test.to_right),
        Cell(_p(test.p), test.p),
        Cell(_p(test.holm), test.holm),
        Cell("worse" if test.holm < LEVEL else "not significantly worse"),
    ]


def all_runs(jobs: Sequence[Job], answer: Answer | None) -> str:
    """Every run: what varies among the overrides, the main measurements, then every other column that varies."""
    keys = varied(jobs)[:MOST_SETTINGS]
    fixed = FIXED + (DEFAULT_SESSION if any(job.row.default_session_accuracy is not None for job in jobs) else ())
    more = [name for name in results.COLUMNS if name not in NEVER and len({getattr(j.row, name) for j in jobs}) > 1]
    tests = {id(test.job): test for test in answer.tests} if answer else {}
    numbers = {name for name in more if any(isinstance(getattr(job.row, name), int | float) for job in jobs)}
    columns = [
        Column("Job", "job", True),
        Column("Status", "status"),
        *(Column(key, key, _numeric(jobs, key)) for key in keys),
        *(Column(TITLES[name], name, True) for name in fixed),
        *([Column("p vs best, Holm", "holm", True)] if tests else []),
        *(Column(name, name, name in numbers, "more") for name in more),
        Column("folder", "folder", style="more"),
    ]
    rows = []
    for job in jobs[:MOST_ROWS]:
        setting = settings(job.row)
        chosen = answer is not None and job is answer.job
        mark = "recommended" if chosen else "duplicate" if job.twin and job.ok else job.row.status
        rows.append(
            [
                Cell("" if job.number is None else str(job.number), job.number),
                Cell(
                    mark,
                    markup=f'<span class="tag {mark if chosen or not job.ok else ""}">{escape(mark)}</span>',
                    alias=job.row.status if mark != job.row.status else "",
                ),
                *(_setting(setting.get(key)) for key in keys),
                *(_fixed(job, name) for name in fixed),
                *([_holm(tests.get(id(job)))] if tests else []),
                *(_value(getattr(job.row, name)) for name in more),
                Cell(job.folder),
            ]
        )
    return table(columns, rows, attributes=' id="run-table" class="sortable"') + _notes(jobs[:MOST_ROWS])


def _notes(jobs: Sequence[Job]) -> str:
    """What the mark behind an accuracy means; nothing where no run has it."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in portability.notes(jobs))


def failures(jobs: Sequence[Job]) -> str:
    """The failed runs and why; empty where there is none."""
    failed = [job for job in jobs if not job.ok]
    shown = [(job.label, shortened(job.choices), shortened(job.row.error or "")) for job in failed[:MOST_FAILURES]]
    items = "".join(f"<li><b>{escape(a)}</b> {escape(b)}: {escape(c)}</li>" for a, b, c in shown)
    rest = f"<li>and {len(failed) - MOST_FAILURES} more: see the table</li>" if len(failed) > MOST_FAILURES else ""
    return f"<ul>{items}{rest}</ul>" if failed else ""


def _run(job: Job) -> tuple[Cell, Cell]:
    return Cell(job.label, job.number), Cell(job.choices)


def _accuracy(job: Job) -> Cell:
    return _fixed(job, "accuracy")


def _fixed(job: Job, name: str) -> Cell:
    value = getattr(job.row, name)
    if value is None:
        return Cell("")
    if name == "accuracy_delta":
        return Cell(terminal.points(value), value)
    if name == "accuracy":
        return Cell(f"{100 * value:.2f}{portability.mark(job.row)}", value)
    if "accuracy" in name:
        return Cell(f"{100 * value:.2f}", value)
    return Cell(f"{value:,.0f}", value)


def _holm(test: Test | None) -> Cell:
    return Cell("") if test is None else Cell(_p(test.holm), test.holm)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _setting(text: str | None) -> Cell:
    if text is None:
        return Cell("")
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)


def _value(value: object) -> Cell:
    if value is None:
        return Cell("")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(shortened(str(value), 60))
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", value)


def _numeric(jobs: Sequence[Job], key: str) -> bool:
    cells = [_setting(settings(job.row).get(key)) for job in jobs]
    return all(cell.value is not None for cell in cells if cell.text)
