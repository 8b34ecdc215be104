"""Between Hydra and the dataclasses: resolvers, typed configs, and errors in plain words.

In: DictConfigs, override strings and exceptions of Hydra. Out: `Config`s and `ExperimentError`s.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from resnet8_quant.config import Config
from resnet8_quant.errors import (
    COMMAND,
    COMMANDS,
    ExperimentError,
    invalid_choice,
    missing_extra,
    own_folders,
    similar_word,
    typed_setting,
)
from resnet8_quant.files import unwritable
from resnet8_quant.options import CONF, GROUPS, NAMED, derive_name, options
from resnet8_quant.settings import word as setting_text
from resnet8_quant.sweep.launchers import missing_plugin, unreachable
from resnet8_quant.validation import layer_override

HELP = f"{COMMAND} --help"
UNCOMPOSED = "uncomposed"  # in the config of a job that cannot be composed: the problem and the remedy
PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
_PATHS = ("path", "source", "root", "index_file", "cache_dir", "dir")  # last words of settings that name files
_LAYERS = "quant.layers"


def register() -> None:
    """Tell Hydra the schema, and the resolver that names the folders of runs and sweeps."""
    schema = OmegaConf.structured(Config)
    OmegaConf.set_struct(schema.quant.layers, False)  # its keys are the user's
    ConfigStore.instance().store(name="schema", node=schema)
    # Cached within a config, as Hydra's own `now` is; microseconds, so that runs that start together do not meet.
    OmegaConf.register_new_resolver(
        "unique_time", lambda: datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f"), use_cache=True, replace=True
    )


def to_config(
    config: DictConfig,
    overrides: Iterable[str],
    choices: Mapping[str, str] | None = None,
    folders: tuple[Path, ...] = (),
) -> Config:
    """The dataclass of a composed config; its presets are named after what is really set.

    Args:
        config: without the node `hydra`.
        overrides: as typed.
        choices: the option of each group; None: those of the running job, where there is one.
        folders: with option files, besides those that Hydra searches.

    Raises:
        ExperimentError: a key that the schema does not know, a key given twice, a value of a wrong type; or what kept
            a job from being composed.
    """
    if UNCOMPOSED in config:
        raise ExperimentError(*config[UNCOMPOSED])
    seen: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in seen:
            raise ExperimentError(
                f"`{key}` is given twice: {seen[key]} and {override}", "give it once; a sweep takes -m and commas"
            )
        seen[key] = override
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise explain(error) or error from error
    assert isinstance(result, Config)
    for layer, settings in result.quant.layers.items():
        for key, value in settings.items():
            if not isinstance(value, int):  # OmegaConf takes any value there
                raise _wrong_layer(f"{_LAYERS}.{layer}.{key}={value}", "")
    _refuse_unknown(config, Config, "")
    if choices is None:
        choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    folders = conf_folders() + folders
    for group in (*NAMED, "allocate"):
        part, default = getattr(result, group), getattr(Config(), group).name
        if part.name == default:  # else the user has named it
            part.name = str(choices.get(group) or default).rpartition("/")[2]
        if group in NAMED:
            part.name = derive_name(group, part, folders)
    return result


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """The config of a command line, composed by Hydra; ``config_dir`` holds more option files.

    Raises:
        ExperimentError: a group, option, field or value that does not exist.
    """
    searched = list(overrides)
    if config_dir is not None:
        searched.append(f"hydra.searchpath=['file://{config_dir.resolve()}']")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            composed = compose("config", searched, return_hydra_config=True)
        except Exception as error:
            raise explain(error, overrides, config_dir) or error from error
        choices = dict(composed.hydra.runtime.choices)
        return to_config(without_hydra(composed), overrides, choices, () if config_dir is None else (config_dir,))


def without_hydra(composed: DictConfig) -> DictConfig:
    """``composed``, changed as Hydra does it before it calls a job."""
    with read_write(composed), open_dict(composed):
        del composed["hydra"]
    return composed


def conf_folders() -> tuple[Path, ...]:
    """The folders that hold option files: the project's own, and those of Hydra's --config-dir."""
    if not GlobalHydra.instance().is_initialized():
        return (CONF,)
    searched = [element.path for element in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    plain = [Path(path).resolve() for path in searched if "://" not in path]
    urls = [Path(path.removeprefix("file://")) for path in searched if path.startswith("file://")]
    return tuple(dict.fromkeys([CONF, *plain, *urls]))


def _refuse_unknown(config: DictConfig, schema: type, prefix: str) -> None:
    """`+group.key=1` passes Hydra's schema; nothing would read it."""
    for key in map(str, config):
        if key not in _field_names(schema):
            raise _unknown_key(f"{prefix}{key}", _field_names(schema), sys.argv[1:])
        child = config._get_node(key)
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(part := OmegaConf.get_type(child)):
            _refuse_unknown(child, part, f"{prefix}{key}.")  # unlike quant.layers, whose keys are the user's


def _field_names(schema: type | None) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []


def _unknown_key(full_key: str, known: Sequence[str], typed: Sequence[str], file: str = "") -> ExperimentError:
    """The error for a key that is none of ``known``, the fields of its group; it was typed, or is in a YAML file."""
    prefix, _, key = full_key.rpartition(".")
    where = f" in `{prefix}`" if prefix else ""
    listed = f"; the fields{where} are {', '.join(known)}" if known else ""
    similar = similar_word(key, [*known, *(GROUPS if "/" in key else ()), *PLUGIN_GROUPS])
    problem = f"`{full_key}` is not a field of the config{listed}"
    if file:
        remedy = f"write {similar} instead, or remove the line" if similar else "remove the line"
        return ExperimentError(f"{file}: {problem}", f"in {file}: {remedy}")
    return ExperimentError(problem, _retyped(typed, full_key, f"{prefix}.{similar}".lstrip(".")) if similar else HELP)


def _retyped(typed: Sequence[str], wrong: str, right: str, key: str = "") -> str:
    """The command as ``typed``, with ``right`` for ``wrong`` in the first override that begins with ``key`` or it."""
    words = list(typed)
    place = next((i for i, word in enumerate(words) if word.lstrip("+~").startswith(key or wrong)), len(words))
    override = words[place] if place < len(words) else f"{key}{wrong}" if key else f"{wrong}=VALUE"
    if key and wrong not in override:  # OmegaConf writes 1e21 as 1e+21
        override = f"{key}{wrong}"
    if not wrong:
        before, after = key, ""
    else:
        before, _, after = override.rpartition(wrong) if key else override.partition(wrong)
    words[place : place + 1] = [f"{before}{right}{after}"]
    sweep = key.startswith("hydra/") and not {"-m", "--multirun"} & set(words)
    return f"{COMMAND} {'-m ' if sweep else ''}{shlex.join(words)}"


def _wrong_choice(group: str, option: str, choices: Sequence[str], typed: Sequence[str]) -> ExperimentError:
    """The error for an option that a group lacks; the remedy repeats what else was typed."""
    others = {value for word in typed if word.startswith(f"{group}=") for value in re.split("[=,]", word)}
    similar = similar_word(option, [choice for choice in choices if choice not in others])
    remedy = _retyped(typed, option, similar, f"{group}=") if similar else HELP
    return ExperimentError(invalid_choice(group, option, choices).problem, remedy)


def _no_setting(word: str, typed: Sequence[str]) -> ExperimentError:
    """The error for a word without a value: a command, an option without its group, or a field."""
    meant = {option: f"{group}={option}" for group in GROUPS for option in options(group)}
    meant |= {command: command for command in COMMANDS}
    similar = similar_word(word, list(meant))
    problem = f"`{word}` is no setting (SETTING=VALUE); commands are {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}"
    return ExperimentError(problem, _retyped(typed, word, meant[similar]) if similar else HELP)


def _wrong_value(error: OmegaConfBaseException, context: str, typed: Sequence[str], file: str = "") -> ExperimentError:
    """A value that the schema does not take; Hydra's ``context`` quotes the override that holds it."""
    override = context.partition("Error merging override ")[2]
    if override.lstrip("+").startswith(_LAYERS):
        return _wrong_layer(override, error.full_key or "")
    text = str(error).splitlines()[0]
    if file and not error.full_key:
        return ExperimentError(f"{file} holds no settings: {text}", f"write SETTING: VALUE lines in {file}")
    key = error.full_key or ""
    choices = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", text)
    if choices:
        wrong = _wrong_choice(key, choices[1], choices[2].split(", "), typed)
    else:
        wrong = ExperimentError(f"`{key}`: {text[0].lower()}{text[1:]}", HELP)
        value = re.search(r"[Vv]alue '(.*?)'", text)
        try:
            default = setting_text(attrgetter(key)(Config()))
        except AttributeError:  # Hydra's own
            default = None
        if value and default:
            near = _whole(value[1]) or similar_word(value[1], ["true", "false"] if default in ("true", "false") else [])
            if near or default != "null":
                remedy = _retyped(typed, value[1], near or default, f"{key}=")
            else:  # null might overrule the option of the group
                kept = [word for word in typed if not word.lstrip("+~").startswith(f"{key}=")]
                remedy = f"{COMMAND} {shlex.join(kept)}".rstrip()
            wrong = ExperimentError(wrong.problem, remedy)
    return ExperimentError(f"{file}: {wrong.problem}", f"correct the value in {file}") if file else wrong


def _whole(value: str) -> str | None:
    """The integer that a number like 1e5 is, where it is one of 64 bits; YAML reads such a number as a float."""
    try:
        number = float(value)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() and abs(number) < 2**63 else None


def _wrong_layer(override: str, place: str) -> ExperimentError:
    """An override of quant.layers without bit widths; ``place`` is where in it OmegaConf stopped."""
    key, _, value = override.lstrip("+").partition("=")
    layer = re.sub(
        r"\.((weight|activation)_bits|float)$", "", max(key, place, key=len).removeprefix(_LAYERS).lstrip(".")
    )
    return ExperimentError(
        f"`{key}` is {value}; a layer takes weight_bits and activation_bits, 2 to 8 each, or float: true, in braces",
        layer_override(layer or "LAYER", "weight_bits", 8),
    )


def explain(
    error: BaseException, overrides: Sequence[str] | None = None, config_dir: Path | None = None
) -> ExperimentError | None:
    """Hydra's, OmegaConf's or YAML's complaint in our words; None if it is something else.

    Where ``overrides`` is None, the arguments of this process are what was typed, with the folder of --config-dir.
    """
    if isinstance(error, ExperimentError):
        return error
    overrides = sys.argv[1:] if overrides is None else overrides
    if isinstance(error, OSError) and error.filename is not None:  # Hydra making the output folder
        path = Path(error.filename)
        if os.path.isfile(path) and not os.access(path, os.R_OK):
            return ExperimentError(f"cannot read {path}: {error.strerror}", "make it readable: chmod +r FILE")
        return unwritable(path, error)
    if str(error).startswith("Unable to configure handler") and isinstance(error.__cause__, OSError):  # of run.log
        return unwritable(Path(str(error.__cause__.filename or "run.log")), error.__cause__)
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
        return ExperimentError(" ".join(str(error).split()), f"leave out all but one; a sweep is {COMMAND} -m seed=0,1")
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name} line {mark.line + 1}" if mark else "a file of conf/"
        return ExperimentError(
            f"{place} is not YAML: {error.problem}", f"correct it; {CONF / 'quant' / 'w4a8.yaml'} is an example"
        )
    if isinstance(error, ValueError | RecursionError | yaml.YAMLError) and _reads_options(error):
        reason = str(error).splitlines()[0]
        remedy = f"correct it; {CONF / 'quant' / 'w4a8.yaml'} is an example"
        return ExperimentError(f"an option file of --config-dir or conf/ cannot be read: {reason}", remedy)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        return _wrong_setting(cause, str(error), overrides, config_dir)
    if isinstance(error, HydraException) and (needed := missing_plugin(str(error))) is not None:
        return missing_extra(*needed)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return _wrong_choice(group, option, list(error.options), overrides)
    if isinstance(error, OverrideParseException):
        if error.override.lstrip("+").startswith(_LAYERS):
            return _wrong_layer(error.override, "")
        if "=" not in error.override:
            return _no_setting(error.override, overrides)
        key, _, value = error.override.partition("=")
        is_path = key.rpartition(".")[2] in _PATHS and not {"'", '"', ","} & set(value)
        remedy = typed_setting(key, value) if is_path else HELP
        return ExperimentError(f"the override {error.override!r} cannot be read: {error}", remedy)
    if (ambiguous := re.match(r"Ambiguous value for argument '(.*)'", str(error))) is not None:
        return ExperimentError(
            f"{ambiguous[1]} lists several values, which a single run cannot take",
            f"{COMMAND} -m {shlex.join(overrides)}",
        )
    if (package := re.match(r"In '(experiment/.*?)': Could not override '.*@experiment\.", str(error))) is not None:
        return _without_package(_file_of(package[1], config_dir))
    if isinstance(error, ConfigCompositionException | HydraException):
        return ExperimentError(" ".join(str(error).split()), HELP)
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        pairs = (word.lstrip("+").partition("=") for word in overrides)
        group, _, value = next((pair for pair in pairs if pair[0] in GROUPS), ("", "", ""))
        if group and value not in options(group):
            return _wrong_choice(group, value, list(options(group)), overrides)
        return ExperimentError("a config group is null; it takes the name of a file in its folder of conf/", HELP)
    return unreachable(error)


def _reads_options(error: BaseException) -> bool:
    """Whether an exception came out of Hydra while it read an option file."""
    return any(frame.name == "load_config" for frame in traceback.extract_tb(error.__traceback__))


def _file_of(option: str, config_dir: Path | None) -> str:
    """Where the file of ``GROUP/OPTION`` is: in the project's conf/ or in the user's own folder."""
    own = [config_dir] if config_dir else own_folders()
    paths = [folder / f"{option}.yaml" for folder in (*own, *conf_folders())]
    path = next((path for path in paths if path.is_file()), CONF)
    return f"conf/{option}.yaml" if path.is_relative_to(CONF) else str(path)


def _without_package(file: str) -> ExperimentError:
    """The error for an experiment file whose settings Hydra lays under ``experiment``."""
    line = "# @package _global_"
    return ExperimentError(
        f"{file} lacks the line `{line}`, without which its settings belong to no group",
        f"write it as the first line of {file}: {line}",
    )


def _wrong_setting(
    error: OmegaConfBaseException, context: str, typed: Sequence[str], config_dir: Path | None
) -> ExperimentError:
    """A key or value that the schema refuses, typed or in a file, which Hydra's ``context`` names."""
    option = re.match(r"In '(.*?)': ", context)
    file = _file_of(option[1], config_dir) if option else ""
    if not isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _wrong_value(error, context, typed, file)
    key = error.full_key or str(error.key)
    if option and option[1].startswith("experiment/") and key.partition(".")[0] == "experiment":
        return _without_package(file)
    return _unknown_key(key, _field_names(error.object_type), typed, file)
