"""How long one call takes: all models measured together, so that the machine's changes of speed affect them alike.

In: models, each with its own input spec, and images. Out: per model the median time with its interval, the 95th
percentile and the spread; per pair of models the speedup with its interval.

What is timed is a plain ``session.run`` from Python, as a user calls it, with its few microseconds of overhead;
io_binding would save a copy of 12 KB and measure something else. There is no progress bar: its thread would be
measured too.

Calls that follow each other are alike: a neighbour on the machine slows down tens of them. So the unit of the
statistics is a block of calls, not a call, and two models are compared block by block, each block with the one that
ran beside it. The intervals say how far a result depends on which blocks were measured. They do not hold what another
place in memory, another day or another machine changes: two sessions of one model differ by a few tenths of a percent,
so a difference of less than 1 % is not to be believed, whatever its interval.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import cannot_run, open_session
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.progress import LONG, duration

log = logging.getLogger(__name__)

BLOCK = 10  # calls of one model in a row: long against the cold first call, short against the machine's drift
MIN_BLOCKS = 20  # if there are as many runs: an interval from fewer blocks is coarse
LONG_CALL_NS = 10_000_000  # from here on a block is one call: refilling the caches is less than 1 % of it
RESAMPLES = 2000  # of the bootstrap
CHUNK = 100  # resamples at a time, to bound the memory
INTERVAL = (0.025, 0.975)

Call = Callable[[], object]


@dataclass(frozen=True)
class BenchmarkModel:
    """A model to be measured, and how it is fed; ``exact`` as `open_session` takes it."""

    serialized: bytes
    input_spec: InputSpec
    exact: bool = True


@dataclass(frozen=True)
class Latency:
    """Time per call of one model.

    Attributes:
        median_us: median of ``blocks_us``, microseconds.
        low_us: lower end of its 95 % bootstrap interval; from fewer than 6 blocks, the smallest of them at most.
        high_us: upper end, likewise; equal to the median if there is one block.
        p95_us: 95th percentile of all timed calls, microseconds.
        spread: interquartile range of all timed calls, as a ratio of the median.
        runs: number of timed calls.
        batch: images per call.
        blocks_us: float64 [blocks], median of each block in the order of measurement, microseconds. Block i of all
            models ran side by side.
    """

    median_us: float
    low_us: float
    high_us: float
    p95_us: float
    spread: float
    runs: int
    batch: int
    blocks_us: np.ndarray = field(repr=False, compare=False)

    @property
    def images_per_second(self) -> float:
        """Throughput of calls that follow each other."""
        return self.batch / self.median_us * 1e6


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def measure(
    models: dict[str, BenchmarkModel],
    images: np.ndarray,
    *,
    runs: int,
    warmup: int,
    threads: int,
    batch: int = 1,
    seed: int = 0,
    providers: Sequence[str] = CPU,
) -> dict[str, Latency]:
    """Measure models side by side.

    After the warm-up the models take turns in blocks of at most ``BLOCK`` calls, in alternating order. Within a block
    a model finds its own weights in the caches; one more call before the block, which loads them, is not timed. If a
    call of the slowest model takes ``LONG_CALL_NS`` or more, a block is one call; such a model has no untimed call.

    Args:
        models: name -> what is measured.
        images: uint8 [N, H, W, C], at least one; as many as the batch needs are used, repeated if necessary.
        runs: timed calls per model; 0: nothing is measured.
        warmup: calls per model before the first block; 2 if fewer are asked for.
        threads: of ONNX Runtime, within an operator; 0: as many as there are cores.
        batch: images per call; a batch that is fixed in the input_spec overrules it.
        seed: of the bootstrap.
        providers: ONNX Runtime's execution providers.

    Returns:
        name -> latency; empty if ``runs`` is 0.

    Raises:
        ExperimentError: a model cannot be loaded or run.
    """
    calls = {
        name: caller(model, images, threads=threads, batch=batch, providers=providers)
        for name, model in (models.items() if runs else ())
    }
    fixed = next((model.input_spec.batch for model in models.values() if model.input_spec.batch), batch)
    return measure_calls(calls, runs=runs, warmup=warmup, batch=fixed, seed=seed)


def caller(
    model: BenchmarkModel, images: np.ndarray, *, threads: int, batch: int = 1, providers: Sequence[str] = CPU
) -> Call:
    """A function that runs a model once; the arguments are those of ``measure``."""
    input_spec = model.input_spec
    session = open_session(model.serialized, threads, exact=model.exact, providers=providers)
    feed = {input_spec.name: input_spec.prepare(images[np.arange(input_spec.batch or batch) % len(images)])}

    def call() -> object:
        try:  # costs nothing while nothing is raised
            return session.run(None, feed)
        except Exception as error:  # see open_session
            raise cannot_run(feed[input_spec.name], error) from error

    return call


def measure_calls(calls: dict[str, Call], *, runs: int, warmup: int, batch: int, seed: int = 0) -> dict[str, Latency]:
    """``measure`` for any calls, such as those of another runtime; ``batch`` is for the record.

    Args:
        calls: name -> what is timed; none of them changes what another one does.
        runs: timed calls of each; 0: nothing is measured.
        warmup: calls of each before the first block; 2 if fewer are asked for.
        batch: images per call.
        seed: of the bootstrap.
    """
    if runs == 0 or not calls:
        return {}
    # The fastest call of the warm-up tells how long a call takes.
    call_ns = {name: min(_timed(call, max(2, warmup))) for name, call in calls.items()}
    seconds = runs * sum(call_ns.values()) / 1e9
    if seconds > LONG:
        log.info(
            "latency: %s calls of each of %d models will take about %s", f"{runs:,}", len(calls), duration(seconds)
        )
    blocks: dict[str, list[list[int]]] = {name: [] for name in calls}
    order = list(calls)
    collects_garbage = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for length in _block_lengths(runs, max(call_ns.values())):
            for name in order:
                if call_ns[name] < LONG_CALL_NS:  # one more call, which loads the caches
                    calls[name]()
                blocks[name].append(_timed(calls[name], length))
            order.reverse()
    finally:
        if collects_garbage:
            gc.enable()
    return {name: _summary(blocks[name], batch, seed) for name in calls}


def speedup(base: Latency, other: Latency, seed: int = 0) -> Ratio:
    """How many times faster ``other`` is: the median of the ratios of the blocks that ran side by side.

    Under a load that changes during the measurement this is steadier than the ratio of the two medians, from which it
    may differ a little.

    Args:
        base: time above the line.
        other: time below the line, from the same call of ``measure``.
        seed: of the bootstrap.

    Raises:
        ValueError: they have different batches or numbers of blocks, so they cannot be from one measurement.
    """
    if (base.batch, len(base.blocks_us)) != (other.batch, len(other.blocks_us)):
        raise ValueError(
            f"{len(base.blocks_us)} blocks of batch {base.batch}, {len(other.blocks_us)} of batch {other.batch}"
        )
    ratios = base.blocks_us / other.blocks_us
    return Ratio(float(np.median(ratios)), *_median_interval(ratios, seed))


def _block_lengths(runs: int, call_ns: int) -> list[int]:
    """Calls per block, which sum up to ``runs`` and differ by one at most, so that all blocks weigh the same."""
    longest = 1 if call_ns >= LONG_CALL_NS else BLOCK
    count = max(-(-runs // longest), min(runs, MIN_BLOCKS))
    length, longer = divmod(runs, count)
    return [length + 1] * longer + [length] * (count - longer)


def _timed(call: Call, count: int) -> list[int]:
    """Nanoseconds of each of ``count`` calls."""
    times = []
    for _ in range(count):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return times


def _summary(blocks: list[list[int]], batch: int, seed: int) -> Latency:
    """The latency from the nanoseconds of each call, by block."""
    blocks_us = np.array([np.median(block) for block in blocks]) / 1000
    calls_us = np.concatenate(blocks) / 1000
    median = float(np.median(blocks_us))
    low, high = _median_interval(blocks_us, seed)
    lower, upper, p95 = np.percentile(calls_us, [25, 75, 95]).tolist()
    return Latency(median, low, high, p95, (upper - lower) / median, len(calls_us), batch, blocks_us)


def _median_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), 1-26.
    """
    rng = np.random.default_rng(seed)
    shape = CHUNK, len(values)
    medians = [np.median(values[rng.integers(0, len(values), shape)], axis=1) for _ in range(RESAMPLES // CHUNK)]
    low, high = np.quantile(np.concatenate(medians), INTERVAL).tolist()
    return low, high
