"""One table of many runs.

In: a sweep's folder with a results.csv in each job's folder. Out: summary.csv (all columns), summary.md and the same
table on the terminal: the float baseline first, then by accuracy, failed jobs last; and report.html.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from resnet8_quant import results, terminal
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, collect, name_choices

CSV_COLUMNS = ("job", "folder", *results.COLUMNS)
# The first of these that a table has carries the mark of a run that is not portable; else its first column does.
MARKED = ("Top-1", "Accuracy", "accuracy", "Choices", "Model", "Job")

log = logging.getLogger(__name__)

# The columns that a table can have; hydra.callbacks.sweep.columns picks and orders them.
COLUMNS: dict[str, Callable[[Job], str]] = {
    "Job": lambda job: "" if job.number is None else f"{job.sweep}/{job.number}".removeprefix("/"),
    "Choices": lambda job: job.choices,
    "Model": lambda job: "FP32" if is_baseline(job.row) else job.row.quant_type or "",
    "Accuracy": lambda job: _failed(job.row) or terminal.percent(job.row.accuracy),
    "Top-1": lambda job: _failed(job.row) or terminal.percent(job.row.accuracy),
    "Delta": lambda job: terminal.points(job.row.accuracy_delta),
    "95 % CI": lambda job: terminal.interval(job.row.accuracy_ci_low, job.row.accuracy_ci_high),
    "p": lambda job: "" if job.row.mcnemar_p is None or is_baseline(job.row) else f"{job.row.mcnemar_p:.2g}",
    "Size": lambda job: terminal.size(job.row.model_bytes),
    "Latency": lambda job: terminal.microseconds(job.row.latency_us_median),
    "Speedup": lambda job: "" if job.row.speedup is None else f"{job.row.speedup:.2f}x",
    "Deploy": lambda job: job.row.deploy or "",
    "Kernels": lambda job: job.row.kernels or "",
    "Images": lambda job: str(job.row.calibration_images or ""),
    "Seed": lambda job: "" if job.row.seed is None else str(job.row.seed),
}


def check_columns(columns: Sequence[str]) -> None:
    """Refuse a column that no table has."""
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns:
        raise ExperimentError(
            f"`hydra.callbacks.sweep.columns` has {', '.join(unknown) or 'no column'}; valid are {', '.join(COLUMNS)}",
            "python run.py -m quant=int8,uint8 'hydra.callbacks.sweep.columns=[Choices,Top-1,Delta]'",
        )


def summarize(folder: Path, columns: Sequence[str], expected: int | None, *, plots: bool = False) -> int:
    """Write summary.csv, summary.md and report.html into ``folder`` and show the table.

    Args:
        folder: of the sweep; its jobs are in folders named NUMBER_CHOICES.
        columns: of the table.
        expected: number of jobs; those that left no row are listed as failed. None: not known.
        plots: whether the report's plots are also drawn as files, in the folder plots/.

    Returns:
        How many jobs failed.

    Raises:
        ExperimentError: one of the files could not be written; the others were, and the table was shown. Or the table
            could not be shown; the files were written.
    """
    jobs = collect(folder, expected)
    name_choices(jobs)
    jobs.sort(key=rank)
    failed = sum(not job.ok for job in jobs)
    body = table(jobs, columns)
    lines = [f"\n{body}\n\n{len(jobs) - failed} of {len(jobs)} jobs ok. Written to"]
    writers: dict[str, Callable[[Path], None]] = {
        "summary.csv": lambda path: write_csv(jobs, path),
        "summary.md": lambda path: _write_text(_literal(body) + "\n", path),
        "report.html": lambda path: _write_report(jobs, path, plots),
    }
    first: ExperimentError | None = None
    for name, write in writers.items():
        try:
            write(folder / name)
        except ExperimentError as error:
            again = f"make it free, then: python -m resnet8_quant.summary {terminal.shown(folder)}"
            again += f" {'--report' if name == 'report.html' else '--csv'} {terminal.shown(folder / name)}"
            log.error("%s", error.problem)
            first = first or ExperimentError(error.problem, again)
        else:
            lines.append(f"  {terminal.shown(folder / name)}")
    terminal.show("\n".join(lines))
    if first is not None:
        raise first
    return failed


def table(jobs: Sequence[Job], columns: Sequence[str]) -> str:
    """The Markdown table of ``jobs``, and below it what the deltas and the mark refer to and why some failed."""
    notes = portability.notes(jobs)
    notes += [f"{job.label} failed: {job.row.error}" for job in jobs if not job.ok]
    baselines = {job.row.float_model_sha256: job.row for job in jobs if job.row.float_accuracy is not None}
    if len(baselines) == 1 and not any(is_baseline(job.row) for job in jobs):
        row = next(iter(baselines.values()))
        parts = [terminal.percent(row.float_accuracy), terminal.size(row.float_model_bytes)]
        parts += [terminal.microseconds(row.float_latency_us_median)] if row.float_latency_us_median else []
        notes.insert(0, f"FP32: {', '.join(parts)}; Delta in points; p: exact McNemar test against it.")
    rows = [[COLUMNS[name](job) if name in COLUMNS else _cell(job, name) for name in columns] for job in jobs]
    marks = [portability.mark(job.row) if job.ok else "" for job in jobs]
    if any(marks):
        place = columns.index(next((name for name in MARKED if name in columns), columns[0]))
        for cells, mark in zip(rows, marks, strict=True):
            cells[place] += mark or " " * len(portability.MARK)  # the digits stay below each other
    return "\n\n".join([terminal.markdown(columns, rows), *map(terminal.wrapped, notes)])


def write_csv(jobs: Iterable[Job], path: Path) -> None:
    """Write one row for each job, in the order given: ``CSV_COLUMNS``, empty where a value does not apply."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for job in jobs:
            values = as_row(job).values()
            writer.writerow(["" if value is None else value for value in values])


def as_row(job: Job) -> dict[str, object]:
    """``job`` as a row of summary.csv: column -> value, None where it is empty."""
    values = {name: getattr(job.row, name) for name in results.COLUMNS}
    return {"job": job.number, "folder": job.folder, **values}


def rank(job: Job) -> tuple[bool, bool, float, int]:
    """The order of a table: the float baseline, then by accuracy, then failed jobs."""
    return (not job.ok, not is_baseline(job.row), -(job.row.accuracy or 0.0), job.number or 0)


def is_baseline(row: RunResult) -> bool:
    """Whether the run is one of the float model."""
    return row.activation_type == "float32"


def _write_report(jobs: Sequence[Job], path: Path, plots: bool) -> None:
    """A fault of the report must not cost the sweep its exit code: it becomes an error like any other."""
    from resnet8_quant.sweep.report.write import write_report

    try:
        write_report(jobs, path, plots=path.parent / "plots" if plots else None)
    except ExperimentError:
        raise
    except Exception as error:
        log.exception("the report could not be made")
        raise ExperimentError(f"cannot make {path}: {type(error).__name__}: {error}", "see the log") from error


def _write_text(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _literal(text: str) -> str:
    """``text`` for a Markdown file, where the mark at the beginning of a line would be a bullet."""
    return text.replace(f"\n{portability.MARK} ", f"\n\\{portability.MARK} ")


def _cell(job: Job, name: str) -> str:
    value = as_row(job)[name]
    return "" if value is None else str(value)


def _failed(row: RunResult) -> str:
    return "" if row.status == "ok" else row.status
