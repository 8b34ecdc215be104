"""The README's commands compose and pass the checks, its install commands are the ones that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from resnet8_quant.results import COLUMNS
from resnet8_quant.sweep.compose import register, to_config
from resnet8_quant.validation import validate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
RUNS = [command.partition("run.py")[2] for command in COMMANDS if "run.py" in command and "--help" not in command]


def test_there_are_recipes() -> None:
    assert len(RUNS) > 8


@pytest.mark.parametrize("words", RUNS)
def test_a_run_of_the_readme_passes_the_checks(words: str) -> None:
    register()
    overrides = [word for word in shlex.split(words) if word != "-m"]
    pairs = [word.partition("=") for word in overrides]
    first = [f"{key}={value if '[' in value else value.split(',')[0]}" for key, _, value in pairs]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        validate(to_config(compose("config", overrides=first), first))


def test_ci_runs_exactly_the_two_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    installs = [command for command in COMMANDS if command.startswith("pip install")]
    assert len(installs) == 2
    for command in installs:
        assert command in ci


def test_the_columns_that_the_readme_names_exist() -> None:
    for name in ("mcnemar_p", "kernels"):
        assert name in README
        assert name in COLUMNS


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target.strip()).exists(), target


def test_constraints_are_exact_and_name_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
