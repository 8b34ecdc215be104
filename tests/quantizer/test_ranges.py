"""Each calibration method against an oracle: onnxruntime for MinMax, NumPy for percentiles, a planted outlier."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from resnet8_quant.config import CalibrationConfig, DataConfig, DataKind, Layout, Method, ModelConfig, QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.contract import InputContract
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.model import FloatModel, load_model
from resnet8_quant.quantizer.activations import ActivationStream, calibrated_tensors
from resnet8_quant.quantizer.quantize import OPERATORS, quantize
from resnet8_quant.quantizer.ranges import Histogram, entropy_range, find_ranges, percentile_range
from resnet8_quant.quantizer.reader import ImageReader

CONFIGS = {
    Method.minmax: CalibrationConfig(),
    Method.percentile: CalibrationConfig(Method.percentile, percentile=99.0, bins=2048),
    Method.entropy: CalibrationConfig(Method.entropy, bins=2048),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(ModelConfig(), (32, 32, 3), 10, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_dataset(DataConfig(kind=DataKind.sample), tmp_path_factory.mktemp("cache")).train.images[:24]


def ranges_of(model, images, method, batch=None):
    reader = ImageReader(images, model.contract)
    reader.batch = batch or reader.batch
    stream = ActivationStream(model, calibrated_tensors(model.proto(), OPERATORS), reader, 1)
    return find_ranges(stream, CONFIGS[method], 256, False)


def histogram_of(values, bins):
    values = values.astype(np.float32)
    low, high = values.min(), values.max()
    edges = Histogram(np.zeros(bins, np.int64), low, high).edges
    counts = np.histogram(values, edges)[0]
    assert counts.sum() == values.size
    return Histogram(counts, low, high)


def tiny(nodes, weights, image=2, scores=2):
    """A model on [batch, image, 3, 3]."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", image, 3, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", scores, 3, 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    contract = InputContract("image", Layout.NCHW, (3, 3, image), None, scores)
    return FloatModel("tiny", proto.SerializeToString(), contract, "", "")


@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax_equals_onnxruntime_bit_for_bit(model, images, tmp_path, symmetric):
    ours = quantize(model, images, QuantConfig(activation_symmetric=symmetric), CalibrationConfig(), threads=1)
    proto = model.proto()
    add_pre_process_metadata(proto)
    quantize_static(
        proto,
        tmp_path / "theirs.onnx",
        ImageReader(images, model.contract),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": symmetric},
    )
    theirs = onnx.load(tmp_path / "theirs.onnx")
    expected, found = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        for proto in (theirs, onnx.load_from_string(ours.serialized))
    )
    assert any(name.endswith("_scale") for name in expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("method", Method)
def test_independent_of_the_batch_size(model, images, method):
    whole = ranges_of(model, images, method)
    for batch in (1, 6):
        assert ranges_of(model, images, method, batch) == whole


def test_methods_differ(model, images):
    minmax, percentile, entropy = (ranges_of(model, images, method) for method in Method)
    assert minmax.keys() == percentile.keys() == entropy.keys()
    for first, second in ((minmax, percentile), (minmax, entropy), (percentile, entropy)):
        assert sum(first[name] != second[name] for name in first) > len(first) / 2
    for name, (low, high) in minmax.items():
        for clipped in (percentile[name], entropy[name]):
            assert low <= clipped[0] <= clipped[1] <= high, name


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9])
@pytest.mark.parametrize("kind", ["signed", "relu", "positive"])
def test_percentile_equals_numpy_to_one_bin(kind, percentile):
    values = np.random.default_rng(0).normal(size=100_000)
    values = {"signed": values, "relu": np.maximum(values, 0), "positive": values - values.min() + 3}[kind]
    histogram = histogram_of(values, 1000)
    found = percentile_range(histogram, CalibrationConfig(percentile=percentile), 256, False)
    tail = (100 - percentile) / 2
    width = histogram.edges[1] - histogram.edges[0]
    for value, q in zip(found, (tail, 100 - tail), strict=True):  # between order statistics NumPy interpolates
        below, above = (np.percentile(values, q, method=method) for method in ("lower", "higher"))
        assert below - 1.001 * width <= value <= above + 1.001 * width


def test_percentile_100_is_minmax():
    values = np.random.default_rng(0).normal(size=1000)
    histogram = histogram_of(values, 512)
    assert percentile_range(histogram, CalibrationConfig(percentile=100.0), 256, False) == (
        histogram.low,
        histogram.high,
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_entropy_clips_an_outlier(relu, symmetric):
    values = np.random.default_rng(0).normal(size=200_000)
    values = np.append(np.maximum(values, 0) if relu else values, 20.0)
    low, high = entropy_range(histogram_of(values, 4096), CONFIGS[Method.entropy], 256, symmetric)
    assert 2.5 < high < 10
    assert low == 0 if relu else -6 < low < -2.5


@pytest.mark.parametrize("method", Method)
def test_nan_names_the_tensor(images, method):
    model = tiny([helper.make_node("Conv", ["image", "w"], ["scores"])], {"w": np.full((2, 2, 1, 1), np.nan)})
    with pytest.raises(ExperimentError, match="activation 'scores' is NaN"):
        ranges_of(model, images[:, :3, :3, :2], method)


@pytest.mark.parametrize("method", Method)
def test_a_tensor_of_zeros(images, method):
    model = tiny([helper.make_node("Conv", ["image", "w"], ["scores"])], {"w": np.zeros((2, 2, 1, 1))})
    images = np.ascontiguousarray(images[:, :3, :3, :2])
    assert ranges_of(model, images, method)["scores"] == (0, 0)
    assert quantize(model, images, QuantConfig(), CONFIGS[method], threads=1).contents.quantized_ops == 1
