"""Whole plans of small networks: what is emitted computes what the plan says, and each layer saw what it computes."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from nets import NETS, PICTURES, assert_same_integers, net, pictures, quantized_names, simulated
from onnx import helper, numpy_helper
from small_net import ALL, OFF, run, with_integers

from resnet8_quant.config import (
    Config,
    DType,
    EvaluationConfig,
    QuantConfig,
    RefineConfig,
    Rounding,
    Target,
    WeightScale,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.quantization_summary import summarize
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.quantizer.refine import reconstruct as module
from resnet8_quant.quantizer.refine.reconstruct import NodeRunner, needs_images, reconstruct, spread_images

GPTQ = RefineConfig("gptq", WeightScale.hessian, Rounding.gptq, Target.outputs, bias=True, activation_ranges=True)
REFINEMENTS = {
    "none": RefineConfig(),
    "bias": RefineConfig("bias", bias=True),
    "gptq": GPTQ,
    "best": replace(GPTQ, weight_scale=WeightScale.rounded, rounding=Rounding.descent),
}
W4A4 = QuantConfig(activation_type=DType.uint8, per_channel=True, weight_bits=4, activation_bits=4)
TYPES = {
    "uint8": {},
    "int8": {"activation_type": DType.int8},
    "int8 symmetric": {"activation_type": DType.int8, "activation_symmetric": True},
}
PLAIN = {"weight_bits": None, "activation_bits": None, "residual_bits": 8, "keep_first_last": None, "layers": {}}


def feed_of(model, count=12):
    return model.input_spec.prepare(PICTURES[:count])


def outputs_in_batches(model, input_spec, feed, names):
    """ONNX Runtime without optimization, in batches where the model's is fixed."""
    batch = input_spec.batch or len(feed)
    parts = [run(model, {"image": feed[i : i + batch]}, outputs=names) for i in range(0, len(feed), batch)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def plain():
    """(network, type) -> the float model, what quantize_static makes of it, its calibration."""
    models = {}

    def make(case, kind="uint8"):
        if (case, kind) not in models:
            model = NETS[case]()
            found = quantize(model, pictures(), Config(replace(W4A4, **PLAIN, **TYPES[kind])))
            models[case, kind] = model, onnx.load_from_string(found.serialized), found.calibration
        return models[case, kind]

    return make


@pytest.fixture(scope="module")
def refined(plain):
    """Network, type, refinement and changes of the config -> the float model, its plan, the emitted model."""

    def make(case, kind="uint8", refinement="gptq", count=30, threads=1, **changes):
        model, base, calibration = plain(case, kind)
        quant = replace(W4A4, **TYPES[kind], **changes)
        config = REFINEMENTS[refinement]
        plan = reconstruct(
            model,
            pictures(count),
            Config(quant, refine=config, evaluation=EvaluationConfig(threads=threads)),
            calibration,
        )
        return model, plan, emit(base, plan)

    return make


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("refinement", ["none", "gptq"])
@pytest.mark.parametrize("case", NETS)
def test_the_emitted_model_is_the_plan_simulated(refined, case, refinement, kind):
    model, plan, emitted = refined(case, kind, refinement)
    traced, names = with_integers(emitted)
    feed = feed_of(model)
    found = outputs_in_batches(traced, model.input_spec, feed, list(names.values()))
    expected = simulated(model, plan, feed, quantized_names(emitted))
    assert {"flat", "scores"} <= expected.keys()
    assert_same_integers(dict(zip(names, found, strict=True)), expected)


@pytest.mark.parametrize("case", NETS)
def test_every_layer_has_the_bits_that_were_asked_for(refined, case):
    _, plan, emitted = refined(case)
    contents = summarize(emitted)
    assert contents.float_ops == (1 if case == "gemm alone" else 0)  # its Flatten reads the float image
    assert len(contents.layers) == len(plan.layers)
    for layer in contents.layers:
        assert (layer.weight_type, layer.activation_type, layer.activation_bits) == ("int4", "uint8", 4)
        assert 3 <= layer.weight_bits <= 4
        assert layer.per_channel


@pytest.mark.parametrize("kind", TYPES)
def test_layers_see_what_the_emitted_model_computes(monkeypatch, refined, kind):
    """Each layer's input, as its integers were chosen for it, is that of the emitted model to the bit."""
    seen = {}
    original = module.quantize_layer

    def recording(node, constants, params, bit_width, quant, refinement, inputs):
        seen[node.output[0]] = inputs[0].copy()
        return original(node, constants, params, bit_width, quant, refinement, inputs)

    monkeypatch.setattr(module, "quantize_layer", recording)
    model, plan, emitted = refined("two convolutions", kind)
    traced, names = with_integers(emitted)
    found = dict(zip(names, run(traced, {"image": feed_of(model, 30)}, outputs=list(names.values())), strict=True))
    for layer in plan.layers:
        private = f"{layer.input}_for_{layer.output}"
        integers = np.rint(seen[layer.output] / layer.input_params.scale) + layer.input_params.zero_point
        stored = found[private if private in found else layer.input].astype(np.int64)
        np.testing.assert_array_equal(stored.reshape(integers.shape), integers)


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("case", ["two convolutions", "groups", "matmul"])
def test_the_same_bytes_twice_and_with_any_number_of_threads(refined, case, refinement):
    models = [refined(case, refinement=refinement, threads=threads)[2] for threads in (1, 1, 2)]
    assert len({one.SerializeToString(deterministic=True) for one in models}) == 1


@pytest.mark.parametrize("case", ["two convolutions", "no bias", "groups", "depthwise", "matmul", "gemm alone"])
def test_refinements_come_closer_to_the_float_scores(refined, plain, case):
    """Sum over all images of what they are chosen on; best includes a search that may lose a little here."""
    model = plain(case)[0]
    feed = feed_of(model, 30)
    scores = run(model.serialized, {"image": feed})[0]
    error = {
        name: float(((run(refined(case, refinement=name)[2], {"image": feed}, ALL)[0] - scores) ** 2).mean())
        for name in REFINEMENTS
    }
    assert error["gptq"] < 0.6 * error["none"], error
    assert error["best"] < 0.6 * error["none"], error


def test_a_convolution_without_bias_gets_one(refined, plain):
    model, plan, emitted = refined("no bias")
    assert all(len(node.input) == 2 for node in model.proto().graph.node if node.op_type == "Conv")
    assert all(layer.bias is not None for layer in plan.layers)
    assert all(len(node.input) == 3 for node in emitted.graph.node if node.op_type == "Conv")
    assert [layer.bias is None for layer in refined("no bias", refinement="none")[1].layers] == [True, True, False]


@pytest.mark.parametrize("case", ["two convolutions", "fixed batch"])
@pytest.mark.parametrize("count", [1, 3])
def test_few_calibration_images(refined, case, count):
    """With a fixed batch of four, one image is repeated."""
    _, plan, emitted = refined(case, refinement="best", count=count)
    assert all(np.isfinite(layer.bias).all() and np.isfinite(layer.weight.scale).all() for layer in plan.layers)
    assert np.isfinite(run(emitted, {"image": feed_of(NETS[case](), 4)}, ALL)[0]).all()


def test_images_are_spread_evenly():
    model, fixed = NETS["two convolutions"](), NETS["fixed batch"]()
    everything = model.input_spec.prepare(PICTURES)
    np.testing.assert_array_equal(spread_images(model, pictures(), 1000), everything)
    np.testing.assert_array_equal(spread_images(model, pictures(), 3), everything[[0, 14, 29]])
    assert [len(spread_images(fixed, pictures(), most)) for most in (1, 4, 7, 8, 1000)] == [4, 4, 4, 8, 28]


def test_behind_a_folded_relu_zero_is_the_lowest_level(refined):
    for kind in ("uint8", "int8"):
        _, plan, emitted = refined("two convolutions", kind)
        assert "Relu" not in {node.op_type for node in emitted.graph.node}
        for name, count in (("r1", 16), ("r2", 256)):  # Flatten is no layer: residual_bits
            params = plan.tensors[name]
            assert params.zero_point == params.qmin
            assert params.levels == count
    _, plan, _ = refined("two convolutions", "int8 symmetric")
    assert plan.tensors["r1"].zero_point == 0


def branching():
    """The first Relu is read by a Conv and by an Add."""
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
    ]
    return net(nodes, w1=(4, 2, 3, 3), b1=(4,), w2=(4, 4, 3, 3), w3=(144, 3), b3=(3,))


@pytest.mark.parametrize(("refinement", "residual"), [("none", 8), ("none", 6), ("gptq", 8), ("gptq", 6)])
def test_widths_of_layers_and_of_what_is_between_them(residual, refinement):
    quant = replace(
        W4A4,
        residual_bits=residual,
        keep_first_last=8,
        layers={"c*": {"activation_bits": 3}, "c2": {"weight_bits": 2}},
    )
    done = quantize(branching(), pictures(), Config(quant, refine=REFINEMENTS[refinement]))
    layers = {layer.output: layer for layer in done.contents.layers}
    # r1 is what onnxruntime names c1 after; Flatten hands the residual's grid on
    widths = {"r1": 3, "c2": 3, "scores": residual}
    assert {name: layer.activation_bits for name, layer in layers.items()} == widths
    assert {name: layer.weight_type for name, layer in layers.items()} == {"r1": "int8", "c2": "int2", "scores": "int8"}
    emitted = onnx.load_from_string(done.serialized)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in emitted.graph.initializer}
    levels = {
        name: int(stored[f"{name}_highest"]) - int(stored[f"{name}_lowest"]) + 1
        for name in ("image", "r1", "r1_for_c2", "c2", "sum", "scores")
        if f"{name}_highest" in stored
    }
    kept = {} if residual == 8 else dict.fromkeys(("r1", "c2", "sum", "scores"), 64)
    assert levels == {"image": 8, "r1_for_c2": 8} | kept
    model = emitted.SerializeToString()
    exact, fast = (run(model, {"image": feed_of(branching())}, level)[0] for level in (OFF, ALL))
    assert np.abs(exact - fast).max() <= 2.01 * float(stored["scores_scale"])


@pytest.mark.parametrize("refinement", ["none", "bias"])
def test_layers_that_share_a_bias_get_one_each(refinement):
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b"], ["c1"], auto_pad="SAME_UPPER"),
        helper.make_node("Conv", ["c1", "w2", "b"], ["c2"], auto_pad="SAME_UPPER"),
        helper.make_node("Flatten", ["c2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
    ]
    model = net(nodes, w1=(4, 2, 3, 3), w2=(4, 4, 3, 3), b=np.arange(4) * 100, w3=(144, 3), b3=(3,))
    quant = replace(W4A4, weight_bits=8, activation_bits=None, layers={"c2": {"weight_bits": 7}})
    done = quantize(model, pictures(), Config(quant, refine=REFINEMENTS[refinement]))
    feed = {"image": feed_of(model, 30)}
    scores = run(model.serialized, feed)[0]
    assert np.abs(run(done.serialized, feed, ALL)[0] - scores).max() < 0.03 * np.ptp(scores)


def test_what_needs_images():
    assert not needs_images(RefineConfig())
    assert not needs_images(RefineConfig(weight_scale=WeightScale.mse, equalize=True))
    for changed in (
        {"rounding": Rounding.gptq},
        {"weight_scale": WeightScale.hessian},
        {"weight_scale": WeightScale.rounded},
        {"target": Target.outputs},
        {"bias": True},
        {"activation_ranges": True},
    ):
        assert needs_images(RefineConfig(**changed))


def node_by_node(model, feed, batch=None):
    """Every tensor of a model, node by node."""
    proto = model.proto()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    runner, values = NodeRunner(proto, batch, 1), {"image": feed}
    for node in proto.graph.node:
        inputs = {name: values[name] for name in node.input if name in values}
        known = {name: constants[name] for name in node.input if name in constants}
        values.update(zip(node.output, runner.run(node, inputs, known), strict=True))
    return values, runner


@pytest.mark.parametrize("case", NETS)
def test_nodes_give_what_the_model_gives(monkeypatch, case):
    model = NETS[case]()
    feed = model.input_spec.prepare(PICTURES[:12])
    whole = onnx.ModelProto()
    whole.CopyFrom(model.proto())
    names = [name for node in whole.graph.node for name in node.output]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "scores")
    batch = model.input_spec.batch or 12
    parts = [run(whole, {"image": feed[i : i + batch]}, OFF, names) for i in range(0, 12, batch)]
    for chunk in (5, 250):
        monkeypatch.setattr(module, "CHUNK", chunk)
        values, _ = node_by_node(model, feed, model.input_spec.batch)
        for name, expected in zip(names, zip(*parts, strict=True), strict=True):
            np.testing.assert_allclose(values[name], np.concatenate(expected), rtol=1e-4, atol=1e-3, err_msg=name)


def test_a_node_is_compiled_once_for_each_shape(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)
    model = NETS["two convolutions"]()
    values, runner = node_by_node(model, model.input_spec.prepare(PICTURES[:12]))  # chunks of 5, 5 and 2
    assert len(runner.sessions) == 2  # those of the node before are let go
    first = model.proto().graph.node[0]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}
    known = {name: constants[name] for name in first.input[1:]}
    again = runner.run(first, {"image": values["image"]}, known)[0]
    assert len(runner.sessions) == 2
    np.testing.assert_array_equal(again, values["c1"])


def test_single_nodes():
    """New constants need no new session; no inputs at all; several outputs."""
    model = helper.make_model(helper.make_graph([], "none", [], []), opset_imports=[helper.make_opsetid("", 21)])
    runner = NodeRunner(model, 2, 1)
    add = helper.make_node("Add", ["x", "y"], ["z"])
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    for addend in (1, 2):
        np.testing.assert_array_equal(runner.run(add, {"x": x}, {"y": np.full(4, addend, np.float32)})[0], x + addend)
    assert len(runner.sessions) == 2  # batches of 2 and of 1
    np.testing.assert_array_equal(runner.run(add, {"x": x, "y": x}, {})[0], 2 * x)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1, 2])))
    np.testing.assert_array_equal(runner.run(constant, {}, {})[0], [1, 2])
    split = helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
    np.testing.assert_array_equal(np.hstack(runner.run(split, {"x": x}, {})), x)


def with_shapes(batch=None):
    """A graph that computes with its own shapes, as an exported x.view(x.size(0), -1) does."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["scores"]),
    ]
    zero, rest = (
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array([value])))
        for name, value in (("zero", 0), ("rest", -1))
    )
    return net([zero, rest, *nodes], batch, w=(6, 2, 3, 3), v=(96, 3))


def test_a_graph_that_computes_with_shapes(monkeypatch):
    """All images at once; with a fixed batch that is not possible."""
    monkeypatch.setattr(module, "CHUNK", 10)
    config = Config(replace(W4A4, activation_bits=None), refine=REFINEMENTS["bias"])
    layers = quantize(with_shapes(), pictures(), config).contents.layers
    assert [layer.weight_bits for layer in layers] == [4, 4]
    with pytest.raises(ExperimentError, match=r"computes with shapes \(Shape\)"):
        quantize(with_shapes(10), pictures(), config)
