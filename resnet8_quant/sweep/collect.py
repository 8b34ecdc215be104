"""Find and read the runs below any folders: of one sweep, of many, of outputs/ as a whole.

In: folders of runs or of sweeps, or folders above them. Out: one `Job` for each run, in a stable order. Nothing that a
folder holds stops the reading: a run whose results.csv is missing, damaged or of another schema is a failed row that
says why.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.folders import NUMBERED, RECORD, read_jobs, read_record

CONFIG = "config."  # begins the names of the columns for the settings that differ from their defaults
WORD = re.compile(r"(?!(?i:true|false|null|none)$)[A-Za-z]\w*")  # a value that says what it is
MARKS = frozenset((results.FILE_NAME, RECORD))


@dataclass
class Job:
    """One run.

    Attributes:
        number: in its sweep; None where the run is not part of one.
        folder: its folder's name, or its path from where the user looks.
        row: its results.
        path: the folder that holds its files.
        choices: the values of the overrides that tell it from the other jobs of a table.
        sweep: its sweep's folder, where a table holds more than one sweep.
    """

    number: int | None
    folder: str
    row: RunResult
    path: Path = Path()
    choices: str = ""
    sweep: str = ""

    @property
    def ok(self) -> bool:
        return self.row.status == "ok"

    @property
    def label(self) -> str:
        if self.number is None:
            return self.folder
        return f"Job {self.number}{f' of {self.sweep}' if self.sweep else ''}"


def collect(folder: Path, expected: int | None) -> list[Job]:
    """The jobs of one sweep's folder by number; one that left no readable row counts as failed.

    What failed in an earlier start, and the last one did not ask for again, is left out. Where the number of jobs is
    ``expected``, those that have no folder are listed as failed.
    """
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    jobs = [_read(str(path)) for path in places if NUMBERED.match(path.name) and path.is_dir()]
    begun = read_jobs(folder)
    if begun:
        jobs = [job for job in jobs if job.ok or job.folder in begun.values()]
    absent = set(range(expected or 0)) - (begun.keys() or {job.number for job in jobs})
    jobs += [Job(number, f"{number}_", _failed("it left no folder: it never started")) for number in absent]
    return sorted(jobs, key=lambda job: (job.number or 0, job.folder))


def collect_all(folders: Sequence[Path]) -> list[Job]:
    """All runs below ``folders``, each once, in the order of the folders and then of their paths, numbers by value.

    Raises:
        ExperimentError: a folder does not exist, or there is no run below any of them.
    """
    jobs: list[Job] = []
    seen: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ExperimentError(f"`DIR`: {folder} is not a folder", "give one that holds runs, as outputs/sweeps")
        jobs += [replace(_read(place), folder=place) for place in _walk(folder, seen)]
    if not jobs:
        raise ExperimentError(
            f"there is no run below {', '.join(map(str, folders))}: no folder with a {results.FILE_NAME}",
            "python run.py -m quant=int8,uint8, then: python -m resnet8_quant.summary outputs/sweeps",
        )
    _name_sweeps(jobs)
    return jobs


def settings(row: RunResult) -> dict[str, str]:
    """{key: value} of the overrides that a run was started with, if they can be read, and of its config.* columns."""
    return dict(_key_values(row.overrides or "")) | row.settings


@cache
def _key_values(overrides: str) -> tuple[tuple[str, str], ...]:
    """Keys and values of a line of overrides; kept, because a report asks for them once for each of its plots."""
    try:
        words = shlex.split(overrides)
    except ValueError:  # an open quote
        return ()
    pairs = (word.partition("=") for word in words if "=" in word)
    return tuple((key, value) for key, _, value in pairs)


def varied(jobs: Iterable[Job]) -> list[str]:
    """Keys of the settings that do not have the same value in all jobs, in the order of their appearance.

    A config.* column is left out where an override of its group varies, which says the same in fewer words.
    """
    known = [(job, setting) for job in jobs if (setting := settings(job.row)) or job.ok]
    keys = []
    for key in dict.fromkeys(key for _, setting in known for key in setting):
        # A failed job has no config.* columns, whatever its settings were.
        values = {setting.get(key) for job, setting in known if job.ok or not key.startswith(CONFIG)}
        if len(values) > 1:
            keys.append(key)
    groups = {key.lstrip("+").partition(".")[0] for key in keys if not key.startswith(CONFIG)}
    return [key for key in keys if not (key.startswith(CONFIG) and key.split(".")[1] in groups)]


def name_choices(jobs: Sequence[Job]) -> None:
    """Give each job the settings that are not the same in all jobs, in words that can be read without a heading.

    "int8" and "percentile" speak for themselves; what is a number, a switch or a field is written as NAME=VALUE.
    """
    every = [settings(job.row) for job in jobs]
    overrides = dict.fromkeys(key for setting in every for key in setting if not key.startswith(CONFIG))
    keys = varied(jobs) or list(overrides)
    last = Counter(key.rpartition(".")[2] for key in keys)

    def choice(key: str, value: str) -> str:
        if "." not in key and WORD.fullmatch(value):
            return value
        name = key.rpartition(".")[2]
        return f"{(name if last[name] == 1 else key).lstrip('+')}={value}"

    for job, setting in zip(jobs, every, strict=True):
        words = [choice(key, setting[key]) for key in keys if key in setting]
        job.choices = " ".join(words) or job.row.quant_type or job.folder


def _name_sweeps(jobs: Sequence[Job]) -> None:
    """Two sweeps have a job 0 each: where there are several, each job's label names its sweep."""
    parents = {id(job): os.path.dirname(job.folder) for job in jobs if job.number is not None}
    if len(set(parents.values())) < 2:
        return
    names = {parent: os.path.basename(parent) for parent in parents.values()}
    alike = len(set(names.values())) < len(names)
    for job in jobs:
        if id(job) in parents:
            job.sweep = parents[id(job)] if alike else names[parents[id(job)]]


def _walk(folder: Path, seen: set[str]) -> Iterator[str]:
    """Folders of runs at or below ``folder``, in order; links may lead in circles, so that each is ``seen`` once.

    A job's folder without results is one, too: it was killed.
    """
    for place, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        is_job = NUMBERED.match(os.path.basename(place)) is not None and ".hydra" in names
        is_run = is_job or not MARKS.isdisjoint(files)
        if is_run and real not in seen:
            yield place
        names[:] = [] if is_run or real in seen else sorted((n for n in names if not n.startswith(".")), key=_natural)
        seen.add(real)


def _read(place: str) -> Job:
    """The job in the folder ``place``, whatever state it is in."""
    path = Path(place)
    file = path / results.FILE_NAME
    match = NUMBERED.match(path.name)
    try:
        row = results.sound_row(file)
    except ExperimentError as error:
        reason = f"{error.problem.replace(str(file), results.FILE_NAME)}: run that job again"
        if not file.is_file():
            reason = f"it left no {results.FILE_NAME}: it was killed, or it still runs"
        overrides = read_record(path).get("overrides")
        command = shlex.join(map(str, overrides)) if isinstance(overrides, list) else None
        row = replace(_failed(reason), overrides=command)
    return Job(int(match[1]) if match else None, path.name, row, path)


def _failed(reason: str) -> RunResult:
    return RunResult(status="failed", error=" ".join(reason.split()))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts 2_x before 10_x."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
