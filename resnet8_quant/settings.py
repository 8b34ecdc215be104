"""Settings as fields of dataclasses: their descriptions, strings taken for members of enumerations, types, and words.

The mechanism below config.py, which has the settings themselves. In: dataclasses. Out: values that fit their types, and
texts as on the command line.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import numbers
from collections.abc import Hashable, Iterator
from dataclasses import field
from enum import Enum
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from resnet8_quant.errors import COMMAND, ExperimentError, invalid_choice

T = TypeVar("T")

if TYPE_CHECKING:

    class Member(Generic[T]):
        """A setting that reads as T and may be written as the name of a member: for type checkers only."""

        def __get__(self, owner: object, owner_type: type) -> T: ...
        def __set__(self, owner: object, value: T | str) -> None: ...

else:

    class Member:
        """``Member[DType]`` is ``DType``, which OmegaConf reads."""

        def __class_getitem__(cls, enumeration: Any) -> Any:
            return enumeration


def setting(default: Any, description: str) -> Any:
    """A dataclass field with its description; a list or dict as default is copied for each instance."""
    metadata = {"help": description}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def enum_fields(group: Hashable) -> dict[str, type[Enum]]:
    """The fields of a dataclass that hold a member of an enumeration, also where None is allowed."""
    return {
        name: part
        for name, hint in _hints(group).items()
        for part in (hint, *get_args(hint))
        if isinstance(part, type) and issubclass(part, Enum)
    }


class Group:
    """A group of settings; a string is taken for the member of an enumeration that it names."""

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        for name, enumeration in enum_fields(cast(Hashable, type(self))).items():
            value = getattr(self, name)
            if isinstance(value, str):
                if value not in enumeration.__members__:
                    raise invalid_choice(f"{group}.{name}", value, list(enumeration.__members__))
                setattr(self, name, enumeration[value])


def word(value: object) -> str:
    """A value as on the command line: uint8, true, null, 0.01, {"dense": {"weight_bits": 8}}."""
    if isinstance(value, Enum):
        return value.name
    return value if isinstance(value, str) else json.dumps(value)


def flatten(config: Any) -> dict[str, str]:
    """Every setting as {"quant.per_channel": "true", ...}, values as on the command line."""

    def visit(part: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for each in dataclasses.fields(part):
            value = getattr(part, each.name)
            if dataclasses.is_dataclass(value):
                yield from visit(value, f"{prefix}{each.name}.")
            else:
                yield prefix + each.name, word(value)

    return dict(visit(config, ""))


def check_value_types(config: Any) -> None:
    """Refuse values of wrong types, which only Python code can set: the command line has refused them already.

    Args:
        config: a dataclass of settings and groups of settings.

    Raises:
        ExperimentError: names the setting, its value and the type that it must have.
    """
    groups = {name: part for name, part in vars(config).items() if isinstance(part, Group)}
    for part in groups.values():
        part.__post_init__()  # takes the names of members that were assigned later
    for group, settings in {"": config, **groups}.items():
        for name, hint in _hints(cast(Hashable, type(settings))).items():
            value = getattr(settings, name)
            if not _has_type(value, hint):
                field = f"{group}.{name}".lstrip(".")
                raise ExperimentError(
                    f"`{field}` is {value!r}, of type {type(value).__name__}; valid is {_type_name(hint)}",
                    f"{COMMAND} --help",
                )


@cache
def _hints(settings: Hashable) -> dict[str, Any]:
    return get_type_hints(settings)


def _type_name(hint: Any) -> str:
    """Optional[int] as ``int or None``."""
    arguments = [argument for argument in get_args(hint) if argument is not NoneType]
    if NoneType in get_args(hint):
        return f"{_type_name(arguments[0])} or None"
    return str(hint).replace("typing.", "") if arguments else str(hint.__name__)


def _has_type(value: object, hint: Any) -> bool:
    """Whether a value fits the type of a setting."""
    origin, arguments = get_origin(hint), get_args(hint)
    if NoneType in arguments:
        return value is None or any(_has_type(value, argument) for argument in arguments if argument is not NoneType)
    if hint is Any:  # validation.py looks at it
        return True
    if origin is list:
        return isinstance(value, list | tuple) and all(_has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_has_type(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, hint)
