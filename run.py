"""Quantize a model and measure what that costs: ``python run.py quant=int8``; ``python run.py --help`` says the rest.

Composes the config, runs one experiment per job, and turns every error that a user can fix into a sentence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.compose import explain, register, to_config
from resnet8_quant.terminal import show_error


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(composed: DictConfig) -> None:
    """One run: alone, or as a job of a sweep, where a failure becomes a row and the other jobs go on."""
    from resnet8_quant.sweep.job import run_alone, run_in_sweep

    context = HydraConfig.get()
    words = list(context.overrides.task)
    folder = Path(context.runtime.output_dir)
    if context.mode == RunMode.MULTIRUN:
        run_in_sweep(to_config(composed, words), folder, words)
        return
    try:
        run_alone(to_config(composed, words), folder, words)
    except ExperimentError as error:
        show_error(error)
        sys.exit(1)


def main() -> int:
    """Exit code: 0, or 1 after an error."""
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions over instead of printing them
    register()
    try:
        job()
    except Exception as error:
        known = error if isinstance(error, ExperimentError) else explain(error)
        if known is None or asked_for_traceback:
            raise
        show_error(known)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
