"""A search in place of a grid: more accuracy for fewer bytes or microseconds, job by job, by Optuna's ask and tell.

In: `hydra/sweeper=optuna` with its fields (conf/hydra/sweeper/optuna.yaml), overrides of the command line, and each
job's results.csv. Out: job folders as of any sweep; in its folder search.db, which a later call continues, and
pareto.csv.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from resnet8_quant.sweep.folders import NUMBERED

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

    from resnet8_quant.config import Config
    from resnet8_quant.sweep.search_space import SearchOptions, Space

PATIENCE = 50  # proposals in a row that need no job, before the search ends

log = logging.getLogger(__name__)


def check_search(config: DictConfig) -> tuple[int | None, tuple[str, ...]]:
    """Refuse a search before its folder is made, where no job could run.

    Args:
        config: of the sweep, with the node `hydra`; one with another sweeper passes.

    Returns:
        How many jobs it has at most, None: not known, with another sweeper; and the keys whose values it chooses.

    Raises:
        ExperimentError: nothing can be searched, Optuna is missing, or what `Search.check_inputs` finds.
    """
    from hydra.core.global_hydra import GlobalHydra

    from resnet8_quant.sweep import search_study

    fields = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(fields, dict)
    if not str(fields.get("_target_", "")).endswith(".OptunaSweeper"):
        return None, ()
    search_study.require_optuna()
    search = Search(config, GlobalHydra.instance().config_loader())
    options, space = search.read({str(name): value for name, value in fields.items()}, config.hydra.overrides.task)
    search.check_inputs(space, options)
    return int(min(options.n_trials, space.size)), space.keys  # nothing runs twice


@dataclass(frozen=True)
class Search:
    """What Hydra gives a sweeper: the config of the sweep, and what composes a job's."""

    config: DictConfig
    loader: ConfigLoader

    def read(self, fields: Mapping[str, Any], arguments: Sequence[str]) -> tuple[SearchOptions, Space]:
        """The options and the space of a search.

        Args:
            fields: of conf/hydra/sweeper/optuna.yaml.
            arguments: overrides of the command line.

        Raises:
            ExperimentError: nothing can be searched.
        """
        from resnet8_quant.sweep.search_space import read_options, read_space

        options = read_options(fields)
        return options, read_space(options.params, arguments, self.loader)

    def run(self, fields: Mapping[str, Any], arguments: Sequence[str], launcher: Launcher) -> None:
        """Propose, launch and judge jobs until there are ``n_trials``.

        Args:
            fields: of conf/hydra/sweeper/optuna.yaml.
            arguments: overrides of the command line.
            launcher: runs the jobs.

        Raises:
            ExperimentError: nothing can be searched, Optuna is missing, or search.db cannot be used.
        """
        from resnet8_quant.sweep import search_study

        search_study.require_optuna()
        options, space = self.read(fields, arguments)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with search_study.readable(folder):
            study = search_study.open_study(folder, space, options.objectives)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            search_study.settle(study, folder, options.objectives)
            try:
                self._search(study, space, folder, options, launcher)
            finally:
                search_study.write_front(study, space, folder, options.objectives)
            _log_front(study, options)

    def _search(self, study: Study, space: Space, folder: Path, options: SearchOptions, launcher: Launcher) -> None:
        from resnet8_quant.sweep.search_study import jobs_run

        if done := jobs_run(study):
            log.info("search: %d of %d jobs are there already", done, options.n_trials)
        while (missing := options.n_trials - jobs_run(study)) > 0:
            batch = self._batch(study, space, min(missing, options.n_jobs), options.seed)
            if batch:
                _launch(study, batch, folder, options.objectives, launcher)
            else:
                log.warning("search: it ends early: no proposal that was not known already, or refused")
                return

    def _batch(self, study: Study, space: Space, size: int, seed: int) -> list[tuple[Trial, list[str]]]:
        """Up to ``size`` trials that need a job, with their overrides; fewer where the sampler has no new idea.

        First those that an earlier process began.
        """
        from resnet8_quant.errors import ExperimentError
        from resnet8_quant.sweep.digest import digest_of
        from resnet8_quant.sweep.search_study import Known, interrupted, propose

        batch: list[tuple[Trial, list[str]]] = []
        known = Known(study)
        idle, near = known.idle, known.near
        begun = interrupted(study)
        while len(batch) < size and idle < PATIENCE:
            trial = begun.pop(0) if begun else propose(study, space, seed, known, near)
            if trial is None:
                break
            overrides = space.overrides(trial.params)
            try:
                needed = known.needs_job(trial, overrides, known.digest(trial) or digest_of(self._checked(overrides)))
            except ExperimentError as error:
                log.info("search: refused %s: %s", " ".join(overrides), error.problem)
                known.refuse(trial, overrides, error.problem)
                needed = False
            if needed:
                batch.append((trial, overrides))
            idle, near = (0, None) if needed else (idle + 1, trial.params)
        return batch

    def job_config(self, overrides: Sequence[str]) -> Config:
        """The config of a job with these overrides."""
        from resnet8_quant.sweep.grid import compose_job

        return compose_job(self.config, overrides, self.loader)

    def _checked(self, overrides: Sequence[str]) -> Config:
        """The config of a job that can run.

        Raises:
            ExperimentError: no run can do what the overrides say.
        """
        from resnet8_quant.validation import validate

        config = self.job_config(overrides)
        validate(config)
        return config

    def check_inputs(self, space: Space, options: SearchOptions) -> None:
        """Stop before the first job what would fail in all.

        Raises:
            ExperimentError: no data, no model, no such layer, no latency to go by, or no tracker.
        """
        from resnet8_quant.errors import ExperimentError
        from resnet8_quant.files import cache_folder
        from resnet8_quant.inputs.dataset import load_dataset
        from resnet8_quant.inputs.model import load_model
        from resnet8_quant.quantizer.plan import layer_nodes
        from resnet8_quant.tracking import connect

        config = self.job_config(space.fixed)
        connect(config.tracking)
        searched = {name.lstrip("+").partition(".")[0] for name in space.parameters}
        for name in options.objectives:
            if "latency" in name and "latency" not in searched and config.latency.runs == 0:
                raise ExperimentError(
                    f"a search goes by `{name}`, but latency.runs is 0: no job measures it", "latency.runs=300"
                )
        if searched & {"data", "model"}:
            return
        cache = cache_folder(config.cache_dir)
        data = load_dataset(config.data, cache)
        height, width, channels = data.test.images.shape[1:]
        model = load_model(config.model, (height, width, channels), data.classes, cache)
        names = [node.output[0] for node in layer_nodes(model.proto().graph)]
        for pattern in space.layer_patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ExperimentError(
                    f"the search names {pattern!r} in quant.layers, which matches no layer of model={model.name}; it "
                    f"has {', '.join(names)}",
                    "a file conf/experiment/NAME.yaml like search.yaml with patterns of this model, experiment=NAME",
                )


def _launch(
    study: Study,
    batch: Sequence[tuple[Trial, list[str]]],
    folder: Path,
    objectives: tuple[str, str],
    launcher: Launcher,
) -> None:
    """Run a batch, and close its trials with what the jobs wrote; a job that wrote nothing failed."""
    from resnet8_quant.sweep.search_study import job_folder, read_row, tell

    first = _next_job(folder)
    for job, (trial, _) in enumerate(batch, first):
        trial.set_user_attr("job", job)
        trial.set_user_attr("starts", trial.user_attrs.get("starts", 0) + 1)
    try:
        launcher.launch([overrides for _, overrides in batch], initial_job_idx=first)
    except Exception as error:
        if not any(job_folder(folder, trial) for trial, _ in batch):
            raise  # nothing started: the launcher itself does not work
        log.error("search: the launcher stopped: %s: %s", type(error).__name__, error)
    for trial, _ in batch:
        place = job_folder(folder, trial)
        if place is not None:  # one that an earlier process made has its number
            trial.set_user_attr("job", int(place.name.partition("_")[0]))
        problem = tell(study, trial, read_row(place), objectives)
        if problem is not None:
            log.warning("search: job %d failed: %s", trial.user_attrs["job"], problem)


def _next_job(folder: Path) -> int:
    """One more than the highest number of a job's folder."""
    numbers = (int(match[1]) for path in folder.iterdir() if (match := NUMBERED.match(path.name)))
    return 1 + max(numbers, default=-1)


def _log_front(study: Study, options: SearchOptions) -> None:
    """The trials that no other beats, on the terminal and in the log."""
    from resnet8_quant.sweep.search_study import PARETO, front

    best = front(study)
    log.info("search: no other is better in both of %s and %s, see %s:", *options.objectives, PARETO)
    for trial in best:
        values = (f"{name} {value:.6g}" for name, value in zip(options.objectives, trial.values, strict=True))
        chosen = " ".join(f"{name}={value}" for name, value in trial.params.items())
        log.info("  job %d: %s: %s", trial.user_attrs["job"], ", ".join(values), chosen)
