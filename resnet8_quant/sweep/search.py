"""A search in place of a grid: more accuracy for fewer bytes or microseconds, job by job, by Optuna's ask and tell.

In: `hydra/sweeper=optuna` with its fields (conf/hydra/sweeper/optuna.yaml), overrides of the command line, and each
job's results.csv. Out: job folders as of any sweep; in its folder search.db, which a later call continues, and
pareto.csv.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.folders import NUMBERED
from resnet8_quant.sweep.grid import compose_job, typed_overrides
from resnet8_quant.sweep.search_study import PARETO, SearchStudy, readable, require_optuna

if TYPE_CHECKING:
    from optuna.trial import Trial

PATIENCE = 50  # proposals in a row that need no job, before the search ends

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
    """What is searched, and Hydra's config and loader, which compose each job."""

    def __init__(self, config: DictConfig, loader: ConfigLoader) -> None:
        """Read the options and the space of a search."""
        require_optuna()
        from resnet8_quant.sweep.search_space import read_options, read_space

        fields = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        assert isinstance(fields, dict)
        self.config, self.loader = config, loader
        self.options = read_options({str(name): value for name, value in fields.items()})
        self.space = read_space(self.options.params, typed_overrides(config.hydra.overrides.task), loader)

    def run(self, launcher: Launcher) -> None:
        """Propose, launch and judge jobs until there are ``n_trials``."""
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with readable(folder):
            study = SearchStudy(folder, self.space, self.options)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            study.settle()
            try:
                self._run_missing(study, launcher)
            finally:
                study.write_front()
            _log_front(study)

    def _run_missing(self, study: SearchStudy, launcher: Launcher) -> None:
        if done := study.jobs_run():
            log.info("search: %d of %d jobs are there already", done, self.options.n_trials)
        while (missing := self.options.n_trials - study.jobs_run()) > 0:
            batch = self._batch(study, min(missing, self.options.n_jobs))
            if not batch:
                log.warning("search: it ends early: no proposal that was not known already, or refused")
                return
            _launch(study, batch, launcher)

    def _batch(self, study: SearchStudy, size: int) -> list[tuple[Trial, list[str]]]:
        """Up to ``size`` trials that need a job, with their overrides; fewer where the sampler has no new idea.

        First those that an earlier process began.
        """
        from resnet8_quant.sweep.digest import digest_of
        from resnet8_quant.validation import validate

        batch: list[tuple[Trial, list[str]]] = []
        begun = study.interrupted()
        while len(batch) < size and len(study.idle()) < PATIENCE:
            trial = begun.pop(0) if begun else study.propose()
            if trial is None:
                break
            overrides = self.space.overrides(trial.params)
            trial.set_user_attr("overrides", overrides)
            try:
                digest = study.known_digest(trial)
                if digest is None:
                    config = compose_job(self.config, overrides, self.loader)
                    validate(config)
                    digest = digest_of(config)
            except ExperimentError as error:
                log.info("search: refused %s: %s", " ".join(overrides), error.problem)
                study.tell(trial, error.problem)
                continue
            if study.needs_job(trial, digest):
                batch.append((trial, overrides))
        return batch

    def check_inputs(self) -> None:
        """Refuse what would fail in all jobs: no data, no model, no such layer, no latency to go by, no tracker."""
        from resnet8_quant.files import cache_folder
        from resnet8_quant.inputs.dataset import load_dataset
        from resnet8_quant.inputs.model import load_model
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
        data = load_dataset(config.data, cache)
        height, width, channels = data.test.images.shape[1:]
        model = load_model(config.model, (height, width, channels), data.classes, cache)
        names = [node.output[0] for node in layer_nodes(model.proto().graph)]
        for pattern in self.space.layer_patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ExperimentError(
                    f"the search names {pattern!r} in quant.layers, which matches no layer of model={model.name}; it "
                    f"has {', '.join(names)}",
                    "a file conf/experiment/NAME.yaml like search.yaml with patterns of this model, experiment=NAME",
                )


def _launch(study: SearchStudy, batch: Sequence[tuple[Trial, list[str]]], launcher: Launcher) -> None:
    """Run a batch, and close its trials with what the jobs wrote; a job that wrote nothing failed."""
    numbers = (int(match[1]) for path in study.folder.iterdir() if (match := NUMBERED.match(path.name)))
    first = 1 + max(numbers, default=-1)
    for job, (trial, _) in enumerate(batch, first):
        trial.set_user_attr("job", job)
        trial.set_user_attr("starts", trial.user_attrs.get("starts", 0) + 1)
    try:
        launcher.launch([overrides for _, overrides in batch], initial_job_idx=first)
    except Exception as error:
        if not any(study.job_folder(trial) for trial, _ in batch):
            raise  # nothing started: the launcher itself does not work
        log.error("search: the launcher stopped: %s: %s", type(error).__name__, error)
    for trial, _ in batch:
        place = study.job_folder(trial)
        if place is not None:  # one that an earlier process made has its number
            trial.set_user_attr("job", int(place.name.partition("_")[0]))
        problem = study.tell(trial, study.read_row(trial))
        if problem is not None:
            log.warning("search: job %d failed: %s", trial.user_attrs["job"], problem)


def _log_front(study: SearchStudy) -> None:
    """The trials that no other beats, on the terminal and in the log."""
    objectives = study.options.objectives
    log.info("search: no other is better in both of %s and %s, see %s:", *objectives, PARETO)
    for trial in study.front():
        values = (f"{name} {value:.6g}" for name, value in zip(objectives, trial.values, strict=True))
        chosen = " ".join(f"{name}={value}" for name, value in trial.params.items())
        log.info("  job %d: %s: %s", trial.user_attrs["job"], ", ".join(values), chosen)
