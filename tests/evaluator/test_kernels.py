"""The kernel report against ONNX Runtime's profiler, an independent witness of what ran."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from resnet8_quant.evaluator.kernels import KernelReport, kernel_report
from resnet8_quant.evaluator.profiler import profile_model

RNG = np.random.default_rng(0)
CONV_NET_PRODUCTS = 3


def conv_net() -> onnx.ModelProto:
    """Two convolutions with Relu and a Gemm on [batch, 4, 8, 8]: three matrix products."""
    shapes = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (512, 4), "b3": (4,)}
    model = parse_model("""<ir_version: 10, opset_import: ["": 21]>
        net (float[batch, 4, 8, 8] image) => (float[batch, 4] scores) {
            [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
            [relu1] r1 = Relu (c1)
            [conv2] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
            [relu2] r2 = Relu (c2)
            [flatten] flat = Flatten (r2)
            [gemm] scores = Gemm (flat, w3, b3)
        }""")
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


class Reader(CalibrationDataReader):
    def __init__(self, shape=(4, 4, 8, 8)):
        self.batches = iter([{"image": RNG.normal(size=shape).astype(np.float32)}])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture
def quantized(tmp_path):
    def make(activation: str, weight: str, **arguments) -> bytes:
        path = tmp_path / "quantized.onnx"
        quantize_static(
            conv_net(),
            path,
            Reader(),
            activation_type=QuantType.from_string(activation),
            weight_type=QuantType.from_string(weight),
            **({"quant_format": QuantFormat.QDQ} | arguments),
        )
        return path.read_bytes()

    return make


def assert_executed(model: bytes, report: KernelReport) -> None:
    """The profiler saw these operators in one run, and as many of each kind by the types of their tensors."""
    nodes = profile_model(model, runs=1, warmup=0).nodes
    counts = Counter(name.rpartition(".")[2] for name, count in report.ops.items() for _ in range(count))
    assert counts == Counter(node.operator for node in nodes)
    kinds = Counter(node.kernel for node in nodes)
    assert (report.quantized_ops, report.float_ops) == (kinds["integer"], kinds["float"])


QOPERATOR = {"quant_format": QuantFormat.QOperator}


@pytest.mark.parametrize(
    ("activation", "weight", "arguments", "kernels", "integer"),
    [
        ("QUInt8", "QUInt8", {}, "integer", 3),
        ("QUInt8", "QInt8", {"per_channel": True}, "integer", 3),
        ("QUInt8", "QInt8", QOPERATOR, "integer", 3),
        ("QUInt8", "QInt8", {"nodes_to_exclude": ["conv2"]}, "mixed", 2),
        ("QInt16", "QInt16", {"op_types_to_quantize": ["Conv"]}, "simulated", 0),
        ("QInt8", "QInt8", {}, None, None),  # depends on the CPU
        ("QUInt8", "QInt4", {}, None, None),
        ("QUInt16", "QInt8", {}, None, None),
    ],
)
def test_the_report_agrees_with_the_profiler(quantized, activation, weight, arguments, kernels, integer):
    model = quantized(activation, weight, **arguments)
    report = kernel_report(model, 1)
    assert_executed(model, report)
    assert report.total == CONV_NET_PRODUCTS
    assert report.kernels == {0: "simulated", report.total: "integer"}.get(report.integer, "mixed")
    if kernels is not None:
        assert (report.kernels, report.integer) == (kernels, integer)


def test_dynamic_quantization_is_seen(tmp_path):
    quantize_dynamic(conv_net(), tmp_path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    report = kernel_report((tmp_path / "dynamic.onnx").read_bytes(), 1)
    assert (report.kernels, report.integer, report.total) == (
        "mixed",
        3,
        CONV_NET_PRODUCTS,
    )  # scaled and added in float


def test_a_float_model_is_float_in_whatever_layout_it_runs():
    model = conv_net().SerializeToString()
    report = kernel_report(model, 1)
    assert (report.kernels, report.integer, report.total) == ("float", 0, CONV_NET_PRODUCTS)
    assert_executed(model, report)


# A block as in a vision transformer. Of its operators ONNX Runtime has no integer kernels for the first three.
BETWEEN = {
    "Gelu": "m = Gelu (h)",
    "LayerNormalization": "m = LayerNormalization (h, gamma)",
    "HardSwish": "m = HardSwish (h)",
    "Softmax": "m = Softmax (h)",
    "MaxPool": "r = Reshape (h, image_shape) p = MaxPool <kernel_shape = [1, 1]> (r) m = Reshape (p, row_shape)",
}


@pytest.mark.parametrize("case", [*BETWEEN, "Tanh behind the last product"])
def test_float_operators_between_integer_products_are_said(tmp_path, case):
    between = BETWEEN.get(case, "m = Identity (h)")
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
        block (float[batch, 16] image) => (float[batch, 16] scores)
        <int64[4] image_shape = {{-1, 4, 2, 2}}, int64[2] row_shape = {{-1, 16}}> {{
            h = MatMul (image, w1)
            {between}
            s = MatMul (m, w2)
            scores = {"Identity" if case in BETWEEN else "Tanh"} (s)
        }}""")
    weights = {"w1": RNG.normal(size=(16, 16)), "w2": RNG.normal(size=(16, 16)), "gamma": np.ones(16)}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items())
    path = tmp_path / "block.onnx"
    reader = Reader((4, 16))
    quantize_static(model, path, reader, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8)
    report = kernel_report(path.read_bytes(), 1)
    assert_executed(path.read_bytes(), report)
    assert (report.integer, report.total) == (2, 2)
    inside = case in ("Gelu", "LayerNormalization", "HardSwish")
    assert report.kernels == ("mixed" if inside else "integer")
    assert bool(report.float_ops) == (inside or case not in BETWEEN)


def test_nothing_is_printed_and_nothing_is_left_behind(quantized, tmp_path, monkeypatch, capfd):
    model = quantized("QInt8", "QInt8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    capfd.readouterr()
    kernel_report(model, 1)
    assert capfd.readouterr() == ("", "")
    assert not list(temporary.iterdir())
