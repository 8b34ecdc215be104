"""Which layer hurts: a hand-made net whose harm NumPy computes, and the two ends, all float and all quantized."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import resnet8_quant as rq
from resnet8_quant.config import Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.sensitivity import analyze, rows_of
from resnet8_quant.graphs.partly_quantized import PartlyQuantized
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import SIMULATED
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.sample import load_sample

SPEC = InputSpec("x", Layout.NHWC, (1, 2, 1), None, 3)
W1, B1 = np.array([[1.0, 0.0, -0.5], [0.5, 1.0, 0.5]], np.float32), np.array([0.0, -40.0, 10.0], np.float32)
W2 = np.array([[0.031, -0.012, 0.004], [-0.02, 0.027, 0.011], [0.013, 0.002, 0.019]], np.float32)
CODES = {"W1": ((W1 * 2).astype(np.int8), 0.5), "W2": (np.rint(W2 / 0.02).astype(np.int8), 0.02)}
# (scale, zero point): pixels and W1 are exact; the hidden values, W2 and the scores are not
GRIDS = {"flat": (1.0, 0), "hidden": (16.0, 0), "scores": (0.25, 128)}
IMAGES = np.random.default_rng(3).integers(0, 256, (137, 1, 2, 1), dtype=np.uint8)
SPLIT = Split(IMAGES, np.random.default_rng(4).integers(0, 3, 137))


def proto(nodes, arrays):
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def floating():
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W1", "B1"], ["first"]),
        helper.make_node("Relu", ["first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "W2"], ["scores"]),
    ]
    return proto(nodes, {"W1": W1, "B1": B1, "W2": W2})


def quantized():
    """As onnxruntime writes it: no Relu, the bias as int32, the output renamed."""
    arrays = {"B1_quantized": (B1 / 0.5).astype(np.int32), "B1_scale": np.float32(0.5), "B1_zero": np.int32(0)}
    nodes = [helper.make_node("DequantizeLinear", ["B1_quantized", "B1_scale", "B1_zero"], ["B1"])]
    for name, (codes, scale) in CODES.items():
        arrays |= {f"{name}_quantized": codes, f"{name}_scale": np.float32(scale), f"{name}_zero": np.int8(0)}
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero"], [f"{name}_dq"])
        )

    def pair(read, name, output):
        scale, zero = GRIDS[name]
        arrays.update({f"{name}_scale": np.float32(scale), f"{name}_zero": np.uint8(zero)})
        ends = [f"{name}_scale", f"{name}_zero"]
        return [
            helper.make_node("QuantizeLinear", [read, *ends], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", *ends], [output]),
        ]

    nodes += [
        helper.make_node("Flatten", ["x"], ["flat"]),
        *pair("flat", "flat", "flat_dq"),
        helper.make_node("Gemm", ["flat_dq", "W1_dq", "B1"], ["hidden"]),
        *pair("hidden", "hidden", "hidden_dq"),
        helper.make_node("MatMul", ["hidden_dq", "W2_dq"], ["scores_QuantizeLinear_Input"]),
        *pair("scores_QuantizeLinear_Input", "scores", "scores"),
    ]
    return proto(nodes, arrays)


def grid(values, name):
    scale, zero = GRIDS[name]
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def by_hand(weights=False, hidden=False, scores=False):
    """float64 [N, 3], and the hidden values."""
    values = np.maximum(IMAGES.reshape(-1, 2).astype(np.float64) @ W1 + B1, 0)
    values = grid(values, "hidden") if hidden else values
    result = values @ (CODES["W2"][0] * 0.02 if weights else W2.astype(np.float64))
    return (grid(result, "scores") if scores else result), values


def divergence(scores):
    p, q = (np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) for s in (by_hand()[0], scores))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def test_the_harm_of_two_layers_is_what_numpy_computes():
    result = analyze(floating(), quantized(), SPEC, SPLIT)
    rows = {row["layer"]: row for row in rows_of(result)}
    assert [row["layer"] for row in rows_of(result)] == ["scores", "(others)", "first"]
    first, second = rows["first"], rows["scores"]
    assert [first[f"{part}_flips"] for part in ("weights", "activations", "both")] == [0, 0, 0]
    assert first["both_kl"] == pytest.approx(0, abs=1e-9)

    expected = {
        "weights": by_hand(weights=True),
        "activations": by_hand(hidden=True),
        "both": by_hand(weights=True, hidden=True),
        "kept_float": by_hand(scores=True),
        "quantized": by_hand(True, True, True),
    }
    best = by_hand()[0].argmax(axis=1)
    for part, (scores, _) in expected.items():
        assert second[f"{part}_kl"] == pytest.approx(divergence(scores), rel=1e-4), part
        assert second[f"{part}_flips"] == (scores.argmax(axis=1) != best).sum(), part
        assert second[f"{part}_accuracy"] == (scores.argmax(axis=1) == SPLIT.labels).mean(), part
    assert second["weights_kl"] > second["activations_kl"] > 0
    assert rows["(others)"]["both_kl"] == pytest.approx(divergence(by_hand(scores=True)[0]), rel=1e-4)
    assert first["kept_float_kl"] == pytest.approx(second["quantized_kl"], rel=1e-6)
    assert (second["weight_bits"], second["activation_bits"], second["images"]) == (5, 8, 137)


@pytest.mark.parametrize("ends", [["Softmax"], ["Softmax", "Flatten"], ["Softmax", "Identity", "Reshape"]])
def test_the_scores_are_those_before_the_last_softmax_whatever_shape_it_is_given(ends):
    def ended(model):
        nodes, name = list(model.graph.node), "scores"
        for operator in ends:
            more = ["shape"] if operator == "Reshape" else []
            nodes.append(helper.make_node(operator, [name, *more], [operator.lower()]))
            name = operator.lower()
        nodes[-1].output[0] = "end"
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        result = proto(nodes, arrays | {"shape": np.array([-1, 3], np.int64)})
        result.graph.output[0].name = "end"
        return result

    plain = rows_of(analyze(floating(), quantized(), SPEC, SPLIT))
    rows = rows_of(analyze(ended(floating()), ended(quantized()), SPEC, SPLIT))
    for row, expected in zip(rows, plain, strict=True):
        assert row["layer"] == expected["layer"]
        for name in (name for name in row if name.endswith(("_kl", "_flips", "_accuracy"))):
            assert row[name] == (expected[name] and pytest.approx(expected[name], rel=1e-5, abs=1e-9)), name


def test_signal_to_noise_accumulates_along_the_quantized_model():
    result = analyze(floating(), quantized(), SPEC, SPLIT)
    (scores, hidden), (true_scores, true_hidden) = by_hand(True, True, True), by_hand()
    ratios = {
        name: 10 * math.log10((true**2).sum() / ((true - value) ** 2).sum())
        for name, true, value in (("hidden", true_hidden, hidden), ("scores", true_scores, scores))
    }
    assert result.snr_db == {"flat": math.inf} | {name: pytest.approx(db, rel=1e-4) for name, db in ratios.items()}
    assert rows_of(result)[-1]["output_snr_db"] == pytest.approx(ratios["hidden"], rel=1e-4)


def test_another_model_is_a_sentence():
    with pytest.raises(ExperimentError, match="no quantized weight has the name"):
        analyze(floating(), floating(), SPEC, SPLIT)


def test_a_fixed_batch_gives_the_same_figures():
    fixed = InputSpec("x", Layout.NHWC, (1, 2, 1), 10, 3)  # the last batch has 7 images
    free, whole = (analyze(floating(), quantized(), spec, SPLIT) for spec in (SPEC, fixed))
    for one, other in zip(rows_of(free), rows_of(whole), strict=True):
        assert one["layer"] == other["layer"]
        figures = [name for name in one if name.endswith(("_kl", "_flips", "_db")) and one[name] is not None]
        assert [other[name] for name in figures] == pytest.approx([one[name] for name in figures], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "words",
    [
        ("quant=int8",),
        ("quant=u8s8", "quant.activation_symmetric=true"),
        ("quant=w4a4", "refine=gptq"),
        ("quant=w4a8", "quant.layers={stack2.*: {float: true}, conv: {float: true}}"),
    ],
)
def test_with_nothing_quantized_it_is_the_float_model_with_all_the_quantized_one(words):
    config = rq.compose(*words, "data=sample", "calibration.samples_per_class=5")
    from resnet8_quant.experiment import prepare
    from resnet8_quant.quantizer.quantize import quantize

    prepared = prepare(config)
    model = onnx.load_from_string(quantize(prepared.model, prepared.images, config).named)
    parts = PartlyQuantized(prepared.model.proto(), model)
    feed = {prepared.model.input_spec.name: prepared.model.input_spec.prepare(load_sample().test.images[:200])}

    def scores(proto):
        """What the last Softmax reads."""
        proto.graph.output[0].CopyFrom(
            onnx.ValueInfoProto(name=next(node for node in proto.graph.node if node.op_type == "Softmax").input[0])
        )
        return new_session(proto.SerializeToString(), entries=SIMULATED).run(None, feed)[0]

    def of_parts(**chosen):
        return new_session(parts.model(**chosen).SerializeToString(), entries=SIMULATED).run(None, feed)[0]

    np.testing.assert_allclose(of_parts(), scores(prepared.model.proto()), atol=1e-5)
    names = {layer.name for layer in parts.layers}
    # ONNX Runtime's default options would make int8 of float weights between integers
    mixed = parts.model(activations=names, others=True)
    plain = new_session(mixed.SerializeToString(), level="none").run(None, feed)[0]
    optimized = of_parts(activations=names, others=True)
    assert (np.abs(optimized - plain).max(axis=1) < 1e-4).mean() > 0.8
    ours, whole = of_parts(weights=names, activations=names, others=True), scores(model)
    # float sums in another order move a value in the middle of two codes, here and there
    assert (np.abs(ours - whole).max(axis=1) < 1e-4).mean() > 0.8
    assert (ours.argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.99
