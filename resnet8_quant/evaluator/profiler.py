"""Where the time of one call goes: every operator as ONNX Runtime's own profiler times it.

In: a serialized model. Out: for each operator that runs its kind of kernel, median time and shapes; and the time of a
whole call without the profiler, measured in turns with the profiled calls.

The profiler builds a description of the outputs before it stops the clock, which adds some microseconds to every
operator: the sum of the operators is more than a call takes, and the shares of short operators read too high.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import OPERATORS, KernelKind, kernel_kind
from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.session import first_line, open_session

if TYPE_CHECKING:
    from onnx import NodeProto
    from onnxruntime import InferenceSession

BLOCK = 10  # calls in a row, profiled or not: long against the cold first call, short against the machine's drift
MOST_EVENTS = 400_000  # in one trace, each about 1 KB on the disk; ONNX Runtime drops what comes after 1,000,000
LARGEST_INPUT = 2**30  # bytes
SEED = 42
KERNEL_TIME = "_kernel_time"  # how the names of operators' events end

# Type of an input as ONNX Runtime names it -> NumPy's name, and the range of the random integers that it is fed.
INPUT_TYPES = {
    "tensor(float)": ("float32", 0, 255),
    "tensor(uint8)": ("uint8", 0, 255),
    "tensor(int8)": ("int8", -128, 127),
    "tensor(float16)": ("float16", 0, 255),
    "tensor(double)": ("float64", 0, 255),
    "tensor(int32)": ("int32", 0, 255),
    "tensor(int64)": ("int64", 0, 255),
    "tensor(bool)": ("bool", 0, 1),
}


@dataclass(frozen=True)
class NodeTime:
    """One operator of the graph that ONNX Runtime runs.

    Attributes:
        name: of the node, as ONNX Runtime's optimizations named it.
        operator: for example "QLinearConv".
        kernel: see ``kernels.kernel_kind``.
        median_us: microseconds per call. The profiler counts whole ones, so this is the median of grouped data.
        inputs: type and shape of each, weights and scales included, for example "uint8[1,32,32,3]".
        outputs: likewise.
    """

    name: str
    operator: str
    kernel: KernelKind
    median_us: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """The operators of one model in the order in which they ran.

    Attributes:
        nodes: at least one. What runs within an If, Loop or Scan is part of that operator.
        call_us: median of whole calls without the profiler, microseconds.
        runs: calls behind every median.
        inputs: what was fed, for example "image float32[1,32,32,3]".
    """

    nodes: tuple[NodeTime, ...]
    call_us: float
    runs: int
    inputs: tuple[str, ...]

    @property
    def total_us(self) -> float:
        """Sum of the operators' medians, microseconds."""
        return sum(node.median_us for node in self.nodes)

    def share_of(self, *kernels: KernelKind) -> float:
        """Share of the operators' time that these kinds of kernels take, a ratio."""
        return sum(node.median_us for node in self.nodes if node.kernel in kernels) / self.total_us


Event = dict[str, Any]  # of the trace: name, "ts" and "dur" in microseconds, "args"


def profile_model(model: bytes, *, runs: int, warmup: int, batch: int | None = None, threads: int = 1) -> Profile:
    """Profile a model on random inputs, the same ones each time.

    Args:
        model: serialized ModelProto.
        runs: profiled calls after the warm-up, at least 1; as many are timed without the profiler.
        warmup: calls before them, with and without the profiler.
        batch: size of every free axis of the inputs; None: 1.
        threads: within an operator; 0: as many as there are cores.

    Raises:
        ExperimentError: the model cannot be loaded or run, its inputs cannot be generated, or there are too many runs.
    """
    import onnx

    plain = open_session(model, threads, exact=False)  # what an application opens
    feed = make_inputs(plain, batch)
    with temporary_folder() as folder:
        graph = folder / "optimized.onnx"
        profiled = open_session(model, threads, exact=False, optimized_model=graph, trace=folder / "trace")
        try:
            # The trace has operators without their attributes, some of which decide about the kind of kernel.
            nodes = {node.name: node for node in onnx.load(graph).graph.node}
            most = MOST_EVENTS // max(1, len(nodes))
            if warmup + runs > most:
                raise ExperimentError(
                    f"`--warmup` {warmup} and `--runs` {runs} of {len(nodes)} operators are more than "
                    f"{MOST_EVENTS:,} events",
                    f"profile at most {most} calls in all: --warmup {most // 10} --runs {most - most // 10}",
                )
            calls = _run_in_turns(plain, profiled, feed, runs, warmup)
        finally:
            trace = Path(profiled.end_profiling())  # closes the file, which lies in the folder
        events: list[Event] = []
        durations = []
        for events in _executions(trace):
            durations.append([event["dur"] for event in events])
    if len(durations) != warmup + runs:
        raise ExperimentError(
            f"the profiler recorded {len(durations)} of {warmup + runs} calls", "profile fewer of them: --runs 20"
        )
    if not events:
        raise ExperimentError("ONNX Runtime runs no operator of the model", "give a model whose output is computed")
    columns = zip(*durations[warmup:], strict=True)  # per operator, microseconds of each run
    return Profile(
        tuple(_node_time(event, times, nodes) for event, times in zip(events, columns, strict=True)),
        statistics.median(calls) / 1000,
        runs,
        tuple(f"{name} {_shown({array.dtype.name: array.shape})}" for name, array in feed.items()),
    )


def make_inputs(session: InferenceSession, batch: int | None) -> dict[str, np.ndarray]:
    """Random integers 0 to 255 in the type of each input (int8: -128 to 127; bool: both), from a fixed seed.

    Raises:
        ExperimentError: an input is no tensor of numbers or too large, or ``batch`` is given and no axis is free.
    """
    rng = np.random.default_rng(SEED)
    free = 0
    feed = {}
    for value in session.get_inputs():
        if value.type not in INPUT_TYPES:
            raise ExperimentError(
                f"input {value.name!r} is {value.type}; only {', '.join(INPUT_TYPES)} can be generated",
                "profile a model with inputs of these types",
            )
        dtype, low, high = INPUT_TYPES[value.type]
        fixed = [size if isinstance(size, int) and size >= 0 else None for size in value.shape]
        free += fixed.count(None)
        shape = [(batch or 1) if size is None else size for size in fixed]
        if math.prod(shape) * np.dtype(dtype).itemsize > LARGEST_INPUT:
            raise ExperimentError(
                f"input {value.name!r} of shape {shape} has more than {LARGEST_INPUT >> 20} MiB",
                "profile a smaller batch: --batch 1",
            )
        feed[value.name] = rng.integers(low, high, shape, dtype=np.int16, endpoint=True).astype(dtype)
    if batch is not None and not free:
        raise ExperimentError("`--batch` is set, but the model's inputs have no free axis", "leave out --batch")
    return feed


def _run_in_turns(
    plain: InferenceSession, profiled: InferenceSession, feed: dict[str, np.ndarray], runs: int, warmup: int
) -> list[int]:
    """Call both sessions ``warmup + runs`` times; nanoseconds of the plain one's last ``runs`` calls."""
    nanoseconds = []
    total = warmup + runs
    try:
        runtime.run(plain, None, feed)  # it ends
        for done in range(0, total, BLOCK):
            for _ in range(min(BLOCK, total - done)):
                start = perf_counter_ns()
                plain.run(None, feed)
                nanoseconds.append(perf_counter_ns() - start)
            for _ in range(min(BLOCK, total - done)):
                profiled.run(None, feed)
    except ExperimentError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise ExperimentError(
            f"ONNX Runtime cannot run the model on {shapes}: {first_line(error)}",
            "profile another batch (--batch 1), or a model whose free axes are the batch alone",
        ) from error
    return nanoseconds[warmup:]


def _executions(trace: Path) -> Iterator[list[Event]]:
    """The operators of one call after the other, in the order in which they ran.

    The trace is a JSON array with one event per line. It is read line by line because it can be large.
    """
    events: list[Event] = []
    with trace.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("{"):
                continue
            event = json.loads(line.rstrip().removesuffix(","))
            if event["cat"] == "Node" and event["name"].endswith(KERNEL_TIME):
                if event["args"]["op_name"] in OPERATORS["control"]:
                    while events and events[-1]["ts"] >= event["ts"]:  # ran within, and is told before
                        events.pop()
                events.append(event)
            elif event["name"] == "model_run":
                yield events
                events = []


def _node_time(event: Event, durations: Sequence[int], nodes: Mapping[str, NodeProto]) -> NodeTime:
    """One operator from one of its executions, the durations of all, and the graph that ran, where it has its node."""
    import onnx

    name, arguments = event["name"].removesuffix(KERNEL_TIME), event["args"]
    operator, inputs, outputs = (arguments[key] for key in ("op_name", "input_type_shape", "output_type_shape"))
    types = [dtype for tensors in (inputs, outputs) for dtype in (tensors[0] if tensors else ())]
    return NodeTime(
        name,
        operator,
        kernel_kind(nodes.get(name) or onnx.NodeProto(op_type=operator), types),
        statistics.median_grouped([duration + 0.5 for duration in durations]),  # 3 stands for 3 to 4 us
        *(tuple(_shown(tensor) for tensor in tensors) for tensors in (inputs, outputs)),
    )


def _shown(tensor: Mapping[str, Sequence[int]]) -> str:
    """{"uint8": [1, 10]} -> "uint8[1,10]"."""
    return " ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in tensor.items())
