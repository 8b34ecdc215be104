"""Files about a calibration: ranges.csv for reading, histograms.npz for plotting without a second pass."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.files import replacing
from resnet8_quant.quantizer.calibration.calibrate import Calibration
from resnet8_quant.quantizer.calibration.error import clipped_fraction, signal_to_noise_db

COLUMNS = ("tensor", "min", "max", "low", "high", "scale", "zero_point", "decided_by", "clipped_fraction", "snr_db")

# Position of the output's scale among an integer operator's inputs; its zero point comes next.
OUTPUT_SCALE = {"QGemm": 7, "QLinearConcat": 0}
OUTPUT_SCALE |= dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul"), 6)
OUTPUT_SCALE |= dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), 3)
OUTPUT_SCALE |= dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), 3)


def write_ranges(calibration: Calibration, model: onnx.ModelProto, path: Path) -> None:
    """Write ranges.csv: one row for each tensor that has a scale in ``model``, in the order of the graph.

    ``scale`` and ``zero_point`` are read back from ``model``; ``decided_by`` says whether they are this engine's
    ("calibration"), a refinement's ("refinement"), or something else put them there ("onnxruntime").
    ``clipped_fraction`` and ``snr_db`` (signal to quantization noise) are those of the stored scale on the
    calibration images; both are empty without a histogram, except that nothing is clipped where [low, high] holds all
    values.
    """
    rows = []
    for name, (scale, zero_point) in stored_params(model).items():
        if name not in calibration.ranges:
            continue
        low, high = calibration.ranges[name]
        params = calibration.params[name]
        if (scale, zero_point) != (params.scale, params.zero_point):
            decided_by = "onnxruntime"
        else:
            decided_by = "refinement" if name in calibration.refined else "calibration"
        row: dict[str, object] = {"tensor": name, "low": low, "high": high}
        row |= {"scale": scale, "zero_point": zero_point, "decided_by": decided_by}
        stats = calibration.stats.get(name)
        if stats is not None:
            row |= {"min": stats.low, "max": stats.high}
            if stats.histogram is not None:
                stored = dataclasses.replace(params, scale=scale, zero_point=zero_point)
                half = float(scale) / 2  # so far out a value is still rounded, not clipped
                snr = signal_to_noise_db(stats.histogram, stored)
                clipped = clipped_fraction(stats.histogram, stored.low - half, stored.high + half)
                row |= {"clipped_fraction": f"{clipped:.6g}", "snr_db": "" if snr is None else f"{snr:.2f}"}
            elif low <= stats.low and high >= stats.high:
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
    histograms = {name: stats.histogram for name, stats in calibration.stats.items() if stats.histogram is not None}
    if not histograms:
        return False
    arrays: dict[str, np.ndarray] = {"tensors": np.array(list(histograms))}
    for i, histogram in enumerate(histograms.values()):
        arrays[f"counts_{i}"] = histogram.counts
        arrays[f"edges_{i}"] = np.array([histogram.edges[0], histogram.width, histogram.zeros])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return True


def stored_params(model: onnx.ModelProto) -> dict[str, tuple[np.float32, int]]:
    """{float tensor: (scale, zero point)} of the activations of a quantized model, in the order of the graph.

    QDQ: the input of each QuantizeLinear, which onnxruntime renames at a graph's output. QOperator: each quantized
    output, under its float name.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    params: dict[str, tuple[np.float32, int]] = {}

    def store(name: str, scale: str, zero_point: str) -> None:
        if scale in weights and zero_point in weights and not weights[scale].dims:
            zero = int(numpy_helper.to_array(weights[zero_point]))
            params[name] = (np.float32(numpy_helper.to_array(weights[scale])), zero)

    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            store(node.input[0].removesuffix("_QuantizeLinear_Input"), node.input[1], node.input[2])
        elif node.op_type in OUTPUT_SCALE and len(node.input) > OUTPUT_SCALE[node.op_type] + 1:
            position = OUTPUT_SCALE[node.op_type]
            name = node.output[0].removesuffix("_quantized")
            store(name, node.input[position], node.input[position + 1])
    return params
