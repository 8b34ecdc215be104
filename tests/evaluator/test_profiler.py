"""The profile against graphs whose operators are known, and against a trace whose durations are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.parser import parse_model

from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator import profiler
from resnet8_quant.evaluator.kernels import kernel_kind, kernel_report
from resnet8_quant.evaluator.profiler import make_inputs, profile_model
from resnet8_quant.graphs.session import open_session


def serialized(graph: str, **weights: np.ndarray) -> bytes:
    """A model from its graph as text, and initializers."""
    model = parse_model(f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> net {graph}')
    tensors = (numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    model.graph.initializer.extend(tensors)
    return model.SerializeToString()


def mixed() -> bytes:
    """Quantize, multiply in integers, dequantize, transpose, soften: every kind of kernel, with known names."""
    return serialized(
        """(float[n, 2, 3, 4] x) => (float[n, 3, 4, 2] y) <float s = {1}, uint8 z = {0}> {
            [quantize] q = QuantizeLinear (x, s, z)
            [product] p = QLinearMatMul (q, s, z, w, s, z, s, z)
            [pool] m = MaxPool <kernel_shape = [1, 1]> (p)
            [dequantize] d = DequantizeLinear (m, s, z)
            [softmax] t = Softmax <axis = 2> (d)
            [transpose] y = Transpose <perm = [0, 2, 3, 1]> (t)
        }""",
        w=np.eye(4, dtype=np.uint8),
    )


def relu(name: str = "relu", shape: str = "n, 4") -> bytes:
    model = onnx.load_from_string(serialized(f"(float[{shape}] x) => (float[{shape}] y) {{ y = Relu (x) }}"))
    model.graph.node[0].name = name
    return model.SerializeToString()


def copy_of(dtype: str, shape: str) -> bytes:
    return serialized(f"({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ y = Identity (x) }}")


def reshape() -> bytes:
    """It runs for a batch of 3 alone."""
    return serialized("(float[n, 4] x) => (float[3, 4] y) <int64[2] s = {3, 4}> { [reshape] y = Reshape (x, s) }")


def test_every_operator_with_its_kind_in_the_order_of_execution() -> None:
    profile = profile_model(mixed(), runs=3, warmup=1)
    kinds = {node.operator: node.kernel for node in profile.nodes}
    assert kinds == (
        {"QuantizeLinear": "quantize", "QLinearMatMul": "integer", "MaxPool": "integer"}
        | {"DequantizeLinear": "quantize", "Softmax": "float", "Transpose": "layout"}
    )
    assert [node.name for node in profile.nodes][:2] == ["quantize", "product"]
    assert profile.nodes[0].inputs == ("float[1,2,3,4]", "float[]", "uint8[]")
    assert profile.nodes[0].outputs == ("uint8[1,2,3,4]",)
    assert profile.inputs == ("x float32[1,2,3,4]",)
    assert profile.runs == 3
    assert profile.call_us > 0


KERNELS = {
    "integer": ("QGemm uint8", "QLinearAveragePool uint8", "MaxPool int8", "Resize uint8"),
    "float": ("FusedConv float", "AveragePool float", "ArgMax float int64", "Where bool float", "Add float16"),
    "quantize": ("DynamicQuantizeLinear float uint8",),
    "layout": ("ReorderOutput float", "Reshape uint8"),
    "control": ("If bool float",),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_of_an_operator(kernel: str) -> None:
    for operator, *types in map(str.split, KERNELS[kernel]):
        assert kernel_kind(onnx.NodeProto(op_type=operator), types) == kernel, operator


@pytest.mark.parametrize(("level", "kernel"), [(0, "float"), (1, "float"), (4, "integer")])
def test_kernel_that_an_attribute_decides(level: int, kernel: str) -> None:
    sizes = f"K = 32, N = 4, bits = 4, block_size = 32, accuracy_level = {level}"
    model = serialized(
        f"(float[n, 32] x) => (float[n, 4] y) {{ [product] y = com.microsoft.MatMulNBits <{sizes}> (x, w, s) }}",
        w=np.ones((4, 1, 16), np.uint8),
        s=np.ones(4, np.float32),
    )
    report = kernel_report(model, 1)
    assert (report.integer, report.total) == (int(kernel == "integer"), 1)
    assert [node.kernel for node in profile_model(model, runs=1, warmup=0).nodes] == [kernel]


def with_durations(monkeypatch: pytest.MonkeyPatch, durations: list[list[int]]) -> None:
    """Sessions whose trace holds calls, of so many microseconds for each operator."""
    tensor = [{"float": [1, 4]}]
    arguments = {"op_name": "Relu", "input_type_shape": tensor, "output_type_shape": tensor}
    events = [("Session", "session_initialization", 9)]
    for call in durations:
        events += [("Node", f"node{index}_kernel_time", duration) for index, duration in enumerate(call)]
        events += [("Session", "model_run", 999)]
    lines = [
        json.dumps({"cat": cat, "name": name, "dur": duration, "ts": 0, "args": arguments})
        for cat, name, duration in events
    ]

    def opened(model: bytes, threads: int, *, exact: bool, trace: Path | None = None, **paths: Path) -> SimpleNamespace:
        for path in paths.values():
            path.write_bytes(model)
        if trace is not None:
            trace.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return SimpleNamespace(get_inputs=list, run=lambda outputs, feed, *_: [], end_profiling=lambda: trace)

    monkeypatch.setattr(profiler, "open_session", opened)


@pytest.mark.parametrize(
    ("durations", "warmup", "medians"),
    [
        ([[900, 900], [800, 800], [10, 3], [12, 3], [500, 3]], 2, [12.5, 3.5]),
        ([[3], [3], [3], [4]], 0, [3 + 2 / 3]),  # whole microseconds, rounded down: 2/3 of the way from 3 to 4
    ],
)
def test_median_per_node_of_the_runs_after_the_warm_up(monkeypatch, durations, warmup, medians) -> None:
    with_durations(monkeypatch, durations)
    profile = profile_model(relu(), runs=len(durations) - warmup, warmup=warmup)
    assert [node.name for node in profile.nodes] == [f"node{i}" for i in range(len(medians))]
    assert [node.median_us for node in profile.nodes] == pytest.approx(medians)
    assert profile.total_us == pytest.approx(sum(medians))


def test_the_whole_call_is_the_median_of_the_runs_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with_durations(monkeypatch, [[1]] * 5)
    nanoseconds = [90_000, 80_000, 7_000, 5_000, 60_000]
    clock = iter([time for duration in nanoseconds for time in (0, duration)])
    monkeypatch.setattr(profiler, "perf_counter_ns", lambda: next(clock))
    assert profile_model(relu(), runs=3, warmup=2).call_us == 7


def test_a_trace_with_fewer_calls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_durations(monkeypatch, [[5], [5]])
    with pytest.raises(ExperimentError, match="recorded 2 of 4 calls"):
        profile_model(relu(), runs=4, warmup=0)


def test_what_runs_within_a_branch_is_part_of_it() -> None:
    def branch(operator: str) -> str:
        return f"b () => (float[m, 4] o) {{ [inner] i = {operator} (r) [last] o = Neg (i) }}"

    model = serialized(
        f"""(bool c, float[n, 4] x) => (float[n, 4] y) {{
            [before] r = Relu (x)
            [choice] i = If (c) <then_branch = {branch("Exp")}, else_branch = {branch("Abs")}>
            [after] y = Sqrt (i)
        }}"""
    )
    profile = profile_model(model, runs=2, warmup=1)
    kinds = [(node.name, node.kernel) for node in profile.nodes]
    assert kinds == [("before", "float"), ("choice", "control"), ("after", "float")]


@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=300))
@example("_kernel_time")
@example('a"b\\c\nd')
def test_names_come_through_the_trace(name: str) -> None:
    profile = profile_model(relu(name=name), runs=1, warmup=0, threads=0)
    assert [node.name for node in profile.nodes] == [name]


@pytest.mark.parametrize("dtype", ["float", "uint8", "int8", "int64", "bool"])
def test_inputs_have_the_type_and_the_whole_range(dtype: str) -> None:
    low, high = {"int8": (-128, 127), "bool": (0, 1)}.get(dtype, (0, 255))
    session = open_session(copy_of(dtype, "n, 5000"), 1)
    array = make_inputs(session, 2)["x"]
    assert (array.dtype.name.removesuffix("32"), array.shape) == (dtype, (2, 5000))
    assert (array.min(), array.max()) == (low, high)
    np.testing.assert_array_equal(array, np.round(array.astype(float)))
    np.testing.assert_array_equal(array, make_inputs(session, 2)["x"])


def test_several_inputs_are_fed() -> None:
    model = serialized("(float[n, 4] a, float[4] b) => (float[n, 4] y) { [add] y = Add (a, b) }")
    assert profile_model(model, runs=1, warmup=0, batch=3).inputs == ("a float32[3,4]", "b float32[4]")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (relu(shape="2, 4"), {"batch": 2}, "no free axis"),
        (b"not a model", {}, "cannot load the model"),
        (copy_of("string", "n"), {}, r"'x' is tensor\(string\)"),
    ],
)
def test_what_cannot_be_profiled_is_refused(model: bytes, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        profile_model(model, **({"runs": 1, "warmup": 0} | arguments))


def test_nothing_is_printed_or_left_behind_whether_it_works_or_fails(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    capfd.readouterr()
    assert profile_model(reshape(), runs=1, warmup=0, batch=3).nodes
    with pytest.raises(ExperimentError, match=r"cannot run the model on x \[1, 4\]"):
        profile_model(reshape(), runs=1, warmup=0)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
