"""Small classifiers of many shapes, and the predictions of quantized and of deployed models as integers.

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
from float_models import float_model
from onnx import TensorProto, helper

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
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import kernels_saturate, open_session
from resnet8_quant.inputs.input_spec import InputSpec
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
TYPES = {"int8": (DType.int8, DType.int8), "uint8": (DType.uint8, DType.uint8), "u8s8": (DType.uint8, DType.int8)}
LAYERS = ("Conv", "Gemm", "MatMul")
FLOAT_OPERATORS = {"Conv", "FusedConv", "Add", "AveragePool", "GlobalAveragePool", "Gemm", "FusedGemm", "MatMul"}


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


def predictions(model, input_spec, images, **options):
    """The first output for uint8 images."""
    opened = session(model, **options)
    size = input_spec.batch or len(images)
    batches = [input_spec.prepare(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([opened.run(None, {input_spec.name: batch})[0] for batch in batches])


def cut_at_logits(serialized):
    """The Q/DQ model up to the integers of its last layer, as floats, scale * (q - zero point); scale, zero point."""
    graph = Graph(onnx.load_from_string(serialized))
    last = [node for node in graph.nodes if node.op_type in LAYERS][-1]
    quantizer = next(node for node in graph.consumers(last.output[0]) if node.op_type == "QuantizeLinear")
    pair = next(node for node in graph.consumers(quantizer.output[0]) if node.op_type == "DequantizeLinear")
    graph.output.name = pair.output[0]
    scale, zero_point = (graph.array(name).item() for name in quantizer.input[1:3])
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
    weights, nodes, read, ins = {}, [], "image", channels
    spec = InputSpec("image", layout, (*size, channels), batch, classes, **input_spec)
    if layout is Layout.NHWC:
        nodes.append(layer("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2]))
        read = "nchw"
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

    # The last layer has as many inputs as Flatten makes outputs.
    start = float_model(nodes, weights, replace(spec, batch=None, mean=None, std=None), {"flat": (None,)}, opset)
    shape = (1, *size, channels) if layout is Layout.NHWC else (1, channels, *size)
    flat = session(start.serialized).run(None, {"image": np.zeros(shape, np.float32)})[0].shape[1]
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
    for number, operator in enumerate(ends, 1):
        output = "probabilities" if number == len(ends) else "inner"
        attributes = {"axis": -1} if "Softmax" in operator else {}
        nodes.append(layer(operator, [nodes[-1].output[0]], output, **attributes))
    for node in nodes if not names else ():
        node.name = ""
    return float_model(nodes, weights, spec, {nodes[-1].output[0]: (classes,)}, opset)


def pictures(model, count=24):
    """Images for a model of `build`."""
    return np.random.default_rng(3).integers(0, 256, (count, *model.input_spec.shape), dtype=np.uint8)


def quantized(model, types, per_channel=False, images=None, refine=None, **options):
    """The quantized bytes of a model; ``images``: that calibrate, by default `pictures`."""
    activation, weight = TYPES.get(types, types)
    quant = QuantConfig("test", activation, weight, per_channel, **options)
    shown = CalibrationImages.of(pictures(model) if images is None else images)
    config = Config(quant, CalibrationConfig(bins=None), **({} if refine is None else {"refine": refine}))
    return quantize(model, shown, config).serialized


plain = functools.cache(quantized)


def float_operators(ops):
    """Of the operators that run, those that compute in float32 and that a deployed model has none of."""
    return {name for name in ops if name in FLOAT_OPERATORS or name.startswith("com.microsoft.nchwc")}


def operators(serialized):
    """The operators of a stored graph, in its order, without those that arrange weights when it is loaded."""
    graph = Graph(onnx.load_from_string(serialized))
    constants = graph.constants()
    return [node.op_type for node in graph.nodes if not constants.issuperset(node.output)]


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


def assert_same_integers(serialized, input_spec, images, targets=TARGETS, expected=None):
    """The logits of the deployed models are those of the plain one, whose integers are returned with the models."""
    cut, *grid = cut_at_logits(serialized)
    expected = integers(predictions(expected or cut, input_spec, images), *grid)
    models = {target: rewritten(cut, target, input_spec)[0] for target in targets}
    for target, deployed in models.items():
        np.testing.assert_array_equal(
            integers(predictions(deployed, input_spec, images), *grid), expected, err_msg=target
        )
    return expected, models


PAD = (("pads", (1, 1, 1, 1)),)
TWO = ("strides", (2, 2))


def _two(first, second, first_more=(), second_more=(), **options):
    """Two convolutions, 3x3 with PAD, of so many output channels; ``..._more``: further attributes."""
    return {"convolutions": ((first, 3, (*PAD, *first_more)), (second, 3, (*PAD, *second_more)))} | options


def _padded(first, second, **options):
    """Two convolutions, each (output channels, kernel, pads, further attributes)."""
    layers = ((outs, kernel, (("pads", pads), *more)) for outs, kernel, pads, *more in (first, second))
    return {"convolutions": tuple(layers)} | options


DILATED = (2, 2, 2, 2), ("dilations", (2, 2))
NETS = {
    "stride 2": _two(16, 8, [TWO]),
    "residual": _two(16, 16, residual=True),
    "1x1": {"convolutions": ((16, 1, ()), (16, 1, (TWO,)), (8, 3, PAD))},
    "groups": _two(8, 16, [], [("group", 4)]),
    "depthwise": _two(8, 8, [], [("group", 8)], pool=("MaxPool", 2)),
    "asymmetric pads": _padded((16, 3, (0, 1, 2, 0)), (64, 3, (1, 0, 0, 2))),
    "pads and stride": _padded((16, 3, (0, 0, 1, 1), TWO), (16, 3, (1, 1, 1, 1), TWO)),
    "odd width": _two(16, 16, size=(6, 7)),
    "narrow": _two(4, 4, size=(5, 6)),
    "wide": _two(64, 64, size=(4, 4)),
    "kernel 5": _padded((16, 5, (2, 2, 2, 2)), (16, (1, 5), (0, 2, 0, 2))),
    "unequal strides": _two(16, 16, [("strides", (2, 1))], [("strides", (1, 2))]),
    "dilated": _padded((16, 3, *DILATED), (16, 3, *DILATED), size=(8, 6)),
    "same": {"convolutions": ((16, 3, (("auto_pad", "SAME_UPPER"),)), (16, 3, PAD))},
    "no bias": _two(16, 16, [("biasless", True)], [("biasless", True)]),
    "1 channel": _two(16, 16, channels=1),
    "4 channels": _two(16, 16, channels=4),
    "5 channels": _two(16, 16, channels=5),
    "NCHW": _two(16, 16, layout=Layout.NCHW),
    "parts averaged": _two(16, 6, pool=("AveragePool", 4)),
    "rows move": _two(16, 6, pool=("MaxPool", 4)),
    "rows move, transposed": _two(16, 6, pool=("MaxPool", 2), last="transposed"),
    "no pool": _two(16, 4, pool=None, size=(4, 6)),
    "transposed": _two(16, 8, last="transposed"),
    "no softmax": _two(16, 8, ends=()),
    "MatMul": _two(16, 8, last="MatMul"),
    "MatMul, no pool": _two(16, 4, last="MatMul", pool=None),
    "leaky": _two(16, 8, activation="LeakyRelu"),
    "sigmoid": _two(16, 8, activation="Sigmoid", ends=()),
    "fixed batch": _two(16, 16, batch=4),
}
