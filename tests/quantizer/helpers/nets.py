"""Small networks of all sorts, and a simulation of any plan, node by node, that shares nothing with refine or emit."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from small_net import rounded

from resnet8_quant.config import Layout
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages

RNG = np.random.default_rng(17)
PICTURES = RNG.integers(0, 256, (30, 6, 6, 2), dtype=np.uint8)


def net(nodes, batch=None, outputs=(("scores", (3,)),), opset=21, **arrays):
    """A model from ``image`` [batch, 2, 6, 6]; ``arrays`` are shapes of random weights, or the weights."""
    first = batch or "batch"
    rng = np.random.default_rng(len(nodes))
    weights = {
        name: rng.normal(size=a) / np.sqrt(np.prod(a[1:])) if isinstance(a, tuple) else a for name, a in arrays.items()
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [first, 2, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *shape]) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    input_spec = InputSpec("image", Layout.NCHW, (6, 6, 2), batch, 3)
    return FloatModel("net", serialized, input_spec, sha256_bytes(serialized), "")


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


def chain(first, second=None, gemm=True, batch=None):
    """Conv ``first`` - Relu - Conv ``second`` - Relu - `head`; each (weight's shape, with a bias, attributes)."""
    nodes, arrays, read, channels = [], {}, "image", 2
    for number, described in enumerate(filter(None, (first, second)), 1):
        shape, biased, attributes = described
        names = [f"w{number}", *([f"b{number}"] if biased else [])]
        arrays |= {f"w{number}": shape} | ({f"b{number}": (shape[0],)} if biased else {})
        nodes += [
            helper.make_node("Conv", [read, *names], [f"c{number}"], auto_pad="SAME_UPPER", **attributes),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        read, channels = f"r{number}", shape[0]
    last, more = head(read, channels * 36, gemm)
    return net([*nodes, *last], batch, **arrays, **more)


NETS = {
    "two convolutions": lambda: chain(((4, 2, 3, 3), True, {}), ((5, 4, 3, 3), True, {})),
    "no bias": lambda: chain(((4, 2, 3, 3), False, {}), ((5, 4, 1, 1), False, {})),
    "groups": lambda: chain(((4, 1, 3, 3), True, {"group": 2}), ((8, 2, 3, 3), True, {"group": 2})),
    "depthwise": lambda: chain(((4, 1, 3, 3), True, {"group": 2}), ((4, 1, 3, 3), False, {"group": 4})),
    "matmul": lambda: chain(((4, 2, 3, 3), True, {}), gemm=False),
    "fixed batch": lambda: chain(((4, 2, 3, 3), True, {}), ((5, 4, 3, 3), True, {}), batch=4),
    "gemm alone": lambda: net(head("image", 72)[0], **head("image", 72)[1]),
}


def quantized_names(emitted):
    """Float tensors that the graph quantizes."""
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input")
        for node in emitted.graph.node
        if node.op_type == "QuantizeLinear"
    }


def on_all_integers(values, params):
    """`rounded`; symmetric int8 leaves -128 out of the range that its scale is made for, not out of the integers."""
    return rounded(values, replace(params, qmin=-128) if params.qmin == -127 else params)


def simulated(model, plan, feed, names):
    """{tensor in ``names``, or layer's private input "x_for_y": its integers} of a float model under ``plan``."""
    graph, opsets = model.proto().graph, model.proto().opset_import
    layers = {layer.output: layer for layer in plan.layers}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}

    def store(name, array):
        values[name] = array
        if name in names:
            exact, found[name] = on_all_integers(array, plan.tensors[name])
            values[name] = exact.astype(np.float32)

    store(graph.input[0].name, feed)
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        feeds = {name: values[name] for name in node.input if name}
        if node.output[0] in layers:
            layer = layers[node.output[0]]
            exact, integers = on_all_integers(feeds[layer.input], layer.input_params)
            feeds[layer.input] = exact.astype(np.float32)
            if layer.input_params != plan.tensors[layer.input]:
                found[f"{layer.input}_for_{layer.output}"] = integers
            feeds[layer.weight.name] = layer.weight.dequantized()
            if layer.bias is not None:
                scale = np.float32(layer.input_params.scale) * layer.weight.scale.astype(np.float64)
                copy.input[:] = [*node.input[:2], "its bias"]
                bias = np.rint(layer.bias / scale) * scale
                feeds["its bias"] = np.broadcast_to(bias, layer.bias.shape).astype(np.float32)
            feeds = {name: feeds[name] for name in copy.input if name}
        described = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        one = helper.make_model(
            helper.make_graph([copy], "one", described, outputs), opset_imports=opsets, ir_version=10
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for name, array in zip(node.output, session.run(None, feeds), strict=True):
            store(name, array)
    return found


def assert_same_integers(found, expected, share=0.01):
    """All names; at most ``share`` of the values a step off: float32 and float64 part at ties."""
    for name, integers in expected.items():
        steps = np.abs(found[name].astype(np.int64).reshape(integers.shape) - integers)
        assert steps.max() <= 1, (name, steps.max())
        assert (steps > 0).sum() <= max(2, share * steps.size), (name, (steps > 0).mean())
