"""How fast a model is beside the float model, and whether the machine was quiet enough to tell.

In: the float and the quantized model, images, the `latency` part of the config. Out: a `Speed`: single images on the
threads that were asked for and on all of them, throughput of a large batch, and what else ran on the machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from resnet8_quant.config import LatencyConfig
from resnet8_quant.evaluator.latency import BenchmarkModel, Latency, measure, speedup
from resnet8_quant.graphs.session import differs_by_default
from resnet8_quant.machine import cpu_times, load_per_core, other_processes_share, usable_cores

# Beyond one of these a measurement is called busy: other processes' share of the cores' time, and the interquartile
# range of single calls as a ratio of their median.
MOST_OTHERS = 0.1
MOST_SPREAD = 0.2
FEWER_RUNS = 50  # throughput: that many times fewer calls, each of many images


@dataclass(frozen=True)
class SideBySide:
    """Latencies of one measurement.

    Attributes:
        float_model: of the original.
        model: of the quantized model; None: there is only the original.
        default_session: of the model in a session with default options; None where that is the exact one.
    """

    float_model: Latency
    model: Latency | None
    default_session: Latency | None

    @property
    def judged(self) -> Latency:
        """The quantized model's, or the original's where there is no other."""
        return self.model or self.float_model

    def speedup_columns(self, name: str, seed: int) -> dict[str, float]:
        """Float over quantized with its interval; empty where there is only the original."""
        if self.model is None:
            return {}
        ratio = speedup(self.float_model, self.model, seed)
        return {name: ratio.value, f"{name}_ci_low": ratio.low, f"{name}_ci_high": ratio.high}


@dataclass(frozen=True)
class Speed:
    """All measurements of a run.

    Attributes:
        single: one image per call, on ``threads`` threads.
        all_threads: one image per call, on all threads.
        throughput: many images per call, on all threads; None where it was not measured.
        threads: as configured; 0: all.
        machine_load: processes that ran or waited per core when it began; None: not known.
        other_processes_share: of the cores' time meanwhile, 0..1; None: not known.
        seconds: that all of it took.
        seed: of the bootstrap.
    """

    single: SideBySide
    all_threads: SideBySide
    throughput: SideBySide | None
    threads: int
    machine_load: float | None
    other_processes_share: float | None
    seconds: float
    seed: int

    @property
    def machine_busy(self) -> bool | None:
        """Whether the machine was too busy for the figures to be trusted; None: not known."""
        if self.other_processes_share is None:
            return None
        spread = max(self.single.judged.spread, self.single.float_model.spread)
        return self.other_processes_share > MOST_OTHERS or spread > MOST_SPREAD

    def columns(self) -> dict[str, Any]:
        """The columns of results.csv, floats rounded to four digits."""
        latency, float_latency = self.single.judged, self.single.float_model
        columns: dict[str, Any] = {
            "latency_us_median": latency.median_us,
            "latency_us_ci_low": latency.low_us,
            "latency_us_ci_high": latency.high_us,
            "latency_us_p95": latency.p95_us,
            "latency_iqr_ratio": latency.spread,
            "float_latency_us_median": float_latency.median_us,
            "float_latency_us_p95": float_latency.p95_us,
            "float_latency_iqr_ratio": float_latency.spread,
            "latency_runs": latency.runs,
            "latency_batch": latency.batch,
            "latency_threads": self.threads,
            **self.single.speedup_columns("speedup", self.seed),
            "threads_available": usable_cores(),
            "all_threads_latency_us_median": self.all_threads.judged.median_us,
            **self.all_threads.speedup_columns("all_threads_speedup", self.seed),
            "machine_load": self.machine_load,
            "other_processes_share": self.other_processes_share,
            "machine_busy": self.machine_busy,
            "latency_seconds": self.seconds,
        }
        if self.single.default_session is not None:
            columns["default_session_latency_us_median"] = self.single.default_session.median_us
        if self.throughput is not None:
            columns |= {
                "throughput_batch": self.throughput.judged.batch,
                "images_per_second": self.throughput.judged.images_per_second,
                "float_images_per_second": self.throughput.float_model.images_per_second,
                **self.throughput.speedup_columns("throughput_speedup", self.seed),
            }
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in columns.items()}


def measure_speed(
    float_model: BenchmarkModel,
    model: BenchmarkModel | None,
    images: np.ndarray,
    config: LatencyConfig,
    providers: Sequence[str],
    seed: int,
) -> Speed | None:
    """Measure both models side by side: single calls on ``config.threads`` and on all threads, and a large batch.

    Args:
        float_model: the original.
        model: quantized; None: there is only the original.
        images: uint8 [N, H, W, C].
        config: how often, how long; runs=0: nothing is measured; throughput_batch=0: no throughput.
        providers: execution providers.
        seed: of the bootstrap.

    Returns:
        None where nothing is measured.

    Raises:
        ExperimentError: a model cannot be run.
    """
    if config.runs == 0:
        return None
    clock, load, before = time.perf_counter(), load_per_core(), cpu_times()
    models = {"float": float_model} | ({} if model is None else {"model": model})
    judged = model or float_model
    if differs_by_default(judged.model):  # what an application opens is timed beside the exact session
        models["default"] = dataclasses.replace(judged, exact=False)

    measure_all = partial(_side_by_side, models, images, providers=providers, seed=seed)
    single = measure_all(runs=config.runs, warmup=config.warmup, threads=config.threads)
    all_threads = measure_all(runs=config.runs, warmup=config.warmup, threads=0)
    throughput = None
    if config.throughput_batch > 0:
        runs = max(1, config.runs // FEWER_RUNS)
        throughput = measure_all(runs=runs, warmup=1, threads=0, batch=config.throughput_batch)
    return Speed(
        single,
        all_threads,
        throughput,
        threads=config.threads,
        machine_load=load,
        other_processes_share=other_processes_share(before, cpu_times()),
        seconds=time.perf_counter() - clock,
        seed=seed,
    )


def _side_by_side(models: dict[str, BenchmarkModel], images: np.ndarray, **options: Any) -> SideBySide:
    latencies = measure(models, images, **options)
    return SideBySide(latencies["float"], latencies.get("model"), latencies.get("default"))
