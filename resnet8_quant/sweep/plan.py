"""What a sweep is, in its folder: sweep.json says which command started it, and how many threads each job has.

In: Hydra's overrides and folder. Out: a `Plan` that every worker can read, and the folder that `resume` means. Workers
learn from files alone, because they may run in another process or on another machine.
"""

from __future__ import annotations

import json
import logging
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import read_json, replacing, unwritable

FILE_NAME = "sweep.json"
SEARCH_MEMORY = "search.db"
RESUME = "resume="
FOLDER = "hydra.sweep.dir="
_LAUNCHER = ("hydra/launcher=", "hydra.launcher.", "hydra.sweeper.max_batch_size=")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One start of a sweep; resuming it is another one in the same folder.

    Attributes:
        overrides: of the command, without those that say where or whether to resume.
        jobs: how many there will be; None where the sweeper decides as it goes.
        threads: of each job, where it does not ask for a number itself; 0: all cores.
        varied: keys of the overrides whose values are not the same in all jobs.
        pid: of the process that starts the jobs.
        session: names this start.
    """

    overrides: tuple[str, ...]
    jobs: int | None
    threads: int
    varied: tuple[str, ...] = ()
    pid: int = 0
    session: str = field(default_factory=lambda: uuid.uuid4().hex)


def write_plan(plan: Plan, folder: Path) -> None:
    """Write ``folder``/sweep.json."""
    with replacing(folder / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep in ``folder``; None where there is none that can be read."""
    try:
        values = read_json(folder / FILE_NAME)
        lists: dict[str, Any] = {key: tuple(map(str, values[key])) for key in ("overrides", "varied") if key in values}
        plan = Plan(**(values | lists))
    except (ValueError, TypeError):
        return None
    numbers = (plan.jobs or 0, plan.threads, plan.pid)
    is_plan = all(type(number) is int and number >= 0 for number in numbers) and isinstance(plan.session, str)
    return plan if is_plan else None


def command_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that say what is run: not those that say where, by which launcher, or whether to resume."""
    return tuple(word for word in overrides if not word.lstrip("+").startswith((RESUME, FOLDER, *_LAUNCHER)))


def asked_to_resume(overrides: Sequence[str]) -> str | None:
    """The value of `resume=`: a folder, or "true"; None where it is absent, null or false."""
    words = [word.lstrip("+") for word in overrides]
    values = [word.removeprefix(RESUME).strip("'\"") for word in words if word.startswith(RESUME)]
    if len(values) > 1:
        raise ExperimentError(f"`resume` is given twice: {' and '.join(values)}", "give it once")
    value = values[0] if values else "null"
    if "," in value and not Path(value).exists():
        raise ExperimentError(f"`resume` is {value}; it is one folder, or true", "resume=true")
    if value.lower() == "true":
        return "true"
    return None if value.lower() in ("", "null", "false") else value


def choose_folder(plan: Plan, resume: str | None, default: Path, explicit: bool) -> Path:
    """The folder of a sweep: the one to resume, one that a search goes on in, or a new one.

    Args:
        plan: the sweep.
        resume: see `asked_to_resume`.
        default: where a new sweep would go; where another sweep has its name by chance, a number is added.
        explicit: whether the user named ``default``; then "true" means it, and no other sweep in it is touched.
    """
    folder = default if explicit else None
    if resume == "true":
        folder = folder or _newest(default.parent, plan.overrides)
    elif resume is not None:
        folder = Path(resume).expanduser().absolute()
        if explicit and folder.resolve() != default.resolve():
            raise ExperimentError(f"`resume` is {folder}, but `hydra.sweep.dir` is {default}", "give one of them")
        if read_plan(folder) is None:
            problem = "is not a folder" if not folder.is_dir() else f"holds no {FILE_NAME}: it is no sweep's folder"
            raise ExperimentError(f"`resume`: {resume} {problem}", "resume=outputs/sweeps/DATE_TIME, or resume=true")
    if folder is not None:
        _check_kind(folder, search=plan.jobs is None)
        if resume is not None or plan.jobs is None:  # a search goes on by itself with what its folder holds
            return folder
        if read_plan(folder) is not None:
            raise ExperimentError(
                f"`hydra.sweep.dir`: {folder} holds a sweep already",
                "add resume=true to run what it lacks, or choose another folder",
            )
    return _new_folder(default, explicit)


def _new_folder(default: Path, explicit: bool) -> Path:
    folder, number = default, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=explicit)
            return folder
        except OSError as error:
            if explicit or not isinstance(error, FileExistsError):
                raise unwritable(folder, error) from error
            number += 1
            folder = default.with_name(f"{default.name}-{number}")


def _newest(parent: Path, overrides: tuple[str, ...]) -> Path:
    """The newest sweep of the same command.

    Names are times: the last one is the newest. Should the clock have gone back, it is an older sweep of the same
    command, which holds the same results.
    """
    for folder in sorted(parent.iterdir() if parent.is_dir() else (), reverse=True):
        plan = read_plan(folder)
        if plan is not None and plan.overrides == overrides:
            log.info("resuming %s", folder)
            return folder
    raise ExperimentError(
        f"`resume` is true, but no sweep in {parent} was started with these overrides",
        "leave resume out to start one, or name its folder: resume=outputs/sweeps/DATE_TIME",
    )


def _check_kind(folder: Path, search: bool) -> None:
    """Refuse a grid in a search's folder and a search in a grid's: their jobs would share numbers and a summary."""
    plan = read_plan(folder)
    holds_search = (folder / SEARCH_MEMORY).exists() or (plan is not None and plan.jobs is None)
    if holds_search == search or not (plan or holds_search):
        return
    held, asked = ("a search", "a grid") if holds_search else ("a grid", "a search")
    overrides = [word for word in plan.overrides if not word.startswith("hydra.mode=")] if plan else []
    began = f"; what is there goes on with python run.py -m {shlex.join(overrides)} {RESUME}{folder}"
    raise ExperimentError(
        f"`hydra.sweep.dir` or `resume`: {folder} holds {held}, this is {asked}; each has a folder of its own",
        f"hydra.sweep.dir=FOLDER without resume, for a new one{began if overrides else ''}",
    )
