"""docs/networks.md says what tools/networks.py finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("networks", ROOT / "tools" / "networks.py")
assert SPEC is not None
assert SPEC.loader is not None
networks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(networks)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_table_is_true(name: str) -> None:
    cells = networks.row(name)
    assert len(cells) == len(networks.RUNS) + 2
    assert "| " + " | ".join(cells) + " |" in (ROOT / "docs" / "networks.md").read_text().splitlines()
