"""What calibration found, as files: ranges.csv for reading, histograms.npz for plotting without a second pass.

In: a `Calibration` and the produced model. Out: one row for each tensor that has a scale in the model, in the order
of the graph; one group of arrays for each histogram.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.files import replacing
from resnet8_quant.quantizer.calibration.engine import Calibration
from resnet8_quant.quantizer.calibration.grid import clipped_fraction, signal_to_noise_db

COLUMNS = ("tensor", "min", "max", "low", "high", "scale", "zero_point", "decided_by", "clipped_fraction", "snr_db")


def write_ranges(calibration: Calibration, model: onnx.ModelProto, path: Path) -> None:
    """Write ranges.csv.

    ``scale`` and ``zero_point`` are read back from ``model``; ``decided_by`` says whether they are this engine's
    ("calibration"), a refinement's ("refinement"), or something else put them there ("onnxruntime").
    ``clipped_fraction`` and ``snr_db`` (signal to quantization noise) are those of the stored scale on the
    calibration images; both are empty without a histogram, except that nothing is clipped where [low, high] holds all
    values.
    """
    rows = []
    for name, (scale, zero_point) in stored_grids(model).items():
        if name not in calibration.ranges:
            continue
        low, high = calibration.ranges[name]
        grid = calibration.grids[name]
        same = scale == grid.scale and zero_point == grid.zero_point
        row: dict[str, object] = {
            "tensor": name,
            "low": low,
            "high": high,
            "scale": scale,
            "zero_point": zero_point,
            "decided_by": ("refinement" if name in calibration.refined else "calibration") if same else "onnxruntime",
        }
        observed = calibration.observations.get(name)
        if observed is not None:
            row |= {"min": observed.low, "max": observed.high}
            stored = type(grid)(scale, zero_point, grid.levels)
            if observed.histogram is not None:
                half = float(scale) / 2  # so far out a value is still rounded, not clipped
                snr = signal_to_noise_db(observed.histogram, stored)
                clipped = clipped_fraction(observed.histogram, stored.low - half, stored.high + half)
                row |= {"clipped_fraction": f"{clipped:.6g}", "snr_db": "" if snr is None else f"{snr:.2f}"}
            elif low <= observed.low and high >= observed.high:
                row["clipped_fraction"] = "0"
        rows.append(row)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_histograms(calibration: Calibration, path: Path) -> bool:
    """Write histograms.npz, if there are any: ``tensors``, and for the i-th of them ``counts_i`` and ``edges_i``.

    ``edges_i`` is [first edge, width, number of exact zeros]: ``first + width * arange(len(counts) + 1)`` are the
    edges.
    """
    found = {name: seen.histogram for name, seen in calibration.observations.items() if seen.histogram is not None}
    if not found:
        return False
    arrays: dict[str, np.ndarray] = {"tensors": np.array(list(found))}
    for i, histogram in enumerate(found.values()):
        arrays[f"counts_{i}"] = histogram.counts
        arrays[f"edges_{i}"] = np.array([histogram.edges[0], histogram.width, histogram.zeros])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return True


def stored_grids(model: onnx.ModelProto) -> dict[str, tuple[np.float32, int]]:
    """{float tensor: (scale, zero point)} of the activations of a quantized model, in the order of the graph.

    QDQ: the input of each QuantizeLinear, which onnxruntime renames at a graph's output. QOperator: each quantized
    output, under its float name.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, tuple[np.float32, int]] = {}

    def store(name: str, scale: str, zero_point: str) -> None:
        if scale in weights and zero_point in weights and not weights[scale].dims:
            zero = int(numpy_helper.to_array(weights[zero_point]))
            found[name] = (np.float32(numpy_helper.to_array(weights[scale])), zero)

    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            store(node.input[0].removesuffix("_QuantizeLinear_Input"), node.input[1], node.input[2])
        elif node.op_type in OUTPUT_SCALE and len(node.input) > OUTPUT_SCALE[node.op_type] + 1:
            position = OUTPUT_SCALE[node.op_type]
            name = node.output[0].removesuffix("_quantized")
            store(name, node.input[position], node.input[position + 1])
    return found


# Position of the output's scale among an integer operator's inputs; its zero point comes next.
OUTPUT_SCALE = {
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QGemm": 7,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
    "QLinearConcat": 0,
}
