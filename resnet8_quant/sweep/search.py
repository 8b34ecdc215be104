"""A search in place of a grid: more accuracy for fewer bytes or microseconds, job by job, by Optuna's ask and tell.

In: `hydra/sweeper=optuna` with its fields (conf/hydra/sweeper/optuna.yaml), overrides of the command line, and each
job's results.csv. Out: job folders as of any sweep; in its folder search.db, an Optuna study that a later call
continues, and pareto.csv. What a trial is besides its values is in its attributes: `overrides`, `digest` of its config,
`job` (the number of its folder), `starts` of that job, and `error`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
import math
import random
import shlex
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import collect_all
from resnet8_quant.sweep.folders import NUMBERED
from resnet8_quant.sweep.grid import compose_job, typed_overrides
from resnet8_quant.sweep.plan import SEARCH_MEMORY

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

PARETO = "pareto.csv"
PATIENCE = 50  # proposals in a row that need no job, before the search ends
MOST_STARTS = 2  # of a job during which the search died, before it is left out as the likely cause
_DRAWS = 1000  # tries to find something new by chance
# Overrides that do not change what a trial measures.
_PASSED_OVER = ("hydra", "cache_dir", "tracking", "resume")

log = logging.getLogger(__name__)


def check_search(config: DictConfig) -> tuple[int | None, tuple[str, ...]]:
    """Refuse a search before its folder is made, where no job could run; a sweep with another sweeper passes.

    Returns:
        How many jobs it has at most, None: not known, with another sweeper; and the keys whose values it chooses.
    """
    if not str(config.hydra.sweeper._target_).endswith(".OptunaSweeper"):
        return None, ()
    search = Search(config, GlobalHydra.instance().config_loader())
    search.check_inputs()
    return int(min(search.options.n_trials, search.space.size)), search.space.keys  # nothing runs twice


class Search:
    """What is searched, Hydra's config and loader, which compose each job, and the study of what was tried."""

    study: optuna.Study

    def __init__(self, config: DictConfig, loader: ConfigLoader) -> None:
        """Read the options and the space of a search."""
        try:
            import optuna
        except ImportError as error:
            raise missing_extra("optuna", "search") from error
        from resnet8_quant.sweep.search_space import read_options, read_space

        optuna.logging.disable_default_handler()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fields = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        assert isinstance(fields, dict)
        self.config, self.loader, self.folder = config, loader, Path(config.hydra.sweep.dir)
        self.options = read_options({str(name): value for name, value in fields.items()})
        self.space = read_space(self.options.params, typed_overrides(config.hydra.overrides.task), loader)

    def check_inputs(self) -> None:
        """Refuse what would fail in all jobs: no data, no model, no such layer, no latency to go by, no tracker."""
        from resnet8_quant.files import cache_folder
        from resnet8_quant.inputs.dataset import load_dataset
        from resnet8_quant.inputs.model import load_model_for
        from resnet8_quant.quantizer.plan import layer_nodes
        from resnet8_quant.tracking import connect

        config = compose_job(self.config, self.space.fixed, self.loader)
        connect(config.tracking)
        searched = {name.lstrip("+").partition(".")[0] for name in self.space.parameters}
        for name in self.options.objectives:
            if "latency" in name and "latency" not in searched and config.latency.runs == 0:
                raise ExperimentError(
                    f"a search goes by `{name}`, but latency.runs is 0: no job measures it", "latency.runs=300"
                )
        if searched & {"data", "model"}:
            return
        cache = cache_folder(config.cache_dir)
        model = load_model_for(load_dataset(config.data, cache, config.model), config.model, cache)
        names = [node.output[0] for node in layer_nodes(model.proto().graph)]
        for pattern in self.space.layer_patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ExperimentError(
                    f"the search names {pattern!r} in quant.layers, which matches no layer of model={model.name}; it "
                    f"has {', '.join(names)}",
                    "a file conf/experiment/NAME.yaml like search.yaml with patterns of this model, experiment=NAME",
                )

    def run(self, launcher: Launcher) -> None:
        """Propose, launch and judge jobs until there are ``n_trials``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._readable():
            self._open()
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
            self._settle()
            if done := self._jobs_run():
                log.info("search: %d of %d jobs are there already", done, self.options.n_trials)
            try:
                while (missing := self.options.n_trials - self._jobs_run()) > 0:
                    batch = self._batch(min(missing, self.options.n_jobs))
                    if not batch:
                        log.warning("search: it ends early: no proposal that was not known already, or refused")
                        break
                    self._launch(batch, launcher)
            finally:
                self._write_front()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what goes wrong with the file of the study into a sentence."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ExperimentError(
                f"{self.folder / SEARCH_MEMORY} cannot be read or written: {reason}",
                "free some space or search in another folder: hydra.sweep.dir=FOLDER",
            ) from error

    def _open(self) -> None:
        """Open the study of the folder, or make it; one with another space, objectives or overrides is refused."""
        import optuna
        from sqlalchemy import URL

        asked = {
            "objectives": list(self.options.objectives),
            "space": {name: repr(parameter) for name, parameter in self.space.parameters.items()},
            "overrides": sorted(override for override in self.space.fixed if not override.startswith(_PASSED_OVER)),
        }
        memory = self.folder / SEARCH_MEMORY
        url = URL.create("sqlite", database=str(memory)).render_as_string()
        self.study = optuna.create_study(
            study_name="search", storage=url, directions=["maximize", "minimize"], load_if_exists=True
        )
        earlier = self.study.user_attrs.get("asked")
        if earlier is None:
            self.study.set_user_attr("asked", asked)
        elif earlier != asked:
            part = next(name for name in asked if earlier.get(name) != asked[name])
            raise ExperimentError(
                f"{memory} is a search with other {part}: {earlier.get(part)}, now {asked[part]}",
                "the command that began it, or another folder: hydra.sweep.dir=FOLDER",
            )

    def _settle(self) -> None:
        """Close the trials of an earlier process whose job wrote a row, or never will; the others are to run again."""
        for trial in self._interrupted():
            place = self._job_folder(trial)
            starts = trial.user_attrs.get("starts", 0)
            if place is not None and (place / results.FILE_NAME).exists():
                self._tell(trial)
            elif starts >= MOST_STARTS:
                problem = f"the search died {starts} times while it ran"
                log.warning("search: %s is left out: %s", " ".join(trial.user_attrs["overrides"]), problem)
                trial.set_user_attr("left_out", True)
                self._tell(trial, problem)
                if place is not None:
                    overrides = shlex.join(trial.user_attrs["overrides"])
                    results.write(RunResult(status="failed", error=problem, overrides=overrides), place)

    def _batch(self, size: int) -> list[Trial]:
        """Up to ``size`` trials that need a job, first those that an earlier process began.

        They are fewer where the sampler has no new idea.
        """
        from resnet8_quant.sweep.digest import digest_of
        from resnet8_quant.validation import validate

        batch: list[Trial] = []
        begun = self._interrupted()
        while len(batch) < size and len(self._idle()) < PATIENCE:
            trial = begun.pop(0) if begun else self._propose()
            if trial is None:
                break
            overrides = self.space.overrides(trial.params)
            trial.set_user_attr("overrides", overrides)
            earlier = [other for other in self._trials()[: trial.number] if other.params == trial.params]
            digest = next((str(other.user_attrs["digest"]) for other in earlier if "digest" in other.user_attrs), None)
            try:
                if digest is None:
                    config = compose_job(self.config, overrides, self.loader)
                    validate(config)
                    digest = digest_of(config)
            except ExperimentError as error:
                log.info("search: refused %s: %s", " ".join(overrides), error.problem)
                self._tell(trial, error.problem)
                continue
            trial.set_user_attr("digest", digest)
            if (same := self._same_as(trial, digest)) is None:
                batch.append(trial)
            else:
                self._tell(trial, f"the same as trial {same}")
        return batch

    def _propose(self) -> Trial | None:
        """Ask for a trial; None: there is nothing new near the last one, nor far from it.

        The sampler is made anew for each trial, from the seed and the number of the trials before it: so a search that
        was killed goes on as if it had not been. TPE learns nothing from a trial that needed no job and would propose
        it again, so that after such a one the next has some of its values, and others drawn by chance, such that it was
        not proposed before.
        """
        from optuna.samplers import TPESampler

        trials = self._trials()
        number = int.from_bytes(hashlib.sha256(f"{self.options.seed} {len(trials)}".encode()).digest()[:4], "little")
        if idle := self._idle():
            near, chance = idle[0].params, random.Random(number)
            proposed = {tuple(sorted(trial.params.items())) for trial in trials}
            drawn = (self.space.draw(near, max(0.2, attempt / _DRAWS), chance) for attempt in range(_DRAWS))
            new = next((values for values in drawn if tuple(sorted(values.items())) not in proposed), None)
            if new is None:
                return None
            self.study.enqueue_trial(new)
        self.study.sampler = TPESampler(seed=number)
        return self.study.ask(dict(self.space.parameters))

    def _same_as(self, trial: Trial, digest: str) -> int | None:
        """The number of another trial that ran, or will before this one, with the same digest of its config."""
        for other in self._trials():
            runs = "job" in other.user_attrs if other.state.is_finished() else other.number < trial.number
            if runs and other.number != trial.number and other.user_attrs.get("digest") == digest:
                return other.number
        return None

    def _launch(self, batch: Sequence[Trial], launcher: Launcher) -> None:
        """Run a batch, and close its trials with what the jobs wrote; a job that wrote nothing failed."""
        numbers = (int(match[1]) for path in self.folder.iterdir() if (match := NUMBERED.match(path.name)))
        first = 1 + max(numbers, default=-1)
        for job, trial in enumerate(batch, first):
            trial.set_user_attr("job", job)
            trial.set_user_attr("starts", trial.user_attrs.get("starts", 0) + 1)
        try:
            launcher.launch([trial.user_attrs["overrides"] for trial in batch], initial_job_idx=first)
        except Exception as error:
            if not any(self._job_folder(trial) for trial in batch):
                raise  # nothing started: the launcher itself does not work
            log.error("search: the launcher stopped: %s: %s", type(error).__name__, error)
        for trial in batch:
            place = self._job_folder(trial)
            if place is not None:  # one that an earlier process made has its number
                trial.set_user_attr("job", int(place.name.partition("_")[0]))
            problem = self._tell(trial)
            if problem is not None:
                log.warning("search: job %d failed: %s", trial.user_attrs["job"], problem)

    def _tell(self, trial: Trial, problem: str | None = None) -> str | None:
        """Close a trial with the row of its job, or with the ``problem`` that keeps it from having one.

        Returns:
            The reason of a failure.
        """
        from optuna.trial import TrialState

        values: list[float] = []
        if problem is None:
            try:
                place = self._job_folder(trial)
                if place is None:
                    raise ExperimentError("the job left no folder: it never started", "run it again")
                row = collect_all([place])[0].row
                columns = {name: getattr(row, name) for name in self.options.objectives}
                empty = [name for name, value in columns.items() if value is None or math.isnan(value)]
                problem = row.error or (f"its column `{empty[0]}` is empty" if empty else None)
                values = [float(value) for value in columns.values() if value is not None]
            except ExperimentError as error:
                problem = error.problem
        if problem is None:
            self.study.tell(trial.number, values)
        else:
            trial.set_user_attr("error", problem)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return problem

    def _write_front(self) -> None:
        """Write the trials that no other beats in both objectives, the cheapest first, to pareto.csv and to the log."""
        names, objectives = list(self.space.parameters), self.options.objectives
        front = sorted(self.study.best_trials, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
        log.info("search: no other is better in both of %s and %s, see %s:", *objectives, PARETO)
        with replacing(self.folder / PARETO) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["trial", "job", "folder", *objectives, *names, "overrides"])
            for trial in front:
                place, job = self._job_folder(trial), trial.user_attrs["job"]
                values = [f"{value:.12g}" for value in trial.values]
                parameters = [trial.params[name] for name in names]
                overrides = shlex.join(trial.user_attrs["overrides"])
                writer.writerow([trial.number, job, place.name if place else "", *values, *parameters, overrides])
                shown = (f"{name} {value:.6g}" for name, value in zip(objectives, trial.values, strict=True))
                chosen = " ".join(f"{name}={value}" for name, value in trial.params.items())
                log.info("  job %d: %s: %s", job, ", ".join(shown), chosen)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _interrupted(self) -> list[Trial]:
        """The trials that an earlier process left open."""
        from optuna.trial import Trial, TrialState

        return [Trial(self.study, trial._trial_id) for trial in self._trials() if trial.state == TrialState.RUNNING]

    def _idle(self) -> list[FrozenTrial]:
        """The trials in a row, the last one first, that needed no job: refused, or the same as an earlier one."""
        last_first = reversed(self._trials())
        return list(takewhile(lambda trial: "job" not in trial.user_attrs and trial.state.is_finished(), last_first))

    def _jobs_run(self) -> int:
        """How many trials were run to an end, good or bad: neither refused nor repeated nor left out."""
        ended = [trial.user_attrs for trial in self._trials() if trial.state.is_finished()]
        return sum("job" in attributes and "left_out" not in attributes for attributes in ended)

    def _job_folder(self, trial: Trial | FrozenTrial) -> Path | None:
        """The folder of a trial's job: like that of any job, its name ends with the digest."""
        digest = trial.user_attrs.get("digest")
        return None if digest is None else next(iter(self.folder.glob(f"[0-9]*_{digest[:8]}")), None)
