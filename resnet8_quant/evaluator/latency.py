"""How long one call takes: all models measured together, so that the machine's moods hit them alike.

In: serialized models with the same input, one batch of images. Out: median and 95th percentile in microseconds.

What is timed is a plain ``session.run`` from Python, as a user calls it, with its few microseconds of overhead;
io_binding would save a copy of 12 KB and measure something else. There is no progress bar: its thread would be
measured too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from resnet8_quant.evaluator.session import open_session, run_batch
from resnet8_quant.inputs.contract import InputContract

BLOCK = 10  # calls of one model in a row: long against the cold first call, short against the machine's drift


@dataclass(frozen=True)
class Latency:
    """Time per call of one model.

    Attributes:
        median_us: microseconds.
        p95_us: 95th percentile, microseconds.
        runs: number of timed calls.
        batch: images per call.
    """

    median_us: float
    p95_us: float
    runs: int
    batch: int


def measure(
    models: dict[str, bytes], contract: InputContract, images: np.ndarray, *, runs: int, warmup: int, threads: int
) -> dict[str, Latency]:
    """Measure models side by side.

    After the warm-up the models take turns in blocks of ``BLOCK`` calls, in alternating order. Within a block a
    model finds its own weights in the caches; the first call of a block, which loads them, is not counted.

    Args:
        models: name -> serialized ModelProto; all with the input that ``contract`` describes.
        contract: the batch is 1, or the one that is fixed there.
        images: uint8 [N, H, W, C], at least one; as many as the batch needs are used, repeated if necessary.
        runs: timed calls per model; 0: nothing is measured.
        warmup: calls per model before the first block.
        threads: 0: as many as there are cores.

    Returns:
        name -> latency; empty if ``runs`` is 0.

    Raises:
        ExperimentError: a model cannot be loaded or run.
    """
    if runs == 0:
        return {}
    batch = contract.batch or 1
    feed = {contract.name: contract.prepare(images[np.arange(batch) % len(images)])}
    sessions = {name: open_session(model, threads) for name, model in models.items()}
    for session in sessions.values():
        for _ in range(max(1, warmup)):  # at least one call that tells a failure in words
            run_batch(session, contract.name, feed[contract.name])
    nanoseconds: dict[str, list[int]] = {name: [] for name in models}
    order = list(models)
    with _no_garbage_collection():
        for done in range(0, runs, BLOCK):
            for name in order:
                run = sessions[name].run
                run(None, feed)
                for _ in range(min(BLOCK, runs - done)):
                    start = perf_counter_ns()
                    run(None, feed)
                    nanoseconds[name].append(perf_counter_ns() - start)
            order.reverse()
    return {
        name: Latency(float(np.median(times)) / 1000, float(np.percentile(times, 95)) / 1000, runs, batch)
        for name, times in nanoseconds.items()
    }


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, then not again until the end, which restores what the caller had."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
