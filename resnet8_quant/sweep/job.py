"""One job, alone or in a sweep: run it, show it, and decide what a failure means.

In: a checked config, an output folder, the words of the command line. Out: the run's table, or a failed row.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from resnet8_quant import results, terminal
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.advice import advise
from resnet8_quant.experiment import failed_row, run_experiment

OUTPUTS = (results.FILE_NAME, "model.onnx", "per_class.csv", "run.json")

log = logging.getLogger(__name__)


def run_alone(config: Config, folder: Path, words: Sequence[str]) -> None:
    """Run and show the table, what the difference is worth, advice, and the paths."""
    result = run_experiment(config, folder, shlex.join(words))
    sentences = [*terminal.verdict(result), *advise(result)]
    lines = ["", terminal.run_table(result), "", *map(terminal.wrapped, sentences), "Written to"]
    lines += [f"  {terminal.shown(folder / name)}" for name in OUTPUTS]
    terminal.show("\n".join(lines))


def run_in_sweep(config: Config, folder: Path, words: Sequence[str]) -> None:
    """Run; on failure log the reason and write a row that says so, so that the sweep goes on."""
    overrides = shlex.join(words)
    try:
        result = run_experiment(config, folder, overrides)
    except Exception as error:
        if isinstance(error, ExperimentError):
            log.error("failed: %s", error)
        else:
            log.exception("failed")
        results.write(failed_row(config, error, overrides), folder)
        return
    change = "" if result.calibration_method is None else f" ({terminal.points(result.accuracy_delta)})"
    log.info("%s: %s%s", result.quant_type, terminal.percent(result.accuracy), change)
    for sentence in advise(result):
        log.info("%s", sentence)
