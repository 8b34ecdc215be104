"""Find and read the runs below any folders: of one sweep, of many, of outputs/ as a whole.

In: folders of runs or of sweeps, or folders above them. Out: one `Job` for each run, in a stable order. Nothing that a
folder holds stops the reading: a run whose results.csv is missing, damaged or of another schema is a failed row that
says why.
"""

from __future__ import annotations

import csv
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
    jobs: dict[str, Job] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ExperimentError(f"`DIR`: {folder} is not a folder", "give one that holds runs, as outputs/sweeps")
        for place in sorted(_walk(str(folder), set()), key=_natural):
            key = os.path.realpath(place)
            if key not in jobs:
                jobs[key] = replace(_read(place), folder=place)
    if not jobs:
        raise ExperimentError(
            f"there is no run below {', '.join(map(str, folders))}: no folder with a {results.FILE_NAME}",
            "python run.py -m quant=int8,uint8, then: python -m resnet8_quant.summary outputs/sweeps",
        )
    _name_sweeps([*jobs.values()])
    return list(jobs.values())


def settings(row: RunResult) -> dict[str, str]:
    """{key: value} of the overrides that a run was started with, if they can be read, and of its config.* columns."""
    return dict(_key_values(row.overrides or "")) | config_columns(row)


@cache
def _key_values(overrides: str) -> tuple[tuple[str, str], ...]:
    """Keys and values of a line of overrides; kept, because a report asks for them once for each of its plots."""
    try:
        words = shlex.split(overrides)
    except ValueError:  # an open quote
        return ()
    pairs = (word.partition("=") for word in words if "=" in word)
    return tuple((key, value) for key, _, value in pairs)


def config_columns(row: RunResult) -> dict[str, str]:
    """{config.GROUP.FIELD: value} of the settings that differ from their defaults."""
    return dict(getattr(row, "settings", None) or {})


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


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    """Folders of runs at or below ``folder``; a numbered folder with neither results nor runs below it is one too."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError:  # not ours to read
        return
    if not MARKS.isdisjoint(entry.name for entry in listed):
        yield folder
        return
    empty = True
    for entry in listed:
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if entry.is_symlink():  # may lead in a circle
            target = os.path.realpath(entry.path)
            if target in seen or os.path.commonpath((os.path.realpath(folder), target)) == target:
                continue
            seen.add(target)
        for run in _walk(entry.path, seen):
            empty = False
            yield run
    if empty and NUMBERED.match(os.path.basename(folder)) and any(entry.name == ".hydra" for entry in listed):
        yield folder


def _read(place: str) -> Job:
    """The job in the folder ``place``, whatever state it is in."""
    path = Path(place)
    file = path / results.FILE_NAME
    match = NUMBERED.match(path.name)
    try:
        row = results.sound_row(file)
    except ExperimentError as error:
        absent = f"it left no {results.FILE_NAME}: it was killed, or it still runs"
        overrides = read_record(path).get("overrides")
        command = shlex.join(map(str, overrides)) if isinstance(overrides, list) else None
        row = replace(_failed(_reason(file, error) if file.is_file() else absent), overrides=command or None)
    return Job(int(match[1]) if match else None, path.name, row, path)


def _reason(file: Path, error: ExperimentError) -> str:
    """Why a results.csv is no row, without its path, and what to do; another schema's version is named."""
    version = _schema_version(file)
    if version is not None and version != str(results.SCHEMA_VERSION):
        return (
            f"{results.FILE_NAME} has schema version {version}, this resnet8-quant reads {results.SCHEMA_VERSION}: "
            "run that job again, or read it with the version that wrote it"
        )
    return f"{error.problem.replace(str(file), results.FILE_NAME)}: run that job again"


def _schema_version(file: Path) -> str | None:
    try:
        with file.open(newline="", encoding="utf-8") as text:
            header, row = next(reader := csv.reader(text)), next(reader)
    except (OSError, UnicodeDecodeError, csv.Error, StopIteration):
        return None
    version = dict(zip(header, row, strict=False)).get("schema_version")
    return version if version and version.isdecimal() and len(version) < 6 else None


def _failed(reason: str) -> RunResult:
    return RunResult(status="failed", error=" ".join(reason.split()))


def _natural(place: str) -> list[tuple[int, int, str]]:
    """A key that sorts 2_x before 10_x."""
    parts = re.split(r"(\d+)", place)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
