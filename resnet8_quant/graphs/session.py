"""Sessions that compute what a model's integers say, on every CPU.

In: serialized models, a number of threads, execution providers. Out: sessions, and what they compute for a batch.

On x86 CPUs without VNNI, ONNX Runtime multiplies uint8 by int8 with an instruction that saturates (see saturation.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.runtime import CPU, new_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Weights of layers that may saturate become uint8, whose kernel is exact; ONNX Runtime ignores it on CPUs with VNNI.
PRECISE = {"session.x64quantprecision": "1"}
SIMULATED = {"session.disable_quant_qdq": "1"}  # float kernels between Q and DQ


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
    exact: bool = True,
    providers: Sequence[str] = CPU,
    optimized_model: Path | None = None,
    trace: Path | None = None,
) -> InferenceSession:
    """Open a model with all graph optimizations.

    Args:
        threads: within an operator; 0: as many as there are cores.
        exact: let no kernel saturate; False: ONNX Runtime's default options, as an application opens a model.
        optimized_model: where ONNX Runtime is to write the graph that it runs; None: nowhere.
        trace: how the names of the profiler's files begin, which ``end_profiling`` writes; None: nothing is profiled.

    Raises:
        ExperimentError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    open_with = functools.partial(
        new_session, threads=threads, providers=providers, optimized_model=optimized_model, trace=trace
    )
    try:
        if not (exact and differs_by_default(model)):
            return open_with(model)
        from resnet8_quant.graphs.saturation import unsigned_weights

        # Integer operators get uint8 weights here, Q/DQ pairs by ONNX Runtime. It then rejects some models with int8
        # matrix products, whose types no longer match; those are computed in float between Q and DQ.
        model = unsigned_weights(model)
        try:
            return open_with(model, entries=PRECISE)
        except Exception:  # ONNX Runtime's exceptions share no base class
            return open_with(model, entries=SIMULATED)
    except Exception as error:
        raise ExperimentError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {first_line(error)}",
            "check the file: check-model MODEL.onnx",
        ) from error


def differs_by_default(model: bytes) -> bool:
    """Whether a session with default options may compute something else on this CPU than the model's integers say."""
    if not kernels_saturate():
        return False
    from google.protobuf.message import DecodeError

    from resnet8_quant.graphs.saturation import saturating_layers

    try:
        return bool(saturating_layers(model))
    except DecodeError:  # no model at all: ONNX Runtime says what is wrong with it
        return False


@functools.cache
def kernels_saturate() -> bool:
    """Whether this CPU's kernels for uint8 times int8 saturate, found by running one: a few milliseconds, once.

    A QLinearConv of 64 channels of 255 with weights of 127, on a scale that makes 200 of the exact sum.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    channels, code, weight, exact = 64, 255, 127, 200
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "w": np.full((channels, channels, 1, 1), weight, np.int8),
        "w_zero": np.int8(0),
        "scale": np.float32(channels * code * weight / exact),
    }
    inputs = ["x", "one", "zero", "w", "one", "w_zero", "scale", "zero"]
    shape = [1, channels, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", inputs, ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    output = new_session(model.SerializeToString()).run(None, {"x": np.full(shape, code, np.uint8)})[0]
    return bool((output != exact).any())


def run_batch(session: InferenceSession, name: str, batch: np.ndarray) -> np.ndarray:
    """The first output of the model for one batch.

    Raises:
        ExperimentError: ONNX Runtime cannot run the model on this batch, or not within the time limit.
    """
    try:
        output = runtime.run(session, [session.get_outputs()[0].name], {name: batch})[0]
    except ExperimentError:
        raise
    except Exception as error:  # see open_session
        raise cannot_run(batch, error) from error
    return np.asarray(output)


def cannot_run(batch: np.ndarray, error: Exception) -> ExperimentError:
    """The error for a batch that ONNX Runtime does not run."""
    remedy = "if the model works on single images only: evaluation.batch_size=1"
    if len(batch) == 1:
        remedy = "export the model again: ONNX Runtime runs it on no image, whatever is set here"
    return ExperimentError(
        f"ONNX Runtime cannot run the model on a batch of shape {list(batch.shape)}: {first_line(error)}", remedy
    )


def first_line(error: Exception) -> str:
    """What an exception of ONNX Runtime says, without the trace behind it."""
    return (str(error).splitlines() or [type(error).__name__])[0]
