"""Some images, tiny models, and statistics of plain arrays; helpers/ on the import path."""

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from resnet8_quant.config import CalibrationConfig, Method
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.observer import Batch, Observer

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


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
    options = {
        Method.moving_average: {"averaging_constant": 0.1},
        Method.percentile: {"percentile": 99.0},
        Method.lp: {"norm": 3.0},
    }
    return {method: CalibrationConfig(method, **options.get(method, {})) for method in Method}


@pytest.fixture(scope="session")
def conv():
    """A convolution and a Relu; ``weight`` or ``bias`` to choose what comes out."""
    from nets import net

    def make(batch=None, weight=None, bias=(0.5, -0.5), **input_spec):
        weight = np.random.default_rng(5).normal(size=(2, 2, 3, 3)) if weight is None else weight
        nodes = [
            helper.make_node("Conv", ["image", "w", "b"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["scores"]),
        ]
        return net(nodes, batch, {"scores": (2, None, None)}, input_spec=input_spec, w=weight, b=np.array(bias))

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
def assert_same():
    """Two {tensor: TensorStats} are equal to the bit."""

    def fields(stats):
        histogram = stats.histogram
        binned = () if histogram is None else (histogram.counts, histogram.first, histogram.width, histogram.zeros)
        return [np.asarray(field) for field in (stats.low, stats.high, stats.image_lows, stats.image_highs, *binned)]

    def compare(first, second):
        assert first.keys() == second.keys()
        for name in first:
            for one, other in zip(fields(first[name]), fields(second[name]), strict=True):
                assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name

    return compare
