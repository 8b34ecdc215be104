"""How fast a model is beside the float model, and whether the machine was quiet enough to tell.

In: the float and the quantized model, images, the `latency` part of the config. Out: the columns of results.csv about
speed: single images on the threads that were asked for and on all of them, throughput of a large batch, and what else
ran on the machine.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import numpy as np

from resnet8_quant.config import Config
from resnet8_quant.evaluator.accuracy import Classifier
from resnet8_quant.evaluator.latency import BenchmarkModel, Latency, measure, speedup
from resnet8_quant.evaluator.profiler import profile_model
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import differs_by_default
from resnet8_quant.machine import load_per_core, usable_cores, watch_other_processes

# Beyond one of these a measurement is called busy: other processes' share of the cores' time, and the interquartile
# range of single calls as a ratio of their median.
MOST_OTHERS = 0.1
MOST_SPREAD = 0.2
PROFILED = 50  # calls, at most: the share of time is told to a percent or so
FEWER_RUNS = 50  # throughput: that many times fewer calls, each of many images


def measure_speed(
    float_model: Classifier, model: Classifier | None, images: np.ndarray, config: Config
) -> dict[str, Any]:
    """Measure both models side by side: single calls on ``latency.threads`` and on all threads, and a large batch.

    Args:
        float_model: the original.
        model: quantized; None: there is only the original, which then has the columns of both.
        images: uint8 [N, H, W, C].
        config: ``latency``, ``evaluation.providers`` and ``seed`` are read. With runs=0 nothing is measured, with
            throughput_batch=0 no throughput.

    Returns:
        Columns of results.csv, floats rounded to four digits; empty where nothing is measured.

    Raises:
        ExperimentError: a model cannot be run.
    """
    settings, seed = config.latency, config.seed
    if settings.runs == 0:
        return {}
    clock, load, share_of_others = time.perf_counter(), load_per_core(), watch_other_processes()
    models = {"float": BenchmarkModel(float_model.serialized, float_model.input_spec)}
    if model is not None:
        models["model"] = BenchmarkModel(model.serialized, model.input_spec)
    judged = "float" if model is None else "model"
    if differs_by_default(models[judged].serialized):  # what an application opens is timed beside the exact session
        models["default"] = dataclasses.replace(models[judged], exact=False)
    measure_all = partial(measure, models, images, providers=config.evaluation.providers, seed=seed)

    single = measure_all(runs=settings.runs, warmup=settings.warmup, threads=settings.threads)
    latency, float_latency = single[judged], single["float"]
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
        "latency_threads": settings.threads,
        **_speedup_columns("speedup", single, seed),
    }
    if "default" in single:
        columns["default_session_latency_us_median"] = single["default"].median_us
    if config.evaluation.providers[0] == CPU[0]:  # another one does not say what it runs
        runs, warmup = min(settings.runs, PROFILED), min(settings.warmup, PROFILED)
        profile = profile_model(models[judged].serialized, runs=runs, warmup=warmup, threads=settings.threads)
        columns["non_integer_time_share"] = profile.share_of("float", "quantize", "layout", "control")

    all_threads = measure_all(runs=settings.runs, warmup=settings.warmup, threads=0)
    columns |= {
        "threads_available": usable_cores(),
        "all_threads_latency_us_median": all_threads[judged].median_us,
        **_speedup_columns("all_threads_speedup", all_threads, seed),
    }

    if settings.throughput_batch > 0:
        runs = max(1, settings.runs // FEWER_RUNS)
        throughput = measure_all(runs=runs, warmup=1, threads=0, batch=settings.throughput_batch)
        columns |= {
            "throughput_batch": throughput[judged].batch,
            "images_per_second": throughput[judged].images_per_second,
            "float_images_per_second": throughput["float"].images_per_second,
            **_speedup_columns("throughput_speedup", throughput, seed),
        }

    others = share_of_others()
    noisy = max(latency.spread, float_latency.spread) > MOST_SPREAD
    columns |= {
        "machine_load": load,
        "other_processes_share": others,
        "machine_busy": None if others is None else others > MOST_OTHERS or noisy,
        "latency_seconds": time.perf_counter() - clock,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in columns.items()}


def _speedup_columns(name: str, latencies: dict[str, Latency], seed: int) -> dict[str, float]:
    """Float over quantized with its interval; empty where there is only the original."""
    if "model" not in latencies:
        return {}
    ratio = speedup(latencies["float"], latencies["model"], seed)
    return {name: ratio.value, f"{name}_ci_low": ratio.low, f"{name}_ci_high": ratio.high}
