"""The whole way: the integers of deployed models are those of the plain models, bit for bit, whatever their layers."""

import functools
import hashlib
import importlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
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
    assert_same_integers,
    build,
    cut_at_logits,
    float_operators,
    integers,
    operators,
    pictures,
    plain,
    predictions,
    quantized,
    rewritten,
)
from onnx import TensorProto, numpy_helper

from resnet8_quant.config import Config, DeployConfig, DeployInput, DeployOutput, DType, QuantConfig, RefineConfig
from resnet8_quant.deploy.deploy import deploy, target_size
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.compact import compact
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.inputs.model import FloatModel, refuse_quantized

LOW_BIT = {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}
GPTQ = RefineConfig("gptq", "hessian", "gptq", "outputs", bias=True, activation_ranges=True, images=30)
WIDTHS = {"w4a8": {"weight_bits": 4}, "w4a4": {"weight_bits": 4, "activation_bits": 4}, "w2a8": {"weight_bits": 2}}
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


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("uint8", True), ("u8s8", True)])
@pytest.mark.parametrize("name", NETS)
def test_small_nets(name, types, per_channel):
    model = build(**NETS[name])
    expected, models = assert_same_integers(plain(model, types, per_channel), model.input_spec, pictures(model))
    assert len(np.unique(expected)) > 8
    for target, deployed in models.items():
        report = kernel_report(deployed, 1)
        assert report.kernels == "integer", (target, report)
        assert not float_operators(report.ops), (target, report)


@pytest.mark.parametrize(("types", "bits"), [("int8", 4), ("u8s8", 4), ("u8s8", 6)])
def test_activations_of_few_bits(types, bits):
    """The limits of each Clip move with the integers between them."""
    model = build(((16, 3, PAD), (16, 3, PAD)))
    serialized = plain(model, types, True, activation_bits=bits)
    assert operators(serialized).count("Clip") >= 2
    assert_same_integers(serialized, model.input_spec, pictures(model))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
def test_resnet8(resnet8, model, sample, types, per_channel):
    """All of it in integers, and in a file no larger."""
    serialized = resnet8(types, per_channel)
    images = sample[-200:]
    expected, _ = assert_same_integers(serialized, model.input_spec, images)
    assert len(np.unique(expected)) > 100
    for target in TARGETS:
        (deployed, input_spec), (small, same) = (
            rewritten(serialized, target, model.input_spec, small=small) for small in (False, True)
        )
        report = kernel_report(deployed, 1)
        assert (report.kernels, report.integer, report.total) == ("integer", 10, 10), target
        assert not float_operators(report.ops), target
        assert report.ops["com.microsoft.QLinearConv"] == 9
        assert report.ops["com.microsoft.QLinearAdd"] == 3
        assert "Transpose" not in report.ops
        if target != "x86_amx":  # its products take more room, as conf/deploy/x86_amx.yaml says
            assert len(deployed) <= len(serialized), target
            assert len(small) <= compact(onnx.load_from_string(serialized)).ByteSize(), target
        assert len(small) < len(deployed)
        assert (operators(small), same) == (operators(deployed), input_spec)
        np.testing.assert_array_equal(predictions(small, input_spec, images), predictions(deployed, input_spec, images))


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("u8s8", True)])
def test_mobilenet(mobilenet, sample, types, per_channel):
    """Depthwise convolutions, all in integers."""
    serialized = quantized(mobilenet, types, per_channel, images=sample[:100])
    expected, models = assert_same_integers(serialized, mobilenet.input_spec, sample[-100:])
    assert len(np.unique(expected)) > 100
    for target, deployed in models.items():
        report = kernel_report(deployed, 1)
        assert (report.kernels, report.integer, report.total) == ("integer", 22, 22), target
        assert not float_operators(report.ops), target
        assert report.ops["com.microsoft.QLinearConv"] == 21


@pytest.mark.parametrize("per_channel", [False, True])
def test_top_1_of_all_images(resnet8, model, sample, per_channel):
    serialized = resnet8("int8", per_channel)
    deployed, _ = rewritten(serialized, "x86", model.input_spec)
    own = predictions(serialized, model.input_spec, sample, allow_int8=False)  # int8: some Conv in float
    changed = predictions(deployed, model.input_spec, sample).argmax(1) != own.argmax(1)
    assert changed.mean() <= 0.001
    # each is an image where the plain model's float Conv rounded otherwise than integers do
    cut, *grid = cut_at_logits(serialized)
    images = sample[changed]
    if len(images):
        exact, rounded = (predictions(cut, model.input_spec, images, allow_int8=allow) for allow in (True, False))
        assert (integers(exact, *grid) != integers(rounded, *grid)).any(1).all()


def test_without_a_target_nothing_is_rewritten():
    assert deploy(MODEL.serialized, DeployConfig(), MODEL.input_spec) == (MODEL.serialized, MODEL.input_spec)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_the_bytes_that_a_budget_counts_are_those_of_the_deployed_file(target, compact, caplog):
    config = Config(QuantConfig(compact=compact), deploy=TARGETS[target])
    serialized = plain(RESIDUAL, "u8s8", True, weight_bits=4)
    caplog.set_level("INFO")
    counted = target_size(config, RESIDUAL.input_spec)(serialized)
    assert not caplog.messages
    deployed, _ = deploy(serialized, config.deploy, RESIDUAL.input_spec, small=compact)
    assert counted == len(deployed) != len(serialized)
    assert target_size(Config(), RESIDUAL.input_spec) is None  # the quantizer's own file


def test_two_processes_give_the_same_bytes(tmp_path):
    serialized = plain(RESIDUAL, "int8", True)
    (tmp_path / "plain.onnx").write_bytes(serialized)
    helpers = [str(ROOT / "tests" / folder) for folder in ("deploy/helpers", "helpers")]
    command = [sys.executable, "-c", DIGESTS, str(tmp_path / "plain.onnx"), *helpers]
    here = [hashlib.sha256(rewritten(serialized, target, RESIDUAL.input_spec)[0]).hexdigest() for target in TARGETS]
    assert len(set(here)) == len(TARGETS)
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        options = {"capture_output": True, "text": True, "timeout": 60, "check": True}
        assert subprocess.run(command, cwd=ROOT, env=environment, **options).stdout.split() == here


@pytest.mark.parametrize("target", TARGETS)
def test_a_deployed_file_is_what_runs_under_the_names_of_the_model(resnet8, model, target):
    serialized, _ = rewritten(resnet8("int8", False), target, model.input_spec)
    stored, report = Counter(operators(serialized)), kernel_report(serialized, 1)
    assert stored == {name.removeprefix("com.microsoft."): count for name, count in report.ops.items()}
    deployed = onnx.load_from_string(serialized)
    layers = [node.name for node in deployed.graph.node if node.op_type in ("QLinearConv", "QGemm")]
    assert layers == [node.name for node in model.proto().graph.node if node.op_type in ("Conv", "Gemm")]
    names = [name for node in deployed.graph.node for name in (node.name, *node.output)]
    assert not [name for name in names if "token" in name or "duplicated" in name]
    named = [node.name for node in deployed.graph.node if node.name]
    assert len(set(named)) == len(named)
    assert deployed.producer_name == "resnet8-quant"


def test_a_deployed_model_takes_any_batch():
    images = pictures(RESIDUAL)
    deployed, input_spec = rewritten(plain(RESIDUAL, "int8"), "x86", RESIDUAL.input_spec)
    single = np.concatenate([predictions(deployed, input_spec, image[None]) for image in images])
    np.testing.assert_array_equal(predictions(deployed, input_spec, images), single)


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


def low_bit_types(serialized):
    types = Counter(tensor.data_type for tensor in onnx.load_from_string(serialized).graph.initializer)
    return {dtype: count for dtype, count in types.items() if dtype in LOW_BIT}


@pytest.mark.parametrize(
    ("name", "activation", "targets"),
    [*((name, DType.uint8, ("x86", "x86_amx")) for name in WIDTHS), ("w4a8", DType.int8, ("arm",))],
)
def test_few_bits(few_bits, model, sample, name, activation, targets):
    images = sample[-100:]
    serialized = few_bits(name, activation)
    reference = in_whole_bytes(cut_at_logits(serialized)[0])
    assert_same_integers(serialized, model.input_spec, images, targets, reference)
    low_bit = low_bit_types(serialized)
    assert sum(low_bit.values()) == 8  # all but the first and the last layer
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
                assert low_bit_types(deployed) == low_bit
        np.testing.assert_array_equal(
            predictions(small, model.input_spec, images), predictions(whole, model.input_spec, images), target
        )


def test_few_bits_in_another_type_are_steps_off_at_most(few_bits, model, sample):
    images = sample[-100:]
    cut, *grid = cut_at_logits(few_bits("w4a8"))
    expected = integers(predictions(in_whole_bytes(cut), model.input_spec, images), *grid)
    deployed, _ = rewritten(cut, "arm", model.input_spec)
    steps = np.abs(integers(predictions(deployed, model.input_spec, images), *grid) - expected)
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
    tensors = onnx.load_from_string(deployed).graph.initializer
    assert (TensorProto.UINT8 in {tensor.data_type for tensor in tensors if len(tensor.dims) > 1}) == (target == "x86")


@pytest.mark.parametrize("target", VNNI)
@pytest.mark.parametrize("types", TYPES)
def test_seven_bits_are_portable_on_every_target(saturating, target, types):
    images = pictures(MODEL)
    serialized, *grid = cut_at_logits(plain(MODEL, types, types == "u8s8", weight_bits=7))
    deployed, _ = deploy(serialized, VNNI[target], MODEL.input_spec)  # not refused
    assert saturating_layers(deployed) == ()
    both = (integers(predictions(one, MODEL.input_spec, images), *grid) for one in (serialized, deployed))
    np.testing.assert_array_equal(*both)
    if types == "u8s8" and target == "x86_vnni":
        assert deployed == deploy(serialized, EXACT["x86"], MODEL.input_spec)[0]


@pytest.mark.parametrize("target", VNNI)
def test_eight_bits_are_refused_where_kernels_saturate(saturating, target):
    with pytest.raises(ExperimentError) as caught:
        deploy(plain(MODEL, "u8s8", True), VNNI[target], MODEL.input_spec)
    assert f"`deploy` is {target}" in caught.value.problem
    assert "can saturate" in caught.value.problem
    assert caught.value.remedy.startswith(f"python run.py quant=u8s7 deploy={target}")


def names(serialized):
    """All tensors of a model."""
    graph = Graph(onnx.load_from_string(serialized))
    return graph.ends() | graph.initializers.keys() | graph.producers().keys()


def renamed(serialized, old, new):
    """The model with an input or output called otherwise."""
    graph = Graph(onnx.load_from_string(serialized))
    graph.rename({old: new})
    end = graph.input if graph.input.name == old else graph.output
    end.name = new
    return graph.finish().SerializeToString()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("end", ["image", "probabilities"])
def test_an_end_may_have_any_name(bits, end):
    model = build(**NETS["rows move"], mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0))
    refine = RefineConfig("nearest", "mse", "nearest", images=24)
    serialized = plain(model, "u8s8") if bits == 8 else quantized(model, "u8s8", refine=refine, weight_bits=4)
    options = {"output": DeployOutput.logits, "input": DeployInput.uint8}
    deployed, input_spec = rewritten(serialized, "x86_amx", model.input_spec, **options)
    expected = predictions(deployed, input_spec, pictures(model))
    new = sorted(names(deployed) - names(serialized))
    for mark in ("_moved", "_nhwc_stored"):
        assert any(name.endswith(mark) for name in new) == (bits == 4)
    for name in new:
        described = replace(model.input_spec, name=name) if end == "image" else model.input_spec
        other, input_spec = rewritten(renamed(serialized, end, name), "x86_amx", described, **options)
        np.testing.assert_array_equal(predictions(other, input_spec, pictures(model)), expected, name)
        assert low_bit_types(other) == low_bit_types(deployed), name
