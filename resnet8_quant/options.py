"""The option files below conf/: where they are, what each is for, and the name that settings have in the results.

In: YAML files that hold what makes an option different from the defaults. Out: options of a group, their descriptions,
and names such as ``w4a8`` or ``int8+weight_bits=4``, derived from what is really set.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

from resnet8_quant.config import Config
from resnet8_quant.errors import hydra_value
from resnet8_quant.settings import Group, word

_PACKAGE = Path(__file__).resolve().parent
# In a wheel the folder is part of the package, in a checkout it lies beside it.
CONF = next((path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()), _PACKAGE / "conf")

GROUPS: dict[str, type[Group]] = {
    name: type(part)
    for name, part in vars(Config()).items()
    if isinstance(part, Group) and name not in ("evaluation", "latency")
}
NAMED = ("quant", "refine", "deploy")  # groups whose names are derived
# Settings that a name leaves out: they have columns of their own, or leave the outputs as they are.
_UNNAMED = {"quant": ("compact",), "deploy": ("input", "output", "verify", "c_array", "c_code")}
_SHOWN = 2  # changed settings that a name spells out


def options(group: str, folders: tuple[Path, ...] = (CONF,)) -> dict[str, str]:
    """{option: the first sentence of its file} of a group, of all ``folders``."""
    files = {path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))}
    return {name: _description(path) for name, path in sorted(files.items())}


def _description(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        comments = [line[1:].strip() for line in file if line.startswith("#")]
    first, *rest = [comment for comment in comments if not comment.startswith("@")] or [""]
    if first.endswith(".") or not rest:
        return first
    return f"{first} {' '.join(rest).partition('. ')[0].removesuffix('.')}."


@lru_cache
def presets(group: str, folders: tuple[Path, ...] = (CONF,)) -> dict[str, Group]:
    """The settings of each option of a group; a file that does not hold plain settings of the group is left out."""
    from omegaconf import OmegaConf

    settings: dict[str, Group] = {}
    for folder in folders:
        files = (folder / group).rglob("*.yaml")
        for path in sorted(files, key=lambda path: (len(path.parts), path.stem)):
            try:
                values: Any = OmegaConf.to_container(OmegaConf.load(path))
                settings[path.stem] = GROUPS[group](**{str(name): value for name, value in (values or {}).items()})
            except Exception:  # Hydra will say what is wrong when the option is chosen
                continue
    return settings


def derive_name(group: str, part: Any, folders: tuple[Path, ...] = (CONF,)) -> str:
    """The name of settings in the results: the preset that is closest to them, and what differs from it.

    Args:
        group: ``quant``, ``refine`` or ``deploy``.
        part: the settings; of equally close presets, ``part.name`` is preferred, then the one with fewest settings.
        folders: where the presets are.

    Returns:
        For example ``u8s8``, ``int8+weight_bits=4``, ``w4a8+layers``; a name that no preset has stays as it is.
    """
    known = presets(group, folders)
    base = part.name.partition("+")[0]
    if base not in known:
        return str(part.name)
    plain = GROUPS[group]()
    changes = {name: _changes(group, part, preset) for name, preset in known.items()}
    settings = {name: len(_changes(group, preset, plain)) for name, preset in known.items()}
    name = min(known, key=lambda name: (len(changes[name]), name != base, settings[name]))
    more = len(changes[name]) - _SHOWN
    return "+".join([name, *changes[name][:_SHOWN], *([f"{more} more"] if more > 0 else [])])


def quant_name(quant: Any) -> str:
    """The ``quant_type`` of the results: ``derive_name`` of the group quant."""
    return derive_name("quant", quant)


def _changes(group: str, part: Any, preset: Any) -> list[str]:
    """Settings of ``part`` that differ from ``preset``, as on the command line; a dict by its field's name alone."""
    return [
        name if isinstance(value, dict) and value else f"{name}={word(value)}"
        for name, value in _differing(part, preset)
        if name not in _UNNAMED.get(group, ())
    ]


def _differing(part: Any, preset: Any) -> list[tuple[str, Any]]:
    """(field, its value in ``part``) where ``preset`` has another; names are no settings."""
    names = [each.name for each in dataclasses.fields(preset) if each.name != "name"]
    return [(name, value) for name in names if (value := getattr(part, name)) != getattr(preset, name)]


def overrides_of(config: Config, folders: tuple[Path, ...] = (CONF,)) -> list[str]:
    """Overrides that compose a config: of each group the closest option, and the settings that differ from it.

    ``tracking`` and ``resume``, which say where a run is kept, are left out.
    """
    defaults = Config()
    words: list[str] = []
    for group, part in vars(config).items():
        default = getattr(defaults, group)
        if not isinstance(part, Group):
            words += [f"{group}={_typed(part)}"] if part != default and group != "resume" else []
        elif group != "tracking":
            known = presets(group, folders) if group in GROUPS else {}
            named = [option for option in options(group, folders) if option in known]
            candidates = [[f"{group}={option}", *_differences(group, part, known[option])] for option in named]
            closest: list[str] = min([*candidates, _differences(group, part, default)], key=len)
            words += closest
    return words


def _differences(group: str, part: Any, preset: Any) -> list[str]:
    """Overrides that make ``preset`` the same as ``part``."""
    return [f"{group}.{name}={_typed(value)}" for name, value in _differing(part, preset)]


def _typed(value: Any) -> str:
    """A value as Hydra reads it: keys without quotes, texts in them where need be."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_typed(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_typed, value)) + "]"
    return hydra_value(value) if isinstance(value, str) else word(value)
