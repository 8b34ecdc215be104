"""Who runs what: each set of effective settings runs once in a sweep, and what is finished is not run again.

In: a job's digest and its folder in the sweep's folder. Out: job.json in the folder of a job that runs, same_as.json in
that of one that need not. In the sweep's folder .jobs/DIGEST.json says which folder has a digest, and .jobs/DIGEST.lock
is held while it runs; the operating system lets go of it when its holder dies, however it dies.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing, unwritable
from resnet8_quant.sweep.collect import NUMBERED, PLAN, TWIN, sound_row
from resnet8_quant.sweep.plan import Plan

INDEX = ".jobs"
_OWN = (".hydra", "run.log")  # what Hydra itself puts into each job's folder

log = logging.getLogger(__name__)


class Turn(Enum):
    """What a job is to do."""

    run = "run"
    finished = "finished"
    twin = "twin"


@dataclass(frozen=True)
class Place:
    """A job in its sweep: the sweep's folder and plan, the job's folder below it, its words and its number."""

    sweep: Path
    plan: Plan
    folder: Path
    words: tuple[str, ...]
    number: int


@contextmanager
def turn(place: Place, digest: str) -> Iterator[tuple[Turn, str]]:
    """Yield what the job is to do, and the name of the folder that has or gets its results.

    For `Turn.run` the digest is held until the end of the block, and job.json is written; for `Turn.twin`
    same_as.json is.

    Raises:
        ExperimentError: the sweep's folder cannot be written to.
    """
    import filelock

    retire(place.sweep, lambda number, name: number == place.number and name != place.folder.name)
    index = place.sweep / INDEX
    entry, name = index / f"{digest}.json", place.folder.name
    try:
        index.mkdir(exist_ok=True)
        lock = filelock.FileLock(index / f"{digest}.lock", timeout=0)
        waiting = False
        while True:
            try:
                lock.acquire()
                break
            except filelock.Timeout:
                owner = _read(entry)
                if _of_this_start(owner, place) and owner["folder"] != name:
                    write_twin(place, owner["folder"])
                    yield Turn.twin, owner["folder"]
                    return
                if not waiting:
                    log.info("waiting for an earlier process that still runs this job")
                waiting = True
                time.sleep(0.05)
    except OSError as error:
        raise unwritable(index, error) from error
    try:
        what, owner_name = _decide(place, digest, _read(entry))
        if what is Turn.twin:
            write_twin(place, owner_name)
        else:
            with replacing(entry) as temporary:
                temporary.write_text(json.dumps({"folder": name, "session": place.plan.session}), encoding="utf-8")
            if what is Turn.run:
                write_job(place, digest)
        yield what, owner_name
    finally:
        lock.release()


def retire(sweep: Path, is_stale: Callable[[int, str], bool]) -> None:
    """Hide what an earlier, different grid left without results: `.old_NAME` is in no summary, and nothing is lost.

    Args:
        sweep: the sweep's folder.
        is_stale: tells by number and name of a job's folder whether today's grid has none of that name.
    """
    for folder in sweep.iterdir():
        match = NUMBERED.match(folder.name)
        if match is None or not is_stale(int(folder.name.partition("_")[0]), folder.name):
            continue
        try:
            kept = sound_row(folder / results.FILE_NAME).status == "ok"
        except ExperimentError:
            kept = False
        if not kept:
            folder.rename(folder.with_name(f".old_{folder.name}"))


def write_job(place: Place, digest: str | None) -> None:
    """Write job.json; results of an earlier, failed or different job in the same folder go."""
    for name in (TWIN, results.FILE_NAME):
        (place.folder / name).unlink(missing_ok=True)
    _write_plan(place, digest)


def write_twin(place: Place, other: str) -> None:
    """Write same_as.json: the folder's job has the settings of the one in ``other`` and does not run."""
    for name in (results.FILE_NAME, PLAN):
        (place.folder / name).unlink(missing_ok=True)
    _write(place.folder / TWIN, {"folder": other, "overrides": list(place.words)})


def finished(folder: Path, digest: str, retry_failed: bool = True) -> bool:
    """Whether ``folder`` holds the results of the job with this digest.

    Args:
        folder: of a job.
        digest: that its job.json must have.
        retry_failed: whether a failed row does not count.
    """
    if _read(folder / PLAN).get("digest") != digest:
        return False
    try:
        row = sound_row(folder / results.FILE_NAME)
    except ExperimentError:
        return False
    return whole(folder, row) if row.status == "ok" else not retry_failed


def whole(folder: Path, row: results.RunResult) -> bool:
    """Whether ``folder`` still has what the run of this row wrote, each file in its full size."""
    written = _read(folder / results.RECORD).get("files")
    if not isinstance(written, dict) or written.get("model.onnx") != row.model_bytes:
        return False
    try:
        return all((folder / name).stat().st_size == written[name] for name in results.FILES if name in written)
    except OSError:
        return False


def rebuild_index(sweep: Path) -> None:
    """Write the entries of the index that are lost or damaged anew, from the job.json files."""
    for folder in sweep.iterdir():
        digest = _read(folder / PLAN).get("digest") if NUMBERED.match(folder.name) else None
        if isinstance(digest, str) and not _read(sweep / INDEX / f"{digest}.json"):
            _write(sweep / INDEX / f"{digest}.json", {"folder": folder.name, "session": ""})


def left_by_another_grid(sweep: Path, jobs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The folders of jobs that are not today's: their results may go to the job that asks for them now.

    Args:
        sweep: the sweep's folder.
        jobs: the words of today's jobs, by number; none in a search, whose jobs get numbers that no folder has.
    """
    left = []
    for folder in sweep.iterdir():
        if NUMBERED.match(folder.name) and (record := _read(folder / PLAN)):
            number = record.get("number")
            today = jobs[number] if isinstance(number, int) and 0 <= number < len(jobs) else None
            if today is None or list(today) != record.get("overrides"):
                left.append(folder.name)
    return tuple(sorted(left))


def _decide(place: Place, digest: str, owner: dict[str, Any]) -> tuple[Turn, str]:
    """What the holder of the digest's lock is to do; moves finished results here where another job had them."""
    name, retry = place.folder.name, place.plan.retry_failed
    other = owner.get("folder")
    if isinstance(other, str) and other != name and NUMBERED.match(other) and (place.sweep / other).is_dir():
        if _of_this_start(owner, place):
            return Turn.twin, other
        if finished(place.sweep / other, digest, retry):
            if other not in place.plan.left:  # a job of its own asks for it, now or later
                return Turn.twin, other
            _move(place.sweep / other, place)
            _write_plan(place, digest)
            return Turn.finished, name
    return (Turn.finished if finished(place.folder, digest, retry) else Turn.run), name


def _move(source: Path, place: Place) -> None:
    """Give finished results, made under another number of a changed grid, to the job that asks for them now."""
    target = place.folder
    row = sound_row(source / results.FILE_NAME)
    log.info("the results of %s are this job's", source.name)
    (target / TWIN).unlink(missing_ok=True)
    files = [path for path in source.iterdir() if path.name not in (*_OWN, results.FILE_NAME) and path.is_file()]
    for path in files:
        path.replace(target / path.name)
    results.write(replace(row, overrides=shlex.join(place.words)), target)  # last: where it is, the others are whole
    if (source / "run.log").exists():
        (source / "run.log").replace(target / "run.earlier.log")
    shutil.rmtree(source, ignore_errors=True)
    for record in target.parent.glob(f"*/{TWIN}"):  # those that refer to it go along
        values = _read(record)
        if values.get("folder") == source.name:
            _write(record, {**values, "folder": target.name})


def _write_plan(place: Place, digest: str | None) -> None:
    _write(place.folder / PLAN, {"digest": digest, "overrides": list(place.words), "number": place.number})


def _of_this_start(owner: dict[str, Any], place: Place) -> bool:
    return owner.get("session") == place.plan.session and isinstance(owner.get("folder"), str)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def missing(sweep: Path, number: int, words: Sequence[str], reason: str) -> None:
    """Write the failed row of a job that ended without one.

    Args:
        sweep: the sweep's folder.
        number: of the job.
        words: of the job.
        reason: what is known of its end.
    """
    for folder in sweep.glob(f"{number}_*"):
        if not any((folder / name).exists() for name in (results.FILE_NAME, TWIN)):
            row = results.RunResult(status="failed", error=reason, overrides=shlex.join(words))
            results.write(row, folder)
