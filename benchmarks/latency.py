"""How fast the models are, side by side in one run: float, quantized, deployed, and other runtimes where asked for.

Quantizes one model in memory (int8, uint8, u8s8, u8s7 as conf/quant has them), rewrites it for each deploy target, and
measures all of them in turn: batch 1 on one thread and on all threads, and a large batch on all threads. Out: Markdown
tables with ratios to the float model and their 95 % bootstrap intervals; what each step of deploy=x86 adds; and where
the time of the float model and of the deployed one goes.

Other runtimes are measured beside them, batch 1 on one thread, top-1 on the same test images; both want
`pip install -e '.[bench]'`:
--tflite FILE.tflite: TensorFlow Lite, by its Python interpreter (set_tensor, invoke, get_tensor) with XNNPACK.
--openvino: OpenVINO, by its Python API, on the float and the Q/DQ models that ONNX Runtime gets. With the latency hint
it computes what is not integer in the precision that it prefers on this CPU, which the first lines name.
"""

from __future__ import annotations

import argparse
import io
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant.config import Config, DeployConfig, DeployInput, DeployOutput, DType, Layout  # noqa: E402
from resnet8_quant.deploy.convert_activations import convert_activations  # noqa: E402
from resnet8_quant.deploy.deploy import deploy  # noqa: E402
from resnet8_quant.deploy.fuse import fuse  # noqa: E402
from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.evaluator.accuracy import predict  # noqa: E402
from resnet8_quant.evaluator.latency import BenchmarkModel, Latency, caller, measure_calls, speedup  # noqa: E402
from resnet8_quant.evaluator.profiler import profile_model  # noqa: E402
from resnet8_quant.experiment import prepare  # noqa: E402
from resnet8_quant.graphs.saturation import saturating_layers  # noqa: E402
from resnet8_quant.graphs.session import kernels_saturate  # noqa: E402
from resnet8_quant.inputs.input_spec import InputSpec  # noqa: E402
from resnet8_quant.machine import (  # noqa: E402
    cpu_description,
    load_per_core,
    usable_cores,
    watch_other_processes,
)
from resnet8_quant.quantizer.quantize import quantize  # noqa: E402
from resnet8_quant.sweep.compose import register, to_config  # noqa: E402
from resnet8_quant.terminal import markdown, show_error  # noqa: E402

QUANTS = ("int8", "uint8", "u8s8", "u8s7")
EXACT = ("x86", "arm")  # on every CPU; the others are refused where kernels saturate and 8-bit weights could
TARGETS = (*EXACT, "x86_vnni", "x86_amx")
BYTES_IN = "deploy.input=uint8"
# Steps of deploy=x86 after the first, each on top of the one before: name -> what the config says.
STEPS: dict[str, dict[str, object]] = {
    "+ no layout changes": {"pixel_blocking": False},
    "+ pixel blocking (deploy=x86)": {},
    "+ deploy.input=uint8": {"input": DeployInput.uint8},
    "+ deploy.output=logits": {"input": DeployInput.uint8, "output": DeployOutput.logits},
    "+ deploy.output=label instead": {"input": DeployInput.uint8, "output": DeployOutput.label},
}


def configuration(words: list[str]) -> Config:
    """The config of a command line."""
    return to_config(compose("config", words), words)


def subjects(words: list[str]) -> tuple[dict[str, BenchmarkModel], dict[str, BenchmarkModel], np.ndarray, np.ndarray]:
    """Models to compare, steps of deploy=x86, test images and labels."""
    targets = {name: configuration([*words, f"deploy={name}"]).deploy for name in TARGETS}
    least = replace(targets["x86"], input=DeployInput.uint8, output=DeployOutput.label)
    models: dict[str, BenchmarkModel] = {}
    steps: dict[str, BenchmarkModel] = {}
    for name in QUANTS:
        config = configuration([f"quant={name}", *words])
        prepared = prepare(config)
        assert prepared.images is not None
        model, test = prepared.model, prepared.data.test
        models.setdefault("float", BenchmarkModel(model.serialized, model.input_spec))
        plain = quantize(
            model, prepared.images, Config(config.quant, config.calibration), cache=prepared.cache
        ).serialized
        models[name] = BenchmarkModel(plain, model.input_spec)

        def deployed(
            target: DeployConfig, plain: bytes = plain, input_spec: InputSpec = model.input_spec
        ) -> BenchmarkModel:
            return BenchmarkModel(*deploy(plain, target, input_spec))

        portable = not kernels_saturate() or name == "u8s7"
        for target in TARGETS:
            useful = target in EXACT or portable
            if target == "arm":
                useful = name == "int8"
            if target == "x86_vnni":  # the same file as x86 where no layer can saturate
                useful = portable and name != "u8s7"
            if useful:
                models[f"{name} deploy={target}"] = deployed(targets[target])
        if name == "u8s7":
            fused = fuse(convert_activations(onnx.load_from_string(plain), DType.uint8))[0].finish().SerializeToString()
            steps = {"converted, fused": BenchmarkModel(fused, model.input_spec)}
            steps |= {step: deployed(replace(targets["x86"], **changes)) for step, changes in STEPS.items()}
            steps["deploy=x86_amx"] = deployed(targets["x86_amx"])
            amx = replace(targets["x86_amx"], input=least.input, output=least.output)
            steps[f"deploy=x86_amx, {BYTES_IN}, label"] = deployed(amx)
            models[f"u8s7 deploy=x86, {BYTES_IN}, label"] = deployed(least)
    return models, steps, test.images, test.labels


@dataclass(frozen=True)
class Peer:
    """A model in another runtime, batch 1 on one thread.

    Attributes:
        run: an input [1, ...] -> the first output.
        prepare: uint8 images [N, H, W, C] -> inputs [N, ...].
        size: of the file, bytes.
        runtime: for the record.
    """

    run: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray], np.ndarray]
    size: int
    runtime: str

    def top1(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of the images whose largest output is the label's; a call for each."""
        inputs = self.prepare(images)
        predictions = [int(self.run(inputs[i : i + 1]).argmax()) for i in range(len(inputs))]
        return float(np.mean(np.array(predictions) == labels))


def lite_peer(path: Path, input_spec: InputSpec) -> Peer:
    """A TensorFlow Lite file that takes what the float model takes, quantized if its input is."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExperimentError("--tflite needs ai-edge-litert, which is absent", "pip install -e '.[bench]'") from error
    try:
        interpreter = Interpreter(str(path), num_threads=1)
    except ValueError as error:
        raise ExperimentError(f"--tflite: {path} cannot be read: {error}", "give a .tflite file") from error
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    for found, expected in ((source, (1, *input_spec.shape)), (result, (1, input_spec.classes))):
        if tuple(found["shape"]) != expected:
            raise ExperimentError(
                f"--tflite: {path}: the tensor {found['name']} is {found['shape'].tolist()}, expected {list(expected)}",
                "give a file of the same classifier, or its float model: model=onnx model.path=MODEL.onnx",
            )
    dtype, (scale, zero_point) = source["dtype"], source["quantization"]

    def prepare(images: np.ndarray) -> np.ndarray:
        inputs = replace(input_spec, layout=Layout.NHWC).prepare(images)
        if scale:
            limits = np.iinfo(dtype)
            inputs = np.clip(np.rint(inputs / np.float32(scale)) + zero_point, limits.min, limits.max)
        return inputs.astype(dtype)

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result["index"]))

    return Peer(run, prepare, path.stat().st_size, f"ai-edge-litert {version('ai-edge-litert')}")


def openvino_peer(subject: BenchmarkModel) -> Peer:
    """OpenVINO on an ONNX model."""
    try:
        import openvino
    except ImportError as error:
        raise ExperimentError("--openvino needs openvino, which is absent", "pip install -e '.[bench]'") from error
    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    try:
        model = openvino.Core().read_model(io.BytesIO(subject.serialized))
        model.reshape([1, *list(model.inputs[0].partial_shape)[1:]])
        compiled = openvino.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]  # after the lines of its source that it came through
        raise ExperimentError(f"--openvino: OpenVINO cannot load the model: {reason}", "leave it out") from error
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()

    def run(image: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(image)[0])

    runtime = f"openvino {version('openvino')} ({precision} where not integer)"
    return Peer(run, subject.input_spec.prepare, len(subject.serialized), runtime)


def saturation_cost(models: dict[str, BenchmarkModel]) -> str:
    """What a run pays to know whether kernels saturate: the probe, once a process, and the reading of its model."""

    def milliseconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    kernels_saturate.cache_clear()
    probe = milliseconds(kernels_saturate)
    analyses = [milliseconds(partial(saturating_layers, one.serialized)) for one in models.values()]
    return f"Probe of the kernels {probe:.1f} ms; analysis of a model {min(analyses):.1f} to {max(analyses):.1f} ms"


def compared(
    models: dict[str, BenchmarkModel],
    images: np.ndarray,
    peers: dict[str, Peer],
    *,
    runs: int,
    threads: int,
    batch: int,
) -> dict[str, Latency]:
    """All in turn."""
    calls = {name: caller(subject, images, threads=threads, batch=batch) for name, subject in models.items()}
    calls |= {name: partial(peer.run, peer.prepare(images[:1])) for name, peer in peers.items()}
    return measure_calls(calls, runs=runs, warmup=50 if batch == 1 else 2, batch=batch)


def speed_table(
    measured: dict[str, Latency], sizes: dict[str, int], right: dict[str, float], base: str, *, per_second: bool
) -> str:
    """One row per model."""
    rows = []
    for name, latency in measured.items():
        ratio = speedup(measured[base], latency)
        time = f"{latency.median_us:.1f} us" if not per_second else f"{latency.images_per_second:,.0f}/s"
        interval = f"{latency.low_us:.1f}-{latency.high_us:.1f}" if not per_second else ""
        faster = f"{ratio.value:.2f}x" if name != base else ""
        range_ = f"{ratio.low:.2f}-{ratio.high:.2f}" if name != base else ""
        size = f"{sizes[name]:,} B"
        top = f"{100 * right[name]:.2f} %" if name in right else ""
        rows.append((name, top, size, time, interval, f"{100 * latency.spread:.0f} %", faster, range_))
    columns = ("Model", "Top-1", "Size", "Images" if per_second else "Median", "95 % CI", "Spread", "Faster", "95 % CI")
    return markdown(columns, rows)


def operator_table(model: bytes) -> str:
    """Where the time of a model goes."""
    profile = profile_model(model, runs=500, warmup=100)
    rows = [
        (
            node.name,
            node.operator,
            node.kernel,
            f"{node.median_us:.1f}",
            f"{100 * node.median_us / profile.total_us:.0f} %",
        )
        for node in profile.nodes
    ]
    rows.append((f"a call, not profiled: {profile.call_us:.1f} us", "", "", f"{profile.total_us:.1f}", "100 %"))
    return markdown(("Node", "Operator", "Kernel", "us", "Share"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, metavar="N", help="timed calls of each model (default 2000)")
    parser.add_argument("--batch", type=int, default=500, metavar="N", help="images per call for throughput")
    parser.add_argument(
        "--tflite", type=Path, action="append", default=[], metavar="FILE", help="a model to measure beside; repeatable"
    )
    parser.add_argument("--openvino", action="store_true", help="measure OpenVINO on the float and Q/DQ models beside")
    parser.add_argument("words", nargs="*", metavar="FIELD=VALUE", help="of the config, e.g. model=mlperf_tiny")
    options = parser.parse_args()
    register()
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            models, steps, images, labels = subjects(options.words)
        input_spec = models["float"].input_spec
        peers = {f"TensorFlow Lite, {path.name}": lite_peer(path, input_spec) for path in options.tflite}
        if options.openvino:
            peers |= {f"OpenVINO, {name}": openvino_peer(models[name]) for name in ("float", *QUANTS)}
        load, clock = load_per_core(), time.perf_counter()
        right = {
            name: float(
                np.mean(predict(one.serialized, one.input_spec, images, batch_size=50, threads=0).labels == labels)
            )
            for name, one in (models | steps).items()
        }
        right |= {name: peer.top1(images, labels) for name, peer in peers.items()}
        share_of_others = watch_other_processes()
        single = compared(models, images, peers, runs=options.runs, threads=1, batch=1)
        parts = compared({"float": models["float"]} | steps, images, {}, runs=options.runs, threads=1, batch=1)
        all_threads = compared(models, images, {}, runs=options.runs, threads=0, batch=1)
        many = compared(models, images, {}, runs=max(5, options.runs // 50), threads=0, batch=options.batch)
        others = share_of_others()
    except ExperimentError as error:
        show_error(error)
        return 1
    sizes = {name: len(one.serialized) for name, one in (models | steps).items()}
    sizes |= {name: peer.size for name, peer in peers.items()}
    runtimes = [f"onnxruntime {version('onnxruntime')}", *sorted({peer.runtime for peer in peers.values()})]
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, {', '.join(runtimes)}")
    print(f"Load per core before: {load:.2f}" if load is not None else "Load not known")
    print(f"Share of the cores' time that others took: {100 * others:.0f} %" if others is not None else "")
    print(f"Took {time.perf_counter() - clock:.0f} s")
    print(saturation_cost(models))
    print(f"Command: {shlex.join(['python', 'benchmarks/latency.py', *sys.argv[1:]])}")
    print(f"\nBatch 1, one thread, {options.runs} calls each:\n")
    print(speed_table(single, sizes, right, "float", per_second=False))
    print("\nWhat each step of u8s7 deploy=x86 adds (batch 1, one thread):\n")
    print(speed_table(parts, sizes, right, "float", per_second=False))
    print(f"\nBatch 1, all {usable_cores()} threads:\n")
    print(speed_table(all_threads, sizes, {}, "float", per_second=False))
    print(f"\nBatch {options.batch}, all {usable_cores()} threads:\n")
    print(speed_table(many, sizes, {}, "float", per_second=True))
    for name in ("float", "u8s7", "u8s7 deploy=x86"):
        print(f"\nWhere the time of {name} goes (the profiler adds 2 to 4 us to each operator):\n")
        print(operator_table(models[name].serialized))
    return 0


if __name__ == "__main__":
    sys.exit(main())
