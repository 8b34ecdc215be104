"""The Hydra callback of a sweep: nothing starts that cannot work, and the summary is written whatever failed.

In: Hydra's events. Out: sweep.json before the first job; summary.csv, summary.md and a table on the terminal after the
last one; exit code 1 when a job failed.
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

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep import launchers, plan

if TYPE_CHECKING:
    from resnet8_quant.sweep.watch import Watch

log = logging.getLogger(__name__)


@dataclass
class Running:
    """The sweep that this process conducts; workers have none."""

    folder: Path
    columns: tuple[str, ...]
    plots: bool
    jobs: int | None
    watch: Watch
    cancel: Callable[[], None]
    resources: ExitStack


_running: Running | None = None
_restarted: Path | None = None  # the folder of a sweep whose worker was killed; its next start goes on there


class SweepCallback(Callback):
    """Before the first job: would every job fail? After the last: the summary.

    SystemExit is the only exception that Hydra lets out of a callback.
    """

    def __init__(self, columns: Sequence[str], plots: bool = False) -> None:
        """Keep what the summary is to show.

        Args:
            columns: of the table, see sweep/summary.py.
            plots: whether the report's plots are also drawn as PNG and SVG files.
        """
        self.columns = tuple(columns)
        self.plots = plots

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from resnet8_quant.sweep.compose import explain
        from resnet8_quant.terminal import show_error

        try:
            _start(config, self.columns, self.plots)
        except Exception as error:
            known = error if isinstance(error, ExperimentError) else explain(error)
            if known is None:
                log.exception("the sweep cannot start")
            else:
                show_error(known)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from resnet8_quant.terminal import show_error

        try:
            failed = conclude()
        except ExperimentError as error:
            show_error(error)
            sys.exit(1)
        if failed:
            sys.exit(1)


def conclude(*, interrupted: bool = False) -> int | None:
    """End the sweep that this process conducts: cancel what runs in a queue, and write the summary.

    Args:
        interrupted: jobs that did not start are then not listed as failed.

    Returns:
        How many jobs failed; None where there is no sweep.

    Raises:
        ExperimentError: the summary cannot be written.
    """
    global _running
    if _running is None:
        return None
    from resnet8_quant.sweep.ledger import retire
    from resnet8_quant.sweep.summary import summarize

    sweep, _running = _running, None
    try:
        sweep.watch.stop()
        if interrupted:
            sweep.cancel()
        elif (jobs := sweep.jobs) is not None:
            retire(sweep.folder, lambda number, name: number >= jobs)
        return summarize(sweep.folder, sweep.columns, None if interrupted else sweep.jobs, plots=sweep.plots)
    finally:
        sweep.resources.close()


def abandon() -> Path | None:
    """Let go of the sweep without a summary; its next start in this process goes on where it is. None: no sweep."""
    global _running, _restarted
    if _running is None:
        return None
    sweep, _running = _running, None
    sweep.watch.stop()
    sweep.resources.close()
    _restarted = sweep.folder
    return sweep.folder


def _start(config: DictConfig, columns: tuple[str, ...], plots: bool) -> None:
    """Check what can be checked, find the folder, and write down what the workers need to know."""
    global _running, _restarted
    from resnet8_quant.files import claimed
    from resnet8_quant.sweep.compose import check_subdir, compose_once, typed_words
    from resnet8_quant.sweep.ledger import left_by_another_grid, rebuild_index
    from resnet8_quant.sweep.summary import check_columns
    from resnet8_quant.sweep.watch import Watch

    check_columns(columns)
    check_subdir(config)
    launchers.check_numbers(config.hydra)
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert isinstance(launcher, dict)
    fields = {str(name): value for name, value in launcher.items()}
    words, hydra_words = typed_words(config.hydra.overrides.task), typed_words(config.hydra.overrides.hydra)
    resume = plan.asked_to_resume(words)
    command = plan.command_words([*words, *hydra_words])
    explicit = any(word.lstrip("+").startswith(plan.FOLDER) and "${" not in word for word in hydra_words)
    wanted = Path(str(config.hydra.sweep.dir)).absolute()
    again, _restarted = _restarted, None
    existing = again
    if existing is None and resume is not None:
        existing = plan.folder_to_resume(resume, command, wanted, explicit)

    planned, most = _check_jobs(config)
    jobs = None if planned is None else len(planned)
    if (held := existing or (wanted if explicit else None)) is not None:
        plan.check_kind(held, search=jobs is None)
    if existing is None and explicit and jobs is None:
        existing = wanted  # a search continues what its folder holds by itself
    folder = existing or plan.new_folder(wanted, explicit)
    share = launchers.share(fields, jobs)
    with ExitStack() as resources:
        resources.enter_context(claimed(folder))
        rebuild_index(folder)
        left = left_by_another_grid(folder, [plan.command_words(job) for job in planned or ()])
        started = plan.Plan(command, jobs, share.threads, retry_failed=again is None, pid=os.getpid(), left=left)
        plan.write_plan(started, folder)
        _fix(config, folder, launchers.batch_size(fields, jobs))
        cancel = resources.enter_context(launchers.steady_submitit(fields, folder))
        if launchers.parallel(fields):
            log.info("%s", share.description)
        elif jobs is not None:
            compose_once()
        watch = Watch(folder, most, again=started.retry_failed and jobs is not None)
        _running = Running(folder, columns, plots, jobs, watch, cancel, resources.pop_all())


def _check_jobs(config: DictConfig) -> tuple[list[list[str]] | None, int | None]:
    """The words of each job, None where the sweeper decides as it goes; and how many there are at most, if known.

    Raises:
        ExperimentError: none of the jobs can run. What stops only some of them becomes their row.
    """
    from resnet8_quant.experiment import prepare
    from resnet8_quant.sweep.compose import grid
    from resnet8_quant.sweep.search import check_search
    from resnet8_quant.tracking import connect

    planned = grid(config)
    if planned is None:
        return None, check_search(config)
    first: ExperimentError | None = None
    for job in planned[1]:
        try:
            if isinstance(job, ExperimentError):
                raise job
            prepare(job)
            connect(job.tracking)
            return planned[0], len(planned[0])
        except ExperimentError as error:
            first = first or error
    assert first is not None
    raise first


def _fix(config: DictConfig, folder: Path, batch_size: int | None) -> None:
    """Tell Hydra the folder; a job's config is composed anew from the words, so that it must be among them."""
    from resnet8_quant.sweep.compose import typed_words

    words = [word for word in typed_words(config.hydra.overrides.hydra) if not word.startswith(plan.FOLDER)]
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra = [*words, f'{plan.FOLDER}"{folder}"']
        config.hydra.sweep.dir = str(folder)
        if batch_size is not None and "max_batch_size" in config.hydra.sweeper:
            config.hydra.sweeper.max_batch_size = config.hydra.sweeper.max_batch_size or batch_size


def running_folder() -> Path | None:
    """The folder of the sweep that this process conducts."""
    return None if _running is None else _running.folder
