"""What conversion does to types and zero points, and the models that it refuses."""

import numpy as np
import onnx
import pytest
from deployed import PAD, TARGETS, TWO, assert_same_integers, build, pictures, plain, predictions, rewritten
from onnx import TensorProto, helper
from onnx.numpy_helper import to_array

from resnet8_quant.config import DType, Format
from resnet8_quant.deploy.convert_activations import convert_activations
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.graph import Graph

MODEL = build(((16, 3, PAD), (16, 3, PAD)))


def types_of(proto):
    """{type of each constant that a QuantizeLinear or DequantizeLinear reads as zero point}, {weights' types}."""
    graph = Graph(proto)
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = {node.input[0]: node for node in pairs if graph.stored(node.input[0])}
    activations = {graph.initializers[node.input[2]].data_type for node in pairs if node.input[0] not in weights}
    return activations, {graph.initializers[name].data_type for name in weights}


@pytest.mark.parametrize("types", ["int8", "uint8", "u8s8"])
def test_types_are_those_of_the_target_there_and_back_again(types):
    """int8 -> uint8 -> int8 activations: the numbers are the first ones, and all operators and scales stay."""
    proto = onnx.load_from_string(plain(MODEL, types))
    signed = convert_activations(proto, DType.int8)
    unsigned = convert_activations(signed, DType.uint8)
    for moved, activation in ((signed, TensorProto.INT8), (unsigned, TensorProto.UINT8)):
        assert types_of(moved) == ({activation}, {TensorProto.INT8, TensorProto.INT32})
        assert [node.op_type for node in moved.graph.node] == [node.op_type for node in proto.graph.node]
    back = convert_activations(unsigned, DType.int8)
    # the same constants under other names
    first, second = (sorted(to_array(tensor).tobytes() for tensor in one.graph.initializer) for one in (signed, back))
    assert first == second


def assert_same_predictions(one, other, model):
    images = pictures(model)
    np.testing.assert_array_equal(*(predictions(serialized, model.input_spec, images) for serialized in (one, other)))


@pytest.mark.parametrize("target", TARGETS)
def test_a_zero_point_that_is_not_written_is_0(target):
    """Without those that are 0, where ONNX takes that for granted."""
    graph = Graph(onnx.load_from_string(plain(MODEL, "u8s8")))
    for node in [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        zero_point = graph.array(node.input[2])
        if not zero_point.any() and (node.op_type == "DequantizeLinear" or zero_point.dtype == np.uint8):
            del node.input[2:]
    deployed, _ = rewritten(graph.finish().SerializeToString(), target, MODEL.input_spec)
    assert_same_predictions(deployed, plain(MODEL, "u8s8"), MODEL)
    assert kernel_report(deployed, 1).kernels == "integer"


@pytest.mark.parametrize("types", ["uint8", "u8s8"])
def test_a_weight_that_two_layers_share(types):
    """Two DequantizeLinear read the same integers."""
    model = build(((16, 3, PAD), (16, 3, PAD)), channels=16)
    graph = Graph(onnx.load_from_string(plain(model, types)))
    first, second = (graph.producer(node.input[1]) for node in graph.nodes if node.op_type == "Conv")
    second.input[0] = first.input[0]
    assert_same_integers(graph.finish().SerializeToString(), model.input_spec, pictures(model))


def int4_activations():
    """The first pair quantizes to INT4."""
    graph = Graph(onnx.load_from_string(plain(MODEL, "int8")))
    quantizer = next(node for node in graph.nodes if node.op_type == "QuantizeLinear")
    zero_point = helper.make_tensor("zero_int4", TensorProto.INT4, [], [0])
    graph.initializers[zero_point.name] = zero_point
    for node in (quantizer, *graph.consumers(quantizer.output[0])):
        node.input[2] = zero_point.name
    return graph.finish().SerializeToString()


def scales_along(operator, axis, model):
    """The weight of the first ``operator`` has its scales along another axis than that of its output channels."""
    graph = Graph(onnx.load_from_string(plain(model, "u8s8", True)))
    node = next(node for node in graph.nodes if node.op_type == operator)
    weight = graph.producer(node.input[1])
    next(attribute for attribute in weight.attribute if attribute.name == "axis").i = axis
    return graph.finish().SerializeToString()


def between(operator, types="int8", **attributes):
    """``operator`` reads the integers of the first Relu, before they are floats again."""
    graph = Graph(onnx.load_from_string(plain(MODEL, types)))
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    quantizer = graph.consumers(conv.output[0])[0]
    if quantizer.op_type == "Relu":
        (quantizer,) = graph.consumers(quantizer.output[0])
    (dequantizer,) = graph.consumers(quantizer.output[0])
    node = helper.make_node(operator, [quantizer.output[0]], ["between"], name="between", **attributes)
    dequantizer.input[0] = "between"
    graph.insert_before(dequantizer, node)
    return graph.finish().SerializeToString()


SQUARE, GEMM = build(((16, 3, PAD), (16, 3, PAD)), channels=16), build(((5, 3, PAD),))  # 5 classes and 5 values in
EIGHT, PER_TENSOR = "8-bit activations|'nchw'", "quant.per_channel=false"
REFUSED = {  # the model, parts of the problem, the remedy
    "no Q/DQ": (lambda: MODEL.serialized, "no QuantizeLinear", "quant=int8 deploy=x86"),
    "QOperator": (lambda: plain(MODEL, "int8", format=Format.QOperator), "already|QLinearConv", "quant.format=QDQ"),
    "16 bits": (lambda: plain(MODEL, (DType.uint16, DType.int8)), f"uint16|{EIGHT}", "quant=u8s8 deploy=x86"),
    "4 bits": (int4_activations, f"int4|{EIGHT}", "quant=u8s8 deploy=x86"),
    "axis of Conv": (lambda: scales_along("Conv", 1, SQUARE), "of Conv |[16] scales|axis 1|axis 0", PER_TENSOR),
    "axis of Gemm": (lambda: scales_along("Gemm", 0, GEMM), "of Gemm |[5] scales|axis 0|axis 1", PER_TENSOR),
    "integers are read": (lambda: between("Identity"), "Identity reads the integers|only a Clip", "deploy=none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, parts, remedy = REFUSED[case]
    with pytest.raises(ExperimentError, match=r"^`deploy`: ") as caught:
        rewritten(make(), "x86", MODEL.input_spec)
    assert all(part in caught.value.problem for part in parts.split("|"))
    assert remedy in caught.value.remedy


def test_one_scale_fits_any_axis():
    """Scales of one element are not along an axis."""
    model = build(((16, 3, PAD), (1, 3, (*PAD, TWO))), classes=1)
    serialized = plain(model, "u8s8", True)
    assert_same_predictions(rewritten(serialized, "x86", model.input_spec)[0], serialized, model)


def test_integers_that_do_not_move_may_be_read():
    serialized = between("MaxPool", "u8s8", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    assert_same_predictions(rewritten(serialized, "x86", MODEL.input_spec)[0], serialized, MODEL)
