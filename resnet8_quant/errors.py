"""The one error that a user is meant to see."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

COMMAND = "python run.py"  # in remedies; ``shown_command`` is what it is called here
COMMANDS = (
    "summary",
    "report",
    "profile",
    "compare",
    "sensitivity",
)  # the others: python -m resnet8_quant.summary, or python run.py summary


class ExperimentError(Exception):
    """Something that the user can fix.

    Args:
        problem: what is wrong: the field or file, the value found and the valid choices.
        remedy: what to do next, a command to type where there is one.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # both in args, so that it pickles across workers
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.remedy}"


def missing_extra(package: str, extra: str) -> ExperimentError:
    """The error for an optional dependency that is not installed."""
    checkout = (Path(__file__).parents[1] / "constraints.txt").is_file()
    requirement = f"-c constraints.txt -e '.[{extra}]'" if checkout else f"'resnet8-quant[{extra}]'"
    return ExperimentError(f"the package `{package}` is not installed", f"pip install {requirement}")


def invalid_choice(field: str, value: str, choices: Sequence[str]) -> ExperimentError:
    """The error for a value that is not among ``choices``; the remedy types the most similar one, if one is similar."""
    similar = similar_word(value, choices)
    remedy = f"{COMMAND} {f'{field}={similar}' if similar else '--help'}"
    return ExperimentError(f"`{field}` is {value}; valid are {', '.join(choices)}", remedy)


def similar_word(word: str, choices: Sequence[str]) -> str | None:
    """The choice that ``word`` was probably meant to be: a typing error apart; None where no choice is so close."""
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.6)), None)


def typed_setting(key: str, value: str | int | Sequence[str | int]) -> str:
    """The word of the command line that sets ``key``, with the quotes that Hydra and the shell need.

    Args:
        key: such as data.path.
        value: text, a whole number, or a list of them; text is never read as a number, true or null.
    """
    text = _hydra_value(value) if isinstance(value, str | int) else f"[{','.join(map(_hydra_value, value))}]"
    return shlex.quote(f"{key}={text}")


def _hydra_value(value: str | int) -> str:
    """A value of a string setting in Hydra's grammar: in quotes unless it is a plain word or a whole number."""
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z_/][\w./-]*|0|[1-9][0-9]*", text, re.ASCII)
    if plain and text.lower() not in ("true", "false", "null", "inf", "nan"):
        return text
    # Backslashes count only before a quote, which they escape, and before an interpolation of OmegaConf.
    escaped = re.sub(r'(\\*)("|\$\{|\Z)', lambda at: 2 * at[1] + ("\\" if at[2] else "") + at[2], text)
    return f'"{escaped}"'


def shown_command() -> str:
    """How this program was started: the console command, or run.py."""
    return "resnet8-quant" if Path(sys.argv[0]).stem == "resnet8-quant" else COMMAND


def as_typed_here(text: str) -> str:
    """``text`` with its commands as this program was started, with the user's own folder of option files."""
    command = shown_command()
    if command != COMMAND:
        text = re.sub(r"python -m resnet8_quant\.(summary|report|profile|sensitivity)", rf"{command} \1", text)
    composes = not any(f"{COMMAND} {tool} " in f"{text} " for tool in COMMANDS)
    if composes and "--config-dir" not in text:
        command = " ".join([command, *(f"--config-dir {shlex.quote(str(folder))}" for folder in own_folders())])
    return text.replace(COMMAND, command)


def own_folders() -> list[Path]:
    """The folders of option files that the user has named on the command line."""
    return [Path(word) for flag, word in pairwise(sys.argv) if flag in ("--config-dir", "-cd")]


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
    settings = tuple(f"{word.partition('=')[0]}." for word in typed)  # quant.layers={...} replaces quant.layers.x=...
    kept = [word for word in overrides if not word.lstrip("+").startswith(settings)]
    merged = {word.partition("=")[0].lstrip("+"): word for word in (*kept, *typed)}
    return ExperimentError(error.problem, f"{COMMAND} {shlex.join(merged.values())}")
