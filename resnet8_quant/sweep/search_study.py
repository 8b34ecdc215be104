"""The memory of a search: an Optuna study in search.db, and its front in pareto.csv.

In: the sweep's folder, the space, the options, and what became of each trial. Out: proposals, and the trials that no
other beats in both objectives. What a trial is besides its values is in its attributes: `overrides`, `digest` of its
config, `job` (the number of its folder), `starts` of that job, and `error`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
import math
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import collect_all
from resnet8_quant.sweep.plan import SEARCH_MEMORY

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from resnet8_quant.sweep.search_space import SearchOptions, Space

PARETO = "pareto.csv"
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


class SearchStudy:
    """The trials of a search, and what their jobs left in the sweep's folder."""

    def __init__(self, folder: Path, space: Space, options: SearchOptions) -> None:
        """Open the study of ``folder``, or make it; one with another space, objectives or overrides is refused."""
        import optuna
        from sqlalchemy import URL

        self.folder, self.space, self.options = folder, space, options
        passed_over = ("hydra", "cache_dir", "tracking", "resume")  # they do not change what a trial measures
        asked = {
            "objectives": list(options.objectives),
            "space": {name: repr(parameter) for name, parameter in space.parameters.items()},
            "overrides": sorted(override for override in space.fixed if not override.startswith(passed_over)),
        }
        url = URL.create("sqlite", database=str(folder / SEARCH_MEMORY)).render_as_string()
        self.study = optuna.create_study(
            study_name="search", storage=url, directions=["maximize", "minimize"], load_if_exists=True
        )
        earlier = self.study.user_attrs.get("asked")
        if earlier is None:
            self.study.set_user_attr("asked", asked)
        elif earlier != asked:
            part = next(name for name in asked if earlier.get(name) != asked[name])
            raise ExperimentError(
                f"{folder / SEARCH_MEMORY} is a search with other {part}: {earlier.get(part)}, now {asked[part]}",
                "the command that began it, or another folder: hydra.sweep.dir=FOLDER",
            )

    def propose(self) -> Trial | None:
        """Ask for a trial; None: there is nothing new near the last one, nor far from it.

        The sampler is made anew for each trial, from the seed and the number of the trials before it: so a search that
        was killed goes on as if it had not been. TPE learns nothing from a trial that needed no job and would propose
        it again, so that after such a one the next has some of its values, and others drawn by chance, such that it was
        not proposed before.
        """
        from optuna.samplers import TPESampler

        trials = self._trials()
        number = int.from_bytes(hashlib.sha256(f"{self.options.seed} {len(trials)}".encode()).digest()[:4], "little")
        if idle := self.idle():
            near, chance = idle[0].params, random.Random(number)
            proposed = {tuple(sorted(trial.params.items())) for trial in trials}
            drawn = (self.space.draw(near, max(0.2, attempt / _DRAWS), chance) for attempt in range(_DRAWS))
            new = next((values for values in drawn if tuple(sorted(values.items())) not in proposed), None)
            if new is None:
                return None
            self.study.enqueue_trial(new)
        self.study.sampler = TPESampler(seed=number)
        return self.study.ask(dict(self.space.parameters))

    def idle(self) -> list[FrozenTrial]:
        """The trials in a row, the last one first, that needed no job: refused, or the same as an earlier one."""
        found = []
        for trial in reversed(self._trials()):
            if "job" in trial.user_attrs or not trial.state.is_finished():
                break
            found.append(trial)
        return found

    def known_digest(self, trial: Trial) -> str | None:
        """The digest of an earlier trial with the same values, if there is one that was not refused."""
        earlier = (other for other in self._trials()[: trial.number] if other.params == trial.params)
        return next((str(other.user_attrs["digest"]) for other in earlier if "digest" in other.user_attrs), None)

    def needs_job(self, trial: Trial, digest: str) -> bool:
        """Whether a trial has to run; one whose config has the ``digest`` of another that ran, or will, is closed."""
        trial.set_user_attr("digest", digest)
        for other in self._trials():
            runs = "job" in other.user_attrs if other.state.is_finished() else other.number < trial.number
            if runs and other.number != trial.number and other.user_attrs.get("digest") == digest:
                self.tell(trial, f"the same as trial {other.number}")
                return False
        return True

    def tell(self, trial: Trial, row: RunResult | str) -> str | None:
        """Close a trial with a job's row, or with the reason why there is none; return the reason of a failure."""
        from optuna.trial import TrialState

        problem = row if isinstance(row, str) else row.error
        values = [] if isinstance(row, str) else [getattr(row, name) for name in self.options.objectives]
        for name, value in zip(self.options.objectives, values, strict=False):
            if problem is None and (value is None or math.isnan(value)):
                problem = f"its column `{name}` is empty"
        if problem is None:
            self.study.tell(trial.number, [float(value) for value in values])
        else:
            trial.set_user_attr("error", problem)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return problem

    def interrupted(self) -> list[Trial]:
        """The trials that an earlier process left open."""
        from optuna.trial import Trial, TrialState

        return [Trial(self.study, trial._trial_id) for trial in self._trials() if trial.state == TrialState.RUNNING]

    def settle(self) -> None:
        """Close the trials of an earlier process whose job wrote a row, or never will; the others are to run again."""
        for trial in self.interrupted():
            place = self.job_folder(trial)
            starts = trial.user_attrs.get("starts", 0)
            if place is not None and (place / results.FILE_NAME).exists():
                self.tell(trial, self.read_row(trial))
            elif starts >= MOST_STARTS:
                problem = f"the search died {starts} times while it ran"
                log.warning("search: %s is left out: %s", " ".join(trial.user_attrs["overrides"]), problem)
                trial.set_user_attr("left_out", True)
                self.tell(trial, problem)
                if place is not None:
                    overrides = shlex.join(trial.user_attrs["overrides"])
                    results.write(RunResult(status="failed", error=problem, overrides=overrides), place)

    def job_folder(self, trial: Trial | FrozenTrial) -> Path | None:
        """The folder of a trial's job: like that of any job, its name ends with the digest."""
        digest = trial.user_attrs.get("digest")
        return None if digest is None else next(iter(self.folder.glob(f"[0-9]*_{digest[:8]}")), None)

    def read_row(self, trial: Trial) -> RunResult | str:
        """The row that a trial's job left, or why there is none."""
        place = self.job_folder(trial)
        if place is None:
            return "the job left no folder: it never started"
        try:
            return collect_all([place])[0].row
        except ExperimentError as error:
            return error.problem

    def jobs_run(self) -> int:
        """How many trials were run to an end, good or bad: neither refused nor repeated nor left out."""
        ended = [trial.user_attrs for trial in self._trials() if trial.state.is_finished()]
        return sum("job" in attributes and "left_out" not in attributes for attributes in ended)

    def front(self) -> list[FrozenTrial]:
        """The trials that no other beats in both objectives, the cheapest first."""
        return sorted(self.study.best_trials, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))

    def write_front(self) -> None:
        """Write pareto.csv: a line for each trial of the front."""
        names = list(self.space.parameters)
        with replacing(self.folder / PARETO) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["trial", "job", "folder", *self.options.objectives, *names, "overrides"])
            for trial in self.front():
                place = self.job_folder(trial)
                job = [trial.number, trial.user_attrs["job"], place.name if place else ""]
                values = [f"{value:.12g}" for value in trial.values]
                parameters = [trial.params[name] for name in names]
                writer.writerow([*job, *values, *parameters, shlex.join(trial.user_attrs["overrides"])])

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)
