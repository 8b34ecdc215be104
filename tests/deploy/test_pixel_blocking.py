"""One convolution in NumPy, in 64-bit integers, against the deployed one; and which convolutions are widened."""

import numpy as np
import onnx
import pytest
from deployed import PAD, TARGETS, TWO, build, operators, pictures, plain, predictions, rewritten, running

from resnet8_quant.graphs.graph import Graph, attributes

CONVOLUTIONS = {
    "plain": ((16, 3, PAD), {}),
    "stride 2": ((16, 3, (*PAD, TWO)), {}),
    "one pixel": ((16, 1, ()), {}),
    "asymmetric": ((8, 3, (("pads", (0, 1, 2, 0)),)), {}),
    "no pads": ((16, 3, ()), {"size": (7, 10)}),
    "kernel 2x5": ((16, (2, 5), (("pads", (0, 2, 1, 2)), ("strides", (1, 2)))), {}),
    "wide": ((64, 3, PAD), {"channels": 4}),
    "products": ((16, 3, PAD), {"channels": 16}),
    "groups": ((8, 3, (*PAD, ("group", 2))), {"channels": 4}),
    "no bias": ((16, 3, (*PAD, ("biasless", True))), {"channels": 5}),
}


def only_convolution(convolution, options, types, per_channel):
    """A quantized model that ends behind its only convolution, and the nodes around that: Q, Conv, Q."""
    model = build((convolution,), **options)
    proto = onnx.load_from_string(plain(model, types, per_channel))
    graph = Graph(proto)
    (conv,) = [node for node in graph.nodes if node.op_type == "Conv"]
    (activation,) = graph.consumers(conv.output[0])
    (after,) = graph.consumers(activation.output[0]) if activation.op_type == "Relu" else [activation]
    (pair,) = graph.consumers(after.output[0])
    before = graph.producer(graph.producer(conv.input[0]).input[0])
    shapes = onnx.shape_inference.infer_shapes(proto).graph.value_info
    described = next(value for value in shapes if value.name == pair.output[0])
    graph.model.graph.output[0].CopyFrom(described)
    return model, graph, before, conv, after


def simulated(graph, before, conv, after, image):
    """The integers that the convolution makes of float32 [N, C, H, W]: sums in int64, one float32 multiplier."""

    def limits(zero_point):
        return np.iinfo(zero_point.dtype).min, np.iinfo(zero_point.dtype).max

    (x_scale, x_zero), (y_scale, y_zero) = (map(graph.array, node.input[1:3]) for node in (before, after))
    x = np.clip(np.rint(image / x_scale) + x_zero, *limits(x_zero)).astype(np.int64) - int(x_zero)
    codes, w_scale, w_zero = map(graph.array, graph.producer(conv.input[1]).input)
    w = codes.astype(np.int64) - w_zero.astype(np.int64).reshape(-1, 1, 1, 1)
    values = attributes(conv)
    top, left, bottom, right = values.get("pads", [0, 0, 0, 0])
    down, across = values.get("strides", [1, 1])
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::down, ::across]
    groups = values.get("group", 1)
    parts = zip(np.split(windows, groups, 1), np.split(w, groups), strict=True)
    sums = np.concatenate([np.einsum("nchwij,ocij->nohw", *part) for part in parts], 1)
    if len(conv.input) > 2:
        sums += graph.array(graph.producer(conv.input[2]).input[0]).astype(np.int64).reshape(1, -1, 1, 1)
    assert np.abs(sums).max() < 2**24  # exact in float32
    multiplier = np.asarray(np.float32(x_scale) * w_scale / np.float32(y_scale), np.float32)
    scaled = sums.astype(np.float32) * multiplier.reshape(1, -1, 1, 1)
    q = np.clip(np.rint(scaled) + y_zero.astype(np.float32), *limits(y_zero)).astype(np.int64)
    return q, (q - int(y_zero)).astype(np.float32) * np.float32(y_scale)


@pytest.mark.parametrize(("types", "per_channel"), [("int8", False), ("uint8", True), ("u8s8", True)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_what_numpy_computes(name, types, per_channel):
    model, graph, before, conv, after = only_convolution(*CONVOLUTIONS[name], types, per_channel)
    images = pictures(model)
    feed = model.input_spec.prepare(images).transpose(0, 3, 1, 2)
    integers, expected = simulated(graph, before, conv, after, feed)
    assert len(np.unique(integers)) > 100
    serialized = graph.finish().SerializeToString()
    for target in TARGETS:
        deployed, _ = rewritten(serialized, target, model.input_spec)
        assert "QLinearConv" in operators(deployed)
        np.testing.assert_array_equal(predictions(deployed, model.input_spec, images), expected, target)


def running_weights(serialized, target, input_spec):
    """Weights, scales and zero points of the QLinearConv nodes that ONNX Runtime runs."""
    graph = Graph(running(rewritten(serialized, target, input_spec)[0]))
    nodes = [node for node in graph.nodes if node.op_type == "QLinearConv"]
    return ([graph.array(node.input[position]) for node in nodes] for position in (3, 4, 5))


@pytest.mark.parametrize(
    ("options", "target", "shapes"),
    [
        ({}, "x86", [(64, 12, 3, 3), (8, 16, 3, 3)]),  # 4 pixels of 3 channels; 4 x 16 outputs
        ({}, "x86_amx", [(64, 12, 3, 3), (32, 16, 3, 6)]),  # 4 columns at once
        ({}, "arm", [(16, 3, 3, 3), (8, 16, 3, 3)]),
        ({"size": (6, 7)}, "x86", [(16, 3, 3, 3), (8, 16, 3, 3)]),  # 7 columns cannot be grouped
        ({"channels": 4}, "x86", [(16, 4, 3, 3), (8, 16, 3, 3)]),  # a kernel takes them as they are
        ({"channels": 1}, "x86", [(64, 4, 3, 3), (8, 16, 3, 3)]),
        ({"second": 16}, "x86_amx", [(64, 12, 3, 3), (64, 16, 3, 6)]),
        ({"second": 16, "size": (8, 6)}, "x86_amx", [(16, 3, 3, 3), (16, 16, 3, 3)]),  # 6 columns, not by 4
        ({"second": 64}, "x86_amx", [(64, 12, 3, 3), (64, 16, 3, 3)]),  # 1 column, another zero point
        ({"second": 32}, "x86_amx", [(64, 12, 3, 3), (128, 16, 3, 6)]),
    ],
)
def test_widened_where_it_pays(options, target, shapes):
    options = dict(options)
    model = build(((16, 3, PAD), (options.pop("second", 8), 3, PAD)), **options)
    weights, scales, _ = running_weights(plain(model, "u8s8", True), target, model.input_spec)
    assert [array.shape for array in weights] == shapes
    assert [scale.shape for scale in scales] == [shape[:1] for shape in shapes]  # one for each output channel


@pytest.mark.parametrize(("target", "second"), [("x86_vnni", (16, 16, 3, 3)), ("x86_amx", (64, 16, 3, 6))])
def test_weights_with_a_zero_point_of_their_own_keep_it(target, second):
    model = build(((16, 3, PAD), (16, 3, PAD), (64, 3, PAD)))
    serialized = plain(model, "uint8")
    graph = Graph(onnx.load_from_string(serialized))
    layers = [graph.producer(node.input[1]) for node in graph.nodes if node.op_type == "Conv"]
    before = [graph.array(layer.input[2]).item() for layer in layers]
    weights, _, after = running_weights(serialized, target, model.input_spec)
    assert [array.shape for array in weights] == [(64, 12, 3, 3), second, (64, 16, 3, 3)]
    assert [int(zero_point.ravel()[0]) + 128 for zero_point in after] == before
