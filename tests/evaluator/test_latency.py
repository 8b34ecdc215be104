"""Who is called how often and in which order, with what; never how long a real call takes."""

import gc
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.latency import BLOCK, LONG_CALL_NS, MIN_BLOCKS, BenchmarkModel, Ratio, measure, speedup
from resnet8_quant.inputs.input_spec import InputSpec


def fed(model: BenchmarkModel, **input_spec: object) -> BenchmarkModel:
    """The model with another input_spec."""
    return replace(model, input_spec=replace(model.input_spec, **input_spec))


def test_zero_runs_or_no_models_measure_nothing(images, simulate):
    simulation = simulate(a=[1])
    assert measure(simulation.models, images, runs=0, warmup=5, threads=1) == {}
    assert measure({}, images, runs=5, warmup=5, threads=1) == {}
    assert simulation.order == ""


def test_models_alternate_in_blocks_with_one_untimed_call_each(images, simulate):
    simulation = simulate(a=[100], b=[200])
    runs = BLOCK * (MIN_BLOCKS + 2)
    result = measure(simulation.models, images, runs=runs, warmup=4, threads=1)
    turns = ("a", "b", "b", "a") * (MIN_BLOCKS // 2 + 1)
    assert simulation.order == "aaaabbbb" + "".join(turn * (BLOCK + 1) for turn in turns)
    assert simulation.collecting == [True] * 8 + [False] * (len(simulation.order) - 8)
    assert [(measured.runs, len(measured.blocks_us)) for measured in result.values()] == [(runs, MIN_BLOCKS + 2)] * 2


@pytest.mark.parametrize(
    ("runs", "call_us", "blocks"),
    [
        (1, 100, 1),
        (MIN_BLOCKS - 3, 100, MIN_BLOCKS - 3),
        (2 * MIN_BLOCKS + 3, 100, MIN_BLOCKS),  # the rest is spread over the blocks
        (BLOCK * MIN_BLOCKS + 1, 100, MIN_BLOCKS + 1),
        (5, LONG_CALL_NS / 1000, 5),
        (300, LONG_CALL_NS / 1000, 300),
    ],
)
def test_blocks_are_equally_long(images, simulate, runs, call_us, blocks):
    simulation = simulate(a=[call_us])
    measured = measure(simulation.models, images, runs=runs, warmup=2, threads=1)["a"]
    assert (measured.runs, len(measured.blocks_us)) == (runs, blocks)
    uncounted = blocks if call_us < 1000 else 0  # a long call needs none
    assert len(simulation.record) == 2 + runs + uncounted


def test_the_slowest_model_decides_on_the_length_of_all_blocks(images, simulate):
    simulation = simulate(a=[LONG_CALL_NS / 1000], b=[100])
    result = measure(simulation.models, images, runs=40, warmup=0, threads=1)
    assert simulation.order == "aabb" + "abbbba" * 20  # b is short: one more call before each block
    assert speedup(result["a"], result["b"]) == Ratio(*[LONG_CALL_NS / 1000 / 100] * 3)


def test_a_slow_first_call_does_not_count_as_a_long_one(images, simulate):
    simulation = simulate(a=[LONG_CALL_NS, 100])
    measured = measure(simulation.models, images, runs=BLOCK * MIN_BLOCKS * 2, warmup=0, threads=1)["a"]
    assert len(measured.blocks_us) == MIN_BLOCKS * 2


@pytest.mark.parametrize(("fixed", "batch", "expected"), [(None, 1, 1), (None, 50, 50), (1, 50, 1), (3, 1, 3)])
@pytest.mark.parametrize("raw", [False, True])
def test_a_fixed_batch_overrules_and_images_are_repeated(images, simulate, fixed, batch, expected, raw):
    simulation = simulate(a=[100])
    models = {"a": fed(simulation.models["a"], batch=fixed, raw=raw)}
    measured = measure(models, images, runs=2, warmup=0, threads=1, batch=batch)["a"]
    assert measured.batch == expected
    assert measured.images_per_second == pytest.approx(expected / 100e-6)
    for _, feed in simulation.record:
        assert feed.dtype == (np.uint8 if raw else np.float32)
        np.testing.assert_array_equal(feed, np.concatenate([images] * 3)[:expected])


def test_each_model_is_fed_by_its_own_contract(images, simulate):
    simulation = simulate(a=[100], b=[100])
    models = {
        "a": fed(simulation.models["a"], mean=(1.0, 2.0, 3.0)),
        "b": fed(simulation.models["b"], raw=True, layout=Layout.NCHW),
    }
    measure(models, images, runs=1, warmup=0, threads=1)
    feeds = dict(simulation.record)
    np.testing.assert_array_equal(feeds[b"a"], images[:1].astype(np.float32) - np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(feeds[b"b"], images[:1].transpose(0, 3, 1, 2))


def test_sessions_are_opened_as_asked(images, simulate):
    simulation = simulate(a=[100])
    measured = measure(simulation.models, images, runs=1, warmup=0, threads=0)["a"]
    assert measured.threads == 0
    measure(simulation.models, images, runs=1, warmup=0, threads=3, providers=["X", "Y"])
    assert simulation.opened == [(0, ("CPUExecutionProvider",)), (3, ("X", "Y"))]


def matmuls(repeats: int, width: int, raw: bool) -> BenchmarkModel:
    """The flattened image times a [12, width] matrix, then ``repeats`` times a [width, width] matrix."""
    rng = np.random.default_rng(0)
    element = TensorProto.UINT8 if raw else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["x0"]),
        helper.make_node("MatMul", ["x0", "first"], ["x1"]),
        *(helper.make_node("MatMul", [f"x{i}", "square"], [f"x{i + 1}"]) for i in range(1, repeats + 1)),
    ]
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [helper.make_tensor_value_info("image", element, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["batch", width])],
        [
            numpy_helper.from_array(rng.normal(0, width**-0.5, shape).astype(np.float32), name)
            for name, shape in (("first", (12, width)), ("square", (width, width)))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return BenchmarkModel(
        model.SerializeToString(), InputSpec("image", Layout.NHWC, (2, 2, 3), None, classes=width, raw=raw)
    )


@pytest.mark.parametrize("raw", [False, True])
def test_a_hundred_times_the_work_takes_longer(images, raw):
    models = {"light": matmuls(1, 8, raw), "heavy": matmuls(100, 256, raw)}  # 10^2 and 6.5 * 10^6 multiply-adds
    result = measure(models, images, runs=40, warmup=2, threads=1)
    assert list(result) == ["light", "heavy"]
    for measured in result.values():
        assert 0 < measured.low_us <= measured.median_us <= measured.high_us
        assert measured.median_us <= measured.p95_us
        assert (measured.runs, measured.batch, measured.threads, len(measured.blocks_us)) == (40, 1, 1, MIN_BLOCKS)
    assert result["heavy"].median_us > result["light"].median_us
    assert speedup(result["heavy"], result["light"]).value > 1


def test_a_batch_on_all_cores(images):
    result = measure({"heavy": matmuls(2, 256, raw=True)}, images, runs=5, warmup=0, threads=0, batch=500)["heavy"]
    assert (result.runs, result.batch, len(result.blocks_us)) == (5, 500, 5)
    assert result.images_per_second == pytest.approx(500e6 / result.median_us)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(classifier, images, weights, enabled):
    models = {"a": BenchmarkModel(*classifier(weights))}
    try:
        (gc.enable if enabled else gc.disable)()
        measure(models, images, runs=1, warmup=0, threads=1)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_model_that_cannot_run_is_a_user_error(classifier, images, weights):
    model, input_spec = classifier(weights, batch=2)
    with pytest.raises(ExperimentError, match="cannot run the model"):
        measure({"a": BenchmarkModel(model, classifier(weights)[1])}, images, runs=1, warmup=0, threads=1)
    with pytest.raises(ExperimentError, match="cannot load the model"):
        measure({"a": BenchmarkModel(b"no model", input_spec)}, images, runs=1, warmup=0, threads=1)
    floats = BenchmarkModel(model, InputSpec("image", Layout.NHWC, (2, 2, 3), 2, classes=4, raw=True))  # fed with bytes
    with pytest.raises(ExperimentError, match="cannot run the model"):
        measure({"a": floats}, images, runs=1, warmup=0, threads=1)
