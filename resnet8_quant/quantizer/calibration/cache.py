"""Observations through a cache: all methods, quant types and parallel jobs that see the same images share one pass.

In: what `stream.observe` takes, and the cache folder. Out: the observations. The key covers all that can move a
value: the model, the pixels and their order, the tensors, the bins, this engine, ONNX Runtime, the CPU. Methods and
their parameters are not in it: they work on what is stored here, in milliseconds. An entry that is damaged or foreign
is computed anew.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np

from resnet8_quant.files import locked, replacing, sha256_bytes
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import cpu_description
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.observer import Histogram, Observation
from resnet8_quant.quantizer.calibration.stream import observe

log = logging.getLogger(__name__)

ENGINE_VERSION = 1  # count up when an observation or an entry's content changes


def cached_observations(
    model: FloatModel,
    tensors: tuple[str, ...],
    images: CalibrationImages,
    bins: int | None,
    *,
    threads: int,
    cache: Path,
) -> tuple[dict[str, Observation], bool]:
    """`observe` through the cache.

    Args:
        cache: the cache folder; entries are ``observations/<key>.npz`` in it.

    Returns:
        The observations, and whether they came from the cache.

    Raises:
        ExperimentError: as `observe`; or the cache cannot be written.
    """
    key = _key(model, tensors, images, bins)
    path = cache / "observations" / f"{key}.npz"
    with locked(path.with_suffix(".lock")):
        stored = _read_entry(path, key, tensors, len(images), bins)
        if stored is not None:
            log.debug("calibration: observations from the cache: %s", path)
            return stored, True
        found = observe(model, tensors, images, bins, threads)
        arrays = {
            f"{i}.{name}": array for i, seen in enumerate(found.values()) for name, array in _arrays(seen).items()
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), digest=np.array(_digest(arrays)), **arrays)  # type: ignore[arg-type]
    return found, False


def _key(model: FloatModel, tensors: tuple[str, ...], images: CalibrationImages, bins: int | None) -> str:
    import onnxruntime

    input_spec = model.input_spec
    facts = {
        "engine": ENGINE_VERSION,
        "model": model.digest,
        "images": images.digest,
        "input": [input_spec.layout.value, input_spec.mean, input_spec.std, input_spec.batch],
        "tensors": tensors,
        "bins": bins,
        "onnxruntime": onnxruntime.__version__,
        "cpu": cpu_description(),
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _arrays(seen: Observation) -> dict[str, np.ndarray]:
    """An observation as the arrays of an entry."""
    arrays = {
        "extremes": np.array([seen.low, seen.high], np.float32),
        "image_lows": seen.image_lows,
        "image_highs": seen.image_highs,
    }
    if seen.histogram is not None:
        arrays["counts"] = seen.histogram.counts
        arrays["placement"] = np.array([seen.histogram.first, seen.histogram.zeros], np.int64)
        arrays["width"] = np.array(seen.histogram.width, np.float64)
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return sha256_bytes(*(part for name in sorted(arrays) for part in (name.encode(), arrays[name].tobytes())))


def _read_entry(
    path: Path, key: str, tensors: tuple[str, ...], images: int, bins: int | None
) -> dict[str, Observation] | None:
    """The entry at ``path``; None if there is none or it is not what `cached_observations` wrote for ``key``."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            arrays = {name: entry[name] for name in entry.files}
        if (stored := arrays.pop("key").item()) != key:
            raise ValueError(f"it belongs to key {stored!r:.80}")
        if arrays.pop("digest").item() != _digest(arrays):
            raise ValueError("its content is not what was written")
        return {name: _observation(arrays, f"{i}.", images, bins) for i, name in enumerate(tensors)}
    except Exception as error:  # damage has many shapes, and the answer to each is to compute anew
        log.warning("unusable cache entry is replaced: %s (%s)", path, error)
        return None


def _observation(arrays: dict[str, np.ndarray], prefix: str, images: int, bins: int | None) -> Observation:
    """One tensor's observation from an entry.

    Raises:
        ValueError, KeyError: it does not hold together.
    """
    extremes, lows, highs = (arrays[prefix + name] for name in ("extremes", "image_lows", "image_highs"))
    if extremes.shape != (2,) or {lows.shape, highs.shape} != {(images,)} or not np.isfinite(extremes).all():
        raise ValueError("extremes of the wrong shape")
    if {extremes.dtype, lows.dtype, highs.dtype} != {np.dtype(np.float32)} or not (lows <= highs).all():
        raise ValueError("extremes out of order")
    histogram = None
    if bins is not None:
        counts, (first, zeros), width = (arrays[prefix + name] for name in ("counts", "placement", "width"))
        if counts.dtype != np.int64 or counts.ndim != 1 or counts.min() < 0 or zeros < 0 or math.frexp(width)[0] != 0.5:
            raise ValueError("not a histogram")
        histogram = Histogram(counts, int(first), float(width), int(zeros))
    return Observation(extremes[0], extremes[1], lows, highs, histogram)
