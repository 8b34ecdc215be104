"""What a job computes, as one number: two jobs with equal digests leave equal results, whatever they are called.

In: a `Config` and what it loads. Out: a SHA-256 over the settings that have an effect, the contents of model, data and
calibration list, and the versions of this package and of ONNX Runtime. Names of folders, paths and numbers of jobs are
left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from resnet8_quant import __version__
from resnet8_quant.config import Config, DType, Sampling
from resnet8_quant.files import sha256_bytes
from resnet8_quant.machine import runtime_version
from resnet8_quant.validation import is_low_bit, is_refined

if TYPE_CHECKING:
    from resnet8_quant.experiment import Prepared


def _is_float(config: Config) -> bool:
    return config.quant.activation_type is DType.float32


def _allocates(config: Config) -> bool:
    return config.allocate.budget_bytes is not None or config.allocate.max_accuracy_drop is not None


def _rewrites_weights(config: Config) -> bool:
    return is_refined(config.refine) or is_low_bit(config.quant) or _allocates(config)


# Settings that cannot change a result in any run: where things are kept, and what is done with a finished row. Paths of
# inputs are among them because the digest covers the contents. A name that the schema does not have is passed over.
NEVER: tuple[str, ...] = (
    "cache_dir",
    "resume",
    "tracking",
    *("data.root", "data.path", "model.path", "model.source"),
    *("calibration.index_file", "calibration.indices"),
)

# When nothing reads a setting: (what is then not read, the condition). Only what is sure to have no effect is listed;
# a setting too many here would make two different jobs one.
UNREAD: tuple[tuple[tuple[str, ...], Callable[[Config], bool]], ...] = (
    (("calibration", "refine", "allocate", "seed"), _is_float),
    (
        tuple(f"quant.{name}" for name in ("per_channel", "format", "activation_symmetric", "weight_symmetric")),
        _is_float,
    ),
    (("refine.damping", "refine.images", "refine.activation_order"), lambda config: not _rewrites_weights(config)),
    (("allocate.validation_images",), lambda config: config.allocate.max_accuracy_drop is None),
    (("allocate.choices",), lambda config: not _allocates(config)),
    (("latency.warmup", "latency.threads", "latency.throughput_batch"), lambda config: config.latency.runs == 0),
    (
        ("calibration.samples_per_class",),
        lambda config: config.calibration.sampling is Sampling.mlperf_tiny,
    ),
    (
        ("seed",),
        lambda config: (
            config.calibration.sampling is not Sampling.stratified and config.allocate.max_accuracy_drop is None
        ),
    ),
)


def effective(config: Config) -> dict[str, Any]:
    """The settings that have an effect, as plain values; the others are left out."""
    settings = dataclasses.asdict(config, dict_factory=_plain)
    for part in settings.values():
        if isinstance(part, dict):
            part.pop("name", None)  # says nothing that the other settings do not say
    unread = [*NEVER, *(path for paths, condition in UNREAD if condition(config) for path in paths)]
    for path in unread:
        parent: dict[str, Any] | None = settings
        *groups, name = path.split(".")
        for group in groups:
            parent = parent.get(group) if parent is not None else None
        if parent is not None:
            parent.pop(name, None)
    return settings


def digest_of(config: Config, prepared: Prepared) -> str:
    """SHA-256, hexadecimal, of what the job computes.

    Args:
        config: of the job.
        prepared: what `experiment.prepare` made of it; the calibration images stand for their list and its seed.
    """
    images = prepared.images
    facts = {
        "settings": effective(config),
        "model": prepared.model.digest,
        "data": prepared.data.digest,
        "calibration_images": None if images is None else sha256_bytes(images.chosen.astype("<i8").tobytes()),
        "versions": {"resnet8_quant": __version__, "onnxruntime": runtime_version()},
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in pairs}
