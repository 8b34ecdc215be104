"""Statistics of activations through a cache, shared by methods, quant types and parallel jobs that see the same images.

The key covers all that can move a value: the model, the pixels and their order, the tensors, the bins, this engine,
ONNX Runtime, the CPU. Methods and their parameters are not in it: they work on what is stored here, in milliseconds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from resnet8_quant import npz_cache
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import cpu_description
from resnet8_quant.quantizer.calibration.collect import collect_stats
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.observer import Histogram, TensorStats

ENGINE_VERSION = 1  # count up when a statistic or an entry's content changes


def cached_stats(
    model: FloatModel,
    tensors: tuple[str, ...],
    images: CalibrationImages,
    bins: int | None,
    *,
    threads: int,
    cache: Path,
) -> tuple[dict[str, TensorStats], bool]:
    """`collect_stats` through a cache.

    Args:
        cache: the cache folder; entries are ``observations/<key>.npz`` in it.

    Returns:
        The statistics, and whether they came from the cache.

    Raises:
        ExperimentError: as `collect_stats`; or the cache cannot be written.
    """
    import onnxruntime

    input_spec = model.input_spec
    key = npz_cache.cache_key(
        {
            "engine": ENGINE_VERSION,
            "model": model.digest,
            "images": images.digest,
            "input": [input_spec.layout.value, input_spec.mean, input_spec.std, input_spec.batch],
            "tensors": tensors,
            "bins": bins,
            "onnxruntime": onnxruntime.__version__,
            "cpu": cpu_description(),
        }
    )
    return npz_cache.cached(
        cache / "observations",
        key,
        lambda: collect_stats(model, tensors, images, bins, threads),
        lambda stats: {
            f"{i}.{name}": array for i, tensor in enumerate(stats.values()) for name, array in _arrays(tensor).items()
        },
        lambda arrays: {name: _stats(arrays, f"{i}.", len(images), bins) for i, name in enumerate(tensors)},
    )


def _arrays(stats: TensorStats) -> dict[str, np.ndarray]:
    """One tensor's statistics as the arrays of an entry."""
    arrays = {
        "extremes": np.array([stats.low, stats.high], np.float32),
        "image_lows": stats.image_lows,
        "image_highs": stats.image_highs,
    }
    if stats.histogram is not None:
        arrays["counts"] = stats.histogram.counts
        arrays["placement"] = np.array([stats.histogram.first, stats.histogram.zeros], np.int64)
        arrays["width"] = np.array(stats.histogram.width, np.float64)
    return arrays


def _stats(arrays: dict[str, np.ndarray], prefix: str, images: int, bins: int | None) -> TensorStats:
    """One tensor's statistics from the arrays of an entry.

    Raises:
        ValueError, KeyError: they do not hold together.
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
    return TensorStats(extremes[0], extremes[1], lows, highs, histogram)
