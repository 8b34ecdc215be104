"""What a job computes, as one number: two jobs with equal digests leave equal results, whatever they are called.

In: a `Config`. Out: a SHA-256 over the settings that have an effect, the contents of the files that they name, and the
versions of this package and of ONNX Runtime. Paths, and settings that nothing reads, are left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from resnet8_quant import __version__
from resnet8_quant.config import Analysis, Config, DataConfig, DataKind, DType, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import expanded, sha256_bytes, sha256_file
from resnet8_quant.machine import runtime_version
from resnet8_quant.validation import is_low_bit, is_refined


def _is_float(config: Config) -> bool:
    return config.quant.activation_type is DType.float32


def _allocates(config: Config) -> bool:
    return config.allocate.budget_bytes is not None or config.allocate.max_accuracy_drop is not None


def _rewrites_weights(config: Config) -> bool:
    return is_refined(config.refine) or is_low_bit(config.quant) or _allocates(config)


def _draws(config: Config) -> bool:
    """Whether images are drawn by chance: for calibration, for a validation split or to learn from."""
    splits = config.allocate.max_accuracy_drop is not None or config.analyze is Analysis.layers
    return config.calibration.sampling in (Sampling.stratified, Sampling.random) or splits or config.refine.distill


# Files that a config names: their contents count instead of their paths.
FILES = ("data.path", "model.path", "model.source", "calibration.index_file")

# Settings that cannot change a result in any run: where things are kept, what is done with finished results, limits.
# CIFAR-10 below data.root has one content, which is checked. A name that the schema does not have is passed over.
LIMITS = ("data.max_bytes", "data.max_broken", "evaluation.timeout", "evaluation.allow_chance")
NEVER: tuple[str, ...] = ("cache_dir", "resume", "tracking", "data.root", *LIMITS, *FILES)

# When nothing reads a setting: (what is then not read, the condition). Only what is sure to have no effect is listed;
# listing an extra setting here would merge distinct jobs.
UNREAD: tuple[tuple[tuple[str, ...], Callable[[Config], bool]], ...] = (
    (("calibration", "refine", "allocate", "seed"), _is_float),
    (("quant.per_channel", "quant.format", "quant.activation_symmetric", "quant.weight_symmetric"), _is_float),
    (("refine.damping", "refine.images", "refine.activation_order"), lambda config: not _rewrites_weights(config)),
    (("allocate.validation_images",), lambda config: config.allocate.max_accuracy_drop is None),
    (("allocate.choices",), lambda config: not _allocates(config)),
    (("latency.warmup", "latency.threads", "latency.throughput_batch"), lambda config: config.latency.runs == 0),
    (("calibration.samples_per_class",), lambda config: config.calibration.sampling is Sampling.mlperf_tiny),
    (("seed",), lambda config: not _draws(config)),
    (("analyze",), lambda config: config.analyze is Analysis.none),
)


def effective(config: Config) -> dict[str, Any]:
    """The settings that have an effect, as plain values; the others are left out."""
    settings = dataclasses.asdict(config, dict_factory=_plain)
    for part in settings.values():
        if isinstance(part, dict):
            part.pop("name", None)  # says nothing that the other settings do not say
    unread = [*NEVER, *(path for paths, condition in UNREAD if condition(config) for path in paths)]
    for path in unread:
        group, _, name = path.rpartition(".")
        (settings.get(group, {}) if group else settings).pop(name, None)
    return settings


def digest_of(config: Config) -> str:
    """SHA-256, hexadecimal, of what a job computes: effective settings, contents of the files it reads, versions."""
    facts = {
        "settings": effective(config),
        "files": {field: _content(path) for field in FILES if (path := attrgetter(field)(config)) is not None}
        | _images(config),
        "versions": {"resnet8_quant": __version__, "onnxruntime": runtime_version()},
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _content(path: str) -> str:
    """The digest of a file, however it is named; of one that cannot be read, its name."""
    file = Path(path).expanduser()
    try:
        state = file.stat()
        return _file_digest(file, state.st_size, state.st_mtime_ns)
    except OSError:
        return path


def _images(config: Config) -> dict[str, str]:
    """What names the images of a folder: contents of .npy files; of data=folder names, sizes and times of change."""
    folder = expanded(config.data.path or "")
    if config.data.kind is DataKind.arrays and config.data.path and folder.is_dir():
        from resnet8_quant.inputs.arrays import NAMES

        return {"data.path": sha256_bytes(*(_content(str(folder / f"{name}.npy")).encode() for name in NAMES))}
    if config.data.kind is not DataKind.folder:
        return {}
    try:
        return {"data.path": _listing(json.dumps(dataclasses.asdict(config.data, dict_factory=_plain)))}
    except ExperimentError:  # the job itself will say so
        return {"data.path": str(config.data.path)}


@lru_cache
def _listing(data: str) -> str:
    from resnet8_quant.inputs.folder import listing_digest

    return listing_digest(DataConfig(**json.loads(data)))


@lru_cache
def _file_digest(file: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, read once in a process for each size and time of change."""
    return sha256_file(file)


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in pairs}
