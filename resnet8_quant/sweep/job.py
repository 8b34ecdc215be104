"""One job, alone or in a sweep: run it, show it, and decide what a failure means.

In: a checked config and an output folder, or a job of a sweep as Hydra hands it over in whatever process its launcher
chose. Out: the run's table, or a failed row. run.log ends with what the numbers are worth.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet8_quant import results, terminal
from resnet8_quant.config import Analysis, Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import folders, launchers, plan
from resnet8_quant.sweep.folders import Task

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

OUTPUTS = (results.FILE_NAME, "model.onnx", "model.tflite", "model.cc", "c/model.c", "per_class.csv", "run.json")

log = logging.getLogger(__name__)

_watching = False


def run_alone(config: Config, folder: Path, overrides: Sequence[str]) -> None:
    """Run and show the table, what the difference is worth, advice, and the paths."""
    from resnet8_quant.experiment import failed_row, run_experiment
    from resnet8_quant.tracking import connect, track

    command = shlex.join(overrides)
    if config.resume is not None:
        raise ExperimentError(
            f"`resume` is {config.resume}, but a single run has nothing to resume",
            "leave it out, or resume a sweep: python run.py -m quant=int8,uint8 resume=true",
        )
    connect(config.tracking)
    try:
        result = run_experiment(config, folder, command)
    except Exception as error:
        terminal.log_to_file(log, f"failed: {error}")
        track(config, folder, failed_row(config, error, command))
        raise
    track(config, folder, result)
    lines = ["", *terminal.final_lines(result)]
    terminal.log_to_file(log, "\n".join(lines))
    if config.analyze is Analysis.layers:
        from resnet8_quant.sensitivity import lines_of

        analysis = lines_of(folder, config, command)
        terminal.log_to_file(log, "\n".join(analysis))
        lines += ["", *analysis, ""]
    outputs = [*OUTPUTS, *(results.ANALYSIS_FILES if config.analyze is Analysis.layers else ())]
    written = [f"  {terminal.shown(folder / name)}" for name in outputs if (folder / name).exists()]
    terminal.show("\n".join([*lines, "Written to", *written]))


def start_job(composed: DictConfig, context: HydraConf) -> None:
    """Run one job of a sweep as Hydra hands it over: its config, and Hydra's own."""
    from omegaconf import OmegaConf

    from resnet8_quant.sweep.compose import to_config
    from resnet8_quant.sweep.grid import typed_overrides

    overrides = plan.command_overrides(typed_overrides(context.overrides.task))
    sweep = Path(str(context.sweep.dir))
    started = plan.read_plan(sweep) or plan.Plan(overrides, None, 0)
    if str(context.launcher["_target_"]).endswith("JoblibLauncher"):
        _end_with(started.pid)
    config: Config | ExperimentError
    try:
        config = to_config(composed, overrides)
    except ExperimentError as error:
        config = error
    job_logging: Any = OmegaConf.to_container(context.job_logging, resolve=True)
    if context.verbose is True:
        job_logging["root"] = {**job_logging.get("root", {}), "level": "DEBUG"}
    folder = Path(context.runtime.output_dir)
    task = Task(config, sweep, started, folder, overrides, int(context.job.num), job_logging)
    if launchers.parallel(context.launcher):
        from resnet8_quant.sweep.isolation import run_isolated

        run_isolated(task)
    else:
        run_in_sweep(task)


def run_in_sweep(task: Task) -> None:
    """Run what has not run; on failure log the reason and write a row that says so, so that the sweep goes on."""
    from resnet8_quant.experiment import run_experiment
    from resnet8_quant.sweep.digest import digest_of
    from resnet8_quant.tracking import track

    try:
        if isinstance(task.config, ExperimentError):
            folders.begin(task, None)
            raise task.config
        config = dataclasses.replace(task.config, resume=None)
        with folders.claim(task, digest_of(config)) as reason:
            if reason is not None:
                log.info(reason)
                return
            if task.plan.threads and not config.evaluation.threads:
                evaluation = dataclasses.replace(config.evaluation, threads=task.plan.threads)
                config = dataclasses.replace(config, evaluation=evaluation)
                log.info("threads: %d, this job's share of the cores", task.plan.threads)
            try:
                result = run_experiment(config, task.folder, shlex.join(task.overrides))
            except Exception as error:  # the row is written before an equal job may look for it
                write_failure(task, error)
                return
    except Exception as error:
        write_failure(task, error)
        return
    terminal.log_to_file(log, "\n".join(["", *terminal.final_lines(result)]))
    track(task.config, task.folder, result)


def write_failure(task: Task, error: Exception) -> None:
    """Log why a job failed, and write its row."""
    if isinstance(error, ExperimentError):
        log.error("failed: %s", error)
    else:
        log.error("failed", exc_info=error)
    overrides = shlex.join(task.overrides)
    try:
        if isinstance(task.config, Config):
            from resnet8_quant.experiment import failed_row
            from resnet8_quant.tracking import track

            result = failed_row(task.config, error, overrides)
            results.write(result, task.folder)
            track(task.config, task.folder, result)
        else:
            problem = " ".join(str(getattr(error, "problem", error)).split())
            results.write(RunResult(status="failed", error=problem, overrides=overrides or None), task.folder)
    except ExperimentError as full:  # the summary lists a job that left no row as failed
        log.error("the row cannot be written either: %s", full)


def _end_with(sweep_process: int) -> None:
    """Make this worker of joblib end when the sweep is killed; joblib itself would let it wait for five more minutes.

    Such a worker also starts none of the jobs that wait in its queue: a resumed sweep runs them.
    """

    def watch() -> None:
        while os.getppid() == sweep_process:
            time.sleep(0.5)
        os._exit(1)

    global _watching
    if sweep_process in (os.getpid(), os.getppid()):
        if sweep_process == os.getppid() and not _watching:
            _watching = True
            threading.Thread(target=watch, daemon=True).start()
    else:
        os._exit(1)
