"""The fields of a search other than its space, checked.

In: the keys of conf/hydra/sweeper/optuna.yaml with their values. Out: `SearchOptions`, or an `ExperimentError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult

# Columns that a search can go by: those with numbers.
NUMERIC = tuple(
    name
    for name, hint in get_type_hints(RunResult).items()
    if hint in (int, float, int | None, float | None) and name not in ("schema_version", "seed")
)
_LOWEST = {"n_trials": 1, "n_jobs": 1, "seed": 0}


@dataclass(frozen=True)
class SearchOptions:
    """How many jobs in all and at a time, the sampler's seed, two columns of results.csv, and the space as given."""

    n_trials: int
    n_jobs: int
    seed: int
    maximize: str
    minimize: str
    params: Mapping[str, Any]

    @property
    def objectives(self) -> tuple[str, str]:
        """The column to maximize, and the one to minimize."""
        return self.maximize, self.minimize


def read_options(fields: Mapping[str, Any]) -> SearchOptions:
    """The options of a search.

    Args:
        fields: of hydra.sweeper, without its `_target_`.

    Raises:
        ExperimentError: a number that is none or too small, or a column that holds no numbers.
    """
    for name, lowest in _LOWEST.items():
        value = fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise ExperimentError(
                f"`hydra.sweeper.{name}` is {value}; valid are whole numbers from {lowest}",
                f"hydra.sweeper.{name}={max(lowest, 1)}",
            )
    for name, usual in (("maximize", "accuracy"), ("minimize", "model_bytes")):
        if fields[name] not in NUMERIC:
            raise ExperimentError(
                f"`hydra.sweeper.{name}` is {fields[name]}; valid are {', '.join(NUMERIC)}",
                f"hydra.sweeper.{name}={usual}",
            )
    return SearchOptions(**{name: fields[name] for name in SearchOptions.__dataclass_fields__})
