"""The memory of a search: an Optuna study in search.db, and its front in pareto.csv.

In: the sweep's folder, a `Space`, the objectives, and what became of each trial. Out: proposals, and the trials that no
other beats in both objectives. What a trial is besides its values is in its attributes: `overrides`, `digest` of its
config, `job` (the number of its folder), `starts` of that job, and `error`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import logging
import math
import random
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.plan import SEARCH_MEMORY

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from resnet8_quant.sweep.search_space import Space

PARETO = "pareto.csv"
_NAME = "search"
_DRAWS = 1000  # tries to find something new by chance
MOST_STARTS = 2  # of a job during which the search died, before it is left out as the likely cause

log = logging.getLogger(__name__)


def require_optuna() -> None:
    """Refuse a search where Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "search") from error
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with the file of the study into a sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExperimentError(
            f"{folder / SEARCH_MEMORY} cannot be read or written: {reason}",
            "free some space or search in another folder: hydra.sweep.dir=FOLDER",
        ) from error


def open_study(folder: Path, space: Space, objectives: tuple[str, str]) -> Study:
    """The study of ``folder``, made if there is none; the one that is there must search the same thing.

    Args:
        folder: of the sweep; exists.
        space: of the search.
        objectives: the column to maximize and the one to minimize.

    Raises:
        ExperimentError: the folder holds a search of another space, or search.db is damaged.
    """
    import optuna
    from sqlalchemy import URL

    described = {name: repr(parameter) for name, parameter in space.parameters.items()}
    asked = {"objectives": list(objectives), "space": described, "overrides": _comparable(space.fixed)}
    with readable(folder):
        url = URL.create("sqlite", database=str(folder / SEARCH_MEMORY)).render_as_string()
        study = optuna.create_study(
            study_name=_NAME, storage=url, directions=["maximize", "minimize"], load_if_exists=True
        )
        earlier = study.user_attrs.get("asked")
        if earlier is None:
            study.set_user_attr("asked", asked)
        elif earlier != asked:
            part = next(name for name in asked if earlier.get(name) != asked[name])
            raise ExperimentError(
                f"{folder / SEARCH_MEMORY} is a search with other {part}: {earlier.get(part)}, now {asked[part]}",
                "the command that began it, or another folder: hydra.sweep.dir=FOLDER",
            )
    return study


def _comparable(overrides: Sequence[str]) -> list[str]:
    """The fixed overrides that change what a trial measures."""
    return sorted(word for word in overrides if not word.startswith(("hydra", "cache_dir", "tracking", "resume")))


def propose(study: Study, space: Space, seed: int, known: Known, near: Mapping[str, Any] | None) -> Trial | None:
    """Ask for a trial.

    The sampler is made anew for each trial, from ``seed`` and the number of the trials before it: so a search that was
    killed goes on as if it had not been.

    Args:
        study: with the trials so far.
        space: of the search.
        seed: of the search.
        known: what was proposed before.
        near: values that turned out to need no job. TPE learns nothing from that and would propose them again, so the
            next trial has some of them, and others drawn by chance, such that it was not proposed before.

    Returns:
        None: there is nothing new near these values, nor far from them.
    """
    from optuna.samplers import TPESampler

    before = len(study.get_trials(deepcopy=False))
    number = int.from_bytes(hashlib.sha256(f"{seed} {before}".encode()).digest()[:4], "little")
    if near is not None:
        chance = random.Random(number)
        drawn = (space.draw(near, max(0.2, attempt / _DRAWS), chance) for attempt in range(_DRAWS))
        new = next((values for values in drawn if not known.proposed(values)), None)
        if new is None:
            return None
        study.enqueue_trial(new)
    study.sampler = TPESampler(seed=number)
    return study.ask(dict(space.parameters))


def tell(study: Study, trial: Trial | FrozenTrial, row: RunResult | str, objectives: Sequence[str]) -> str | None:
    """Close a trial with a job's row, or with the reason why there is none.

    Returns:
        The reason of a failure.
    """
    from optuna.trial import TrialState

    values = [] if isinstance(row, str) else [getattr(row, name) for name in objectives]
    problem = row if isinstance(row, str) else row.error
    absent = [name for name, value in zip(objectives, values, strict=False) if value is None or math.isnan(value)]
    if problem is None and absent:
        problem = f"its column `{absent[0]}` is empty"
    if problem is None:
        study.tell(trial.number, [float(value) for value in values])
    else:
        trial.set_user_attr("error", problem)
        study.tell(trial.number, state=TrialState.FAIL)
    return problem


class Known:
    """What was proposed before, so that nothing runs twice: two proposals may differ in nothing that counts."""

    def __init__(self, study: Study) -> None:
        """Args: study: with the trials so far."""
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        self.study = study
        self.numbers = {str(trial.user_attrs["digest"]): trial.number for trial in ended if "job" in trial.user_attrs}
        # How many proposals in a row, up to the last one, needed no job; what the last one was, if it was such.
        idle = list(itertools.takewhile(lambda trial: "job" not in trial.user_attrs, reversed(ended)))
        self.idle = len(idle)
        self.near: Mapping[str, Any] | None = idle[0].params if idle else None
        # The values of each trial -> the digest of its config; None: refused.
        self.digests = {_key(trial.params): trial.user_attrs.get("digest") for trial in ended}

    def proposed(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial had these values."""
        return _key(values) in self.digests

    def digest(self, trial: Trial) -> str | None:
        """That of the config of an earlier trial with the same values, if it was not refused."""
        return self.digests.get(_key(trial.params))

    def needs_job(self, trial: Trial, overrides: Sequence[str], digest: str) -> bool:
        """Whether a trial has to run; if not, because it ran before, it is closed.

        Args: trial: new, or interrupted. overrides: of its job. digest: of its config.
        """
        self._note(trial, overrides, digest)
        if digest not in self.numbers:
            self.numbers[digest] = trial.number
            return True
        tell(self.study, trial, f"the same as trial {self.numbers[digest]}", ())
        return False

    def refuse(self, trial: Trial, overrides: Sequence[str], problem: str) -> None:
        """Close a trial that no run can do."""
        self._note(trial, overrides, None)
        tell(self.study, trial, problem, ())

    def _note(self, trial: Trial, overrides: Sequence[str], digest: str | None) -> None:
        trial.set_user_attr("overrides", list(overrides))
        if digest is not None:
            trial.set_user_attr("digest", digest)
        self.digests[_key(trial.params)] = digest


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(values.items()))


def interrupted(study: Study) -> list[Trial]:
    """The trials that an earlier process left open."""
    from optuna.trial import Trial, TrialState

    return [Trial(study, trial._trial_id) for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def settle(study: Study, folder: Path, objectives: Sequence[str]) -> None:
    """Close the trials of an earlier process whose job wrote a row, or never will; the others are to run again."""
    for trial in interrupted(study):
        place = job_folder(folder, trial)
        starts = trial.user_attrs.get("starts", 0)
        if place is not None and (place / results.FILE_NAME).exists():
            tell(study, trial, read_row(place), objectives)
        elif starts >= MOST_STARTS:
            problem = f"the search died {starts} times while it ran"
            log.warning("search: %s is left out: %s", " ".join(trial.user_attrs["overrides"]), problem)
            trial.set_user_attr("left_out", True)
            tell(study, trial, problem, objectives)
            if place is not None:
                overrides = shlex.join(trial.user_attrs["overrides"])
                results.write(RunResult(status="failed", error=problem, overrides=overrides), place)


def job_folder(folder: Path, trial: Trial | FrozenTrial) -> Path | None:
    """The folder of a trial's job: like that of any job, its name ends with the digest."""
    digest = trial.user_attrs.get("digest")
    return None if digest is None else next(iter(folder.glob(f"[0-9]*_{digest[:8]}")), None)


def read_row(place: Path | None) -> RunResult | str:
    """The row that a job left, or why there is none."""
    from resnet8_quant.sweep.collect import collect_all

    if place is None:
        return "the job left no folder: it never started"
    try:
        return collect_all([place])[0].row
    except ExperimentError as error:
        return error.problem


def jobs_run(study: Study) -> int:
    """How many trials were run to an end, good or bad: neither refused nor repeated nor left out."""
    ended = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sum("job" in attributes and "left_out" not in attributes for attributes in ended)


def front(study: Study) -> list[FrozenTrial]:
    """The trials that no other beats in both objectives, the cheapest first."""
    return sorted(study.best_trials, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))


def write_front(study: Study, space: Space, folder: Path, objectives: Sequence[str]) -> Path:
    """Write pareto.csv: trial, job, folder, both objectives, each parameter and the overrides; the cheapest first."""
    path = folder / PARETO
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "job", "folder", *objectives, *space.parameters, "overrides"])
        for trial in front(study):
            job, place = trial.user_attrs["job"], job_folder(folder, trial)
            overrides = shlex.join(trial.user_attrs["overrides"])
            parameters = [trial.params[name] for name in space.parameters]
            values = [f"{value:.12g}" for value in trial.values]
            writer.writerow([trial.number, job, place.name if place else "", *values, *parameters, overrides])
    return path
