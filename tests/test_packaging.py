"""What a wheel holds, as far as that can be said without building one: setup.py maps conf/ into the package."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]


def test_every_option_file_is_package_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built and installed by hand: ``pip wheel . --no-deps``; here setup.py's own arguments are looked at."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **words: arguments.update(words))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    folders = arguments["package_dir"]
    packages = {name: ROOT / folders.get(name, name.replace(".", "/")) for name in arguments["packages"]}
    assert all(path.is_dir() for path in packages.values())
    data = {
        file
        for name, patterns in arguments["package_data"].items()
        for pattern in patterns
        for file in packages[name].glob(pattern)
    }
    assert set((ROOT / "conf").rglob("*.yaml")) <= data
    others = {file for file in (ROOT / "resnet8_quant").rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert others <= data, others - data
    sources = {path.parent for path in (ROOT / "resnet8_quant").rglob("__init__.py")}
    assert sources <= set(packages.values())


def test_the_console_command_is_the_one_of_cli() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"resnet8-quant": "resnet8_quant.cli:main"}
