"""One table of many runs.

In: a sweep's folder with a results.csv in each job's folder. Out: summary.csv (all columns), summary.md and the same
table on the terminal: the float baseline first, then by accuracy, failed jobs last; and report.html.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from resnet8_quant import results, terminal
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, collect, name_choices

if TYPE_CHECKING:
    import pandas as pd

# The first of these that a table has carries the mark of a run that is not portable; else its first column does.
MARKED = ("Top-1", "Accuracy", "accuracy", "Choices", "Model", "Job")
TIMES = ("Latency", "Speedup", "latency_us_median", "speedup")
# pandas' types that keep integers and booleans as they are where cells are empty.
DTYPES = {"int": "Int64", "float": "float64", "bool": "boolean"}
WHERE_EXAMPLE = "accuracy > 0.87 and status == 'ok'"

log = logging.getLogger(__name__)

# The columns that a table can have; hydra.callbacks.sweep.columns picks and orders them.
COLUMNS: dict[str, Callable[[Job], str]] = {
    "Job": lambda job: job.path.name if job.number is None else f"{job.sweep}/{job.number}".removeprefix("/"),
    "Choices": lambda job: job.choices,
    "Model": lambda job: "FP32" if is_baseline(job.row) else job.row.quant_type or "",
    "Data": lambda job: job.row.data or "",
    "Accuracy": lambda job: terminal.percent(job.row.accuracy) if job.ok else job.row.status,
    "Top-1": lambda job: terminal.percent(job.row.accuracy) if job.ok else job.row.status,
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
    """Write summary.csv, summary.md and report.html into a sweep's folder, show the table, and return how many failed.

    Args:
        folder: of the sweep; its jobs are in folders named NUMBER_CHOICES.
        columns: of the table.
        expected: number of jobs; those that left no row are listed as failed. None: not known.
        plots: whether the report's plots are also drawn as files, in the folder plots/.

    Raises:
        ExperimentError: one of the files could not be written; the others were, and the table was shown. Or the table
            could not be shown; the files were written.
    """
    jobs = collect(folder, expected)
    name_choices(jobs)
    jobs.sort(key=rank)
    failed = sum(not job.ok for job in jobs)
    body = table(jobs, columns)
    lines = [f"\n{body}\n\n{len(jobs) - failed} of {terminal.counted(len(jobs), 'job')} ok. Written to"]
    error_to_raise: ExperimentError | None = None
    recommended = ""
    writers: dict[str, Callable[[Path], str | None]] = {
        "summary.csv": lambda path: write_csv(jobs, path),
        "summary.md": lambda path: _write_markdown(body, path),
        "report.html": lambda path: _write_report(jobs, path, plots),
    }
    for name, write in writers.items():
        try:
            recommended = write(folder / name) or ""
        except ExperimentError as error:
            again = f"make it free, then: python -m resnet8_quant.summary {terminal.shown(folder)}"
            again += f" {'--report' if name == 'report.html' else '--csv'} {terminal.shown(folder / name)}"
            log.error("%s", error.problem)
            error_to_raise = error_to_raise or ExperimentError(error.problem, again)
        else:
            lines.append(f"  {terminal.shown(folder / name)}")
    terminal.show("\n".join([*lines, *filter(None, [recommended])]))
    if error_to_raise is not None:
        raise error_to_raise
    return failed


def table(jobs: Sequence[Job], columns: Sequence[str]) -> str:
    """The Markdown table of ``jobs``, and below it what the deltas and the mark refer to and why some failed."""
    notes = [*_baselines(jobs), *portability.notes(jobs)]
    if any(name in TIMES for name in columns):
        notes += _busy(jobs)
    notes += [f"{job.label} failed: {job.row.error}" for job in jobs if not job.ok]
    rows = [[COLUMNS[name](job) if name in COLUMNS else _cell(job, name) for name in columns] for job in jobs]
    marks = [portability.mark(job.row) if job.ok else "" for job in jobs]
    if any(marks):
        place = columns.index(next((name for name in MARKED if name in columns), columns[0]))
        for cells, mark in zip(rows, marks, strict=True):
            cells[place] += mark or " " * len(portability.MARK)  # the digits stay below each other
    return "\n\n".join([terminal.markdown(columns, rows), *map(terminal.wrapped, notes)])


def _baselines(jobs: Sequence[Job]) -> list[str]:
    """What the deltas refer to: a line for each float model and data set that has no row of its own."""
    groups: dict[tuple[object, ...], list[RunResult]] = {}
    for job in jobs:
        if job.row.float_accuracy is not None:
            key = (job.row.float_model_sha256, job.row.data_sha256, job.row.eval_images)
            groups.setdefault(key, []).append(job.row)
    several = len(groups) > 1
    notes = []
    for rows in groups.values():
        if any(is_baseline(row) for row in rows):
            continue
        row = rows[0]
        times = [row.float_latency_us_median for row in rows if row.float_latency_us_median]
        latency = terminal.microseconds(median(times)) if times else ""
        parts = (terminal.percent(row.float_accuracy), terminal.size(row.float_model_bytes), latency)
        images = f", {row.eval_images:,} images" if row.eval_images else ""
        name = f"FP32 {row.model or 'model'} on {row.data or 'its data'}{images}" if several else "FP32"
        notes.append(f"{name}: {', '.join(filter(None, parts))}")
    meaning = "Delta in points; p: exact McNemar test against it"
    if several and notes:
        return [*(f"{note}." for note in notes), f"{meaning}, on the same data."]
    return [f"{note}; {meaning}." for note in notes]


def _busy(jobs: Sequence[Job]) -> list[str]:
    timed = [job for job in jobs if job.row.latency_us_median is not None]
    busy = sum(bool(job.row.machine_busy) for job in timed)
    were = f"{terminal.counted(len(timed), 'run')} {'was' if len(timed) == 1 else 'were'}"
    return [f"{busy} of {were} timed on a busy machine (machine_busy)."] if busy else []


def frame(jobs: Sequence[Job]) -> pd.DataFrame:
    """``jobs`` as rows of summary.csv: job, folder, the columns of results.csv, and config.* of every job that has it.

    Integers, floats and booleans have such a type, also where cells are empty; the rest are objects.
    """
    import pandas as pd

    settings = [job.row.settings for job in jobs]
    columns = {
        "job": _column([job.number for job in jobs], "Int64"),
        "folder": _column([job.folder for job in jobs], "object"),
    }
    for field in dataclasses.fields(RunResult):
        if field.name in results.COLUMNS:
            dtype = DTYPES.get(str(field.type).removesuffix(" | None"), "object")
            columns[field.name] = _column([getattr(job.row, field.name) for job in jobs], dtype)
    for name in sorted({name for setting in settings for name in setting}):
        columns[name] = _config_column([setting.get(name) for setting in settings])
    return pd.DataFrame(columns)


def write_csv(jobs: Sequence[Job], path: Path) -> None:
    """Write one row for each job, in the order given: the columns of `frame`, empty where a value does not apply."""
    with replacing(path) as temporary:
        frame(jobs).to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def select(
    jobs: Sequence[Job], *, where: str | None = None, sort: str | None = None, top: int | None = None
) -> list[Job]:
    """The jobs that an expression is true for, in order.

    Args:
        jobs: to choose from.
        where: expression of pandas' DataFrame.query over the columns of `frame`; None: all. It runs in the user's own
            process, as a line of Python would.
        sort: columns separated by commas, a leading - for descending, empty cells last; None: float, best, failed.
        top: at most so many; None: all.

    Raises:
        ExperimentError: an expression that pandas does not evaluate, or a column that there is not; ``top`` below 1.
    """
    if top is not None and top < 1:
        raise ExperimentError(f"`--top` is {top}, it must be at least 1", "--top 10")
    chosen = sorted(jobs, key=rank)
    if where is None and sort is None:
        return chosen[:top]
    import pandas as pd

    table = frame(chosen)
    if where is not None:
        try:
            kept = table.query(where, engine="python")
            if not isinstance(kept, pd.DataFrame):
                raise TypeError("it is true or false for no row")
        except Exception as error:  # whatever the user's expression raises
            unknown = re.fullmatch("name '(.*)' is not defined", str(error))
            near = _nearest(unknown[1] if unknown else where, table.columns, 5)
            listed = f"the nearest columns are {', '.join(near)}; all: the first line of a file that --csv FILE writes"
            remedy = re.sub(rf"\b{re.escape(unknown[1])}\b", near[0], where) if unknown else WHERE_EXAMPLE
            raise ExperimentError(
                f"`--where` cannot be evaluated: {where!r} ({error}); {listed}", f"--where {shlex.quote(remedy)}"
            ) from error
        table = kept
    if sort is not None:
        keys = [key.strip() for key in sort.split(",")]
        names = [column_named(key.removeprefix("-"), table.columns, "--sort") for key in keys]
        ascending = [not key.startswith("-") for key in keys]
        table = table.sort_values(names, ascending=ascending, na_position="last", kind="stable")
    return [chosen[place] for place in table.index][:top]


def column_named(name: str, columns: Collection[str], option: str) -> str:
    """The one of ``columns`` that ``name`` is, whatever its capitals; if it is none, the remedy is the most alike."""
    for column in (name, *columns):
        if column in columns and column.casefold() == name.casefold():
            return column
    near = _nearest(name, columns, 5)
    raise ExperimentError(
        f"`{option}` names the column {name!r}, which there is not; the nearest are {', '.join(near)}; all: the first "
        "line of a file that --csv FILE writes",
        f"{option} {near[0]}",
    )


def _nearest(text: str, columns: Iterable[str], count: int) -> list[str]:
    """The columns most like ``text``, or like one of its words, the most alike first."""
    words = re.findall(r"[\w.]+", text.casefold()) or [""]

    def likeness(column: str) -> float:
        return max(difflib.SequenceMatcher(None, word, column.casefold()).ratio() for word in words)

    return sorted(map(str, columns), key=likeness, reverse=True)[:count]


def _column(values: Sequence[object], dtype: str) -> pd.Series:
    import pandas as pd

    try:
        return pd.Series(values, dtype=dtype)
    except (OverflowError, TypeError, ValueError):  # an integer that needs more than 64 bits
        return pd.Series(values, dtype="object")


def _config_column(values: Sequence[str | None]) -> pd.Series:
    """Numbers where all cells are numbers that would be written back as they were read, else text."""
    for number_type, dtype in ((int, "Int64"), (float, "float64")):
        try:
            parsed = [None if value is None else number_type(value) for value in values]
        except ValueError:
            continue
        if all(value is None or str(number) == value for number, value in zip(parsed, values, strict=True)):
            return _column(parsed, dtype)
    return _column(values, "object")


def rank(job: Job) -> tuple[bool, bool, float, int]:
    """The order of a table: the float baseline, then by accuracy, then failed jobs."""
    return (not job.ok, not is_baseline(job.row), -(job.row.accuracy or 0.0), job.number or 0)


def is_baseline(row: RunResult) -> bool:
    """Whether the run is one of the float model."""
    return row.activation_type == "float32"


def _write_markdown(text: str, path: Path) -> None:
    # The mark at the beginning of a line would be a bullet.
    literal = text.replace(f"\n{portability.MARK} ", f"\n\\{portability.MARK} ")
    with replacing(path) as temporary:
        temporary.write_text(literal + "\n", encoding="utf-8")


def _write_report(jobs: Sequence[Job], path: Path, plots: bool) -> str:
    """A fault of the report must not cost the sweep its exit code: it becomes an error like any other."""
    from resnet8_quant.sweep.report.page import write_report

    try:
        return write_report(jobs, path, plot_folder=path.parent / "plots" if plots else None)
    except ExperimentError:
        raise
    except Exception as error:
        log.exception("the report could not be made")
        raise ExperimentError(f"cannot make {path}: {type(error).__name__}: {error}", "see the log") from error


def _cell(job: Job, name: str) -> str:
    own = {"job": job.number, "folder": job.folder, **job.row.settings}
    value = own[name] if name in own else getattr(job.row, name, None)
    return "" if value is None else str(value)
