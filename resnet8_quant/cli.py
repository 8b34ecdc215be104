"""The command line: ``resnet8-quant quant=int8``, the same as ``python run.py quant=int8``, and the other commands.

``resnet8-quant summary|report|profile|compare|sensitivity ...`` are ``python run.py summary ...`` and so on. Here it is
decided which command was typed; sweep/ending.py runs experiments.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from resnet8_quant import __version__
from resnet8_quant.errors import COMMANDS, ExperimentError, shown_command
from resnet8_quant.terminal import exit_code, show, show_error

MODULES = {"compare": "comparison"}  # of commands whose name a function of the package has


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        os.getcwd()
    except FileNotFoundError:
        show_error(ExperimentError("the folder in which this was started no longer exists", "cd FOLDER"))
        return 1
    if arguments[:1] == ["--version"]:
        show(f"resnet8-quant {__version__}")
        return 0
    if arguments and arguments[0] in COMMANDS:
        module = MODULES.get(arguments[0], arguments[0])
        return int(importlib.import_module(f"resnet8_quant.{module}").main(arguments[1:]))
    if {"--help", "-h"} & set(arguments):
        return _help(arguments)
    from resnet8_quant.sweep.ending import run

    return run()


def _help(arguments: Sequence[str]) -> int:
    """Print the help, without the time that Hydra takes."""
    from resnet8_quant.config_reference import help_text
    from resnet8_quant.options import CONF

    folders = [Path(word) for flag, word in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    return exit_code(lambda: show(help_text(shown_command(), (CONF, *folders)).rstrip()))
