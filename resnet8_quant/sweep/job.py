"""One job, alone or in a sweep: run it, show it, and decide what a failure means.

In: a checked config, an output folder, the words of the command line. Out: the run's table, or a failed row.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from resnet8_quant import results, terminal
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.advice import advise
from resnet8_quant.experiment import failed_row, prepare, run_experiment
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import ledger
from resnet8_quant.sweep.digest import digest_of
from resnet8_quant.sweep.isolation import Task
from resnet8_quant.sweep.ledger import Turn
from resnet8_quant.tracking import connect, track

OUTPUTS = (results.FILE_NAME, "model.onnx", "per_class.csv", "run.json")

log = logging.getLogger(__name__)


def run_alone(config: Config, folder: Path, words: Sequence[str]) -> None:
    """Run and show the table, what the difference is worth, advice, and the paths."""
    if config.resume is not None:
        raise ExperimentError(
            f"`resume` is {config.resume}, but a single run has nothing to resume",
            "leave it out, or resume a sweep: python run.py -m quant=int8,uint8 resume=true",
        )
    connect(config.tracking)
    try:
        result = run_experiment(config, folder, shlex.join(words))
    except Exception as error:
        track(config, folder, failed_row(config, error, shlex.join(words)))
        raise
    track(config, folder, result)
    lines = ["", *terminal.final_lines(result)]
    terminal.log_to_file(log, "\n".join(lines))
    lines += ["Written to"]
    lines += [f"  {terminal.shown(folder / name)}" for name in OUTPUTS]
    terminal.show("\n".join(lines))


def run_in_sweep(task: Task) -> None:
    """Run what has not run; on failure log the reason and write a row that says so, so that the sweep goes on."""
    place, overrides = task.place, shlex.join(task.place.words)
    config = task.config if isinstance(task.config, Config) else None
    try:
        if task.crash is not None:
            raise ExperimentError(task.crash, "run it again: resume=true")
        if isinstance(task.config, ExperimentError):
            raise task.config
        result = _once(task, task.config, overrides)
    except Exception as error:
        if not isinstance(error, ExperimentError):
            log.exception("failed")
        elif task.crash is None:  # else the worker has said it
            log.error("failed: %s", error)
        try:
            if config is None:
                problem = " ".join(str(getattr(error, "problem", error)).split())
                results.write(RunResult(status="failed", error=problem, overrides=overrides or None), place.folder)
            else:
                row = failed_row(config, error, overrides)
                results.write(row, place.folder)
                track(config, place.folder, row)
        except ExperimentError as full:  # the summary lists a job that left no row as failed
            log.error("the row cannot be written either: %s", full)
        return
    if result is None or config is None:
        return
    track(config, place.folder, result)
    change = "" if result.calibration_method is None else f" ({terminal.points(result.accuracy_delta)})"
    log.info("%s: %s%s", result.quant_type, terminal.percent(result.accuracy), change)
    for sentence in advise(result):
        log.info("%s", sentence)


def _once(task: Task, config: Config, overrides: str) -> RunResult | None:
    """The result of the job; None where its settings have run or are running."""
    place = task.place
    config = dataclasses.replace(config, resume=None)
    try:
        prepared = prepare(config)
        digest = digest_of(config, prepared)
    except ExperimentError:
        ledger.write_job(place, None)
        raise
    with ledger.turn(place, digest) as (turn, folder):
        if turn is Turn.twin:
            log.info("same settings as %s: not run again", folder)
            return None
        if turn is Turn.finished:
            log.info("finished before: not run again")
            return None
        if place.plan.threads and not config.evaluation.threads:
            evaluation = dataclasses.replace(config.evaluation, threads=place.plan.threads)
            config = dataclasses.replace(config, evaluation=evaluation)
            log.info("threads: %d, this job's share of the cores", place.plan.threads)
        return run_experiment(config, place.folder, overrides, prepared)
