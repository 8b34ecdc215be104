"""Runs the float model over the calibration images once and collects the statistics of its activations.

Memory does not grow with the images. Threads run batches of their own through one InferenceSession that has only the
needed outputs, while the calling thread counts what came out. The batch size follows from the model alone, so that
neither it nor the number of threads has an effect on the result.

The session is the optimized one, half again as fast as the graph as written; its values differ from that by the last
bit or two. Extremes are therefore looked up again, in the graph as written, on the images where they occur: the
ranges of MinMax are onnxruntime's own to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.tap import Tap, tap
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.observer import Batch, NotFinite, Observer, TensorStats

BATCH_BYTES = 8 << 20  # of the observed activations of a batch; measured: larger ones leave the CPU's cache
NEAR = 1e-5  # of the largest magnitude: far above the difference of the two sessions, far below that of two images
MOST_NEAR = 8  # images looked up again for each extreme

Result = TypeVar("Result")


def collect_stats(
    model: FloatModel, tensors: tuple[str, ...], images: CalibrationImages, bins: int | None, threads: int = 0
) -> dict[str, TensorStats]:
    """Collect the statistics of ``tensors`` on all ``images``.

    Args:
        tensors: names of float32 tensors; a first axis of another length than the batch is not taken for images.
        bins: of the histograms, from zero to the largest magnitude at least; None: no histograms.
        threads: that run the model; 0: one for each core.

    Raises:
        ExperimentError: a value is NaN or infinite; the model cannot be run.
    """
    proto = model.proto()
    fast, exact = tap(proto, tensors, "all"), tap(proto, tensors, "none")
    size = model.input_spec.batch or _batch_size(fast, model, images)
    observers = [Observer(len(images), bins) for _ in tensors]
    threads = threads or usable_cores()
    if bins is not None:
        threads = max(1, threads - 1)  # the calling thread is busy with counting

    def run(start: int) -> tuple[int, int, list[Batch]]:
        count = min(size, len(images) - start)
        values = fast(model.input_spec.prepare(images.batch(start, size)))
        of_images = (value[:count] if value.ndim and len(value) == size else value[None] for value in values)
        return start, count, [Batch.of(value, bins is not None) for value in of_images]

    with progress("calibration", len(images), "images") as advance:
        for start, count, batches in _in_order(run, range(0, len(images), size), threads):
            for name, observer, batch in zip(tensors, observers, batches, strict=True):
                try:
                    observer.update(batch, start, count)
                except NotFinite:
                    raise ExperimentError(
                        f"`model`: the activation {name!r} is NaN or infinite on the calibration images",
                        "check the model and the input range that it expects (model.mean, model.std)",
                    ) from None
            advance(count)
    extremes = _exact_extremes(exact, model, images, observers, size if model.input_spec.batch else 1)
    return {name: observer.finish(*pair) for name, observer, pair in zip(tensors, observers, extremes, strict=True)}


def _in_order(work: Callable[[int], Result], items: Iterable[int], threads: int) -> Iterator[Result]:
    """``work`` on each item by ``threads`` threads, a few items ahead of the caller."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > threads:  # more would be memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _exact_extremes(
    exact: Tap, model: FloatModel, images: CalibrationImages, observers: list[Observer], size: int
) -> list[tuple[np.float32, np.float32]]:
    """Extremes of each tensor in the graph as written, from the images that may hold them."""
    candidates = {
        int(image)
        for observer in observers
        for values in (observer.image_lows, -observer.image_highs)
        for image in _near_smallest(values, observer)
    }
    lows, highs = np.full(len(observers), np.inf, np.float32), np.full(len(observers), -np.inf, np.float32)
    for image in sorted(candidates):
        for i, values in enumerate(exact(model.input_spec.prepare(images.batch(image, 1).repeat(size, axis=0)))):
            lows[i], highs[i] = min(lows[i], values.min()), max(highs[i], values.max())
    return list(zip(lows, highs, strict=True))


def _near_smallest(values: np.ndarray, observer: Observer) -> np.ndarray:
    """Indices of the images whose extreme may be the smallest of ``values``."""
    limit = max(-observer.image_lows.min(), observer.image_highs.max())
    order = np.argsort(values, kind="stable")[:MOST_NEAR]
    return np.asarray(order[values[order] <= values[order[0]] + NEAR * limit])


def _batch_size(fast: Tap, model: FloatModel, images: CalibrationImages) -> int:
    """How many images make ``BATCH_BYTES`` of activations."""
    one = sum(value.nbytes for value in fast(model.input_spec.prepare(images.batch(0, 1))))
    return int(np.clip(BATCH_BYTES // max(1, one), 1, 256))
