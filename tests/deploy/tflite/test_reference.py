"""The NumPy arithmetic of each operator equals TensorFlow Lite Micro's, bit for bit, on random shapes and scales."""

import os
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.deploy.tflite import file, reference, runtimes
from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel
from resnet8_quant.inputs.sample import load_sample

runtime = pytest.importorskip(
    "tflite_micro.python.tflite_micro.runtime", reason="needs TensorFlow Lite Micro: pip install -e '.[tflite]'"
)
SEEDS = range(6)


class Net:
    """A model of one or two random inputs' worth of operators, grown tensor by tensor."""

    def __init__(self, seed, shape):
        self.random = np.random.default_rng(seed)
        self.model = TfliteModel([], [], 0, 0)
        self.last = self.activation(shape)

    def scale(self, low=0.01, high=0.3):
        return np.array([self.random.uniform(low, high)], np.float32)

    def activation(self, shape, scale=None, zero_point=None):
        zero_point = int(self.random.integers(-128, 128)) if zero_point is None else zero_point
        return self.model.add(Tensor("a", shape, "int8", self.scale() if scale is None else scale, zero_point))

    def constant(self, data, scale=None, axis=None, dtype=None):
        return self.model.add(Tensor("c", data.shape, dtype or data.dtype.name, scale, 0, axis, data))

    def weights(self, shape, axis, per_channel, bits=8):
        codes = self.random.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), shape).astype(np.int8)
        channels = shape[axis] if per_channel else 1
        scale = self.random.uniform(0.001, 0.02, channels).astype(np.float32)
        weight = self.constant(codes, scale, axis if per_channel else None, "int4" if bits == 4 else "int8")
        bias = self.random.integers(-3000, 3000, shape[axis]).astype(np.int32)
        input_scale = self.model.tensors[self.last].scale
        return weight, self.constant(bias, input_scale * scale, 0 if per_channel else None)

    def then(self, kind, inputs, output, **options):
        self.model.operators.append(Operator(kind, inputs, (output,), options))
        self.last = self.model.output = output

    def check(self, images=20):
        shape = self.model.tensors[self.model.input].shape[1:]
        return self.check_inputs(self.random.integers(-128, 128, (images, *shape)).astype(np.int8))

    def check_inputs(self, inputs):
        interpreter = runtime.Interpreter.from_bytes(file.write(self.model))
        outputs = []
        for i in range(len(inputs)):
            interpreter.set_input(inputs[i : i + 1], 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0)[0].copy())
        np.testing.assert_array_equal(reference.run(self.model, inputs), np.array(outputs))
        return np.array(outputs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation", ["NONE", "RELU", "RELU6"])
def test_conv(seed, bits, activation):
    net = Net(seed, (1, 7, 6, 3))
    kernel, stride, mode = (int(net.random.integers(1, 4)) for _ in range(3))
    weight, bias = net.weights((5, kernel, 3, 3), 0, per_channel=True, bits=bits)
    padding = "SAME" if mode % 2 else "VALID"
    shape = [-(-size // stride) if padding == "SAME" else (size - k) // stride + 1 for size, k in ((7, kernel), (6, 3))]
    output = net.activation((1, *shape, 5), net.scale(0.05, 0.5))
    net.then(
        "CONV_2D", (net.last, weight, bias), output, strides=(stride, stride), padding=padding, activation=activation
    )
    assert len(np.unique(net.check())) > 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(seed, multiplier):
    net = Net(seed, (1, 6, 6, 4))
    weight, bias = net.weights((1, 3, 3, 4 * multiplier), 3, per_channel=True)
    output = net.activation((1, 3, 3, 4 * multiplier), net.scale(0.05, 0.5))
    options = {"strides": (2, 2), "padding": "SAME", "activation": "RELU", "depth_multiplier": multiplier}
    net.then("DEPTHWISE_CONV_2D", (net.last, weight, bias), output, **options)
    net.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_fully_connected(seed, per_channel):
    net = Net(seed, (1, 40))
    weight, bias = net.weights((7, 40), 0, per_channel)
    net.then(
        "FULLY_CONNECTED", (net.last, weight, bias), net.activation((1, 7), net.scale(0.05, 0.5)), activation="NONE"
    )
    assert len(np.unique(net.check())) > 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["ADD", "MUL"])
@pytest.mark.parametrize("activation", ["NONE", "RELU"])
def test_two_inputs(seed, kind, activation):
    """The second input is the first one on another scale."""
    net = Net(seed, (1, 5, 5, 3))
    first = net.last
    net.then("QUANTIZE", (first,), net.activation((1, 5, 5, 3)))
    net.then(kind, (first, net.last), net.activation((1, 5, 5, 3), net.scale(0.1, 1)), activation=activation)
    net.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_pools(seed, kind, padding):
    net = Net(seed, (1, 7, 7, 3))
    source = net.model.tensors[net.last]
    size = 4 if padding == "SAME" else 3
    output = net.activation((1, size, size, 3), source.scale, source.zero_point)
    options = {"filter": (3, 3), "strides": (2, 2), "padding": padding, "activation": "NONE"}
    net.then(kind, (net.last,), output, **options)
    net.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_grouped_conv(seed):
    net = Net(seed, (1, 5, 5, 6))
    weight, bias = net.weights((4, 3, 3, 3), 0, per_channel=True)
    output = net.activation((1, 5, 5, 4), net.scale(0.05, 0.5))
    net.then("CONV_2D", (net.last, weight, bias), output, strides=(1, 1), padding="SAME", activation="NONE")
    assert len(np.unique(net.check())) > 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["ADD", "MUL"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 5, 5, 1), (1, 1, 1, 1)])
def test_sizes_of_1_are_repeated(seed, kind, shape):
    net = Net(seed, (1, 5, 5, 3))
    constant = net.constant(net.random.integers(-128, 128, shape).astype(np.int8), net.scale())
    net.model.tensors[constant].zero_point = int(net.random.integers(-128, 128))
    output = net.activation((1, 5, 5, 3), net.scale(0.1, 1))
    net.then(kind, (net.last, constant)[:: 1 if seed % 2 else -1], output, activation="NONE")
    net.check()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["HARD_SWISH", "LOGISTIC", "RELU", "RELU6"])
def test_activations(seed, kind):
    """All codes, on scales from fine to coarse."""
    net = Net(seed, (1, 256))
    source = net.model.tensors[net.last]
    source.scale[:] = 10 ** net.random.uniform(-2.5, 0)
    scale, zero_point = source.scale * net.random.uniform(0.3, 2), None
    if kind == "LOGISTIC":
        scale, zero_point = np.array([1 / 256]), -128
    if kind == "RELU6":
        scale, zero_point = source.scale, source.zero_point
    net.then(kind, (net.last,), net.activation((1, 256), scale.astype(np.float32), zero_point))
    net.check_inputs(np.arange(-128, 128).astype(np.int8)[None])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [3, 4, 8])
def test_mean(seed, size):
    net = Net(seed, (1, size, size, 5))
    axes = net.constant(np.array([1, 2], np.int32))
    net.then("MEAN", (net.last, axes), net.activation((1, 1, 1, 5), net.scale(0.003, 0.3)), keep_dims=True)
    net.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_pad_quantize_concatenate(seed):
    net = Net(seed, (1, 4, 4, 2))
    scale, zero_point = net.scale(), int(net.random.integers(-20, 20))
    first, second = (net.activation((1, 4, 4, 2), scale, zero_point) for _ in range(2))
    source = net.last
    net.then("QUANTIZE", (source,), first)
    net.then("QUANTIZE", (source,), second)
    net.then(
        "CONCATENATION", (first, second), net.activation((1, 4, 4, 4), scale, zero_point), axis=3, activation="NONE"
    )
    pads = net.constant(np.array([[0, 0], [1, 2], [0, 1], [2, 1]], np.int32))
    net.then("PAD", (net.last, pads), net.activation((1, 7, 5, 7), scale, zero_point))
    net.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [0.004, 0.05, 0.2, 1.0])
def test_softmax(seed, scale):
    net = Net(seed, (1, 10))
    net.model.tensors[0].scale[:] = scale
    net.then("SOFTMAX", (net.last,), net.activation((1, 10), np.array([1 / 256], np.float32), -128), beta=1.0)
    net.check(100)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, (0, 0)), (1.0, (1 << 30, 1)), (0.5, (1 << 30, 0)), (1e-12, (0, 0))]
)
def test_a_multiplier_is_a_fraction_and_a_power_of_two(value, expected):
    assert reference.quantize_multiplier(value) == expected


def test_rounding_is_half_away_from_zero():
    values = np.array([-3, -2, -1, 0, 1, 2, 3])
    np.testing.assert_array_equal(reference.rounding_divide_by_pot(values, 1), [-2, -1, -1, 0, 1, 1, 2])
    np.testing.assert_array_equal(reference.rounding_divide_by_pot(values, 0), values)
    products = np.array([-3, -2, -1, 0, 1, 2, 3]) << 15
    np.testing.assert_array_equal(reference.rounding_doubling_high_mul(products, 1 << 15), [-1, -1, 0, 0, 1, 1, 2])


REFERENCE = os.environ.get("RESNET8_QUANT_REFERENCE_TFLITE")


@pytest.mark.skipif(
    not (REFERENCE and Path(REFERENCE).is_file()),
    reason="RESNET8_QUANT_REFERENCE_TFLITE names no pretrainedResnet_quant.tflite",
)
def test_the_file_of_mlperf_tiny():
    """Its 98,496 bytes are another converter's; every byte of the outputs is the Micro's."""
    data = Path(REFERENCE).read_bytes()
    inputs = (load_sample().test.images[:100].astype(np.int16) - 128).astype(np.int8)
    expected = runtimes.run_tflm(data, inputs, 1).outputs
    np.testing.assert_array_equal(reference.run(file.read(data), inputs), expected)
