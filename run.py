"""Quantize a model and measure what that costs: ``python run.py quant=int8``; ``python run.py --help`` says the rest.

Composes the config, runs one experiment per job, and turns every error that a user can fix into a sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.compose import register, to_config
from resnet8_quant.sweep.grid import register_sweeps
from resnet8_quant.terminal import show_error


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(composed: DictConfig) -> None:
    """One run: alone, or as a job of a sweep, where a failure becomes a row and the other jobs go on."""
    from resnet8_quant.sweep.job import run_alone, start_job

    context = HydraConfig.get()
    if context.mode == RunMode.MULTIRUN:
        start_job(composed, context)
        return
    overrides = list(context.overrides.task)
    try:
        run_alone(to_config(composed, overrides), Path(context.runtime.output_dir), overrides)
    except ExperimentError as error:
        show_error(error)
        sys.exit(1)


def main() -> int:
    """Exit code: 0, or 1 after an error."""
    from resnet8_quant.sweep.ending import run_to_the_end

    register()
    register_sweeps()
    return run_to_the_end(job)


if __name__ == "__main__":
    sys.exit(main())
