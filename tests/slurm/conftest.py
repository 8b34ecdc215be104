"""The sweeps of tests/sweep/conftest.py, in a folder that the nodes see."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[1] / "sweep" / "conftest.py"
_spec = importlib.util.spec_from_file_location("sweeps_for_slurm", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # dataclasses look their module up
_spec.loader.exec_module(_module)


@pytest.fixture
def sweeps(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Any:
    return _module.sweeps_in(tmp_path_factory.mktemp("cache"), tmp_path)
