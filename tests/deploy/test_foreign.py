"""Models that others made: without names, of old operator sets, without zero points, with other ends."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import (
    Config,
    DeployConfig,
    DeployOutput,
    DType,
    Layout,
    QuantConfig,
)
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.session import kernels_saturate, open_session, run_batch
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel, refuse_quantized
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.contents import read_contents
from resnet8_quant.quantizer.quantize import quantize

X86 = DeployConfig("x86", DType.uint8, avoid_saturation=True, wide_input=True)
PRODUCTS = DeployConfig("x86_amx", DType.uint8, wide_input=True, products=True)
U8S8 = QuantConfig("u8s8", DType.uint8, DType.int8, per_channel=True)
CONTRACT = InputSpec("x", Layout.NHWC, (8, 8, 3), None, 5)


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    return CalibrationImages.of(pixels, np.arange(40), "made up")


def unnamed(*ends: tuple[str, dict[str, object]], opset: int = 17) -> FloatModel:
    """Two convolutions, an average, a Flatten and ``ends``; no node has a name."""
    rng = np.random.default_rng(1)
    weights = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (5, 16, 1, 1), "b2": (5,)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"]),
    ]
    name = "p"
    for index, (kind, attributes) in enumerate([*ends] or [("Flatten", {})]):
        nodes.append(helper.make_node(kind, [name], [f"e{index}"], **attributes))
        name = f"e{index}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), key) for key, shape in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data = proto.SerializeToString()
    return FloatModel("unnamed", data, CONTRACT, sha256_bytes(data), "made up")


def answers(model: bytes, input_spec: InputSpec, images: CalibrationImages) -> np.ndarray:
    return run_batch(open_session(model, 1), input_spec.name, input_spec.prepare(images.images))


@pytest.mark.parametrize("target", [X86, PRODUCTS])
@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_nodes_without_names_and_old_operator_sets(images, target, opset) -> None:
    if target is PRODUCTS and kernels_saturate():
        pytest.skip("deploy=x86_amx needs kernels that do not saturate, which this CPU lacks (probe)")
    plain = quantize(unnamed(opset=opset), images, Config(U8S8)).serialized
    deployed, input_spec = deploy(plain, target, CONTRACT)
    np.testing.assert_array_equal(answers(deployed, input_spec, images), answers(plain, CONTRACT, images))
    assert kernel_report(deployed, 1).kernels == "integer"


@pytest.mark.parametrize("wanted", [DeployOutput.logits, DeployOutput.probabilities, DeployOutput.label])
@pytest.mark.parametrize(
    "ends",
    [
        [("Softmax", {"axis": 1}), ("Flatten", {})],
        [("Flatten", {}), ("Sigmoid", {})],
        [("Flatten", {}), ("LogSoftmax", {"axis": 1})],
    ],
)
def test_an_end_that_is_not_logits_is_refused(images, ends, wanted) -> None:
    plain = quantize(unnamed(*ends), images, Config(U8S8)).serialized
    with pytest.raises(ExperimentError, match=rf"`deploy.output` is {wanted.name}, but the model ends in"):
        deploy(plain, DeployConfig("x86", DType.uint8, output=wanted), CONTRACT)


def test_missing_zero_points_are_zero_and_every_kernel_is_integer(images) -> None:
    plain = onnx.load_from_string(quantize(unnamed(), images, Config(U8S8)).serialized)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in plain.graph.initializer}
    dropped = 0
    for node in plain.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not values[node.input[2]].any():
            if node.op_type == "QuantizeLinear" and values[node.input[2]].dtype != np.uint8:
                continue
            del node.input[2:]
            dropped += 1
    assert dropped > 3
    deployed, input_spec = deploy(plain.SerializeToString(), X86, CONTRACT)
    assert kernel_report(deployed, 1).kernels == "integer"
    np.testing.assert_array_equal(
        answers(deployed, input_spec, images), answers(plain.SerializeToString(), CONTRACT, images)
    )


def test_bytes_in_are_quantized_operators(images) -> None:
    plain = quantize(unnamed(), images, Config(U8S8)).serialized
    floats, _ = deploy(plain, X86, CONTRACT)
    taken = DeployConfig("x86", DType.uint8, avoid_saturation=True, wide_input=True, input=type(X86.input).uint8)
    contents = read_contents(onnx.load_from_string(deploy(plain, taken, CONTRACT)[0]))
    assert (contents.quantized_ops, contents.float_ops) == (
        read_contents(onnx.load_from_string(floats)).quantized_ops,
        0,
    )


def test_what_is_quantized_is_not_quantized_again(images) -> None:
    plain = quantize(unnamed(), images, Config(U8S8)).serialized
    refuse_quantized(unnamed())
    for data in (plain, deploy(plain, X86, CONTRACT)[0]):
        with pytest.raises(ExperimentError, match="is quantized already"):
            refuse_quantized(FloatModel("q", data, CONTRACT, "", "q.onnx"))
