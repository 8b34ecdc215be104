"""What a search may choose: parameters from YAML and the command line, checked, and the words that a choice becomes.

In: `hydra.sweeper.params` and override words. Out: a `Space`: parameters with their choices or ranges, and the words
that every trial has. Nothing here knows Optuna.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from resnet8_quant.errors import ExperimentError

_LAYERS = "quant.layers."  # its keys are patterns, which Hydra reads in a value but not in a key
_FIELDS = {"choices": {"choices"}, "low": {"low", "high", "step", "log"}}
_EXAMPLES = "{choices: [int8, u8s8]} or {low: 10, high: 100, step: 10} or {low: 0.001, high: 1.0, log: true}"


@dataclass(frozen=True)
class Choices:
    """A list; the values are texts as on the command line."""

    values: tuple[str, ...]

    @property
    def size(self) -> float:
        """How many values."""
        return len(self.values)

    def draw(self, chance: random.Random) -> str:
        """One of the values."""
        return chance.choice(self.values)


@dataclass(frozen=True)
class Range:
    """From low to high, both included; integers where ``integer``."""

    low: float
    high: float
    step: float | None
    log: bool
    integer: bool

    @property
    def size(self) -> float:
        """How many values; infinite for all numbers."""
        step = self.step or (1 if self.integer else 0)
        return round((self.high - self.low) / step) + 1 if step else math.inf

    def draw(self, chance: random.Random) -> float:
        """A value: evenly spread, with ``log`` in its logarithm."""
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        elif math.isfinite(self.size):
            value = self.low + (self.step or 1) * chance.randrange(int(self.size))
        else:
            value = chance.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value


@dataclass(frozen=True)
class Space:
    """All parameters by name, and the words of every trial (without those of Hydra itself)."""

    parameters: dict[str, Choices | Range]
    fixed: tuple[str, ...]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The override words of a trial: the fixed ones, one for each value, one for all the layers.

        Args:
            values: one for each parameter.
        """
        words, layers = list(self.fixed), dict[str, list[str]]()
        for name, value in values.items():
            text = f"{value:.12g}" if isinstance(value, float) else str(value)
            if name.startswith(_LAYERS):
                pattern, _, field = name.removeprefix(_LAYERS).rpartition(".")
                layers.setdefault(pattern, []).append(f"{field}:{text}")
            else:
                words.append(f"{name}={text}")
        if layers:
            inner = ",".join(f"{pattern}:{{{','.join(fields)}}}" for pattern, fields in layers.items())
            words.append(f"{_LAYERS[:-1]}={{{inner}}}")
        return words

    def draw(self, near: Mapping[str, Any], change: float, chance: random.Random) -> dict[str, Any]:
        """Values like those of ``near``, each drawn anew with probability ``change``."""
        return {
            name: parameter.draw(chance) if chance.random() < change else near[name]
            for name, parameter in self.parameters.items()
        }

    @property
    def size(self) -> float:
        """How many different sets of values there are; infinite with a range of all numbers."""
        return math.prod(parameter.size for parameter in self.parameters.values())

    def keys(self) -> tuple[str, ...]:
        """Keys of the overrides that a trial chooses."""
        return tuple(dict.fromkeys(_LAYERS[:-1] if name.startswith(_LAYERS) else name for name in self.parameters))

    def layer_patterns(self) -> list[str]:
        """The patterns of quant.layers that the search names."""
        return [name.removeprefix(_LAYERS).rpartition(".")[0] for name in self.parameters if name.startswith(_LAYERS)]

    def described(self) -> dict[str, str]:
        """Each parameter in plain text, to compare with an earlier search in the same folder."""
        return {name: repr(parameter) for name, parameter in self.parameters.items()}


def read_space(params: Mapping[str, Any] | None, arguments: Sequence[str], loader: Any = None) -> Space:
    """The space of a search; a word of the command line goes before a parameter of the same name in YAML.

    Args:
        params: `hydra.sweeper.params`: {name: mapping, or a text as on the command line}.
        arguments: words of the command line; `a=x,y` is a parameter, `a=x` fixes one.
        loader: Hydra's config loader, for words that name groups.

    Raises:
        ExperimentError: a range or a list that cannot be searched, or nothing to search.
    """
    parameters: dict[str, Choices | Range] = {}
    fixed: dict[str, str] = {}
    words = []
    for name, value in (params or {}).items():
        if isinstance(value, Mapping):
            parameters[name] = _from_mapping(name, value)
        else:
            words.append(f"{name}={_text(value)}")
    parser = OverridesParser.create(config_loader=loader)
    for override in parser.parse_overrides([*words, *arguments]):
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


def _from_override(name: str, override: Override) -> Choices | Range:
    """`a,b`, choice(), range() and glob() are lists, exactly those of a grid; interval() is a range."""
    if override.is_discrete_sweep():
        return _choices(name, override.sweep_string_iterator())
    value = override.value()
    assert isinstance(value, IntervalSweep)
    return _range(name, {"low": value.start, "high": value.end, "log": "log" in value.tags})


def _from_mapping(name: str, mapping: Mapping[str, Any]) -> Choices | Range:
    kinds = [kind for kind in _FIELDS if kind in mapping]
    if len(kinds) != 1 or not set(mapping) <= _FIELDS[kinds[0]]:
        shown = "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"
        raise _refused(name, f"is {shown}; valid are choices alone, or low and high with step or log")
    if "choices" not in mapping:
        return _range(name, mapping)
    values = mapping["choices"]
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise _refused(name, f"has choices {values!r}, which is not a list")
    return _choices(name, map(_text, values))


def _choices(name: str, values: Iterable[str]) -> Choices:
    unique = tuple(dict.fromkeys(values))
    if not unique:
        raise _refused(name, "has no choices")
    return Choices(unique)


def _range(name: str, mapping: Mapping[str, Any]) -> Range:
    low, high, step, log = (mapping.get(key) for key in ("low", "high", "step", "log"))
    numbers = [low, high] if step is None else [low, high, step]
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise _refused(name, f"goes from {low} to {high} in steps of {step}; {value!r} is not a number")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if log not in (None, True, False):
        raise _refused(name, f"has log {log!r}; valid are true and false")
    if not low < high:
        raise _refused(name, f"goes from {low} to {high}; low must be below high")
    if log and low <= 0:
        raise _refused(name, f"goes from {low} with log: true; low must be above 0")
    if log and step is not None:
        raise _refused(name, "has both log: true and step; one of them spaces the values")
    if step is not None:
        steps = (high - low) / step if step > 0 else 0.5
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            raise _refused(name, f"goes from {low} to {high} in steps of {step}, which do not lead to {high}")
    return Range(low, high, step, bool(log), all(isinstance(value, int) for value in numbers))


def _text(value: object) -> str:
    """A YAML value as on the command line."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _refused(name: str, problem: str) -> ExperimentError:
    return ExperimentError(f"`hydra.sweeper.params` {name} {problem}", f"for example {name}: {_EXAMPLES}")
