"""What all tests need of their process: one BLAS thread, and a Ctrl-C that its children can receive; shared fixtures.

Two BLAS threads on a busy machine wait for each other, ten times as long. A shell starts what runs in its background
with SIGINT ignored, which children would inherit.
"""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before anything imports NumPy
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bundled ResNet8."""
    from resnet8_quant.config import ModelConfig
    from resnet8_quant.inputs.model import load_model

    return load_model(ModelConfig(), (32, 32, 3), 10, tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _no_integer_kernels(request, monkeypatch):
    """A test marked any_cpu opens no quantized model in this process: it would have to be repeated on other kernels."""
    if request.node.get_closest_marker("any_cpu") is None:
        return
    import onnx
    import onnxruntime

    from resnet8_quant.graphs.session import kernels_saturate

    kernels_saturate()  # remembers what its probe, a quantized model, found
    original = onnxruntime.InferenceSession

    def open_float(model, *arguments, **options):
        operators = {node.op_type for node in onnx.load_from_string(model).graph.node}
        assert not [name for name in operators if re.search("Quantize|QLinear|QGemm|Integer", name)]
        return original(model, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_float)


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory):
    """The bundled MobileNet: depthwise convolutions."""
    from resnet8_quant.config import ModelConfig, ModelKind
    from resnet8_quant.inputs.model import load_model

    return load_model(ModelConfig(ModelKind.mobilenet), (32, 32, 3), 10, tmp_path_factory.mktemp("mobilenet"))


@pytest.fixture(scope="session")
def real_cache():
    """The user's cache folder, where it holds the whole CIFAR-10."""
    from resnet8_quant.errors import ExperimentError
    from resnet8_quant.files import cache_folder
    from resnet8_quant.inputs.cifar10 import is_cached

    try:
        cache = cache_folder()
    except ExperimentError as error:
        pytest.skip(error.problem)
    if not is_cached(cache):
        pytest.skip(f"{cache} does not hold CIFAR-10: python run.py fetches it")
    return cache


@pytest.fixture(scope="session")
def images():
    """24 training images: no power of two, so that batches do not divide them."""
    from resnet8_quant.inputs.sample import load_sample
    from resnet8_quant.quantizer.calibration.images import CalibrationImages

    return CalibrationImages.of(load_sample().train.images[:24])
