"""What the target's runtimes compute: LiteRT, as a phone or a PC runs the file, and TensorFlow Lite Micro.

In: the bytes of a .tflite file and its inputs. Out: outputs; of TensorFlow Lite Micro also its arena.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.progress import progress

CHUNK = 100  # images that a worker gets at a time


@dataclass(frozen=True)
class TflmRun:
    """What TensorFlow Lite Micro made of the images.

    Attributes:
        outputs: [N, classes].
        arena_bytes: all memory that the interpreter took: activations, and what it keeps beside them.
    """

    outputs: np.ndarray
    arena_bytes: int | None


def has_tflm() -> bool:
    """Whether TensorFlow Lite Micro's interpreter is installed."""
    return find_spec("tflite_micro") is not None


def run_litert(data: bytes, inputs: np.ndarray, threads: int) -> np.ndarray:
    """[N, ...] -> [N, classes] by LiteRT with its default kernels (XNNPACK), one image at a time.

    Raises:
        ExperimentError: LiteRT is not installed, or refuses the file.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise missing_extra("ai-edge-litert", "tflite") from error
    opened: list[Any] = []

    def open_file() -> None:
        opened.append(Interpreter(model_content=data, num_threads=threads or os.cpu_count() or 1))
        opened[0].allocate_tensors()

    try:
        _printed(open_file)  # it reports its delegate on stderr
        interpreter = opened[0]
    except (RuntimeError, ValueError) as error:
        raise _refused("LiteRT", error) from error
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = np.empty((len(inputs), *result["shape"][1:]), result["dtype"])
    with progress("LiteRT", len(inputs), "images") as advance:
        for i in range(len(inputs)):
            interpreter.set_tensor(source["index"], inputs[i : i + 1])
            interpreter.invoke()
            outputs[i] = interpreter.get_tensor(result["index"])[0]
            advance(1)
    return outputs


def run_tflm(data: bytes, inputs: np.ndarray, workers: int) -> TflmRun:
    """[N, ...] -> outputs of TensorFlow Lite Micro, in ``workers`` processes.

    Raises:
        ExperimentError: it is not installed, or refuses the file.
    """
    if not has_tflm():
        raise missing_extra("tflite-micro", "tflite")
    chunks = [inputs[start : start + CHUNK] for start in range(0, len(inputs), CHUNK)]
    context = multiprocessing.get_context("spawn")
    try:
        with (
            progress("TensorFlow Lite Micro", len(inputs), "images") as advance,
            ProcessPoolExecutor(min(workers, len(chunks)), context, _open, (data,)) as pool,
        ):
            parts = []
            arena = pool.submit(_arena, inputs[:1])
            for part in pool.map(_run_chunk, chunks):
                parts.append(part)
                advance(len(part))
            arena_bytes = arena.result()
    except (RuntimeError, ValueError) as error:
        raise _refused("TensorFlow Lite Micro", error) from error
    return TflmRun(np.concatenate(parts), arena_bytes)


def _refused(runtime: str, error: Exception) -> ExperimentError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ExperimentError(f"{runtime} cannot run the model: {first}", "python run.py quant=int8 deploy=tflite")


_interpreter: Any = None


def _open(data: bytes) -> None:
    """In a worker: the interpreter that all its chunks use."""
    global _interpreter
    from tflite_micro.python.tflite_micro import runtime

    _interpreter = runtime.Interpreter.from_bytes(data)


def _run_chunk(inputs: np.ndarray) -> np.ndarray:
    outputs = []
    for i in range(len(inputs)):
        _interpreter.set_input(inputs[i : i + 1], 0)
        _interpreter.invoke()
        outputs.append(_interpreter.get_output(0)[0].copy())
    return np.array(outputs)


def _arena(inputs: np.ndarray) -> int | None:
    """Bytes of the arena, from the report that the interpreter prints; None where it prints none."""
    _run_chunk(inputs)
    match = re.search(r"Arena allocation total (\d+) bytes", _printed(_interpreter.print_allocations))
    return int(match[1]) if match else None


def _printed(report: Callable[[], None]) -> str:
    """What native code prints while ``report`` runs."""
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(stream) for stream in (1, 2)]
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            report()
        finally:
            for stream, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
        file.seek(0)
        return file.read().decode(errors="replace")
