"""The one place that builds ONNX Runtime's SessionOptions, and that calls a model which nobody has vouched for.

In: a serialized model and how it is to be run. Out: a session that never writes to stdout or stderr, and calls that
end. `session.py` has what most callers want: a session that computes what the model's integers say.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet8_quant.errors import COMMAND, ExperimentError

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession, RunOptions

CPU = ("CPUExecutionProvider",)
FATAL = 4  # log severity; what is less than fatal reaches the user as an exception or not at all

Level = Literal["all", "basic", "none"]

_time_limit = 30.0  # seconds, of one call in this process
_running: set[RunOptions] = set()


def new_session(
    model: bytes | str,
    threads: int = 1,
    *,
    level: Level = "all",
    providers: Sequence[str] = CPU,
    entries: Mapping[str, str] | None = None,
    arena: bool = True,
    optimized_model: Path | None = None,
    trace: Path | None = None,
    disabled_optimizers: Sequence[str] = (),
) -> InferenceSession:
    """Open a session as it is asked for; exceptions are ONNX Runtime's own.

    Args:
        threads: within an operator; 0: as many as there are cores.
        providers: execution providers, first choice first.
        entries: further settings, by ONNX Runtime's names.
        arena: keep freed memory for the next call.
        optimized_model: where ONNX Runtime is to write the graph that it runs; None: nowhere.
        trace: how the names of the profiler's files begin, which ``end_profiling`` writes; None: nothing is profiled.
        disabled_optimizers: names of ONNX Runtime's graph transformers.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    by_name = {"all": levels.ORT_ENABLE_ALL, "basic": levels.ORT_ENABLE_BASIC, "none": levels.ORT_DISABLE_ALL}
    options.graph_optimization_level = by_name[level]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    options.enable_cpu_mem_arena = arena
    # Idle workers would otherwise spin on and take the cores from the session that is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    return onnxruntime.InferenceSession(
        model, options, providers=list(providers), disabled_optimizers=list(disabled_optimizers)
    )


def set_time_limit(seconds: float) -> None:
    """Set how long one call of ``run`` may take in this process: ``evaluation.timeout``."""
    global _time_limit
    _time_limit = seconds


def run(session: InferenceSession, outputs: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Call a model; a loop in it may have no end, so that the call has a time limit.

    ONNX Runtime looks between two operators whether it is to stop, also in the body of a Loop.

    Args:
        session: opened by `new_session`.
        outputs: names; None: all.
        feed: {name of an input: array}.

    Raises:
        ExperimentError: it took longer than the limit. Other exceptions are ONNX Runtime's own.
    """
    import onnxruntime

    options, limit, expired = onnxruntime.RunOptions(), _time_limit, threading.Event()

    def stop() -> None:
        expired.set()
        options.terminate = True

    timer = threading.Timer(limit, stop)
    timer.daemon = True
    _running.add(options)
    timer.start()
    try:
        return list(session.run(outputs, feed, options))
    except Exception as error:
        if not expired.is_set():
            raise
        images = max((len(array) for array in feed.values() if array.ndim), default=1)
        raise ExperimentError(
            f"`evaluation.timeout` is {limit:g}: the model did not compute a batch of {images} in that many seconds",
            f"{COMMAND} evaluation.timeout={10 * limit:g}, if it is that slow; a Loop in it may have no end",
        ) from error
    finally:
        timer.cancel()
        _running.discard(options)


def stop_all() -> None:
    """End the calls that run now, in whatever thread: their callers see an exception of ONNX Runtime."""
    for options in tuple(_running):
        options.terminate = True
