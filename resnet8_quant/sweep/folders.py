"""A sweep's central idea: a job's folder is named by what the job is, NN_choices_DIGEST8.

- DIGEST8 begins the SHA-256 of what the job computes (digest.py), NN is its number, or the next free one where a
  changed grid made a folder of that number, and the choices are the values that vary, in the order typed.
- Hydra composes a job in the worker that runs it and then resolves `hydra.sweep.subdir`, which is `${job_folder:}`.
  That resolver looks for a folder with the job's digest, and makes one where there is none, under a lock: equal jobs
  meet in one folder, also when they start at once. It notes job and folder in jobs.csv, so that the end of the sweep
  can tell which jobs never started.
- The job then takes the lock in its folder (`claim`). Results that are whole are done, whoever made them: so a
  duplicate does nothing, resuming runs what is missing, and a changed grid finds what it still asks for. Failed results
  count in the start of the sweep that made them; the next start (`resume`) runs the job again. job.json says which
  start that was.
- The operating system releases a lock when its holder dies. results.csv is written last and by renaming: SIGKILL at any
  moment costs the jobs in flight.
- Launchers are Hydra's. Under those that run jobs side by side, a job runs in a process beside its worker
  (isolation.py), whose crash is a failed row. What else they lack is in launchers.py.
- The process that the user started checks what would stop every job, makes the folder with sweep.json, counts rows
  (watch.py) and writes the summary (callback.py, ending.py).
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet8_quant import results
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import LARGEST_RECORD, read_json, read_regular, replacing, unwritable
from resnet8_quant.sweep.plan import Plan

JOBS = "jobs.csv"  # number,folder,overrides of each job that a start of the sweep has begun
RECORD = "job.json"  # what the job was asked for, written before it runs
NUMBERED = re.compile(r"(\d{1,9})_")
MOST_CHARACTERS = 80  # of the choices in a name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One job of a sweep, as its worker has it.

    Attributes:
        config: composed and typed, or why it could not be.
        sweep: the sweep's folder.
        plan: what started the sweep.
        folder: of the job, below the sweep's.
        overrides: that the job was composed with.
        number: in the grid or search of this start.
        job_logging: `hydra.job_logging`, for the process that runs the job.
    """

    config: Config | ExperimentError
    sweep: Path
    plan: Plan
    folder: Path
    overrides: tuple[str, ...]
    number: int
    job_logging: dict[str, Any]


def find_or_make(sweep: Path, plan: Plan, number: int, overrides: Sequence[str], digest: str, groups: Any = ()) -> str:
    """The name of the folder in which the job with ``digest`` runs or ran; it is there afterwards.

    Overrides whose keys are in ``groups`` are shown in the name by their value alone.
    """
    import filelock

    with filelock.FileLock(sweep / ".jobs.lock"):
        names = [name for name in os.listdir(sweep) if NUMBERED.match(name)]
        alike = {name: read_record(sweep / name).get("digest") for name in names if name.endswith(f"_{digest[:8]}")}
        name = next((name for known in (digest, None) for name in alike if alike[name] == known), None)
        if name is None:
            taken = {int(name.partition("_")[0]) for name in names}
            free = number if number not in taken else max(taken) + 1
            digits = max(2, len(str((plan.jobs or 1) - 1)))
            parts = (f"{free:0{digits}d}", describe_choices(overrides, plan.varied, groups), digest[:8])
            name = "_".join(filter(None, parts))
            (sweep / name).mkdir()
        with (sweep / JOBS).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([number, name, shlex.join(overrides)])
    return name


def describe_choices(overrides: Sequence[str], varied: Collection[str], groups: Any = ()) -> str:
    """The values that vary, for a name of a folder: of a group its option, of a field its name and value."""
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in varied:
            parts.append(value if key in groups else f"{key.rpartition('.')[2]}-{value}")
    clean = re.sub(r"[^\w.+-]+", "-", "_".join(parts))
    return clean[:MOST_CHARACTERS].strip("-_.")


def read_jobs(sweep: Path) -> dict[int, str]:
    """{number: folder} of the jobs that this start of the sweep has begun."""
    try:
        lines = read_regular(sweep / JOBS, LARGEST_RECORD).decode().splitlines(keepends=True)
        return {int(row[0]): row[1] for row in csv.reader(lines) if len(row) == 3 and row[0].isdecimal()}
    except (OSError, ValueError, csv.Error):
        return {}


@contextmanager
def claim(task: Task, digest: str) -> Iterator[str | None]:
    """Hold the folder of a job for the block; yield None where it is to run, else why it need not, for the log."""
    import filelock

    lock = filelock.FileLock(task.folder / ".claim", timeout=0)
    waiting = False
    while True:
        try:
            lock.acquire()
            break
        except filelock.Timeout:
            runs = read_record(task.folder)
            if _is_current(runs, task) and runs.get("number") != task.number:
                yield f"same settings as job {runs.get('number')}, which runs now: not run again"
                return
            if not waiting:
                log.info("waiting for an earlier process that still runs this job")
            waiting = True
            time.sleep(0.05)
        except OSError as error:
            raise unwritable(task.folder, error) from error
    try:
        reason = _why_not(task)
        if reason is None:
            begin(task, digest)
        yield reason
    finally:
        lock.release()


def begin(task: Task, digest: str | None) -> None:
    """Write job.json; results of an earlier start that failed or lost files go."""
    (task.folder / results.FILE_NAME).unlink(missing_ok=True)
    session = task.plan.session
    record = {"digest": digest, "overrides": list(task.overrides), "number": task.number, "session": session}
    with replacing(task.folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The contents of job.json; empty where it is missing or damaged."""
    return read_json(folder / RECORD)


def is_whole(folder: Path, result: Any) -> bool:
    """Whether ``folder`` still has what the run of ``result``, a `RunResult`, wrote, each file in its full size."""
    written = read_json(folder / results.RECORD).get("files")
    if not isinstance(written, dict) or written.get("model.onnx") != result.model_bytes:
        return False
    try:
        return all((folder / name).stat().st_size == written[name] for name in results.FILES if name in written)
    except OSError:
        return False


def record_loss(sweep: Path, number: int, overrides: Sequence[str], reason: str) -> None:
    """Write the failed row of a job that ended without one; a job that never started has no folder and gets none."""
    name = read_jobs(sweep).get(number)
    if name is not None and not (sweep / name / results.FILE_NAME).exists():
        row = results.RunResult(status="failed", error=reason, overrides=shlex.join(overrides))
        results.write(row, sweep / name)


def finished(folder: Path, session: str | None) -> results.RunResult | None:
    """The result in a job's folder where the job need not run again; None where it is missing, damaged or not whole.

    A failure counts in the start of the sweep that made it, which is the one named ``session``; None: in any start.
    """
    result = results.read_result(folder)
    if result is None:
        return None
    if result.status == "ok":
        return result if is_whole(folder, result) else None
    return result if session in (None, read_record(folder).get("session")) else None


def _why_not(task: Task) -> str | None:
    """Why the job need not run, if its folder holds its results."""
    if finished(task.folder, task.plan.session) is None:
        return None
    record = read_record(task.folder)
    if _is_current(record, task) and record.get("number") != task.number:
        return f"same settings as job {record.get('number')}: not run again"
    return "finished before: not run again"


def _is_current(record: dict[str, Any], task: Task) -> bool:
    """Whether the start of the sweep that a job.json names is the one of ``task``."""
    return record.get("session") == task.plan.session
