"""The commands, links and names in README and docs/ are true; CI runs README's two install commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from resnet8_quant.errors import COMMANDS
from resnet8_quant.results import COLUMNS
from resnet8_quant.sweep.compose import register, to_config
from resnet8_quant.validation import validate

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]

# A command ends with its line, at a comment, or with the backtick of an inline one; a backslash joins two lines.
BLOCKS = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(python run\.py[^`]*)`")
# The plugin is not among the test requirements.
NOT_INSTALLED = ("hydra/launcher=ray",)


def commands(text: str) -> list[str]:
    """Every ``python run.py ...`` of a page, in code blocks and in sentences, without comments."""
    lines = [line for block in BLOCKS.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(match.split()) for match in INLINE.findall(BLOCKS.sub("", text))]
    statements = [re.split(r"\s#\s|\s#$|&&", line)[0].strip() for line in [*lines, *inline]]
    return [line[line.index("python run.py") :] for line in statements if "python run.py" in line]


NO_EXPERIMENT = (*(f" {command} " for command in COMMANDS), "--help", "--hydra-help", "--cfg", "-sc", "...", "NAME")
RUNS = sorted(
    {
        (page, command)
        for page, text in TEXTS.items()
        for command in commands(text)
        if not any(word in command for word in NO_EXPERIMENT)
    }
)


@pytest.mark.parametrize(("page", "command"), RUNS)
def test_a_command_composes_and_passes_the_checks(page: str, command: str) -> None:
    words = [word for word in shlex.split(command)[2:] if word != "-m" and not word.startswith(NOT_INSTALLED)]
    # of a sweep its first job; lists and dicts have commas of their own
    first = [word if re.search(r"[\[{(]", word) else word.partition(",")[0] for word in words]
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        validate(to_config(compose("config", overrides=first), first))


def test_there_are_commands() -> None:
    pages = [page for page, _ in RUNS]
    assert pages.count("README.md") > 12
    assert len(set(pages)) > 8


def test_ci_runs_exactly_the_two_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    installs = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert len(installs) == 2
    for command in installs:
        assert command in ci
    assert "- run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_readme_is_short_and_begins_with_the_command() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    assert any("python run.py quant=int8" in line for line in lines[:8])


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\(\s*([^)#\s]+)[^)]*\)", TEXTS[page]) + re.findall(r'(?:href|src)="([^"#]+)"', TEXTS[page])
    for target in targets:
        file = (ROOT / page).parent.joinpath(target).resolve()
        assert target.startswith("https://") or file.exists(), target


def test_files_and_names_of_the_walk_exist() -> None:
    places = re.findall(r"`(\w[\w/.]*\.(?:py|yaml))`(?:: `(\w+)`)?", TEXTS["docs/architecture.md"])
    walk = [(file, name) for file, name in places if "/" in file and (file.startswith(("resnet8_quant", "conf")))]
    assert len(walk) > 12
    for file, name in walk:
        text = (ROOT / file).read_text(encoding="utf-8")
        there = not name or re.search(rf"^(def|class) {name}\b|^{name}\b", text, re.MULTILINE)
        assert there, f"{file}: {name}"


def test_readme_uses_the_public_api() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert set(re.findall(r"rq\.\w+", example)) <= set(re.findall(r"rq\.\w+", TEXTS["docs/api.md"]))


def test_columns_of_the_docs_exist() -> None:
    row = TEXTS["docs/outputs.md"].partition("## The row")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", row)) | {"accuracy", "portable", "kernels", "speedup"}
    assert named <= set(COLUMNS)
    renamed = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert len(renamed) == 7
    for old, new in renamed:
        assert old not in COLUMNS
        assert new in COLUMNS


def test_constraints_are_exact_and_name_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
