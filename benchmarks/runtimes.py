"""One quantized network in every arithmetic that it may meet: predictions, equal bytes, time.

Quantizes, exports with deploy=tflite, and runs the test images as exact integers, in ONNX Runtime's default session, in
LiteRT, in TensorFlow Lite Micro, in reference.py, and in the generated C on this machine; with `--qemu` also 100 images
of the C on an emulated Cortex-M4. Out: a Markdown table. The words are those of run.py.

    python benchmarks/runtimes.py quant=tflite_int8 model=mlperf_tiny model.source=pretrainedResnet.h5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import resnet8_quant as rq
from resnet8_quant.config import Layout
from resnet8_quant.deploy.tflite import c_code, ends, reference, runtimes, target
from resnet8_quant.evaluator.accuracy import evaluate
from resnet8_quant.experiment import prepare
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.session import run_batch
from resnet8_quant.machine import cpu_description, usable_cores
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.terminal import exit_code, markdown, show

BATCH = 50
ON_QEMU = 100
CORTEX_M = Path(__file__).resolve().parent.parent / "tools" / "cortex_m" / "build_and_run.sh"


def timed(function: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What a function returns, and the seconds that it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def in_batches(function: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """A function of many images, applied to a few at a time."""
    return np.concatenate([function(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)])


def run_c(sources: dict[str, str], inputs: np.ndarray, classes: int) -> np.ndarray:
    """int8 [N, classes] of the generated C, built with cc -O2 and fed through pipes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            Path(folder, name).write_text(text)
        subprocess.run(["cc", "-std=c99", "-O2", "-o", "model", "main.c", "model.c"], cwd=folder, check=True)
        done = subprocess.run([f"{folder}/model"], input=inputs.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.int8).reshape(-1, classes)


def on_qemu(sources: dict[str, str], inputs: np.ndarray, outputs: np.ndarray) -> str:
    """What tools/cortex_m prints of the first images."""
    with tempfile.TemporaryDirectory() as folder:
        test = c_code.test_program(inputs[:ON_QEMU], outputs[:ON_QEMU])
        for name, text in {**sources, "test.c": test}.items():
            Path(folder, name).write_text(text)
        return subprocess.run([CORTEX_M, folder], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Quantize, run everything, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--qemu", action="store_true", help="also run the C on an emulated Cortex-M4")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="words of run.py")
    options = parser.parse_args()
    config = rq.compose(*options.overrides, "deploy=tflite", "latency.runs=0")
    prepared = prepare(config)
    model, test = prepared.model, prepared.data.test
    assert prepared.images is not None, "quant=float has no integers"
    quantized = quantize(model, prepared.images, config, cache=prepared.cache)

    started = time.perf_counter()
    core, _, data = target.build(quantized.named, config.deploy, sha256_bytes(quantized.serialized))
    export_seconds = time.perf_counter() - started
    values = model.input_spec.prepare(test.images)
    if model.input_spec.layout is Layout.NCHW:
        values = values.transpose(0, 2, 3, 1)
    inputs = ends.feed(core, values)

    exact = evaluate(rq.quantize(model, prepared.data.train, rq.compose(*options.overrides)), test, config.evaluation)
    session = onnxruntime.InferenceSession(quantized.serialized, providers=["CPUExecutionProvider"])
    spec = model.input_spec
    floats, float_seconds = timed(
        lambda: in_batches(lambda images: run_batch(session, spec.name, spec.prepare(images)), test.images)
    )
    phone, phone_seconds = timed(lambda: runtimes.run_litert(data, inputs, 1))
    micro, micro_seconds = timed(lambda: runtimes.run_tflm(data, inputs, usable_cores()).outputs)
    ours, our_seconds = timed(lambda: in_batches(lambda part: np.asarray(reference.run(core, part)), inputs))
    sources = c_code.generate(core)
    from_c, c_seconds = timed(lambda: run_c(sources, inputs, ours.shape[-1]))

    rows = [("exact integers", exact.predictions, None, exact.seconds)]
    rows.append(("ONNX Runtime, default session", floats.argmax(1), None, float_seconds))
    for name, outputs, seconds in (
        ("LiteRT (XNNPACK), 1 thread", phone, phone_seconds),
        (f"TensorFlow Lite Micro, {usable_cores()} processes", micro, micro_seconds),
        ("reference.py (NumPy)", ours, our_seconds),
        ("generated C, cc -O2, 1 thread", from_c, c_seconds),
    ):
        rows.append((name, outputs.reshape(len(outputs), -1).argmax(1), outputs, seconds))
    lines: list[list[str]] = []
    for name, predictions, outputs, seconds in rows:
        others = "" if outputs is None else f"{int((outputs != micro).reshape(len(outputs), -1).any(1).sum()):,}"
        changed = f"{int((predictions != exact.predictions).sum()):,}"
        lines.append([name, f"{100 * np.mean(predictions == test.labels):.2f} %", changed, others, f"{seconds:.1f} s"])
    show(markdown(["Runtime", "Top-1", "Changed", "Other bytes", "Time"], lines))
    show(
        f"\n{' '.join(options.overrides)}: {len(test.labels):,} images.\n"
        "Changed: predictions that differ from the exact integers'.\n"
        "Other bytes: images of which any output byte differs from TensorFlow Lite Micro's.\n"
        f"Conversion to {len(data):,} bytes: {export_seconds:.2f} s.\n{cpu_description()}"
    )
    if options.qemu:
        show(f"\nCortex-M4 under QEMU:\n{on_qemu(sources, inputs, ours)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
