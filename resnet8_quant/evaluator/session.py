"""ONNX Runtime sessions, opened the same way for accuracy, latency and the kernel report.

In: serialized models, a number of threads, execution providers. Out: sessions that never write to stdout or stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_quant.errors import ExperimentError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU = ("CPUExecutionProvider",)
FATAL = 4  # log severity; what is less than fatal reaches the user as an exception or not at all


def check_providers(names: Sequence[str]) -> None:
    """Refuse execution providers that this build of ONNX Runtime does not have.

    Raises:
        ExperimentError: lists those that it has.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    unknown = [name for name in names if name not in available]
    if unknown or not names or len(set(names)) < len(names):
        raise ExperimentError(
            f"`evaluation.providers` is {list(names)}; this build of ONNX Runtime has {', '.join(available)}",
            "python run.py 'evaluation.providers=[CPUExecutionProvider]', or install a build that has it",
        )


def open_session(
    model: bytes,
    threads: int,
    *,
    providers: Sequence[str] = CPU,
    optimized_model: Path | None = None,
    trace: Path | None = None,
) -> InferenceSession:
    """Open a model with all graph optimizations.

    Args:
        model: serialized ModelProto.
        threads: within an operator; 0: as many as there are cores.
        providers: execution providers, first choice first; ``check_providers`` says whether they are there.
        optimized_model: where ONNX Runtime is to write the graph that it runs; None: nowhere.
        trace: how the names of the profiler's files begin, which ``end_profiling`` writes; None: nothing is profiled.

    Raises:
        ExperimentError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    # Idle workers would otherwise spin on and take the cores from the session that is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ExperimentError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {_first_line(error)}",
            "check the file: check-model MODEL.onnx",
        ) from error


def run_batch(session: InferenceSession, name: str, batch: np.ndarray) -> np.ndarray:
    """The first output of the model for one batch.

    Args:
        session: from ``open_session``.
        name: of the graph's input.
        batch: float32, as the model wants it.

    Raises:
        ExperimentError: ONNX Runtime cannot run the model on this batch.
    """
    try:
        output = session.run([session.get_outputs()[0].name], {name: batch})[0]
    except Exception as error:  # see open_session
        raise cannot_run(batch, error) from error
    return np.asarray(output)


def cannot_run(batch: np.ndarray, error: Exception) -> ExperimentError:
    """The error for a batch that ONNX Runtime does not run."""
    return ExperimentError(
        f"ONNX Runtime cannot run the model on a batch of shape {list(batch.shape)}: {_first_line(error)}",
        "if the model works on single images only: evaluation.batch_size=1",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
