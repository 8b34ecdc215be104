"""The one place that builds ONNX Runtime's SessionOptions.

In: a serialized model and how it is to be run. Out: a session that never writes to stdout or stderr. `session.py` has
what most callers want: a session that computes what the model's integers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU = ("CPUExecutionProvider",)
FATAL = 4  # log severity; what is less than fatal reaches the user as an exception or not at all

Level = Literal["all", "basic", "none"]


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
