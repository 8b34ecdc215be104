"""deploy=tflite from the config to the files and the row."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import resnet8_quant as rq
from resnet8_quant import results
from resnet8_quant.deploy.tflite import file, reference, runtimes
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import cache_folder
from resnet8_quant.inputs import cifar10
from resnet8_quant.inputs.model import RESOURCES
from resnet8_quant.inputs.sample import load_sample

SMALL = ("data=sample", "calibration.samples_per_class=5", "latency.runs=0")
VERIFIED = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = (
        "quant=tflite_int8",
        "deploy=tflite",
        f"deploy.verify={VERIFIED}",
        "deploy.c_code=true",
        "deploy.c_array=true",
    )
    return folder, rq.run(rq.compose(*words, *SMALL), folder)


def test_the_row_says_what_the_runtimes_made_of_the_file(run):
    folder, result = run
    assert (result.deploy, result.quant_type, result.verified_images) == ("tflite", "tflite_int8", VERIFIED)
    assert result.tflite_bytes == (folder / "model.tflite").stat().st_size
    assert result.tflite_changed <= 2
    assert (result.macs, result.peak_activation_bytes, result.int4_layers) == (12_501_632, 49_152, 0)
    assert 78_000 < result.weights_bytes < result.tflite_bytes < 98_496  # the size of MLPerf Tiny's reference file
    if find_spec("tflite_micro"):
        assert result.tflm_changed <= 2
        assert 49_152 < result.arena_bytes <= 57_344
    assert results.read(folder / "results.csv") == result


def test_peak_activations_are_the_head_of_the_arena(run):
    """The Micro plans activations in the head, as many bytes as we count."""
    pytest.importorskip("tflite_micro", reason="needs TensorFlow Lite Micro")
    runtimes._open((run[0] / "model.tflite").read_bytes())
    runtimes._run_chunk(np.zeros((1, 32, 32, 3), np.int8))
    report = runtimes._printed(runtimes._interpreter.print_allocations)
    assert f"Arena allocation head {run[1].peak_activation_bytes} bytes" in report
    assert f"Arena allocation total {run[1].arena_bytes} bytes" in report


def test_the_file_computes_the_run(run):
    folder, result = run
    lite = file.read((folder / "model.tflite").read_bytes())
    images = load_sample().test.images[:VERIFIED]
    outputs = reference.run(lite, (images.astype(np.int16) - 128).astype(np.int8))
    changed = (outputs.argmax(1) != np.load(folder / "predictions.npy")[:VERIFIED]).sum()
    assert changed == (result.tflm_changed if find_spec("tflite_micro") else changed) <= 2


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
def test_the_c_code_passes_its_own_test(run, tmp_path):
    folder, _ = run
    command = ["cc", "-std=c99", "-O1", "-o", tmp_path / "test", folder / "c" / "model.c", folder / "c" / "test.c"]
    subprocess.run(command, check=True)
    assert subprocess.run([tmp_path / "test"], check=True, capture_output=True, text=True).stdout.startswith("0 of 30 ")


@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")),
    reason="no compiler or QEMU for Cortex-M4",
)
def test_a_microcontroller_passes_the_test(run):
    script = Path(__file__).parents[3] / "tools" / "cortex_m" / "build_and_run.sh"
    done = subprocess.run([script, run[0] / "c"], check=True, capture_output=True, text=True)
    assert done.stdout.endswith(f"0 of {VERIFIED} images differ\n")
    assert "bss 49152 bytes" in done.stdout


@pytest.mark.any_cpu
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
def test_c_computes_all_test_images(run, tmp_path):
    """CIFAR-10's 10,000, from the cache: top-1 is that of the model, and a sample equals the reference's bytes."""
    cache = cache_folder()
    if not (cache / "cifar10" / cifar10.MARKER).is_file():
        pytest.skip(f"{cache} does not hold CIFAR-10: python run.py fetches it")
    test = rq.load_dataset(rq.compose()).test
    inputs = (test.images.astype(np.int16) - 128).astype(np.int8)
    sources = [run[0] / "c" / name for name in ("main.c", "model.c")]
    subprocess.run(["cc", "-std=c99", "-O2", "-o", tmp_path / "model", *sources], check=True)
    done = subprocess.run([tmp_path / "model"], input=inputs.tobytes(), capture_output=True, check=True)
    outputs = np.frombuffer(done.stdout, np.int8).reshape(-1, 10)
    assert np.mean(outputs.argmax(1) == test.labels) > 0.88
    lite = file.read((run[0] / "model.tflite").read_bytes())
    np.testing.assert_array_equal(outputs[:300], reference.run(lite, inputs[:300]))


def test_the_c_array_is_the_file(run):
    folder, _ = run
    text = (folder / "model.cc").read_text()
    values = text[text.index("{") + 1 : text.index("}")].split(",")
    assert bytes(int(value) for value in values) == (folder / "model.tflite").read_bytes()


def test_the_same_run_gives_the_same_file(run, tmp_path):
    words = ("quant=tflite_int8", "deploy=tflite", "deploy.verify=1")
    rq.run(rq.compose(*words, *SMALL), tmp_path)
    assert (tmp_path / "model.tflite").read_bytes() == (run[0] / "model.tflite").read_bytes()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("quant=float",), "the model has no QuantizeLinear"),
        (("quant=uint8",), "`quant.weight_type` is uint8 with deploy=tflite"),
        (("quant=w4a4",), "`quant.activation_bits` is 4 with deploy=tflite"),
        (("quant=int8", "quant.activation_type=int16"), "`quant.activation_type` is int16 with deploy=tflite"),
        (("quant=int8", "quant.format=QOperator"), "`quant.format` is QOperator with deploy=tflite"),
        (("quant=int8", "deploy.output=label"), "`deploy.output` is label with deploy=tflite"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_the_work(words, problem):
    with pytest.raises(ExperimentError, match=problem):
        rq.compose(*words, "deploy=tflite", *SMALL)


def test_a_missing_or_another_schema_is_a_sentence(monkeypatch):
    monkeypatch.setattr(file, "SCHEMAS", ("no_such_package.schema",))
    with pytest.raises(ExperimentError, match=r"\[tflite\]"):
        file.schema()
    monkeypatch.setattr(file, "SCHEMAS", ("json",))
    with pytest.raises(ExperimentError, match=r"the installed json has another version of the \.tflite schema"):
        file.schema()


class Images(CalibrationDataReader):
    """A few raw images, for onnxruntime's own quantizer."""

    def __init__(self, name):
        self.batches = iter({name: load_sample().train.images[:20].astype(np.float32)[i : i + 1]} for i in range(20))

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.parametrize(
    ("activation", "format", "problem"),
    [
        (QuantType.QInt8, QuantFormat.QDQ, None),
        (QuantType.QInt16, QuantFormat.QDQ, "int16 activations; TensorFlow Lite's kernels take int8"),
        (QuantType.QInt8, QuantFormat.QOperator, "no counterpart for QLinearConv"),
    ],
)
def test_a_model_that_somebody_else_quantized(tmp_path, activation, format, problem):
    path = tmp_path / "theirs.onnx"
    options = {"quant_format": format, "activation_type": activation, "weight_type": QuantType.QInt8}
    quantize_static(RESOURCES / "resnet8.onnx", path, Images("image"), **options)
    words = ("model=onnx", f"model.path={path}", "quant=float", "deploy=tflite", "deploy.verify=50", *SMALL)
    if problem is None:
        result = rq.run(rq.compose(*words), tmp_path / "run")
        assert result.tflite_changed <= 2
        assert result.deploy == "tflite"
        return
    with pytest.raises(ExperimentError, match=problem) as caught:
        rq.run(rq.compose(*words), tmp_path / "run")
    assert caught.value.remedy.startswith("quantize the float model")


def test_options_of_another_target_are_refused():
    with pytest.raises(ExperimentError, match="only deploy=tflite does"):
        rq.compose("quant=int8", "deploy=x86", "deploy.c_code=true", *SMALL)
    with pytest.raises(ExperimentError, match=r"`deploy\.input` is int8 with deploy=x86"):
        rq.compose("quant=int8", "deploy=x86", "deploy.input=int8", *SMALL)
