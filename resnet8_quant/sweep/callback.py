"""The Hydra callback of a sweep: nothing starts that cannot work, and the summary is written whatever failed.

In: Hydra's events. Out: sweep.json before the first job; summary.csv, summary.md, report.html and a table on the
terminal after the last one; exit code 1 when a job failed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import claimed, refuse_pipe
from resnet8_quant.sweep import grid, launchers, plan
from resnet8_quant.sweep.compose import explain
from resnet8_quant.sweep.folders import JOBS
from resnet8_quant.sweep.plan import Plan
from resnet8_quant.sweep.watch import Tally, Watch
from resnet8_quant.terminal import show_error

if TYPE_CHECKING:
    from resnet8_quant.config import Config
    from resnet8_quant.experiment import Prepared

log = logging.getLogger(__name__)


@dataclass
class Running:
    """The sweep that this process runs; workers have none."""

    folder: Path
    plan: Plan
    callback: SweepCallback
    watch: Watch
    cancel: Callable[[], None]
    resources: ExitStack

    def release(self) -> None:
        """Let go of the folder and of the launcher."""
        self.watch.stop()
        self.resources.close()


running: Running | None = None


class SweepCallback(Callback):
    """Before the first job: would every job fail? After the last: the summary.

    SystemExit is the only exception that Hydra lets out of a callback.
    """

    def __init__(self, columns: Sequence[str], plots: bool = False) -> None:
        """Keep the columns of the summary's table, and whether the report's plots are also drawn as files."""
        self.columns, self.plots = tuple(columns), plots

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A single run: Hydra is going to write its settings, and would wait for the reader of a pipe."""
        folder = Path(str(config.hydra.run.dir)) / str(config.hydra.output_subdir)
        self._try(lambda: refuse_pipe(*(folder / f"{name}.yaml" for name in ("config", "hydra", "overrides"))))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._try(lambda: self._start(config))

    def _try(self, start: Callable[[], object]) -> None:
        try:
            start()
        except Exception as error:
            known = explain(error)
            if known is None:
                log.exception("this cannot start")
            else:
                show_error(known)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            failed = finish()
        except Exception:  # Hydra would make a warning of it, and 0 of the exit code
            log.exception("the sweep cannot be summarized")
            sys.exit(1)
        if failed:
            sys.exit(1)

    def _start(self, config: DictConfig) -> None:
        """Check what can be checked, find the folder, and write down what the workers need to know.

        A sweep that is running already had a worker killed: it goes on where it is.
        """
        global running
        from resnet8_quant.sweep.summary import check_columns

        check_columns(self.columns)
        grid.check_subdir(config)
        launchers.check_numbers(config.hydra)
        again = running is not None
        if running is None:
            started, most = _check(config)
            folder = _choose_folder(config, started)
        else:
            started, folder, most = running.plan, running.folder, running.watch.jobs
        launcher, is_grid = config.hydra.launcher, started.jobs is not None
        with ExitStack() as resources:
            resources.enter_context(claimed(folder))
            refuse_pipe(folder / "multirun.yaml")
            plan.write_plan(started, folder)
            if is_grid and not again:  # a search counts its jobs on
                (folder / JOBS).unlink(missing_ok=True)
            _tell_hydra(config, folder, launchers.batch_size(launcher, started.jobs))
            cancel = resources.enter_context(launchers.steady_submitit(launcher, folder))
            if launchers.parallel(launcher):
                log.info("%s", launchers.share(launcher, started.jobs).description)
            watch = Watch(Tally(folder, started.session if is_grid else None), most)
            running = Running(folder, started, self, watch, cancel, resources.pop_all())


def finish(*, interrupted: bool = False) -> int | None:
    """End the sweep that this process runs: write the summary, or say why it cannot be written.

    Where it was ``interrupted``, cancel what waits in a queue; jobs that did not start are not listed as failed.

    Returns:
        How many jobs failed, a summary that cannot be written included; None where there is no sweep.
    """
    global running
    if running is None:
        return None
    from resnet8_quant.sweep.summary import summarize

    sweep, running = running, None
    with sweep.resources:
        try:
            sweep.watch.stop()
            if interrupted:
                sweep.cancel()
            expected = None if interrupted else sweep.plan.jobs
            return summarize(sweep.folder, sweep.callback.columns, expected, plots=sweep.callback.plots)
        except ExperimentError as error:
            show_error(error)
            return 1


def _check(config: DictConfig) -> tuple[Plan, int | None]:
    """What is to be started, and how many jobs there are at most, if known; refuse what no job can run with."""
    from resnet8_quant.sweep.search import check_search

    overrides = grid.typed_overrides(config.hydra.overrides.task)
    plan.asked_to_resume(overrides)
    jobs = grid.read_grid(config)
    launcher = config.hydra.launcher
    if jobs is None:
        count = None
        most, varied = check_search(config)
    else:
        count = most = len(jobs)
        varied = grid.varied_keys(jobs)
        _warn_of_seeds(varied, *grid.check_grid(config, jobs, serial=not launchers.parallel(launcher)))
    threads = launchers.share(launcher, count).threads
    command = plan.command_overrides([*overrides, *grid.typed_overrides(config.hydra.overrides.hydra)])
    return Plan(command, count, threads, varied, pid=os.getpid()), most


def _warn_of_seeds(varied: Sequence[str], config: Config, prepared: Prepared) -> None:
    """Say that a sweep over seeds has equal jobs where calibration takes every image there is."""
    images = len(prepared.data.train.labels)
    everything = prepared.images is not None and len(prepared.images) == images
    if "seed" in varied and everything and config.allocate.max_accuracy_drop is None:
        log.warning(
            "`seed` changes nothing in this sweep: calibration takes all %d training images; with "
            "calibration.samples_per_class=%d it would draw some",
            images,
            max(1, min(config.calibration.samples_per_class, np.bincount(prepared.data.train.labels).max()) // 2),
        )


def _choose_folder(config: DictConfig, started: Plan) -> Path:
    hydra_overrides = grid.typed_overrides(config.hydra.overrides.hydra)
    explicit = any(word.lstrip("+").startswith(plan.FOLDER) and "${" not in word for word in hydra_overrides)
    resume = plan.asked_to_resume(grid.typed_overrides(config.hydra.overrides.task))
    return plan.choose_folder(started, resume, Path(str(config.hydra.sweep.dir)).absolute(), explicit)


def _tell_hydra(config: DictConfig, folder: Path, batch_size: int | None) -> None:
    """Tell Hydra the folder; a job's config is composed anew from the overrides, so that it must be among them."""
    overrides = grid.typed_overrides(config.hydra.overrides.hydra)
    kept = [word for word in overrides if not word.startswith(plan.FOLDER)]
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra = [*kept, f'{plan.FOLDER}"{folder}"']
        config.hydra.sweep.dir = str(folder)
        if batch_size is not None and "max_batch_size" in config.hydra.sweeper:
            config.hydra.sweeper.max_batch_size = config.hydra.sweeper.max_batch_size or batch_size
