"""The same integers on CPUs that this machine is not: a handful of exactness checks under QEMU's user emulation.

x86 without VNNI where qemu-x86_64 is installed; Arm where qemu-aarch64 is and RESNET8_QUANT_ARM_ROOT names a folder
made by tools/arm_root.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant import results
from resnet8_quant.graphs.session import kernels_saturate
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.results import RunResult

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cpus import (  # noqa: E402
    NOT_PASSED_ON,
    PROBE,
    PROBE_EXACT,
    arm_command,
    emulate,
    write_probe,
)

pytestmark = pytest.mark.emulated

AVX2 = ("qemu-x86_64", "-cpu", "max", sys.executable)
ARM_ROOT = os.environ.get("RESNET8_QUANT_ARM_ROOT")
CPUS = ("avx2", "neoverse-n1", "max,sve=off")
IMAGES, CHANNELS, SIDE, OUTPUTS = 6, 8, 5, 4
TESTED = 20  # images per class in the runs


def command(cpu: str) -> tuple[str, ...]:
    """The command that runs Python on a CPU of ``CPUS``; skips where it cannot be had."""
    program = "qemu-x86_64" if cpu == "avx2" else "qemu-aarch64"
    if platform.machine() != "x86_64":
        pytest.skip("emulates other CPUs on an x86-64 PC only")
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install qemu-user")
    if cpu == "avx2":
        return AVX2
    if not ARM_ROOT:
        pytest.skip("RESNET8_QUANT_ARM_ROOT names no Arm root: python tools/arm_root.py FOLDER")
    return arm_command(Path(ARM_ROOT).resolve(), cpu)


def integer_network(generator: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """QLinearConv, 3x3 with padding, and QGemm to float; weights of 7 bits, scales that are powers of two."""
    conv = generator.integers(-64, 64, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
    conv[0], conv[1] = 63, -64  # the largest pairs
    gemm = generator.integers(-64, 64, (OUTPUTS, CHANNELS * SIDE * SIDE)).astype(np.int8)
    gemm[0], gemm[1] = 63, -64
    arrays = {
        "x_scale": np.float32(2**-7),
        "x_zero": np.uint8(3),
        "conv": conv,
        "conv_scale": (2.0 ** -generator.integers(5, 8, CHANNELS)).astype(np.float32),
        "conv_zero": np.zeros(CHANNELS, np.int8),
        "bias": generator.integers(-20_000, 20_000, CHANNELS).astype(np.int32),
        "y_scale": np.float32(2**-3),
        "y_zero": np.uint8(120),
        "flat": np.array([0, -1]),
        "gemm": gemm,
        "gemm_scale": np.float32(2**-6),
        "gemm_zero": np.int8(0),
        "gemm_bias": generator.integers(-1000, 1000, OUTPUTS).astype(np.int32),
    }
    convolved = ["x", "x_scale", "x_zero", "conv", "conv_scale", "conv_zero", "y_scale", "y_zero", "bias"]
    multiplied = ["row", "y_scale", "y_zero", "gemm", "gemm_scale", "gemm_zero", "gemm_bias"]
    graph = helper.make_graph(
        [
            helper.make_node("QLinearConv", convolved, ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["y", "flat"], ["row"]),
            helper.make_node("QGemm", multiplied, ["z"], domain="com.microsoft", transB=1),
        ],
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), arrays


def integer_arithmetic(arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The network's output by NumPy, in integers of 64 bits and one rounding, half to even."""
    wide = {name: values.astype(np.int64) for name, values in arrays.items() if values.dtype.kind in "iu"}
    padded = np.pad(x.astype(np.int64) - wide["x_zero"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, wide["conv"]) + wide["bias"][:, None, None]
    rescale = arrays["x_scale"] * arrays["conv_scale"].astype(np.float64) / arrays["y_scale"]
    y = np.clip(np.rint(sums * rescale[:, None, None]) + wide["y_zero"], 0, 255).astype(np.int64)
    z = (y.reshape(len(x), -1) - wide["y_zero"]) @ wide["gemm"].T + wide["gemm_bias"]
    return (z * float(arrays["y_scale"] * arrays["gemm_scale"])).astype(np.float32)


@pytest.mark.parametrize("cpu", CPUS)
def test_only_avx2_saturates_and_7_bit_weights_are_exact(cpu: str, tmp_path: Path) -> None:
    words = command(cpu)
    generator = np.random.default_rng(0)
    model, arrays = integer_network(generator)
    x = generator.integers(0, 256, (IMAGES, CHANNELS, SIDE, SIDE)).astype(np.uint8)
    x[0] = 255
    write_probe(tmp_path)
    onnx.save(model, tmp_path / "integers.onnx")
    np.save(tmp_path / "integers_input.npy", x)
    names = [PROBE, "integers"]
    emulate(words, [tmp_path / f"{name}{end}" for name in names for end in (".onnx", "_input.npy", "_output.npy")])
    probed = np.load(tmp_path / f"{PROBE}_output.npy")
    assert (probed != PROBE_EXACT).all() if cpu == "avx2" else (probed == PROBE_EXACT).all()
    np.testing.assert_array_equal(np.load(tmp_path / "integers_output.npy"), integer_arithmetic(arrays, x))


def run(words: tuple[str, ...]) -> None:
    """A Python program in this project's folder, which must end well."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_sees_that_avx2_saturates() -> None:
    code = "from resnet8_quant.graphs.session import kernels_saturate; assert kernels_saturate()"
    run((*command("avx2"), "-c", code))


def test_a_run_answers_the_same_with_and_without_vnni(tmp_path: Path) -> None:
    emulated = command("avx2")
    arrays = {}
    for split, name in ((load_sample().train, "train"), (load_sample().test, "test")):
        chosen = np.concatenate([np.flatnonzero(split.labels == label)[:TESTED] for label in range(10)])
        arrays |= {f"x_{name}": split.images[chosen], f"y_{name}": split.labels[chosen]}
    np.savez(tmp_path / "images.npz", **arrays)
    words = ("run.py", "quant=u8s8", "calibration.samples_per_class=2", "latency.runs=0", "data=arrays")
    words += (f"data.path={tmp_path / 'images.npz'}",)

    def row(name: str, *python: str) -> RunResult:
        run((*python, *words, f"cache_dir={tmp_path / name}", f"hydra.run.dir={tmp_path / name}"))
        return results.read(tmp_path / name / results.FILE_NAME)

    here, there = row("here", sys.executable), row("there", *emulated)
    assert here.model_sha256 == there.model_sha256
    predictions = [np.load(tmp_path / name / "predictions.npy") for name in ("here", "there")]
    np.testing.assert_array_equal(*predictions)
    assert here.accuracy == there.accuracy
    assert here.portable is there.portable is False
    assert there.default_session_accuracy is not None
    assert there.default_session_changed
    if not kernels_saturate():
        assert here.default_session_accuracy is here.default_session_changed is None
