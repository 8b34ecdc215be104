"""Grids before they start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from resnet8_quant.config import Config
from resnet8_quant.sweep import grid


def test_of_a_large_grid_the_first_jobs_are_composed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are composed when they start."""
    composed: list[tuple[str, ...]] = []

    def compose(loader: Any, config: Any, job: Any) -> dict[str, Any]:
        composed.append(tuple(job))
        return {}

    loader = type("Loader", (), {})()
    monkeypatch.setattr(grid, "MOST_COMPOSED", 3)
    monkeypatch.setattr(grid, "_compose", compose)
    monkeypatch.setattr(grid, "to_config", lambda *_: Config())
    monkeypatch.setattr(grid, "without_hydra", lambda node: node)
    monkeypatch.setattr("resnet8_quant.experiment.prepare", lambda config: "prepared")
    monkeypatch.setattr(
        grid, "GlobalHydra", SimpleNamespace(instance=lambda: SimpleNamespace(config_loader=lambda: loader))
    )
    plugins = SimpleNamespace(
        instance=lambda: SimpleNamespace(class_name_to_class={"Sweeper": type("Sweeper", (), {})})
    )
    monkeypatch.setattr(grid, "Plugins", plugins)
    monkeypatch.setattr(grid, "JobLoader", type("JobLoader", (type(loader),), {}))
    config: Any = SimpleNamespace(hydra=SimpleNamespace(sweeper=SimpleNamespace(_target_="Sweeper")))
    with caplog.at_level("INFO"):
        assert grid.check_grid(config, [[f"seed={seed}"] for seed in range(9)], serial=True)[1] == "prepared"
    assert composed == [("seed=0",), ("seed=1",), ("seed=2",)]
    assert "9 jobs: the first 3 are checked before the first starts" in caplog.messages
