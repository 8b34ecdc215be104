"""The columns of a row that say how fast a model is, and whether the machine was quiet enough to tell.

In: the float and the quantized model, images, the `latency` part of the config. Out: {column: value}.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet8_quant.config import LatencyConfig
from resnet8_quant.evaluator.latency import BenchmarkModel, Latency, measure, speedup
from resnet8_quant.graphs.session import differs_by_default
from resnet8_quant.machine import Busy, load_per_core, usable_cores

MOST_OTHERS = 0.1  # share of the cores' time; beyond it, or beyond the spread, a measurement is called busy
MOST_SPREAD = 0.2
FEWER_RUNS = 50  # throughput: that many times fewer calls, each of many images


def speed_columns(
    float_model: BenchmarkModel,
    model: BenchmarkModel | None,
    images: np.ndarray,
    config: LatencyConfig,
    providers: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Measure both models side by side: single calls on ``config.threads`` and on all threads, and a large batch.

    Args:
        float_model: the original.
        model: quantized; None: there is only the original.
        images: uint8 [N, H, W, C].
        config: how often, how long; runs=0: nothing is measured; throughput_batch=0: no throughput.
        providers: execution providers.
        seed: of the bootstrap.

    Returns:
        Empty where nothing is measured.

    Raises:
        ExperimentError: a model cannot be run.
    """
    if config.runs == 0:
        return {}
    clock, load, busy = time.perf_counter(), load_per_core(), Busy()
    busy.start()
    subjects = {"float": float_model} | ({} if model is None else {"model": model})
    judged = model or float_model
    if differs_by_default(judged.model):  # an application opens that session: its time stands beside the exact one's
        subjects["default"] = dataclasses.replace(judged, exact=False)
    default: list[Latency] = []

    def both(runs: int, warmup: int, threads: int, batch: int) -> tuple[Latency, Latency]:
        measured = measure(
            subjects, images, runs=runs, warmup=warmup, threads=threads, batch=batch, seed=seed, providers=providers
        )
        default.extend(measured[name] for name in ("default",) if name in measured)
        return measured["float"], measured.get("model", measured["float"])

    def ratio_columns(name: str, base: Latency, other: Latency) -> dict[str, float]:
        ratio = speedup(base, other, seed)
        return {name: ratio.value, f"{name}_ci_low": ratio.low, f"{name}_ci_high": ratio.high}

    base, one = both(config.runs, config.warmup, config.threads, 1)
    columns: dict[str, Any] = {
        "latency_us_median": one.median_us,
        "latency_us_ci_low": one.low_us,
        "latency_us_ci_high": one.high_us,
        "latency_us_p95": one.p95_us,
        "latency_iqr_ratio": one.spread,
        "float_latency_us_median": base.median_us,
        "float_latency_us_p95": base.p95_us,
        "float_latency_iqr_ratio": base.spread,
        "latency_runs": one.runs,
        "latency_batch": one.batch,
        "latency_threads": config.threads,
    }
    if default:
        columns["default_session_latency_us_median"] = default[0].median_us
    spreads = [one.spread, base.spread]
    if model is not None:
        columns |= ratio_columns("speedup", base, one)
    base, one = both(config.runs, config.warmup, 0, 1)
    columns |= {"threads_available": usable_cores(), "all_threads_latency_us_median": one.median_us}
    columns |= {} if model is None else ratio_columns("all_threads_speedup", base, one)
    if config.throughput_batch > 0:
        base, one = both(max(1, config.runs // FEWER_RUNS), 1, 0, config.throughput_batch)
        columns |= {
            "throughput_batch": one.batch,
            "images_per_second": one.images_per_second,
            "float_images_per_second": base.images_per_second,
        }
        columns |= {} if model is None else ratio_columns("throughput_speedup", base, one)
    others = busy.stop()
    columns |= {
        "machine_load": load,
        "other_processes_share": others,
        "machine_busy": None if others is None else others > MOST_OTHERS or max(spreads) > MOST_SPREAD,
        "latency_seconds": time.perf_counter() - clock,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in columns.items()}
