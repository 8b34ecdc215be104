"""One table of many runs.

In: a sweep's folder with a results.csv in each job's folder. Out: summary.csv (all columns), summary.md and the same
table on the terminal: the float baseline first, then by accuracy, failed jobs last.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from resnet8_quant import results, terminal
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult


class Job:
    """One job: its number, its folder's name, its row, and the choices that tell it from the others."""

    def __init__(self, number: int, folder: str, row: RunResult) -> None:
        self.number, self.folder, self.row = number, folder, row
        self.choices = ""


# The columns that a table can have; hydra.callbacks.sweep.columns picks and orders them.
COLUMNS: dict[str, Callable[[Job], str]] = {
    "Job": lambda job: str(job.number),
    "Choices": lambda job: job.choices,
    "Model": lambda job: "FP32" if _is_baseline(job.row) else job.row.quant_type or "",
    "Accuracy": lambda job: _failed(job.row) or terminal.percent(job.row.accuracy),
    "Top-1": lambda job: _failed(job.row) or terminal.percent(job.row.accuracy),
    "Delta": lambda job: terminal.points(job.row.accuracy_delta),
    "95 % CI": lambda job: terminal.interval(job.row.accuracy_ci_low, job.row.accuracy_ci_high),
    "p": lambda job: "" if job.row.mcnemar_p is None or _is_baseline(job.row) else f"{job.row.mcnemar_p:.2g}",
    "Size": lambda job: terminal.size(job.row.model_bytes),
    "Latency": lambda job: terminal.microseconds(job.row.latency_us_median),
    "Kernels": lambda job: job.row.kernels or "",
    "Images": lambda job: str(job.row.calibration_images or ""),
    "Seed": lambda job: str(job.row.seed),
}


def check_columns(columns: Sequence[str]) -> None:
    """Refuse a column that no table has."""
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns:
        raise ExperimentError(
            f"`hydra.callbacks.sweep.columns` has {', '.join(unknown) or 'no column'}; valid are {', '.join(COLUMNS)}",
            "python run.py -m quant=int8,uint8 'hydra.callbacks.sweep.columns=[Choices,Top-1,Delta]'",
        )


def summarize(folder: Path, columns: Sequence[str], expected: int | None) -> int:
    """Write summary.csv and summary.md into ``folder`` and show the table.

    Args:
        folder: of the sweep; its jobs are in folders named NUMBER_CHOICES.
        columns: of the table.
        expected: number of jobs; those that left no row are listed as failed. None: not known.

    Returns:
        How many jobs failed.
    """
    import pandas

    jobs = collect(folder, expected)
    name_choices(jobs)
    jobs.sort(key=_rank)
    table = pandas.DataFrame([{"job": job.number, "folder": job.folder, **asdict(job.row)} for job in jobs])
    with replacing(folder / "summary.csv") as temporary:
        table.convert_dtypes().to_csv(temporary, index=False)
    text = terminal.markdown(columns, [[COLUMNS[name](job) for name in columns] for job in jobs])
    failures = [job for job in jobs if job.row.status != "ok"]
    notes = [f"Job {job.number} failed: {job.row.error}" for job in failures]
    baseline = next((job.row for job in jobs if job.row.float_accuracy is not None), None)
    if baseline is not None and not any(_is_baseline(job.row) for job in jobs):
        notes.insert(
            0,
            f"FP32: {terminal.percent(baseline.float_accuracy)}, {terminal.size(baseline.float_model_bytes)}"
            + (
                f", {terminal.microseconds(baseline.float_latency_us_median)}"
                if baseline.float_latency_us_median
                else ""
            )
            + "; Delta in points; p: exact McNemar test against it.",
        )
    body = "\n\n".join([text, *map(terminal.wrapped, notes)])
    with replacing(folder / "summary.md") as temporary:
        temporary.write_text(body + "\n", encoding="utf-8")
    terminal.show(f"\n{body}\n\n{len(jobs) - len(failures)} of {len(jobs)} jobs ok. Written to")
    for name in ("summary.csv", "summary.md"):
        terminal.show(f"  {terminal.shown(folder / name)}")
    return len(failures)


def collect(folder: Path, expected: int | None) -> list[Job]:
    """The jobs of a sweep's folder by number; one that left no readable row counts as failed."""
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.match(r"(\d+)_", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    jobs = []
    for number in sorted({*found, *range(expected or 0)}):
        path = found.get(number, folder / f"{number}_")
        try:
            if not (path / results.FILE_NAME).exists():
                raise ExperimentError("it left no results.csv: it was killed", "run it again")
            row = results.read(path / results.FILE_NAME)
        except ExperimentError as error:
            row = RunResult(status="failed", error=error.problem)
        jobs.append(Job(number, path.name, row))
    return jobs


def name_choices(jobs: Sequence[Job]) -> None:
    """Give each job the values of the overrides that are not the same in all jobs."""
    settings = [
        dict(word.split("=", 1) for word in shlex.split(job.row.overrides or "") if "=" in word) for job in jobs
    ]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    varied = [key for key in keys if len({setting.get(key) for setting in settings if setting}) > 1] or keys
    for job, setting in zip(jobs, settings, strict=True):
        job.choices = " ".join(setting[key] for key in varied if key in setting) or job.row.quant_type or job.folder


def _is_baseline(row: RunResult) -> bool:
    return row.activation_type == "float32"


def _failed(row: RunResult) -> str:
    return "" if row.status == "ok" else row.status


def _rank(job: Job) -> tuple[bool, bool, float, int]:
    return (job.row.status != "ok", not _is_baseline(job.row), -(job.row.accuracy or 0.0), job.number)
