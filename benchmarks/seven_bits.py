"""Weights finer than 7 bits that cannot saturate in ONNX Runtime's kernels either: what are they worth?

Without VNNI two neighbouring products must stay within 16 bits (graphs/saturation.py). 7 bits see to that by the
largest weight of a channel alone. Here each channel gets the finest scale with which no pair of its weights saturates,
between 8 and 7 bits. Rounding is to nearest. How a single grid happens to round a network's weights moves its top-1 by
tenths of a point, with any seed, since the seed chooses calibration images only; so each grid is also measured a little
coarser, in steps of half a percent, and the means over all steps are compared. Neighbouring steps round the small
weights alike, so that their interval is rather too narrow. Out: a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from hydra import compose, initialize_config_dir
from onnx import NodeProto, numpy_helper
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._studies import errors_as_sentences  # noqa: E402
from resnet8_quant.config import Config  # noqa: E402
from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.evaluator.accuracy import predict  # noqa: E402
from resnet8_quant.experiment import prepare  # noqa: E402
from resnet8_quant.graphs.saturation import pair_saturates, rows_of, saturating_layers  # noqa: E402
from resnet8_quant.machine import cpu_description  # noqa: E402
from resnet8_quant.quantizer.quantize import quantize  # noqa: E402
from resnet8_quant.sweep.compose import register, to_config  # noqa: E402
from resnet8_quant.terminal import markdown  # noqa: E402

OWN = ("quant=u8s8", "refine=none")  # the weights are the float model's, rounded here
EIGHT, SEVEN, PAIRS = "8 bits", "7 bits", "pairs"
STEPS = {EIGHT: 127, SEVEN: 64}  # codes of the largest weight; 64: as quant.reduce_range
BISECTIONS = 24
STRETCH = 0.005


@dataclass(frozen=True)
class Layer:
    """A layer of a Q/DQ graph: its node, and the DequantizeLinear nodes of its data, weight and bias, if it has one."""

    node: NodeProto
    data: NodeProto
    weight: NodeProto
    bias: NodeProto | None


@dataclass(frozen=True)
class Measured:
    """A grid, with each stretch, or with each seed and stretch.

    Attributes:
        top1: in percent.
        changed: images whose class is not the float model's.
        steps: codes of the largest weight of a channel, mean of all channels, without stretch.
        saturating: whether some pair can saturate.
    """

    top1: np.ndarray
    changed: np.ndarray
    steps: float
    saturating: bool


def layers_of(model: onnx.ModelProto) -> Iterator[Layer]:
    """Its Conv, Gemm and MatMul."""
    sources = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            data, weight, *bias = (sources[name] for name in node.input)
            yield Layer(node, data, weight, bias[0] if bias else None)


def finest_scales(rows: np.ndarray) -> np.ndarray:
    """The smallest float32 scale of each row with which no pair saturates: codes only shrink as it grows."""
    largest = np.abs(rows).max(axis=1)
    low, high = largest / STEPS[EIGHT], largest / STEPS[SEVEN]  # 7 bits fit: 255 * (64 + 64) is within 16 bits
    high = np.where(fits(rows, low), low, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        good = fits(rows, middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return np.asarray(np.nextafter(high.astype(np.float32), np.float32(np.inf)), np.float64)


def fits(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Of each row, whether no pair saturates with its scale."""
    codes = np.rint(rows / scales[:, None])
    return np.array([not pair_saturates(row[None]) for row in codes])


def scales_of(layer: Layer, weight: np.ndarray, grid: str) -> np.ndarray:
    """A scale for each output channel."""
    rows = rows_of(layer.node, 1, weight.astype(np.float64))
    if rows is None or not np.abs(rows).max(axis=1).all():
        raise ExperimentError(
            f"{layer.node.output[0]} is a depthwise convolution or has a channel without weights",
            "choose another model",
        )
    return finest_scales(rows) if grid == PAIRS else np.abs(rows).max(axis=1) / STEPS[grid]


def fake_quantize(
    quantized: bytes, floats: dict[str, np.ndarray], scales: dict[str, np.ndarray], stretch: float
) -> bytes:
    """A Q/DQ model with its weights rounded anew.

    Args:
        quantized: from quantize().
        floats: initializers of the float model.
        scales: of each layer, by its output.
        stretch: factor of all scales.
    """
    model = onnx.load_from_string(quantized)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def put(name: str, values: np.ndarray) -> None:
        dtype = numpy_helper.to_array(tensors[name]).dtype
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(dtype), name))

    for layer in layers_of(model):
        scale = (scales[layer.node.output[0]] * stretch).astype(np.float32).astype(np.float64)
        weight = floats[layer.weight.input[0].removesuffix("_quantized")]
        axis = next(attribute.i for attribute in layer.weight.attribute if attribute.name == "axis")
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        put(layer.weight.input[0], np.rint(weight / scale.reshape(shape)))
        put(layer.weight.input[1], scale)
        if layer.bias is not None:
            bias_scale = scale * numpy_helper.to_array(tensors[layer.data.input[1]]).astype(np.float64)
            put(layer.bias.input[0], np.rint(floats[layer.bias.input[0].removesuffix("_quantized")] / bias_scale))
            put(layer.bias.input[1], bias_scale)
    return bytes(model.SerializeToString())


def measure(words: list[str], seed: int, stretches: np.ndarray) -> dict[str, Measured]:
    """All grids, with all stretches, on the ranges that one seed's calibration images have."""
    every = [*OWN, *words, f"seed={seed}"]
    config = to_config(compose("config", every), every)
    prepared = prepare(config)
    model, test = prepared.model, prepared.data.test
    assert prepared.images is not None  # quant=u8s8
    quantized = quantize(
        model, prepared.images, Config(config.quant, config.calibration), cache=prepared.cache
    ).serialized
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}
    layers = list(layers_of(onnx.load_from_string(quantized)))
    weights = [floats[layer.weight.input[0].removesuffix("_quantized")] for layer in layers]
    size, threads = config.evaluation.batch_size, config.evaluation.threads

    def predictions(serialized: bytes) -> np.ndarray:
        return predict(serialized, model.input_spec, test.images, batch_size=size, threads=threads).labels

    reference = predictions(model.serialized)
    eight = [scales_of(layer, weight, EIGHT) for layer, weight in zip(layers, weights, strict=True)]
    measured = {}
    for grid in (EIGHT, SEVEN, PAIRS):
        scales = [scales_of(layer, weight, grid) for layer, weight in zip(layers, weights, strict=True)]
        named = {layer.node.output[0]: scale for layer, scale in zip(layers, scales, strict=True)}
        models = [fake_quantize(quantized, floats, named, stretch) for stretch in stretches]
        labels = np.array([predictions(one) for one in models])
        measured[grid] = Measured(
            100 * np.mean(labels == test.labels, axis=1),
            np.sum(labels != reference, axis=1),
            float(np.mean(np.concatenate(eight) / np.concatenate(scales))) * STEPS[EIGHT],
            any(map(saturating_layers, models)),
        )
        print(f"seed {seed}, {grid}: {np.round(measured[grid].top1, 2)}", file=sys.stderr, flush=True)
    return measured


def over_seeds(measured: list[dict[str, Measured]]) -> dict[str, Measured]:
    """The measurements of all seeds, [seeds, stretches]."""
    return {
        grid: Measured(
            np.array([one[grid].top1 for one in measured]),
            np.array([one[grid].changed for one in measured]),
            measured[0][grid].steps,
            any(one[grid].saturating for one in measured),
        )
        for grid in measured[0]
    }


def interval(differences: np.ndarray) -> str:
    """Mean difference and the half of its 95 % interval, by Student's t."""
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return f"{differences.mean():+.2f} ± {half:.2f}"


def table(measured: dict[str, Measured]) -> str:
    """A row for each grid; differences are paired with 7 bits."""
    base, rows = measured[SEVEN], []
    for grid, one in measured.items():
        first, means = one.top1[:, 0], one.top1.mean(axis=0)
        rows.append(
            (
                grid,
                "yes" if one.saturating else "no",
                f"{one.steps:.1f}",
                f"{first.mean():.2f} ({first.min():.2f}-{first.max():.2f})",
                "" if one is base else interval(first - base.top1[:, 0]),
                f"{means.mean():.2f} ({means.min():.2f}-{means.max():.2f})",
                "" if one is base else interval(means - base.top1.mean(axis=0)),
                f"{one.changed.mean():.0f}",
                "" if one is base else interval((one.changed - base.changed).mean(axis=0)),
            )
        )
    names = ("Weights", "Can saturate", "Largest code", "Top-1", "less 7 bits'", "Top-1, all stretches", "less 7 bits'")
    return markdown((*names, "Changed images", "less 7 bits'"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="OVERRIDE", help="as for run.py, e.g. model=mlperf_tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="default 0 to 4")
    parser.add_argument("--stretches", type=int, default=6, metavar="N", help="of each grid (default 6)")
    options = parser.parse_intermixed_args()
    if options.stretches < 2 or len(options.seeds) < 2:
        parser.error("--stretches and --seeds must be at least two")
    stretches = 1 + STRETCH * np.arange(options.stretches)
    started = datetime.now(UTC)
    register()
    with errors_as_sentences(), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        measured = over_seeds([measure(options.words, seed, stretches) for seed in options.seeds])
    print(f"Date: {started:%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, numpy {version('numpy')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/seven_bits.py', *sys.argv[1:]])}\n")
    print(
        f"Top-1 in %: mean of seeds {', '.join(map(str, options.seeds))} (smallest-largest); then of {len(stretches)} "
        f"grids, each {100 * STRETCH:g} % coarser than the one before. Changed images: not the float model's class, "
        "mean of all. Differences with the 95 % interval of a paired t-test, the first over seeds, the others over "
        "grids.\n"
    )
    print(table(measured))


if __name__ == "__main__":
    main()
