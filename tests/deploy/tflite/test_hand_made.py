"""Q/DQ graphs node by node, as other tools write them: computed as ONNX Runtime computes them, or refused."""

import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.deploy.tflite import c_code, ends, reference
from resnet8_quant.deploy.tflite.convert import convert
from resnet8_quant.errors import ExperimentError

STEP = np.float32(1 / 127)  # of the input
WEIGHT_STEP = np.float32(0.01)


class Builder:
    """A graph of one image "x", NCHW 3 x 8 x 8, that grows by methods which return names."""

    def __init__(self, opset=13):
        self.nodes, self.initializers, self.opset = [], [], opset
        self.random = np.random.default_rng(1)

    def constant(self, values):
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op_type, *inputs, **attributes):
        name = f"{op_type}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def quantized(self, name, scale, read_with=None):
        scales = [self.constant(np.float32(value)) for value in (scale, read_with or scale)]
        zero = self.constant(np.int8(0))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", name, scales[0], zero), scales[1], zero)

    def integers(self, shape, scale, dtype=np.int8, most=127):
        codes = self.random.integers(-most, most + 1, shape).astype(dtype)
        zero = self.constant(np.zeros(np.shape(scale), dtype))
        return self.node("DequantizeLinear", self.constant(codes), self.constant(np.float32(scale)), zero)

    def conv(self, source, channels=8, bias_scale=STEP * WEIGHT_STEP, **attributes):
        weight = self.integers((channels, 3, 3, 3), WEIGHT_STEP)
        bias = self.integers(channels, bias_scale, np.int32, 2000)
        return self.node("Conv", source, weight, bias, **{"pads": [1] * 4} | attributes)

    def gemm(self, source, inputs, bias=(5,)):
        bias = self.integers(bias, np.float32(0.08) * WEIGHT_STEP, np.int32, 999)
        return self.quantized(self.node("Gemm", source, self.integers((5, inputs), WEIGHT_STEP), bias, transB=1), 0.5)

    def model(self, output):
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))]
        ends.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def per_tensor(b):
    return b.quantized(b.conv(b.quantized("x", STEP)), 0.08)


def flattened(b):
    return b.gemm(b.quantized(b.node("Flatten", per_tensor(b)), 0.08), 512)


def transposed_then_flattened(b):
    image = b.quantized(b.node("Transpose", per_tensor(b), perm=[0, 2, 3, 1]), 0.08)
    return b.gemm(b.quantized(b.node("Reshape", image, b.constant(np.array([1, -1]))), 0.08), 512)


def transposed_without_a_pair(b):
    image = b.node("Transpose", per_tensor(b), perm=[0, 2, 3, 1])
    return b.gemm(b.quantized(b.node("Flatten", image), 0.08), 512)


def transposed_twice(b):
    image = b.node("Transpose", per_tensor(b), perm=[0, 2, 3, 1])
    image = b.quantized(b.node("Transpose", image, perm=[0, 3, 1, 2]), 0.08)
    return b.gemm(b.quantized(b.node("Flatten", image), 0.08), 512)


def bias_on_its_own_scale(b):
    return b.quantized(b.conv(b.quantized("x", STEP), bias_scale=np.float32(0.002)), 0.08)


def bias_for_all_outputs(b):
    return b.gemm(b.quantized(b.node("Flatten", per_tensor(b)), 0.08), 512, bias=(1, 1))


def clip_of_an_old_opset(b):
    b.opset = 10
    zeros = b.conv(b.quantized("x", STEP))
    return b.quantized(b.node("Clip", zeros, min=0.0, max=6.0), 0.08)


def quantized_twice_alike(b):
    sums = b.node("Add", *(b.quantized(b.conv(b.quantized("x", STEP)), 0.08) for _ in range(2)))
    return b.quantized(sums, 0.16)


RIGHT = [
    per_tensor,
    flattened,
    transposed_then_flattened,
    transposed_without_a_pair,
    transposed_twice,
    bias_on_its_own_scale,
    bias_for_all_outputs,
    clip_of_an_old_opset,
    quantized_twice_alike,
]


@pytest.mark.parametrize("grow", RIGHT, ids=lambda grow: grow.__name__)
def test_it_computes_what_onnx_says(grow, tmp_path):
    builder = Builder()
    output = grow(builder)
    model = builder.model(output)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    images = np.random.default_rng(2).uniform(-1, 1, (8, 3, 8, 8)).astype(np.float32)
    expected = np.concatenate([session.run(None, {"x": image[None]})[0] for image in images])

    lite = convert(model)
    inputs = ends.feed(lite, images.transpose(0, 2, 3, 1))
    codes = reference.run(lite, inputs)
    tensor = lite.tensors[lite.output]
    floats = (codes.astype(np.float64) - tensor.zero_point) * tensor.scale[0]
    floats = floats.transpose(0, 3, 1, 2) if floats.ndim == 4 else floats
    assert np.abs(floats - expected).max() < 1.5 * tensor.scale[0]
    assert len(np.unique(codes)) > 8

    if shutil.which("cc"):
        for name, text in c_code.generate(lite).items():
            (tmp_path / name).write_text(text)
        flags = ["-std=c99", "-fsanitize=undefined,address", "-fno-sanitize-recover"]
        subprocess.run(["cc", *flags, "-o", "run", "main.c", "model.c"], cwd=tmp_path, check=True)
        done = subprocess.run([tmp_path / "run"], input=inputs.tobytes(), capture_output=True, check=True)
        np.testing.assert_array_equal(np.frombuffer(done.stdout, np.int8), codes.reshape(-1))


def another_scale_to_read(b):
    return b.quantized(b.conv(b.quantized("x", STEP, read_with=2 * STEP)), 0.08)


def two_scales_of_the_input(b):
    parts = (b.quantized(b.conv(b.quantized("x", scale)), 0.08) for scale in (STEP, STEP / 2))
    return b.quantized(b.node("Add", *parts), 0.16)


def a_type_without_zero_point(b):
    b.opset = 21
    scale = b.constant(STEP)
    codes = b.node("QuantizeLinear", "x", scale, output_dtype=TensorProto.INT8)
    return b.quantized(b.conv(b.node("DequantizeLinear", codes, scale)), 0.08)


def two_orders(b):
    image = b.quantized("x", STEP)
    mean = b.quantized(b.node("ReduceMean", image, axes=[2, 3], keepdims=0), STEP)
    wide = b.quantized(b.node("Gemm", mean, b.integers((3, 192), WEIGHT_STEP)), 0.02)
    return b.gemm(b.quantized(b.node("Add", b.quantized(b.node("Flatten", image), STEP), wide), 0.08), 192)


def dilated_pool(b):
    return b.quantized(b.node("MaxPool", b.quantized("x", STEP), kernel_shape=[2, 2], dilations=[2, 2]), STEP)


def padded_average(b):
    pool = b.node("AveragePool", b.quantized("x", STEP), kernel_shape=[8, 8], auto_pad="SAME_UPPER")
    return b.quantized(pool, STEP)


def product_of_images(b):
    return b.quantized(b.node("MatMul", b.quantized("x", STEP), b.integers((8, 5), WEIGHT_STEP)), 0.03)


def pool_of_a_transposed_image(b):
    image = b.node("Transpose", per_tensor(b), perm=[0, 2, 3, 1])
    return b.quantized(b.node("MaxPool", b.quantized(image, 0.08), kernel_shape=[2, 2]), 0.08)


def scale_of_nothing(b):
    return b.quantized(b.conv(b.quantized("x", STEP)), 0.0)


REFUSED = {
    another_scale_to_read: "is dequantized with other parameters than it is quantized with",
    two_scales_of_the_input: "the input x is quantized twice, on different scales",
    a_type_without_zero_point: "without zero point, whose type is output_dtype",
    two_orders: "joins images that were flattened",
    dilated_pool: "is a dilated pool",
    padded_average: "is a pool with ceil_mode or padding",
    product_of_images: "is a product of other than two dimensions",
    pool_of_a_transposed_image: "reads an image that is transposed to NHWC",
    scale_of_nothing: "is no single positive constant",
}


@pytest.mark.parametrize("grow", REFUSED, ids=lambda grow: grow.__name__)
def test_it_is_refused(grow):
    builder = Builder()
    output = grow(builder)
    with pytest.raises(ExperimentError, match=REFUSED[grow]):
        convert(builder.model(output))
