"""Small classifiers of many shapes, and the answers of quantized and of deployed models as integers.

The reference is ONNX Runtime on the plain Q/DQ model in a session that does not saturate, with integer kernels for the
types that the model has: session.qdqisint8allowed=1 has int8 activations fused too, which ONNX Runtime does by itself
on Arm only.

Imported by the tests of deploy/ (conftest.py puts this folder on the path).
"""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DeployConfig,
    DeployInput,
    DeployOutput,
    DType,
    Layout,
    QuantConfig,
)
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import kernels_saturate, open_session
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

EXACT = {
    "x86": DeployConfig("x86", DType.uint8, avoid_saturation=True, pixel_blocking=True),
    "arm": DeployConfig("arm", DType.int8),
}
VNNI = {
    "x86_vnni": DeployConfig("x86_vnni", DType.uint8, pixel_blocking=True),
    "x86_amx": DeployConfig("x86_amx", DType.uint8, pixel_blocking=True, gemm_convolutions=True),
}
TARGETS = EXACT if kernels_saturate() else EXACT | VNNI  # what this CPU computes exactly
TYPES = {
    "int8": (DType.int8, DType.int8),
    "uint8": (DType.uint8, DType.uint8),
    "u8s8": (DType.uint8, DType.int8),
}
LAYERS = ("Conv", "Gemm", "MatMul")
FLOAT_OPERATORS = {"Conv", "FusedConv", "Add", "AveragePool", "GlobalAveragePool", "Gemm", "FusedGemm", "MatMul"}


def quant_config(types, per_channel=False, **options):
    """The `quant` part of a config."""
    activation, weight = TYPES[types]
    return QuantConfig(types, activation, weight, per_channel, **options)


def session(model, allow_int8=True, level="all"):
    """A session of a plain model; ``allow_int8``: int8 activations in integer kernels, as on Arm."""
    serialized = model if isinstance(model, bytes) else model.SerializeToString()
    if kernels_saturate() and level == "all" and not (allow_int8 and has_int8_activations(serialized)):
        return open_session(serialized, 1)
    # int8 with int8 is exact on every CPU.
    return new_session(serialized, level=level, entries={"session.qdqisint8allowed": "1"} if allow_int8 else {})


def has_int8_activations(serialized):
    """Whether a Q/DQ model has them."""
    graph = onnx.load_from_string(serialized).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return any(types.get(n.input[2]) == TensorProto.INT8 for n in graph.node if n.op_type == "QuantizeLinear")


def answers(model, input_spec, images, **options):
    """The first output for uint8 images."""
    opened = session(model, **options)
    size = input_spec.batch or len(images)
    batches = [input_spec.prepare(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([opened.run(None, {input_spec.name: batch})[0] for batch in batches])


def cut_at_logits(serialized):
    """The Q/DQ model up to the integers of its last layer, as floats: scale * (q - zero point); and that scale."""
    graph = Graph(onnx.load_from_string(serialized))
    last = [node for node in graph.nodes if node.op_type in LAYERS][-1]
    quantize = next(node for node in graph.consumers(last.output[0]) if node.op_type == "QuantizeLinear")
    pair = next(node for node in graph.consumers(quantize.output[0]) if node.op_type == "DequantizeLinear")
    graph.output.name = pair.output[0]
    scale, zero_point = (graph.array(name).item() for name in quantize.input[1:3])
    return graph.finish().SerializeToString(), scale, zero_point


def integers(floats, scale, zero_point):
    """scale * (q - zero point) -> q, exactly."""
    steps = np.rint(floats / np.float32(scale))
    assert (steps.astype(np.float32) * np.float32(scale) == floats).all()
    return steps.astype(np.int64) + zero_point


def layer(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


@functools.cache
def build(
    convolutions,
    size=(8, 8),
    channels=3,
    layout=Layout.NHWC,
    pool="GlobalAveragePool",
    last="Gemm",
    ends=("Softmax",),
    opset=21,
    names=True,
    batch=None,
    residual=False,
    activation="Relu",
    classes=5,
    **input_spec,
):
    """A classifier: Conv - Relu for each of ``convolutions``, a pool, Flatten, the last layer, ``ends``.

    Args:
        convolutions: (output channels, kernel, attributes as pairs) of each.
        pool: of the whole image; (operator, kernel): of parts; None: Flatten sees the whole image.
        last: Gemm, transposed (Gemm with transB), MatMul.
        ends: operators behind the logits.
        names: whether nodes have names.
        residual: the second convolution's output plus the first's.
    """
    rng = np.random.default_rng(5)
    height, width = size
    weights, nodes, read = {}, [], "image"
    if layout is Layout.NHWC:
        nodes.append(layer("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2]))
        read = "nchw"
    ins = channels
    for number, (outs, kernel, pairs) in enumerate(convolutions, 1):
        attributes = {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}
        group = attributes.get("group", 1)
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        weights[f"w{number}"] = rng.normal(size=(outs, ins // group, *kernel)) / np.sqrt(ins / group * kernel[0] ** 2)
        inputs = [read, f"w{number}"]
        if not attributes.pop("biasless", False):
            weights[f"b{number}"] = rng.normal(size=outs) * 20
            inputs.append(f"b{number}")
        nodes.append(layer("Conv", inputs, f"c{number}", **attributes))
        read = f"c{number}"
        if residual and number == 2:
            nodes.append(layer("Add", ["c2", "r1"], "sum"))
            read = "sum"
        nodes.append(layer(activation, [read], f"r{number}"))
        read, ins = f"r{number}", outs
    if pool is not None:
        operator, kernel = pool if isinstance(pool, tuple) else (pool, None)
        attributes = {} if kernel is None else {"kernel_shape": [kernel] * 2, "strides": [kernel] * 2}
        nodes.append(layer(operator, [read], "pool", **attributes))
        read = "pool"
    nodes.append(layer("Flatten", [read], "flat"))
    feeds = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, height, width])]
    if layout is Layout.NHWC:
        feeds = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, height, width, channels])]
    start = helper.make_graph(nodes, "start", feeds, [helper.make_empty_tensor_value_info("flat")], _tensors(weights))
    shape = tuple(dim.dim_value for dim in feeds[0].type.tensor_type.shape.dim)
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(start, opset_imports=opsets, ir_version=10)
    flat = session(proto).run(None, {"image": np.zeros(shape, np.float32)})[0].shape[1]
    weights["w"] = rng.normal(size=(flat, classes)) / np.sqrt(flat)
    weights["b"] = rng.normal(size=classes)
    if last == "MatMul":
        del weights["b"]
        nodes.append(layer("MatMul", ["flat", "w"], "logits"))
    elif last == "transposed":
        weights["w"] = weights["w"].T.copy()
        nodes.append(layer("Gemm", ["flat", "w", "b"], "logits", transB=1))
    else:
        nodes.append(layer("Gemm", ["flat", "w", "b"], "logits"))
    output = "logits"
    for operator in ends:
        nodes.append(layer(operator, [output], "probabilities", **({"axis": -1} if "Softmax" in operator else {})))
        output = "probabilities"
    if len(ends) > 1:
        nodes[-2].name = nodes[-2].output[0] = nodes[-1].input[0] = "inner"
    if not names:
        for node in nodes:
            node.name = ""
    first = batch or "batch"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [first, *shape[1:]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [first, classes])],
        _tensors(weights),
    )
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    described = InputSpec("image", layout, (height, width, channels), batch, classes, **input_spec)
    return FloatModel("net", serialized, described, sha256_bytes(serialized), "")


def _tensors(weights):
    return [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]


def pictures(model, count=24):
    """Images for a model of `build`."""
    return np.random.default_rng(3).integers(0, 256, (count, *model.input_spec.shape), dtype=np.uint8)


@functools.cache
def plain(model, types, per_channel=False, **options):
    """The quantized bytes of a model of `build`."""
    return quantize(
        model,
        CalibrationImages.of(pictures(model)),
        Config(quant_config(types, per_channel, **options), CalibrationConfig(bins=None)),
    ).serialized


def float_operators(ops):
    """Of the operators that run, those that compute in float32 and that a deployed model has none of."""
    return {name for name in ops if name in FLOAT_OPERATORS or name.startswith("com.microsoft.nchwc")}


def operators(serialized):
    """The operators of a stored graph, in its order, without those that arrange weights when it is loaded."""
    graph = onnx.load_from_string(serialized).graph
    constants, found = {"", *(tensor.name for tensor in graph.initializer)}, []
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
        else:
            found.append(node.op_type)
    return found


def running(serialized):
    """The graph that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "running.onnx")
        open_session(serialized, 1, optimized_model=path)
        return onnx.load(path)


def rewritten(serialized, target, input_spec, *, output=DeployOutput.same, input=DeployInput.float32, **options):
    """``deploy`` for one of TARGETS; skips the test for one that this CPU would compute wrong."""
    if target not in TARGETS:
        pytest.skip(f"deploy={target} needs kernels that do not saturate, which this CPU lacks (probe)")
    return deploy(serialized, replace(TARGETS[target], output=output, input=input), input_spec, **options)


PAD = (("pads", (1, 1, 1, 1)),)
TWO = ("strides", (2, 2))
DILATED = (("pads", (2, 2, 2, 2)), ("dilations", (2, 2)))
NETS = {
    "stride 2": {"convolutions": ((16, 3, (*PAD, TWO)), (8, 3, PAD))},
    "residual": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "residual": True},
    "1x1": {"convolutions": ((16, 1, ()), (16, 1, (TWO,)), (8, 3, PAD))},
    "groups": {"convolutions": ((8, 3, PAD), (16, 3, (*PAD, ("group", 4))))},
    "depthwise": {"convolutions": ((8, 3, PAD), (8, 3, (*PAD, ("group", 8)))), "pool": ("MaxPool", 2)},
    "asymmetric pads": {"convolutions": ((16, 3, (("pads", (0, 1, 2, 0)),)), (64, 3, (("pads", (1, 0, 0, 2)),)))},
    "pads and stride": {"convolutions": ((16, 3, (("pads", (0, 0, 1, 1)), TWO)), (16, 3, (*PAD, TWO)))},
    "odd width": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "size": (6, 7)},
    "narrow": {"convolutions": ((4, 3, PAD), (4, 3, PAD)), "size": (5, 6)},
    "wide": {"convolutions": ((64, 3, PAD), (64, 3, PAD)), "size": (4, 4)},
    "kernel 5": {"convolutions": ((16, 5, (("pads", (2, 2, 2, 2)),)), (16, (1, 5), (("pads", (0, 2, 0, 2)),)))},
    "unequal strides": {"convolutions": ((16, 3, (*PAD, ("strides", (2, 1)))), (16, 3, (*PAD, ("strides", (1, 2)))))},
    "dilated": {"convolutions": ((16, 3, DILATED), (16, 3, DILATED)), "size": (8, 6)},
    "same": {"convolutions": ((16, 3, (("auto_pad", "SAME_UPPER"),)), (16, 3, PAD))},
    "no bias": {"convolutions": ((16, 3, (*PAD, ("biasless", True))), (16, 3, (*PAD, ("biasless", True))))},
    "1 channel": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "channels": 1},
    "4 channels": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "channels": 4},
    "5 channels": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "channels": 5},
    "NCHW": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "layout": Layout.NCHW},
    "parts averaged": {"convolutions": ((16, 3, PAD), (6, 3, PAD)), "pool": ("AveragePool", 4)},
    "rows move": {"convolutions": ((16, 3, PAD), (6, 3, PAD)), "pool": ("MaxPool", 4)},
    "rows move, transposed": {
        "convolutions": ((16, 3, PAD), (6, 3, PAD)),
        "pool": ("MaxPool", 2),
        "last": "transposed",
    },
    "no pool": {"convolutions": ((16, 3, PAD), (4, 3, PAD)), "pool": None, "size": (4, 6)},
    "transposed": {"convolutions": ((16, 3, PAD), (8, 3, PAD)), "last": "transposed"},
    "no softmax": {"convolutions": ((16, 3, PAD), (8, 3, PAD)), "ends": ()},
    "MatMul": {"convolutions": ((16, 3, PAD), (8, 3, PAD)), "last": "MatMul"},
    "MatMul, no pool": {"convolutions": ((16, 3, PAD), (4, 3, PAD)), "last": "MatMul", "pool": None},
    "leaky": {"convolutions": ((16, 3, PAD), (8, 3, PAD)), "activation": "LeakyRelu"},
    "sigmoid": {"convolutions": ((16, 3, PAD), (8, 3, PAD)), "activation": "Sigmoid", "ends": ()},
    "fixed batch": {"convolutions": ((16, 3, PAD), (16, 3, PAD)), "batch": 4},
}
