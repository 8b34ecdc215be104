"""Whole plans of networks: what is emitted computes what the plan says, and each layer saw what it computes."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import (
    ALL,
    NETS,
    PICTURES,
    arrays_of,
    assert_simulated,
    branching,
    conv,
    head,
    integers_of,
    net,
    pictures,
    quantized,
    run,
    with_outputs,
)
from onnx import helper
from strategies import PROPERTY

from resnet8_quant.config import Config, DType, EvaluationConfig, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.quantization_summary import summarize
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.quantizer.refine import reconstruct as module
from resnet8_quant.quantizer.refine.reconstruct import needs_images, reconstruct, spread_images

GPTQ = RefineConfig("gptq", "hessian", "gptq", "outputs", bias=True, activation_ranges=True)
REFINEMENTS = {
    "none": RefineConfig(),
    "bias": RefineConfig("bias", bias=True),
    "gptq": GPTQ,
    "best": replace(GPTQ, weight_scale="rounded", rounding="descent"),
}
W4A4 = QuantConfig(activation_type=DType.uint8, per_channel=True, weight_bits=4, activation_bits=4)
TYPES = {"uint8": (DType.uint8, False), "int8": (DType.int8, False), "int8 symmetric": (DType.int8, True)}


def feed_of(model, count=12):
    return model.input_spec.prepare(PICTURES[:count])


@pytest.fixture(scope="module")
def refined():
    """Network, type, refinement and threads -> the float model, its plan, the emitted model."""
    bases = {}

    def make(case, types="uint8", refinement="gptq", count=30, threads=1):
        activation, symmetric = TYPES[types]
        if (case, types) not in bases:
            model = NETS[case]()
            options = {"per_channel": True, "activation_symmetric": symmetric}
            bases[case, types] = model, *quantized(model, pictures(), activation, **options)
        model, base, calibration = bases[case, types]
        quant = replace(W4A4, activation_type=activation, activation_symmetric=symmetric)
        config = Config(quant, refine=REFINEMENTS[refinement], evaluation=EvaluationConfig(threads=threads))
        plan = reconstruct(model, pictures(count), config, calibration)
        return model, plan, emit(base, plan)

    return make


@PROPERTY
@given(st.sampled_from(list(NETS)), st.sampled_from(list(TYPES)), st.sampled_from(["none", "gptq"]))
def test_the_emitted_model_is_the_plan_simulated(refined, case, types, refinement):
    model, plan, emitted = refined(case, types, refinement)
    assert_simulated(model, plan, emitted, feed_of(model))

    # Every layer has the bits that were asked for.
    summary = summarize(emitted)
    assert summary.float_ops <= (case == "gemm alone") or types != "uint8"  # its Flatten reads the float image
    assert len(summary.layers) == len(plan.layers)
    for layer in summary.layers:
        assert (layer.weight_type, layer.activation_type) == ("int4", types.split()[0])
        assert layer.activation_bits == 4
        assert 3 <= layer.weight_bits <= 4
        assert layer.per_channel


@pytest.mark.parametrize("types", TYPES)
def test_layers_see_what_the_emitted_model_computes(monkeypatch, refined, types):
    """Each layer's input, as its integers were chosen for it, is that of the emitted model to the bit."""
    monkeypatch.setattr(module, "CHUNK", 7)  # calls of 7 images and a rest of 2
    seen = {}
    original = module.quantize_layer

    def recording(node, *arguments):
        seen[node.output[0]] = arguments[-1][0].copy()
        return original(node, *arguments)

    monkeypatch.setattr(module, "quantize_layer", recording)
    model, plan, emitted = refined("two convolutions", types)
    stored = integers_of(emitted, feed_of(model, 30))
    for layer in plan.layers:
        codes = np.rint(seen[layer.output] / layer.input_params.scale) + layer.input_params.zero_point
        expected = stored.get(f"{layer.input}_for_{layer.output}", stored[layer.input])
        np.testing.assert_array_equal(expected.astype(np.int64).reshape(codes.shape), codes)


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("case", ["groups", "matmul"])
def test_the_same_bytes_twice_and_with_any_number_of_threads(refined, case, refinement):
    models = [refined(case, refinement=refinement, threads=threads)[2] for threads in (1, 1, 2)]
    assert len({one.SerializeToString(deterministic=True) for one in models}) == 1


@pytest.mark.parametrize("case", [case for case in NETS if case != "fixed batch"])
def test_refinements_come_closer_to_the_float_scores(refined, case):
    """Sum over all images of what they are chosen on; best includes a search that may lose a little here."""
    model = NETS[case]()
    feed = {"image": feed_of(model, 30)}
    scores = run(model.serialized, feed)[0]
    error = {
        name: float(((run(refined(case, refinement=name)[2], feed, ALL)[0] - scores) ** 2).mean())
        for name in ("none", "gptq", "best")
    }
    assert error["gptq"] < 0.6 * error["none"], error
    assert error["best"] < 0.6 * error["none"], error


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_each_refinement_brings_the_logits_of_resnet8_closer(model, activation_bits):
    images, feed = load_sample().train.images[::5], model.input_spec.prepare(load_sample().test.images)
    base, calibration = quantized(model, CalibrationImages.of(images), per_channel=True)
    quant = replace(W4A4, activation_bits=activation_bits, keep_first_last=8)

    def logits(proto):
        (softmax,) = (node for node in proto.graph.node if node.op_type == "Softmax")
        traced = with_outputs(proto, [softmax.input[0]])
        return run(traced, {model.input_spec.name: feed}, ALL, [softmax.input[0]])[0].astype(np.float64)

    expected, error = logits(model.proto()), {}
    for name in ("none", "bias", "gptq"):
        plan = reconstruct(model, CalibrationImages.of(images), Config(quant, refine=REFINEMENTS[name]), calibration)
        emitted = emit(base, plan)
        error[name] = float(((logits(emitted) - expected) ** 2).mean())
        if name != "bias":
            assert_simulated(model, plan, emitted, feed[:30])
    assert error["bias"] < 0.8 * error["none"], error
    assert error["gptq"] < min(0.25 * error["none"], 0.5 * error["bias"]), error


def test_a_convolution_without_bias_gets_one(refined):
    model, plan, emitted = refined("no bias")
    assert all(len(node.input) == 2 for node in model.proto().graph.node if node.op_type == "Conv")
    assert all(layer.bias is not None for layer in plan.layers)
    assert all(len(node.input) == 3 for node in emitted.graph.node if node.op_type == "Conv")
    assert [layer.bias is None for layer in refined("no bias", refinement="none")[1].layers] == [True, True, False]


@pytest.mark.parametrize("case", ["two convolutions", "fixed batch"])
@pytest.mark.parametrize("count", [1, 3])
def test_few_calibration_images(refined, case, count):
    """With a fixed batch of four, one image is repeated."""
    model, plan, emitted = refined(case, refinement="best", count=count)
    assert all(np.isfinite(layer.bias).all() and np.isfinite(layer.weight.scale).all() for layer in plan.layers)
    assert np.isfinite(run(emitted, {"image": feed_of(model, 4)}, ALL)[0]).all()


def test_images_are_spread_evenly():
    model, fixed = NETS["two convolutions"](), NETS["fixed batch"]()
    everything = model.input_spec.prepare(PICTURES)
    np.testing.assert_array_equal(spread_images(model, pictures(), 1000), everything)
    np.testing.assert_array_equal(spread_images(model, pictures(), 3), everything[[0, 14, 29]])
    assert [len(spread_images(fixed, pictures(), most)) for most in (1, 4, 7, 8, 1000)] == [4, 4, 4, 8, 28]


def test_behind_a_folded_relu_zero_is_the_lowest_level(refined):
    for types in ("uint8", "int8"):
        _, plan, emitted = refined("two convolutions", types)
        assert "Relu" not in {node.op_type for node in emitted.graph.node}
        for name, count in (("r1", 16), ("r2", 256)):  # Flatten is no layer: residual_bits
            params = plan.tensors[name]
            assert (params.zero_point, params.levels) == (params.qmin, count)
    assert refined("two convolutions", "int8 symmetric")[1].tensors["r1"].zero_point == 0


@pytest.mark.parametrize(("refinement", "residual"), [("none", 8), ("gptq", 8), ("gptq", 6)])
def test_widths_of_layers_and_of_what_is_between_them(residual, refinement):
    layers = {"c*": {"activation_bits": 3}, "c2": {"weight_bits": 2}}
    quant = replace(W4A4, residual_bits=residual, keep_first_last=8, layers=layers)
    done = quantize(branching(), pictures(), Config(quant, refine=REFINEMENTS[refinement]))
    # r1 is what onnxruntime names c1 after; Flatten hands the parameters of the pool on
    expected = {"r1": (3, "int8"), "c2": (3, "int2"), "scores": (residual, "int8")}
    assert {layer.output: (layer.activation_bits, layer.weight_type) for layer in done.summary.layers} == expected
    stored = arrays_of(onnx.load_from_string(done.serialized))
    levels = {
        name: int(stored[f"{name}_highest"]) - int(stored[f"{name}_lowest"]) + 1
        for name in ("image", "r1", "r1_for_c2", "c2", "sum", "scores")
        if f"{name}_highest" in stored
    }
    kept = {} if residual == 8 else dict.fromkeys(("r1", "c2", "sum", "scores"), 64)
    assert levels == {"image": 8, "r1_for_c2": 8} | kept


@pytest.mark.parametrize("refinement", ["none", "bias"])
def test_layers_that_share_a_bias_get_one_each(refinement):
    last, weights = head("c2", 144)
    nodes = [conv("image", "w1", "c1", "b"), conv("c1", "w2", "c2", "b"), *last]
    model = net(nodes, w1=(4, 2, 3, 3), w2=(4, 4, 3, 3), b=np.arange(4) * 100.0, **weights)
    quant = replace(W4A4, weight_bits=8, activation_bits=None, layers={"c2": {"weight_bits": 7}})
    done = quantize(model, pictures(), Config(quant, refine=REFINEMENTS[refinement]))
    feed = {"image": feed_of(model, 30)}
    scores = run(model.serialized, feed)[0]
    assert np.abs(run(done.serialized, feed, ALL)[0] - scores).max() < 0.03 * np.ptp(scores)


def test_what_needs_images():
    assert not needs_images(RefineConfig(weight_scale="mse", equalize=True))
    changes = [{"rounding": "gptq"}, {"weight_scale": "hessian"}, {"weight_scale": "rounded"}, {"target": "outputs"}]
    for change in (*changes, {"bias": True}, {"activation_ranges": True}):
        assert needs_images(RefineConfig(**change)), change


def with_shapes(batch=None):
    """A graph that computes with its own shapes, as an exported x.view(x.size(0), -1) does."""
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["scores"]),
    ]
    return net(nodes, batch, w=(6, 2, 3, 3), v=(96, 3))


def test_a_graph_that_computes_with_shapes(monkeypatch):
    """All images at once; with a fixed batch that is not possible."""
    monkeypatch.setattr(module, "CHUNK", 10)
    config = Config(replace(W4A4, activation_bits=None), refine=REFINEMENTS["bias"])
    layers = quantize(with_shapes(), pictures(), config).summary.layers
    assert [layer.weight_bits for layer in layers] == [4, 4]
    with pytest.raises(ExperimentError, match=r"computes with shapes \(Shape\)"):
        quantize(with_shapes(10), pictures(), config)


@pytest.mark.parametrize("operator", ["Add", "Mul", "Concat"])
@pytest.mark.parametrize("refinement", ["gptq", "best"])
def test_a_node_may_read_one_tensor_twice(operator, refinement):
    axis = {"axis": 1} if operator == "Concat" else {}
    width = 4 * 36 * (2 if axis else 1)
    last, arrays = head("twice", width)
    nodes = [conv("image", "w", "c"), helper.make_node(operator, ["c", "c"], ["twice"], **axis), *last]
    model = net(nodes, w=(4, 2, 3, 3), **arrays)
    result = quantize(model, pictures(), Config(W4A4, refine=REFINEMENTS[refinement]))
    expected, scores = (run(each, {"image": feed_of(model)}, ALL)[0] for each in (model.serialized, result.serialized))
    assert np.abs(scores - expected).mean() < 0.5 * expected.std()


def test_a_graph_within_the_graph_is_not_refined():
    value = helper.make_tensor_value_info("inner", 1, [None, 4, 6, 6])
    branches = {
        f"{name}_branch": helper.make_graph([conv("image", "w", "inner")], name, [], [value])
        for name in ("then", "else")
    }
    last, arrays = head("c", 4 * 36)
    condition = helper.make_node("Cast", ["flag"], ["condition"], to=onnx.TensorProto.BOOL)
    nodes = [condition, helper.make_node("If", ["condition"], ["c"], **branches), *last]
    model = net(nodes, w=(4, 2, 3, 3), flag=np.array(1), **arrays)
    config = Config(QuantConfig(activation_type=DType.uint8), refine=GPTQ)
    with pytest.raises(ExperimentError, match="the model has If, a graph within the graph") as caught:
        quantize(model, pictures(), config)
    assert caught.value.remedy == "refine=none"
    quantize(model, pictures(), replace(config, refine=RefineConfig()))
