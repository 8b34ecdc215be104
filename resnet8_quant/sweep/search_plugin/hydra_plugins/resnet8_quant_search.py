"""The class that `hydra/sweeper=optuna` names; all it does is in resnet8_quant/sweep/search.py.

In: Hydra's calls. Out: those to the search. Hydra finds sweepers only as classes that are defined in modules of the
namespace package `hydra_plugins`, on sys.path; `grid.register_sweeps` puts the folder above this one there.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """A sweep whose jobs are proposed one after the other; docs/search.md says how."""

    def __init__(self, **fields: Any) -> None:
        """Hydra passes the fields of conf/hydra/sweeper/optuna.yaml, which the search reads in the config itself."""
        super().__init__()
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls it before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search; Hydra's ``arguments`` are in its config, too."""
        from resnet8_quant.sweep.search import Search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        Search(self.config, self.hydra_context.config_loader).run(self.launcher)
