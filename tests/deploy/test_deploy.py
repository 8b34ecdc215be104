"""The whole way: what is not touched, what is the same each time, and models with few bits."""

import functools
import hashlib
import importlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed import (
    EXACT,
    NETS,
    PAD,
    TARGETS,
    TYPES,
    VNNI,
    answers,
    assert_same_integers,
    build,
    cut_at_logits,
    float_operators,
    integers,
    operators,
    pictures,
    plain,
    quantized,
    rewritten,
    session,
)
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import (
    DeployConfig,
    DType,
    RefineConfig,
    Rounding,
    Target,
    WeightScale,
)
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.compact import compact
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.inputs.model import FloatModel, refuse_quantized

LOW_BIT = {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}
GPTQ = RefineConfig(
    "gptq", WeightScale.hessian, Rounding.gptq, Target.outputs, bias=True, activation_ranges=True, images=30
)
WIDTHS = {
    "w4a8": {"weight_bits": 4},
    "w4a4": {"weight_bits": 4, "activation_bits": 4},
    "w2a8": {"weight_bits": 2},
}
MODEL, RESIDUAL = build(((16, 3, PAD), (16, 3, PAD))), build(**NETS["residual"])
ROOT = Path(__file__).resolve().parents[2]
DIGESTS = """
import hashlib, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from deployed import NETS, TARGETS, build, rewritten
model = build(**NETS["residual"])
serialized = Path(sys.argv[1]).read_bytes()
for target in TARGETS:
    print(hashlib.sha256(rewritten(serialized, target, model.input_spec)[0]).hexdigest())
"""


def test_without_a_target_nothing_is_rewritten():
    assert deploy(MODEL.serialized, DeployConfig(), MODEL.input_spec) == (MODEL.serialized, MODEL.input_spec)


def test_two_processes_give_the_same_bytes(tmp_path):
    serialized = plain(RESIDUAL, "int8", True)
    (tmp_path / "plain.onnx").write_bytes(serialized)
    helpers = [str(ROOT / "tests" / folder) for folder in ("deploy/helpers", "helpers")]
    command, found = [sys.executable, "-c", DIGESTS, str(tmp_path / "plain.onnx"), *helpers], []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        found.append(done.stdout.split())
    here = [hashlib.sha256(rewritten(serialized, target, RESIDUAL.input_spec)[0]).hexdigest() for target in TARGETS]
    assert found == [here, here]
    assert len(set(here)) == len(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_the_models(resnet8, model, target):
    deployed = onnx.load_from_string(rewritten(resnet8("int8", False), target, model.input_spec)[0])
    layers = [node.name for node in deployed.graph.node if node.op_type in ("QLinearConv", "QGemm")]
    assert layers == [node.name for node in model.proto().graph.node if node.op_type in ("Conv", "Gemm")]
    names = [name for node in deployed.graph.node for name in (node.name, *node.output)]
    assert not [name for name in names if "token" in name or "duplicated" in name]
    named = [node.name for node in deployed.graph.node if node.name]
    assert len(set(named)) == len(named)
    assert {entry.domain for entry in deployed.opset_import} == {"", "com.microsoft"}
    assert deployed.producer_name == "resnet8-quant"


def test_a_deployed_model_answers_any_batch():
    images = pictures(RESIDUAL)
    deployed, input_spec = rewritten(plain(RESIDUAL, "int8"), "x86", RESIDUAL.input_spec)
    whole = answers(deployed, input_spec, images)
    single = np.concatenate([answers(deployed, input_spec, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_array_equal(whole, single)


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_nodes_without_names_and_old_opsets(opset):
    model = build(**NETS["residual"], names=False, opset=opset)
    _, models = assert_same_integers(plain(model, "u8s8", True), model.input_spec, pictures(model))
    assert {kernel_report(deployed, 1).kernels for deployed in models.values()} == {"integer"}


def test_what_is_quantized_is_not_quantized_again():
    serialized = plain(RESIDUAL, "u8s8")
    refuse_quantized(RESIDUAL)
    for data in (serialized, rewritten(serialized, "x86", RESIDUAL.input_spec)[0]):
        with pytest.raises(ExperimentError, match="is quantized already"):
            refuse_quantized(FloatModel("q", data, RESIDUAL.input_spec, "", "q.onnx"))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
def test_compact_keeps_the_answers_in_a_smaller_file(resnet8, model, sample, types, per_channel):
    images, serialized = sample[-200:], resnet8(types, per_channel)
    plainly = compact(onnx.load_from_string(serialized)).ByteSize()
    for target in TARGETS:
        deployed, input_spec = rewritten(serialized, target, model.input_spec)
        small, same = rewritten(serialized, target, model.input_spec, small=True)
        assert len(small) < len(deployed)
        assert len(small) <= plainly or target == "x86_amx"  # which blocks the pixels of more layers
        assert same == input_spec
        np.testing.assert_array_equal(answers(small, input_spec, images), answers(deployed, input_spec, images))
        assert operators(small) == operators(deployed)


@pytest.fixture(scope="module")
def few_bits(model, sample):
    """Words of `WIDTHS` -> the bundled model in few bits, refined on 30 images."""

    @functools.cache
    def make(name, activation=DType.uint8):
        options = {"refine": GPTQ, "keep_first_last": 8, **WIDTHS[name]}
        return quantized(model, (activation, DType.int8), True, sample[:30], **options)

    return make


def in_whole_bytes(serialized):
    """The model with its narrow weights stored as int8, for which ONNX Runtime has integer kernels."""
    model = onnx.load_from_string(serialized)
    for tensor in model.graph.initializer:
        if tensor.data_type in LOW_BIT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int8), tensor.name))
    return model.SerializeToString()


def stored_types(serialized):
    return Counter(tensor.data_type for tensor in onnx.load_from_string(serialized).graph.initializer)


@pytest.mark.parametrize(
    ("name", "activation", "targets"),
    [*((name, DType.uint8, ("x86", "x86_amx")) for name in WIDTHS), ("w4a8", DType.int8, ("arm",))],
)
def test_few_bits(few_bits, model, sample, name, activation, targets):
    images = sample[-100:]
    serialized = few_bits(name, activation)
    reference = in_whole_bytes(cut_at_logits(serialized)[0])
    assert_same_integers(serialized, model.input_spec, images, targets, reference)
    narrow = {kind: count for kind, count in stored_types(serialized).items() if kind in LOW_BIT}
    assert sum(narrow.values()) == 8  # all but the first and the last layer
    limits = len(serialized), compact(onnx.load_from_string(serialized)).ByteSize()
    for target in targets:
        whole, small = (rewritten(serialized, target, model.input_spec, small=small)[0] for small in (False, True))
        assert len(small) < len(whole)
        for deployed, limit in zip((whole, small), limits, strict=True):
            report = kernel_report(deployed, 1)
            assert (report.kernels, report.integer) == ("integer", 10)
            assert not float_operators(report.ops)
            if target != "x86_amx":  # its products take weights that are moved by one
                assert len(deployed) <= limit
                assert {kind: count for kind, count in stored_types(deployed).items() if kind in LOW_BIT} == narrow
        np.testing.assert_array_equal(
            answers(small, model.input_spec, images), answers(whole, model.input_spec, images), target
        )


def added(kind, scales, zero_points):
    """What ONNX Runtime's integer addition makes of all pairs of bytes, on the scale of uint8."""
    shift = 0 if kind is np.uint8 else -128
    inputs = [name for tensor in "abc" for name in (f"{tensor}_scale", f"{tensor}_zero_point")]
    node = helper.make_node("QLinearAdd", ["a", *inputs[:2], "b", *inputs[2:]], ["c"], domain="com.microsoft")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    arrays = {
        **{f"{t}_scale": np.array(scale, np.float32) for t, scale in zip("abc", scales, strict=True)},
        **{f"{t}_zero_point": np.array(zero + shift).astype(kind) for t, zero in zip("abc", zero_points, strict=True)},
    }
    values = [helper.make_tensor_value_info(name, element, [1 << 16]) for name in "abc"]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "sum", values[:2], values[2:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    first, second = (axis.ravel() for axis in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    feed = {"a": (first + shift).astype(kind), "b": (second + shift).astype(kind)}
    found = session(helper.make_model(graph, opset_imports=opsets, ir_version=10)).run(None, feed)[0]
    exact = sum(
        (bytes_ - zero) * (np.float32(scale) / np.float64(np.float32(scales[2])))
        for bytes_, scale, zero in zip((first, second), scales, zero_points, strict=False)
    )
    return found.astype(int) - shift, exact


@pytest.mark.parametrize(
    ("scales", "zero_points"),
    [
        ((0.15087256, 0.054354984, 0.076430015), (139, 0, 0)),  # of a refined model: no sum is near a tie
        ((0.22102854, 0.10463949, 0.0930646), (138, 112, 0)),  # two are
    ],
)
def test_only_an_addition_that_nearly_ties_depends_on_the_type(scales, zero_points):
    """ONNX Runtime adds in float32, with the zero points in the constant: it rounds otherwise for int8 than for uint8.

    So a model that moves from int8 to uint8, or back, may come out a step off behind an Add, where a sum is within
    float32's precision of the middle between two integers.
    """
    unsigned, exact = added(np.uint8, scales, zero_points)
    signed, _ = added(np.int8, scales, zero_points)
    apart = unsigned != signed
    assert np.abs(unsigned - signed).max() <= 1
    assert apart.sum() <= 4
    assert (np.abs(exact - np.floor(exact) - 0.5)[apart] < 2e-5).all()


def test_few_bits_in_another_type_are_steps_off_at_most(few_bits, model, sample):
    images = sample[-100:]
    cut, *grid = cut_at_logits(few_bits("w4a8"))
    expected = integers(answers(in_whole_bytes(cut), model.input_spec, images), *grid)
    deployed, _ = rewritten(cut, "arm", model.input_spec)
    steps = np.abs(integers(answers(deployed, model.input_spec, images), *grid) - expected)
    assert steps.max() <= 3
    assert steps.mean() < 0.5


@pytest.fixture
def saturating(monkeypatch):
    """A CPU whose kernels saturate, as far as deploy is told."""
    monkeypatch.setattr(importlib.import_module("resnet8_quant.deploy.deploy"), "kernels_saturate", lambda: True)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("target", EXACT)
def test_exact_targets_cannot_saturate(types, target):
    deployed, _ = rewritten(plain(MODEL, types), target, MODEL.input_spec)
    assert saturating_layers(deployed) == ()
    kinds = {tensor.data_type for tensor in onnx.load_from_string(deployed).graph.initializer if len(tensor.dims) > 1}
    assert (TensorProto.UINT8 in kinds) == (target == "x86")


@pytest.mark.parametrize("target", VNNI)
@pytest.mark.parametrize("types", TYPES)
def test_seven_bits_are_portable_on_every_target(saturating, target, types):
    images = pictures(MODEL)
    serialized, *grid = cut_at_logits(plain(MODEL, types, types == "u8s8", weight_bits=7))
    deployed, _ = deploy(serialized, VNNI[target], MODEL.input_spec)  # not refused
    assert saturating_layers(deployed) == ()
    expected, found = (integers(answers(one, MODEL.input_spec, images), *grid) for one in (serialized, deployed))
    np.testing.assert_array_equal(found, expected)
    if types == "u8s8" and target == "x86_vnni":
        assert deployed == deploy(serialized, EXACT["x86"], MODEL.input_spec)[0]


@pytest.mark.parametrize("target", VNNI)
def test_eight_bits_are_refused_where_kernels_saturate(saturating, target):
    with pytest.raises(ExperimentError) as caught:
        deploy(plain(MODEL, "u8s8", True), VNNI[target], MODEL.input_spec)
    assert f"`deploy` is {target}" in caught.value.problem
    assert "can saturate" in caught.value.problem
    assert caught.value.remedy.startswith(f"python run.py quant=u8s7 deploy={target}")
