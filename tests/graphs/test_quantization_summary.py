"""What is read back from graphs that are written here by hand, so that the right answer is known."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.graphs.quantization_summary import LayerSummary, payload_bytes, summarize

FLOAT = TensorProto.FLOAT


def tensor(name, kind, values):
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    return numpy_helper.from_array(np.asarray(values).astype(dtype), name)


def layer_model(kind, values, zero_point=None, *, cast="", clip=None, activation="UINT8", scales=1.0, zeros=True):
    """image - Q - [Clip] - DQ - Conv with a 1x1 weight of ``values`` through [Cast] and DQ - Q - DQ - scores."""
    values = np.asarray(values)[:, None, None, None]
    inner = cast or kind
    tensors = [
        tensor("w", kind, values),
        tensor("w_scale", "FLOAT", scales),
        tensor("s", "FLOAT", 0.5),
        tensor("z", activation, 0),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", *(["z"] if zeros else [])], ["q"]),
        helper.make_node("DequantizeLinear", ["c" if clip else "q", "s", *(["z"] if zeros else [])], ["x"]),
        helper.make_node("DequantizeLinear", ["wide" if cast else "w", "w_scale"], ["v"], axis=0),
        helper.make_node("Conv", ["x", "v"], ["scores_QuantizeLinear_Input"]),
        helper.make_node("QuantizeLinear", ["scores_QuantizeLinear_Input", "s", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["scores"]),
    ]
    if zero_point is not None:
        tensors.append(tensor("w_zero", inner, zero_point))
        nodes[2].input.append("w_zero")
    if cast:
        nodes.insert(2, helper.make_node("Cast", ["w"], ["wide"], to=getattr(TensorProto, cast)))
    if clip:
        tensors += [tensor("low", activation, clip[0]), tensor("high", activation, clip[1])]
        nodes.insert(1, helper.make_node("Clip", ["q", "low", "high"], ["c"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("image", FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("scores", FLOAT, [1, len(values), 4, 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize(
    ("kind", "values", "zero_point", "bits"),
    [
        ("INT8", [-128, 0], None, 8),
        ("INT8", [-64, 63], None, 7),
        ("INT8", [-64, 64], None, 8),
        ("INT8", [-32, 31], None, 6),
        ("INT8", [-16, 15], None, 5),
        ("INT8", [-1, 0], None, 5),
        ("INT8", [-16, 15], 16, 6),
        ("UINT8", [0, 31], None, 5),
        ("UINT8", [0, 31], 32, 6),
        ("UINT8", [200, 201], 200, 8),
        ("INT4", [-8, 7], None, 4),
        ("INT4", [-4, 3], None, 3),
        ("INT4", [-1, 1], None, 3),
        ("UINT4", [0, 7], 7, 3),
        ("UINT4", [0, 7], 8, 4),
        ("INT2", [-2, 1], None, 2),
        ("INT2", [0, 0], None, 2),
        ("UINT2", [0, 3], 1, 2),
    ],
)
def test_weight_bits(kind, values, zero_point, bits):
    for cast in ("", "UINT8" if kind.startswith("U") else "INT8"):
        if cast == kind:
            continue
        contents = summarize(layer_model(kind, values, zero_point, cast=cast))
        assert contents.layers == (LayerSummary("scores", "Conv", kind.lower(), bits, "uint8", 8, False),)
        assert contents.weight_type == kind.lower()
        assert contents.operators == {"Conv": [1, 0]}
        assert (contents.quantized_ops, contents.float_ops) == (1, 0)


@pytest.mark.parametrize(
    ("activation", "clip", "bits"),
    [
        ("UINT8", None, 8),
        ("UINT8", (0, 15), 4),
        ("UINT8", (3, 4), 1),
        ("INT8", None, 8),
        ("INT8", (-7, 7), 4),
        ("INT8", (-8, 8), 5),
        ("INT8", (-2, 1), 2),
        ("INT16", None, 16),
    ],
)
def test_activation_bits(activation, clip, bits):
    """A Clip of the integers counts as no operator."""
    contents = summarize(layer_model("INT8", [-128, 127], clip=clip, activation=activation))
    (layer,) = contents.layers
    assert (layer.activation_type, layer.activation_bits) == (activation.lower(), bits)
    assert contents.operators == {"Conv": [1, 0]}


def test_a_scale_per_channel_and_a_missing_zero_point():
    model = layer_model("INT8", [-100, 100], scales=[1.0, 2.0], zeros=False)
    contents = summarize(model)
    assert contents.per_channel
    assert contents.layers == (LayerSummary("scores", "Conv", "int8", 8, "uint8", 8, True),)
    model.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert summarize(model).layers[0].activation_type == "int8"


def test_a_clip_of_floats_is_an_operator_and_a_float_activation_is_said_to_be_one():
    tensors = [tensor("w", "INT8", [[1]]), tensor("s", "FLOAT", 1.0), tensor("low", "FLOAT", 0)]
    nodes = [
        helper.make_node("Clip", ["x", "low"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        helper.make_node("MatMul", ["v", "clipped"], ["y"]),  # the weight comes first
    ]
    graph = helper.make_graph(
        nodes,
        "weights only",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2])],
        tensors,
    )
    contents = summarize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert contents.layers == (LayerSummary("y", "MatMul", "int8", 5, "float32", 32, False),)
    assert contents.operators == {"Clip": [0, 1], "MatMul": [0, 1]}


def test_integer_operators():
    tensors = [tensor("w", "INT8", [[[[1]]], [[[2]]]]), tensor("ws", "FLOAT", [1.0, 2.0]), tensor("wz", "INT8", [0, 0])]
    tensors += [tensor("s", "FLOAT", 1.0), tensor("z", "UINT8", 0)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_quantized"]),
        helper.make_node("QLinearConv", ["x_quantized", "s", "z", "w", "ws", "wz", "s", "z"], ["y_quantized"]),
        helper.make_node("DequantizeLinear", ["y_quantized", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2, 2, 2])],
        tensors,
    )
    contents = summarize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert contents.layers == (LayerSummary("y", "QLinearConv", "int8", 8, "uint8", 8, True),)


def test_a_float_model_has_no_layers(model):
    contents = summarize(model.proto())
    assert contents.layers == ()
    assert (contents.activation_type, contents.weight_type) == ("float32", "float32")


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("INT2", 5, 2),
        ("UINT2", 4, 1),
        ("INT2", 0, 0),
        ("INT4", 5, 3),
        ("UINT4", 4, 2),
        ("INT8", 5, 5),
        ("FLOAT", 5, 20),
    ],
)
def test_payload_bytes_are_those_stored(kind, count, expected):
    stored = tensor("t", kind, np.zeros(count))
    assert payload_bytes(stored) == expected == len(stored.raw_data)
