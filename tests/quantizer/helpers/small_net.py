"""A small network, its plans, and NumPy's simulation of a plan: an oracle that shares nothing with emit.

Imported by the tests of emit and of refine/ (conftest.py puts this folder on the path).
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Config, DType, Layout, QuantConfig
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import open_session
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.plan import LayerPlan, Plan, QuantizedWeight
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme
from resnet8_quant.quantizer.quantize import quantize

OFF, ALL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
RNG = np.random.default_rng(7)
ARRAYS = {
    "w1": RNG.normal(size=(4, 2, 3, 3)),
    "b1": RNG.normal(size=4),
    "w2": RNG.normal(size=(4, 4, 3, 3)),
    "w3": RNG.normal(size=(4, 3)),
    "b3": RNG.normal(size=3),
}
WEIGHTED = {"w1": ("c1", "image", "b1", 0), "w2": ("c2", "r1", None, 0), "w3": ("scores", "flat", "b3", 1)}


def small_net(opset=21):
    """Conv (stride, pads) - Relu - Conv without bias, plus the Relu's output - AveragePool - Flatten - Gemm."""
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("AveragePool", ["sum"], ["pool"], kernel_shape=[4, 4]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in ARRAYS.items()],
    )
    serialized = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    input_spec = InputSpec("image", Layout.NCHW, (8, 8, 2), None, 3)
    return FloatModel("small", serialized.SerializeToString(), input_spec, sha256_bytes(b"small"), "")


IMAGES = RNG.integers(0, 256, (16, 8, 8, 2), dtype=np.uint8)
FEED = IMAGES.astype(np.float32).transpose(0, 3, 1, 2)


def quantized(model, images, activation=DType.uint8, weight=DType.int8, **options):
    """What quantize_static makes: the model and its calibration."""
    quant = QuantConfig(activation_type=activation, weight_type=weight, **options)
    found = quantize(model, CalibrationImages.of(images), Config(quant))
    return onnx.load_from_string(found.serialized), found.calibration


def scheme_of(kind, bits):
    low = 0 if kind.name.startswith("u") else -(2 ** (bits - 1))
    return QuantScheme(kind, low, low + 2**bits - 1, False)


def container_of(bits, symmetric):
    """The narrowest type; symmetric weights are signed."""
    width = next(width for width in (2, 4, 8) if width >= bits)
    return DType[f"{'int' if symmetric else 'uint'}{width}"]


def nearest(name, array, bits, axis, symmetric):
    """A weight rounded to nearest, with the scale that its extremes ask for."""
    container = container_of(bits, symmetric)
    array = np.asarray(array, np.float32)
    rest = tuple(i for i in range(array.ndim) if i != axis)
    low, high = np.minimum(array.min(rest), 0), np.maximum(array.max(rest), 0)
    if symmetric:
        scale = np.maximum(-low, high) / (2 ** (bits - 1) - 1)
        zero = np.zeros_like(scale)
        limits = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
    else:
        scale = (high - low) / (2**bits - 1)
        zero = np.rint(-low / scale)
        limits = 0, 2**bits - 1
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    values = np.clip(np.rint(array / scale.reshape(shape)) + zero.reshape(shape), *limits)
    dtype = np.int8 if symmetric else np.uint8
    scale, zero = np.asarray(scale, np.float32), np.asarray(zero).astype(dtype)
    return QuantizedWeight(name, values.astype(dtype), scale, zero, axis, bits, container)


def small_plan(
    calibration, kind, bits=8, *, weight_bits=8, per_channel=True, symmetric=True, narrow=None, tensor_bits=8
):
    """``bits``: of r1 and what Gemm reads; ``narrow``: of what the second Conv reads of r1."""
    wide = {name: tensor_bits for name in calibration.ranges} | {"flat": bits, "pool": bits, "r1": bits}
    tensors = {
        name: QuantParams.of_range(*calibration.ranges[name], scheme_of(kind, wide[name]))
        for name in calibration.ranges
    }
    layers = []
    for weight, (output, source, bias, axis) in WEIGHTED.items():
        params = tensors[source]
        if source == "r1" and narrow is not None:
            params = QuantParams.of_range(*calibration.ranges["r1"], scheme_of(kind, narrow))
        integers = nearest(weight, ARRAYS[weight], weight_bits, axis if per_channel else None, symmetric)
        values = np.array([0.5, -0.25, 0.125, 3.0]) if bias is None else ARRAYS[bias]
        layers.append(LayerPlan(output, source, params, integers, values))
    return Plan(tuple(layers), tensors, kind)


def run(model, feed, level=OFF, outputs=None):
    """OFF: float operators between Q and DQ; ALL: ONNX Runtime's kernels, without saturation on any CPU."""
    serialized = model if isinstance(model, bytes) else model.SerializeToString()
    session = open_session(serialized, 1) if level == ALL else new_session(serialized, level="none")
    return session.run(outputs, feed)


def rounded(values, params):
    """``values`` quantized with ``params`` and back, in float64; and their codes."""
    codes = np.rint(values.astype(np.float32) / np.float32(params.scale)) + params.zero_point
    codes = np.clip(codes, params.qmin, params.qmax)
    return (codes - params.zero_point) * np.float64(params.scale), codes


def simulate(plan, image):
    """The small network from the plan alone; {tensor: its integers} and the scores."""
    layers = {layer.weight.name: layer for layer in plan.layers}
    found = {}

    def stored(name, values):
        values, found[name] = rounded(values, plan.tensors[name])
        return values

    def product(weight, values):
        layer = layers[weight]
        values, _ = rounded(values, layer.input_params)
        scale = np.float32(layer.input_params.scale) * layer.weight.scale
        bias = np.rint(layer.bias / scale.astype(np.float64)) * scale
        return values, layer.weight.dequantized().astype(np.float64), bias

    def conv(values, weight, bias, stride):
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwij,ocij->nohw", windows, weight) + bias.reshape(1, -1, 1, 1)

    relu = stored("r1", conv(*product("w1", stored("image", image)), 2))
    second = stored("c2", conv(*product("w2", relu), 1))
    pooled = stored("pool", stored("sum", second + relu).mean((2, 3)))
    values, weight, bias = product("w3", stored("flat", pooled))
    return stored("scores", values @ weight + bias), found


def with_integers(model):
    """The model with the integers of each activation as outputs too: {float tensor: the name of its integers}."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
    names = {}
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and "_Output" in node.input[0] and "Cast" not in node.input[0]:
            names[node.name.removesuffix("_DequantizeLinear")] = node.input[0]
            copy.graph.output.append(helper.make_tensor_value_info(node.input[0], kinds[node.input[2]], None))
    return copy, names


def initializers(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


def assert_simulated(model, plan):
    """Every activation's integers are NumPy's, but for ties: sums in float32 and float64 differ in their last bits.

    A value that is a step off changes its successors, so at most 1 % may be off, and by one step only.
    """
    traced, names = with_integers(model)
    found = dict(zip(names, run(traced, {"image": FEED}, outputs=list(names.values())), strict=True))
    _, expected = simulate(plan, FEED)
    for name, integers in expected.items():
        steps = np.abs(found[name].astype(np.int64).reshape(integers.shape) - integers)
        assert steps.max() <= 1, name
        assert (steps > 0).mean() <= 0.01, name
    return found


def assert_optimized_agrees(model, plan):
    """The scores are within a step of the unoptimized graph's; all products run as integer kernels.

    Not so for int8 activations, of which ONNX Runtime makes few on x86.
    """
    if plan.activation_type is DType.uint8:
        report = kernel_report(model.SerializeToString(), 1)
        assert (report.kernels, report.total) == ("integer", 3)
    fast, exact = run(model, {"image": FEED}, ALL)[0], run(model, {"image": FEED})[0]
    assert np.abs(fast - exact).max() <= 1.01 * plan.tensors["scores"].scale
