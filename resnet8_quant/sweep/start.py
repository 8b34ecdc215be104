"""A job of a sweep as Hydra hands it over, in whatever process its launcher chose.

In: the composed config and Hydra's own. Out: the job is done, here or, under a launcher that runs jobs side by side, in
a process that may crash without taking the worker along.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep import launchers, plan
from resnet8_quant.sweep.compose import to_config, typed_words
from resnet8_quant.sweep.isolation import Task, run_isolated
from resnet8_quant.sweep.ledger import Place

_watching = False


def start_job(composed: DictConfig, context: HydraConf) -> None:
    """Run one job of a sweep.

    Args:
        composed: the job's config, without the node `hydra`.
        context: Hydra's config of the job.

    Raises:
        ExperimentError: the sweep's folder cannot be written to.
    """
    words = plan.command_words(typed_words(context.overrides.task))
    sweep = Path(str(context.sweep.dir))
    started = plan.read_plan(sweep) or plan.Plan(words, None, 0)
    _end_with_the_sweep(context, started)
    place = Place(sweep, started, Path(context.runtime.output_dir), words, int(context.job.num))
    config: Config | ExperimentError
    try:
        config = to_config(composed, words)
    except ExperimentError as error:
        config = error
    job_logging = OmegaConf.to_container(context.job_logging, resolve=True)
    assert isinstance(job_logging, dict)
    if context.verbose is True:
        job_logging["root"] = {**job_logging.get("root", {}), "level": "DEBUG"}
    task = Task(config, place, {str(name): value for name, value in job_logging.items()})
    if launchers.parallel(context.launcher):
        run_isolated(task)
        return
    from resnet8_quant.sweep.job import run_in_sweep

    run_in_sweep(task)


def _end_with_the_sweep(context: HydraConf, started: plan.Plan) -> None:
    """Make this worker of joblib end when the sweep is killed; joblib itself would let it wait for five more minutes.

    Such a worker also starts none of the jobs that wait in its queue: a resumed sweep runs them.
    """
    global _watching
    if not str(context.launcher["_target_"]).endswith("JoblibLauncher") or started.pid == os.getpid():
        return
    if started.pid != os.getppid():
        os._exit(1)
    if not _watching:
        _watching = True
        threading.Thread(target=_watch, args=(started.pid,), daemon=True).start()


def _watch(conductor: int) -> None:
    while os.getppid() == conductor:
        time.sleep(0.5)
    os._exit(1)
