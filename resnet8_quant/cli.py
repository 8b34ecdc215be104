"""The command line: ``resnet8-quant quant=int8``, the same as ``python run.py quant=int8``, and the other commands.

``resnet8-quant summary|report|profile ...`` are ``python -m resnet8_quant.summary`` and so on. Composes the config,
runs one experiment per job, and turns every error that a user can fix into a sentence.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from resnet8_quant import __version__
from resnet8_quant.errors import COMMAND, ExperimentError, shown_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

TOOLS = ("summary", "report", "profile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--version"]:
        print(f"resnet8-quant {__version__}")
        return 0
    if arguments and arguments[0] in TOOLS:
        return int(importlib.import_module(f"resnet8_quant.{arguments[0]}").main(arguments[1:]))
    return _help(arguments) if {"--help", "-h"} & set(arguments) else _run()


def _help(arguments: Sequence[str]) -> int:
    """Print the help, without the time that Hydra takes."""
    from resnet8_quant.config_reference import help_text
    from resnet8_quant.options import CONF
    from resnet8_quant.terminal import exit_code, show

    folders = [Path(word) for flag, word in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    return exit_code(lambda: show(help_text(shown_command(), (CONF, *folders)).rstrip()))


def _run() -> int:
    import hydra

    from resnet8_quant.options import CONF
    from resnet8_quant.sweep.compose import register
    from resnet8_quant.sweep.ending import run_to_the_end
    from resnet8_quant.sweep.grid import register_sweeps

    register()
    register_sweeps()
    return run_to_the_end(hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job))


def job(composed: DictConfig) -> None:
    """One run: alone, or as a job of a sweep, where a failure becomes a row and the other jobs go on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from resnet8_quant.sweep.compose import to_config
    from resnet8_quant.sweep.job import run_alone, start_job
    from resnet8_quant.terminal import show_error

    context = HydraConfig.get()
    if context.mode == RunMode.MULTIRUN:
        start_job(composed, context)
        return
    overrides = list(context.overrides.task)
    try:
        run_alone(to_config(composed, overrides), Path(context.runtime.output_dir), overrides)
    except ExperimentError as error:
        show_error(completed(error, overrides))
        sys.exit(1)


def completed(error: ExperimentError, overrides: Sequence[str]) -> ExperimentError:
    """The error with a remedy that repeats what else was typed, so that it can be typed as it is.

    Args:
        error: a remedy of overrides, with or without the command, is completed; any other stays.
        overrides: of the command line; those that the remedy sets are replaced.
    """
    try:
        typed = shlex.split(error.remedy.removeprefix(f"{COMMAND} "))
    except ValueError:  # a sentence with an apostrophe
        return error
    if not all("=" in word and not word.endswith(",") for word in typed):
        return error
    merged = {word.partition("=")[0].lstrip("+"): word for word in (*overrides, *typed)}
    return ExperimentError(error.problem, f"{COMMAND} {shlex.join(merged.values())}")
