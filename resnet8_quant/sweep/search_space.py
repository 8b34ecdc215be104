"""What a search may choose, and how much of it: the fields of conf/hydra/sweeper/optuna.yaml, checked.

In: `hydra.sweeper` and overrides of the command line. Out: `SearchOptions`, and a `Space`: Optuna's distributions by
name, and the overrides that every trial has.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

# Columns that a search can go by: those with numbers.
NUMERIC = tuple(
    name
    for name, hint in get_type_hints(RunResult).items()
    if hint in (int, float, int | None, float | None) and name not in ("schema_version", "seed")
)
LOWEST = {"n_trials": 1, "n_jobs": 1, "seed": 0}
LAYERS = "quant.layers"  # its keys are patterns, which Hydra reads in a value but not in a key
_EXAMPLES = "{choices: [int8, u8s8]} or {low: 10, high: 100, step: 10} or {low: 0.001, high: 1.0, log: true}"


@dataclass(frozen=True)
class SearchOptions:
    """How many jobs in all and at a time, the sampler's seed, two columns of results.csv, and the space as typed."""

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
    """The options of a search, from the fields of hydra.sweeper."""
    for name, lowest in LOWEST.items():
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


@dataclass(frozen=True)
class Space:
    """All parameters by name, and the overrides of every trial."""

    parameters: dict[str, Distribution]
    fixed: tuple[str, ...]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of a trial with a value for each parameter: the fixed ones, theirs, one for all the layers."""
        overrides, layers = list(self.fixed), dict[str, list[str]]()
        for name, value in values.items():
            text = f"{value:.12g}" if isinstance(value, float) else str(value)
            if name.startswith(f"{LAYERS}."):
                pattern, field = _layer(name)
                layers.setdefault(pattern, []).append(f"{field}:{text}")
            else:
                overrides.append(f"{name}={text}")
        if layers:
            inner = ",".join(f"{pattern}:{{{','.join(fields)}}}" for pattern, fields in layers.items())
            overrides.append(f"{LAYERS}={{{inner}}}")
        return overrides

    def draw(self, near: Mapping[str, Any], change: float, chance: random.Random) -> dict[str, Any]:
        """Values like those of ``near``, each drawn anew with probability ``change``."""
        return {
            name: _draw(parameter, chance) if chance.random() < change else near[name]
            for name, parameter in self.parameters.items()
        }

    @property
    def size(self) -> float:
        """How many different sets of values there are; infinite with a range of all numbers."""
        return math.prod(_size(parameter) for parameter in self.parameters.values())

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the overrides that a trial chooses."""
        return tuple(dict.fromkeys(LAYERS if name.startswith(f"{LAYERS}.") else name for name in self.parameters))

    @property
    def layer_patterns(self) -> list[str]:
        """The patterns of quant.layers that the search names."""
        return [_layer(name)[0] for name in self.parameters if name.startswith(f"{LAYERS}.")]


def read_space(params: Mapping[str, Any] | None, arguments: Sequence[str], loader: Any = None) -> Space:
    """The space of a search; an override of the command line goes before a parameter of the same name in YAML.

    Args:
        params: `hydra.sweeper.params`: {name: mapping, or a text as on the command line}.
        arguments: overrides of the command line; `a=x,y` is a parameter, `a=x` fixes one.
        loader: Hydra's config loader, for overrides that name groups.
    """
    parameters: dict[str, Distribution] = {}
    fixed: dict[str, str] = {}
    texts = []
    for name, value in (params or {}).items():
        if isinstance(value, Mapping):
            parameters[name] = _distribution(name, value)
        else:
            texts.append(f"{name}={_text(value)}")
    parser = OverridesParser.create(config_loader=loader)
    for override in parser.parse_overrides([*texts, *arguments]):
        name = str(override.get_key_element())
        parameters.pop(name, None)
        fixed.pop(name, None)
        if override.is_sweep_override():
            parameters[name] = _from_override(name, override)
        else:
            assert override.input_line is not None
            fixed[name] = override.input_line
    if not parameters:
        raise ExperimentError(
            "`hydra.sweeper.params` is empty and no word has several values: there is nothing to search",
            "python run.py -m hydra/sweeper=optuna quant=int8,u8s8, or python run.py experiment=search",
        )
    return Space(parameters, tuple(fixed.values()))


def _layer(name: str) -> tuple[str, str]:
    """The pattern and the field of a parameter of quant.layers."""
    pattern, _, field = name.removeprefix(f"{LAYERS}.").rpartition(".")
    return pattern, field


def _size(parameter: Distribution) -> float:
    if isinstance(parameter, CategoricalDistribution):
        return len(parameter.choices)
    return math.inf if parameter.step is None else round((parameter.high - parameter.low) / parameter.step) + 1


def _draw(parameter: Distribution, chance: random.Random) -> Any:
    """A value: evenly spread, with ``log`` in its logarithm."""
    if isinstance(parameter, CategoricalDistribution):
        return chance.choice(parameter.choices)
    low, high = parameter.low, parameter.high
    if parameter.log:
        value = math.exp(chance.uniform(math.log(low), math.log(high)))
    elif parameter.step is not None:
        value = low + parameter.step * chance.randrange(int(_size(parameter)))
    else:
        value = chance.uniform(low, high)
    value = min(max(value, low), high)
    return round(value) if isinstance(parameter, IntDistribution) else value


def _from_override(name: str, override: Override) -> Distribution:
    """`a,b`, choice(), range() and glob() are lists, exactly those of a grid; interval() is a range."""
    if override.is_discrete_sweep():
        return _distribution(name, {"choices": list(override.sweep_string_iterator())})
    value = override.value()
    assert isinstance(value, IntervalSweep)
    return _distribution(name, {"low": value.start, "high": value.end, "log": "log" in value.tags})


def _distribution(name: str, mapping: Mapping[str, Any]) -> Distribution:
    """What a parameter may be: one of its choices, or a number from low to high."""
    if mapping.keys() == {"choices"}:
        values = mapping["choices"]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise _refused(name, f"has choices {values!r}, which is not a list")
        if not values:
            raise _refused(name, "has no choices")
        return CategoricalDistribution(tuple(dict.fromkeys(map(_text, values))))
    if not {"low"} <= mapping.keys() <= {"low", "high", "step", "log"}:
        shown = "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"
        raise _refused(name, f"is {shown}; valid are choices alone, or low and high with step or log")
    fields: list[Any] = [mapping.get(key) for key in ("low", "high", "step", "log")]
    low, high, step, log = fields
    numbers = [low, high] if step is None else [low, high, step]
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise _refused(name, f"goes from {low} to {high} in steps of {step}; {value!r} is not a number")
    if log not in (None, True, False):
        raise _refused(name, f"has log {log!r}; valid are true and false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of steps that do not lead from low to high
            if all(isinstance(value, int) for value in numbers):
                return IntDistribution(low, high, log=bool(log), step=1 if step is None else step)
            return FloatDistribution(float(low), float(high), log=bool(log), step=step)
    except (ValueError, UserWarning) as error:
        raise _refused(name, f"goes from {low} to {high}: {error}") from error


def _text(value: object) -> str:
    """A YAML value as on the command line."""
    texts = {None: "null", True: "true", False: "false"}
    return texts[value] if value is None or isinstance(value, bool) else str(value)


def _refused(name: str, problem: str) -> ExperimentError:
    return ExperimentError(f"`hydra.sweeper.params` {name} {problem}", f"for example {name}: {_EXAMPLES}")
