"""The bundled model, some images, tiny models, and statistics of plain arrays; helpers/ on the import path."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import CalibrationConfig, DType, Layout, Method, ModelConfig
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel, load_model
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.observer import Batch, Observer

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bundled ResNet8."""
    return load_model(ModelConfig(), (32, 32, 3), 10, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def images():
    """24 training images: no power of two, so that batches do not divide them."""
    return CalibrationImages.of(load_sample().train.images[:24])


@pytest.fixture(scope="session")
def small_images():
    """20 images [6, 6, 2]."""
    return CalibrationImages.of(np.random.default_rng(0).integers(0, 256, (20, 6, 6, 2), dtype=np.uint8))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder that tests share: their statistics are the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def configs():
    """{method: its part of the config}."""
    return {
        Method.minmax: CalibrationConfig(),
        Method.moving_average: CalibrationConfig(Method.moving_average, averaging_constant=0.1),
        Method.percentile: CalibrationConfig(Method.percentile, percentile=99.0),
        Method.entropy: CalibrationConfig(Method.entropy),
        Method.mse: CalibrationConfig(Method.mse),
        Method.lp: CalibrationConfig(Method.lp, norm=3.0),
    }


@pytest.fixture(scope="session")
def tiny():
    """Nodes and weights -> a model from ``image`` [batch, 2, 6, 6] to ``scores`` [batch, 2, ?, ?]."""

    def make(nodes, weights, batch=None, **input_spec):
        name = batch or "batch"
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [name, 2, 6, 6])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [name, 2, None, None])],
            [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        serialized = proto.SerializeToString()
        described = InputSpec("image", Layout.NCHW, (6, 6, 2), batch, 2, **input_spec)
        return FloatModel("tiny", serialized, described, sha256_bytes(serialized), "")

    return make


@pytest.fixture(scope="session")
def conv(tiny):
    """A convolution and a Relu; ``weight`` or ``bias`` to choose what comes out."""

    def make(batch=None, weight=None, bias=(0.5, -0.5), **input_spec):
        weight = np.random.default_rng(5).normal(size=(2, 2, 3, 3)) if weight is None else weight
        nodes = [
            helper.make_node("Conv", ["image", "w", "b"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["scores"]),
        ]
        return tiny(nodes, {"w": weight, "b": bias}, batch, **input_spec)

    return make


@pytest.fixture(scope="session")
def tensor_stats():
    """Values, an image in each row -> what an Observer makes of them in batches of ``batch``."""

    def make(values, bins=2048, batch=None):
        rows = np.atleast_2d(np.asarray(values, np.float32))
        observer = Observer(len(rows), bins)
        batch = batch or len(rows)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            observer.update(Batch.of(part, bins is not None), start, len(part))
        return observer.finish(rows.min(), rows.max())

    return make


@pytest.fixture(scope="session")
def base():
    """{activation type: the small network's Q/DQ model and its calibration}."""
    from small_net import IMAGES, quantized, small_net

    return {
        kind: quantized(small_net(), IMAGES, kind, DType.int8 if kind is DType.uint8 else kind)
        for kind in (DType.uint8, DType.int8)
    }


@pytest.fixture(scope="session")
def assert_same():
    """Two {tensor: TensorStats} are equal to the bit."""

    def compare(first, second):
        assert first.keys() == second.keys()
        for name in first:
            a, b = first[name], second[name]
            assert (a.low.tobytes(), a.high.tobytes()) == (b.low.tobytes(), b.high.tobytes()), name
            assert a.image_lows.tobytes() == b.image_lows.tobytes(), name
            assert a.image_highs.tobytes() == b.image_highs.tobytes(), name
            assert (a.histogram is None) == (b.histogram is None), name
            if a.histogram is not None:
                np.testing.assert_array_equal(a.histogram.counts, b.histogram.counts, err_msg=name)
                for field in ("first", "width", "zeros"):
                    assert getattr(a.histogram, field) == getattr(b.histogram, field), (name, field)

    return compare
