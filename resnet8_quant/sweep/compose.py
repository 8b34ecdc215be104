"""Between Hydra and the dataclasses: resolvers, typed configs, and errors in plain words.

In: DictConfigs, override strings and exceptions of Hydra. Out: `Config`s and `ExperimentError`s.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import unwritable
from resnet8_quant.low_bit import typed_width
from resnet8_quant.sweep.launchers import missing_plugin, unreachable

HELP = "python run.py --help"
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


def to_config(config: DictConfig, overrides: Iterable[str]) -> Config:
    """The dataclass of a composed config.

    Raises:
        ExperimentError: a key that the schema does not know, a key given twice, a value of a wrong type.
    """
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
    _refuse_unknown(config, Config, "")
    return result


def _refuse_unknown(config: DictConfig, schema: type, prefix: str) -> None:
    """`+group.key=1` passes Hydra's schema; nothing would read it."""
    known = {field.name for field in dataclasses.fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise _unknown_key(f"{prefix}{key}", schema)
        child = config._get_node(key)
        if isinstance(child, DictConfig):
            kind = OmegaConf.get_type(child)
            if dataclasses.is_dataclass(kind):  # quant.layers is a dict, whose keys are the user's
                _refuse_unknown(child, kind, f"{prefix}{key}.")


def _unknown_key(full_key: str, schema: type | None) -> ExperimentError:
    prefix, _, key = full_key.rpartition(".")
    known = [field.name for field in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f" in `{prefix}`" if prefix else ""
    problem = f"`{full_key}` is not a field of the config" + (
        f"; the fields{where} are {', '.join(known)}" if known else ""
    )
    correct = f"{prefix}.{close[0]}" if prefix and close else close[0] if close else None
    return ExperimentError(problem, f"python run.py {correct}=VALUE" if correct else HELP)


def _closest(word: str, options: list[str]) -> str:
    return (difflib.get_close_matches(word, options, n=1, cutoff=0.3) or options)[0]


def _wrong_value(error: OmegaConfBaseException, context: str) -> ExperimentError:
    """A value that the schema does not take; Hydra's ``context`` quotes the override that gave it."""
    override = context.partition("Error merging override ")[2]
    if override.lstrip("+").startswith(_LAYERS):
        return _wrong_layer(override, error.full_key or "")
    text = str(error).splitlines()[0]
    choices = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", text)
    remedy = f"python run.py {error.full_key}={_closest(choices[1], choices[2].split(', '))}" if choices else HELP
    return ExperimentError(f"`{error.full_key}`: {text[0].lower()}{text[1:]}", remedy)


def _wrong_layer(override: str, place: str) -> ExperimentError:
    """An override of quant.layers that gives no widths; ``place`` is where in it OmegaConf stopped."""
    key, _, value = override.lstrip("+").partition("=")
    layer = re.sub(r"\.(weight|activation)_bits$", "", max(key, place, key=len).removeprefix(_LAYERS).lstrip("."))
    return ExperimentError(
        f"`{key}` is {value}; a layer takes weight_bits and activation_bits, 2 to 8 each, in braces",
        typed_width(layer or "LAYER", "weight_bits", 8),
    )


def explain(error: BaseException) -> ExperimentError | None:
    """Hydra's or OmegaConf's complaint about the command line in our words; None if it is something else."""
    if isinstance(error, OSError) and error.filename is not None:  # Hydra making the output folder
        return unwritable(Path(error.filename), error)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(cause.full_key or str(cause.key), cause.object_type)
    if isinstance(cause, OmegaConfBaseException):
        return _wrong_value(cause, str(error))
    if isinstance(error, HydraException) and (needed := missing_plugin(str(error))) is not None:
        return missing_extra(*needed)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = list(error.options)
        multirun = "-m " if group in ("hydra/launcher", "hydra/sweeper") else ""
        return ExperimentError(
            f"`{group}` is {option}; valid are {', '.join(options)}",
            f"python run.py {multirun}{group}={_closest(option, options)}",
        )
    if isinstance(error, OverrideParseException):
        if error.override.lstrip("+").startswith(_LAYERS):
            return _wrong_layer(error.override, "")
        return ExperimentError(f"the override {error.override!r} cannot be read: {error}", HELP)
    if isinstance(error, ConfigCompositionException | HydraException):
        return ExperimentError(" ".join(str(error).split()), HELP)
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        return ExperimentError("a config group is null; it takes the name of a file in its folder of conf/", HELP)
    return unreachable(error)
