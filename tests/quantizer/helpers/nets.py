"""Small networks, their plans, and a simulation of any plan, node by node, that shares nothing with refine or emit."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from float_models import float_model
from onnx import helper, numpy_helper

from resnet8_quant.config import Config, DType, Layout, QuantConfig
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import open_session
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

OFF, ALL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
OPSETS = [helper.make_opsetid("", 21)]
PICTURES = np.random.default_rng(17).integers(0, 256, (30, 6, 6, 2), dtype=np.uint8)


def net(nodes, batch=None, outputs=None, opset=21, input_spec=None, **arrays):
    """A model from ``image`` [batch, 2, 6, 6]; ``arrays`` are shapes of random weights, or the weights."""
    rng = np.random.default_rng(len(nodes))
    weights = {
        name: rng.normal(size=a) / np.sqrt(np.prod(a[1:])) if isinstance(a, tuple) else a for name, a in arrays.items()
    }
    spec = InputSpec("image", Layout.NCHW, (6, 6, 2), batch, 3, **(input_spec or {}))
    return float_model(nodes, weights, spec, outputs or {"scores": (3,)}, opset)


def conv(read, weight, output, *bias, **attributes):
    """A Conv that keeps height and width, unless ``attributes`` say otherwise."""
    padding = {} if "pads" in attributes else {"auto_pad": "SAME_UPPER"}
    return helper.make_node("Conv", [read, weight, *bias], [output], **padding, **attributes)


def pictures(count=30):
    """Calibration images for `net`."""
    return CalibrationImages.of(PICTURES[:count])


def head(read, width, gemm=True):
    """What turns an image of ``width`` values into three scores."""
    last = helper.make_node("Gemm", ["flat", "w_head", "b_head"], ["scores"])
    return [
        helper.make_node("Flatten", [read], ["flat"]),
        last if gemm else helper.make_node("MatMul", ["flat", "w_head"], ["scores"]),
    ], {"w_head": (width, 3)} | ({"b_head": (3,)} if gemm else {})


def chain(*convolutions, gemm=True, batch=None):
    """Conv - Relu for each of ``convolutions``, (weight's shape, with a bias, group), and `head`."""
    nodes, arrays, read, channels = [], {}, "image", 2
    for number, (shape, biased, group) in enumerate(convolutions, 1):
        bias = [f"b{number}"] if biased else []
        arrays |= {f"w{number}": shape} | {name: (shape[0],) for name in bias}
        nodes.append(conv(read, f"w{number}", f"c{number}", *bias, group=group))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        read, channels = f"r{number}", shape[0]
    last, more = head(read, channels * 36, gemm)
    return net([*nodes, *last], batch, **arrays, **more)


NETS = {
    "two convolutions": lambda: chain(((4, 2, 3, 3), True, 1), ((5, 4, 3, 3), True, 1)),
    "no bias": lambda: chain(((4, 2, 3, 3), False, 1), ((5, 4, 1, 1), False, 1)),
    "groups": lambda: chain(((4, 1, 3, 3), True, 2), ((8, 2, 3, 3), True, 2)),
    "depthwise": lambda: chain(((4, 1, 3, 3), True, 2), ((4, 1, 3, 3), False, 4)),
    "matmul": lambda: chain(((4, 2, 3, 3), True, 1), gemm=False),
    "fixed batch": lambda: chain(((4, 2, 3, 3), True, 1), ((5, 4, 3, 3), True, 1), batch=4),
    "gemm alone": lambda: net(head("image", 72)[0], **head("image", 72)[1]),
}


def branching(opset=21):
    """image > c1 (stride 2) > r1 > c2; c2 + r1 > sum > pool > flat > scores: r1 is read by a layer and by an Add."""
    nodes = [
        conv("image", "w1", "c1", "b1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        conv("r1", "w2", "c2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("AveragePool", ["sum"], ["pool"], kernel_shape=[3, 3]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
    ]
    return net(nodes, opset=opset, w1=(4, 2, 3, 3), b1=(4,), w2=(4, 4, 3, 3), w3=(4, 3), b3=(3,))


def quantized(model, images, activation=DType.uint8, weight=DType.int8, **options):
    """What quantize_static makes: the model and its calibration."""
    done = quantize(model, images, Config(QuantConfig(activation_type=activation, weight_type=weight, **options)))
    return onnx.load_from_string(done.serialized), done.calibration


def arrays_of(proto):
    """{initializer: its values}."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def run(model, feed, level=OFF, outputs=None):
    """OFF: float operators between Q and DQ; ALL: ONNX Runtime's kernels, without saturation on any CPU."""
    serialized = model if isinstance(model, bytes) else model.SerializeToString()
    session = open_session(serialized, 1) if level == ALL else new_session(serialized, level="none")
    return session.run(outputs, feed)


def with_outputs(model, names):
    """A copy of the model with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def integers_of(model, feed):
    """{float tensor: its integers} of all activations of a Q/DQ model; ``feed`` in the batches of the model."""
    names = {
        node.name.removesuffix("_DequantizeLinear"): node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and "_Output" in node.input[0] and "Cast" not in node.input[0]
    }
    value = model.graph.input[0]
    batch = value.type.tensor_type.shape.dim[0].dim_value or len(feed)
    traced, outputs = with_outputs(model, names.values()), list(names.values())
    parts = [run(traced, {value.name: feed[i : i + batch]}, outputs=outputs) for i in range(0, len(feed), batch)]
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}


def quantized_names(emitted):
    """Float tensors that the graph quantizes."""
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input")
        for node in emitted.graph.node
        if node.op_type == "QuantizeLinear"
    }


def rounded(values, params):
    """``values`` quantized with ``params`` and back, in float64; and their codes."""
    codes = np.rint(values.astype(np.float32) / np.float32(params.scale)) + params.zero_point
    codes = np.clip(codes, params.qmin, params.qmax)
    return (codes - params.zero_point) * np.float64(params.scale), codes


def run_nodes(nodes, feeds, opsets=OPSETS):
    """The outputs of the last of ``nodes``, without optimization."""
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "some", described, outputs)
    return run(helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds)


def stored(params):
    """Symmetric int8 leaves -128 out of the range that its scale is made for, not out of the integers."""
    return replace(params, qmin=-128) if params.qmin == -127 else params


def simulated(model, plan, feed, names):
    """{tensor in ``names``, or layer's private input "x_for_y": its integers} of a float model under ``plan``."""
    graph, opsets = model.proto().graph, model.proto().opset_import
    layers = {layer.output: layer for layer in plan.layers}
    values, integers = arrays_of(model.proto()), {}

    def store(name, array):
        values[name] = array
        if name in names:
            exact, integers[name] = rounded(array, stored(plan.tensors[name]))
            values[name] = exact.astype(np.float32)

    store(graph.input[0].name, feed)
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        feeds = {name: values[name] for name in node.input if name}
        if node.output[0] in layers:
            layer = layers[node.output[0]]
            exact, codes = rounded(feeds[layer.input], stored(layer.input_params))
            feeds[layer.input] = exact.astype(np.float32)
            if layer.input_params != plan.tensors[layer.input]:
                integers[f"{layer.input}_for_{layer.output}"] = codes
            feeds[layer.weight.name] = layer.weight.dequantized()
            if layer.bias is not None:
                scale = np.float32(layer.input_params.scale) * layer.weight.scale.astype(np.float64)
                copy.input[:] = [*node.input[:2], "its bias"]
                bias = np.rint(layer.bias / scale) * scale
                feeds["its bias"] = np.broadcast_to(bias, layer.bias.shape).astype(np.float32)
            feeds = {name: feeds[name] for name in copy.input if name}
        for name, array in zip(node.output, run_nodes([copy], feeds, opsets), strict=True):
            store(name, array)
    return integers


def assert_simulated(model, plan, emitted, feed):
    """Every activation's integers are the simulation's, but for ties: sums in float32 and float64 differ there.

    A value that is a step off changes its successors, so at most 1 % may be off, and by one step only.
    """
    integers, expected = integers_of(emitted, feed), simulated(model, plan, feed, quantized_names(emitted))
    assert "scores" in expected or len(expected) >= 17
    for name, codes in expected.items():
        steps = np.abs(integers[name].astype(np.int64).reshape(codes.shape) - codes)
        assert steps.max() <= 1, (name, steps.max())
        assert (steps > 0).sum() <= max(2, 0.01 * steps.size), (name, (steps > 0).mean())
    return integers
