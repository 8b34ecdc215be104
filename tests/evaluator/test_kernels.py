"""The kernel report against ONNX Runtime's profiler, an independent witness of what ran."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.runtime import FATAL

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
    def __init__(self):
        self.batches = iter([{"image": RNG.normal(size=(4, 4, 8, 8)).astype(np.float32)}])

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


def executed(model: bytes, folder) -> Counter[str]:
    """Operators that the profiler saw in one run."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = 1
    options.log_severity_level = FATAL
    profiled = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    profiled.run(None, {"image": np.zeros((1, 4, 8, 8), np.float32)})
    with open(profiled.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


def without_domains(ops: dict[str, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, count in ops.items():
        counts[name.rpartition(".")[2]] += count
    return counts


@pytest.mark.parametrize(
    ("activation", "weight", "arguments"),
    [
        ("QUInt8", "QUInt8", {}),
        ("QUInt8", "QInt8", {"per_channel": True}),
        ("QUInt8", "QInt8", {"quant_format": QuantFormat.QOperator}),
        ("QInt8", "QInt8", {}),
        ("QUInt8", "QInt4", {}),
        ("QUInt16", "QInt8", {}),
    ],
)
def test_the_report_agrees_with_the_profiler(quantized, tmp_path, activation, weight, arguments):
    model = quantized(activation, weight, **arguments)
    report = kernel_report(model, 1)
    assert without_domains(report.ops) == executed(model, tmp_path)
    assert report.total == CONV_NET_PRODUCTS
    assert report.kernels == {0: "simulated", report.total: "integer"}.get(report.integer, "mixed")


@pytest.mark.parametrize(
    ("activation", "weight", "options", "kernels", "integer"),
    [
        ("QUInt8", "QInt8", {"quant_format": QuantFormat.QDQ}, "integer", 3),
        ("QUInt8", "QInt8", {"quant_format": QuantFormat.QOperator}, "integer", 3),
        ("QUInt8", "QInt8", {"nodes_to_exclude": ["conv2"]}, "mixed", 2),
        ("QInt16", "QInt16", {"op_types_to_quantize": ["Conv"]}, "simulated", 0),
    ],
)
def test_what_the_kernels_are_called(quantized, activation, weight, options, kernels, integer):
    report = kernel_report(quantized(activation, weight, **options), 1)
    assert (report.kernels, report.integer, report.total) == (kernels, integer, CONV_NET_PRODUCTS)


def test_dynamic_quantization_is_seen(tmp_path):
    quantize_dynamic(conv_net(), tmp_path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    report = kernel_report((tmp_path / "dynamic.onnx").read_bytes(), 1)
    assert (report.kernels, report.integer, report.total) == ("integer", 3, 3)


def test_a_float_model_is_float_in_whatever_layout_it_runs(tmp_path):
    model = conv_net().SerializeToString()
    report = kernel_report(model, 1)
    assert (report.kernels, report.integer, report.total) == ("float", 0, CONV_NET_PRODUCTS)
    assert without_domains(report.ops) == executed(model, tmp_path)


@pytest.mark.parametrize(("level", "integer"), [(0, 0), (1, 0), (4, 1)])
def test_4_bit_products_are_integer_only_with_integer_compute(level, integer):
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        nbits (float[batch, 32] image) => (float[batch, 4] scores) <float[4] scale = {{1, 1, 1, 1}}> {{
            scores = com.microsoft.MatMulNBits
                <K = 32, N = 4, bits = 4, block_size = 32, accuracy_level = {level}> (image, w, scale)
        }}""")
    model.graph.initializer.append(numpy_helper.from_array(RNG.integers(0, 256, (4, 1, 16), dtype=np.uint8), "w"))
    report = kernel_report(model.SerializeToString(), 1)
    assert (report.integer, report.total) == (integer, 1)


def test_nothing_is_printed_and_nothing_is_left_behind(quantized, tmp_path, monkeypatch, capfd):
    model = quantized("QInt8", "QInt8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    capfd.readouterr()
    kernel_report(model, 1)
    assert capfd.readouterr() == ("", "")
    assert not list(temporary.iterdir())
