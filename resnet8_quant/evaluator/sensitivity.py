"""Which layer hurts: what each layer's weights and input, quantized, do to the predictions.

In: a float model, the Q/DQ model that was made of it, and labelled images. Out: a `Sensitivity`, its layers ordered by
harm, and layers.csv and tensors.csv. Everything is computed in float between Q and DQ, on every CPU alike.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import replacing
from resnet8_quant.graphs.partly_quantized import PartialLayer, PartlyQuantized
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.graphs.session import SIMULATED
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress
from resnet8_quant.results import ANALYSIS_FILES

log = logging.getLogger(__name__)

LAYERS, TENSORS = ANALYSIS_FILES
OTHERS = "(others)"  # the row of all that no layer reads
BATCH = 50
Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Effect:
    """What a change does to a model's predictions.

    Attributes:
        kl: mean over the images of the Kullback-Leibler divergence of the class probabilities from those of the float
            model, in nats.
        flips: number of images with another prediction than the float model's.
        accuracy: top-1, a ratio.
    """

    kl: float
    flips: int
    accuracy: float


@dataclass(frozen=True)
class LayerEffect:
    """One layer; or, as ``OTHERS``, the activations that no layer reads, which have no weights.

    Attributes:
        layer: with its bit widths; None for ``OTHERS``.
        weights: its weight and bias quantized, all else float.
        activations: its input quantized, all else float.
        both: both quantized, all else float.
        kept: the quantized model with this layer in float.
    """

    layer: PartialLayer | None
    weights: Effect | None
    activations: Effect
    both: Effect
    kept: Effect


@dataclass(frozen=True)
class Sensitivity:
    """The analysis of a model.

    Attributes:
        layers: the most harmful first: by the divergence with both quantized.
        accuracy: top-1 of the float model.
        quantized: the model with everything quantized.
        snr_db: {quantized tensor: its signal-to-noise ratio}, accumulated along the quantized model: the energy of the
            float model's values over that of the difference, in dB; in the order of the graph.
        images: that were looked at.
    """

    layers: tuple[LayerEffect, ...]
    accuracy: float
    quantized: Effect
    snr_db: dict[str, float]
    images: int


def analyze(floating: onnx.ModelProto, quantized: onnx.ModelProto, input_spec: InputSpec, split: Split) -> Sensitivity:
    """Measure what each layer does to the predictions.

    Args:
        floating: with BatchNorm folded, as it was quantized.
        quantized: the Q/DQ model made of it, with names.
        input_spec: of both.
        split: images that calibrate nothing and test nothing, at least one.

    Raises:
        ExperimentError: no weight of ``quantized`` belongs to ``floating``.
    """
    started = time.perf_counter()
    try:
        parts = PartlyQuantized(floating, quantized)
    except ValueError as error:
        raise ExperimentError(
            f"`analyze` is layers, but the model cannot be compared with its float model: {error}", "analyze=none"
        ) from error
    run = _Runner(input_spec, split)
    everything = {layer.name for layer in parts.layers}

    float_outputs = run(parts.model())
    truth = _log_softmax(float_outputs)
    predictions = float_outputs.argmax(axis=1)

    def effect(model: onnx.ModelProto) -> Effect:
        scores = run(model)
        logs = _log_softmax(scores)
        kl = float((np.exp(truth) * (truth - logs)).sum(axis=1).mean())
        labels = scores.argmax(axis=1)
        flips, correct = int((labels != predictions).sum()), int((labels == split.labels).sum())
        return Effect(kl, flips, correct / len(labels))

    rows = []
    with progress("analyzing", len(parts.layers) + 1, "layers") as advance:
        for layer in parts.layers:
            one, rest = {layer.name}, everything - {layer.name}
            rows.append(
                LayerEffect(
                    layer,
                    effect(parts.model(weights=one)),
                    effect(parts.model(activations=one)),
                    effect(parts.model(weights=one, activations=one)),
                    effect(parts.model(rest, rest, others=True)),
                )
            )
            advance(1)
        alone = effect(parts.model(others=True))
        rows.append(LayerEffect(None, None, alone, alone, effect(parts.model(everything, everything))))
        advance(1)
    accuracy = float((predictions == split.labels).mean())
    whole = effect(parts.model(everything, everything, others=True))
    snr = _snr(run, parts, everything)
    rows.sort(key=lambda row: -row.both.kl)
    seconds = time.perf_counter() - started
    log.info("analyzed %d layers on %d training images in %.1f s", len(parts.layers), len(split.labels), seconds)
    return Sensitivity(tuple(rows), accuracy, whole, snr, len(split.labels))


class _Runner:
    """Runs models on all images, batches on all cores."""

    def __init__(self, input_spec: InputSpec, split: Split) -> None:
        self.input_spec, self.images = input_spec, split.images
        self.size = input_spec.batch or BATCH

    def __call__(self, model: onnx.ModelProto) -> np.ndarray:
        """float32 [N, classes]: values of the first output on all images."""
        session = new_session(model.SerializeToString(), 1, entries=SIMULATED)
        parts = self.map(lambda batch: session.run(None, {self.input_spec.name: batch})[:1])
        return np.concatenate([part[0].reshape(len(part[0]), -1) for part in parts])

    def map(self, compute: Callable[[np.ndarray], list[np.ndarray]]) -> list[list[np.ndarray]]:
        """What ``compute`` makes of each batch, cut to its images where the batch had to be filled up."""

        def one(start: int) -> list[np.ndarray]:
            batch = self.input_spec.prepare(self.images[start : start + self.size])
            count = len(batch)
            if self.input_spec.batch is not None and count < self.size:
                batch = np.concatenate([batch, np.repeat(batch[-1:], self.size - count, axis=0)])
            return [values[:count] for values in compute(batch)]

        with ThreadPoolExecutor(usable_cores()) as pool:
            return list(pool.map(one, range(0, len(self.images), self.size)))


def _snr(run: _Runner, parts: PartlyQuantized, everything: set[str]) -> dict[str, float]:
    """Signal-to-noise ratio in dB of every quantized tensor, along the quantized model."""
    if not parts.tensors:
        return {}
    names = list(parts.tensors)
    values = [parts.tensors[name] for name in names]
    source = run.input_spec.name
    computed = [name for name in names if name != source]
    models = [parts.model(outputs=computed), parts.model(everything, everything, others=True, outputs=values)]
    sessions = [new_session(model.SerializeToString(), 1, entries=SIMULATED) for model in models]

    def energies(batch: np.ndarray) -> list[np.ndarray]:
        feed = {source: batch}
        signals = dict(zip(computed, sessions[0].run(computed, feed) if computed else [], strict=True)) | feed
        noisy = sessions[1].run(values, feed)
        pairs = [(signals[name].astype(np.float64), value) for name, value in zip(names, noisy, strict=True)]
        return [np.stack([_energies(signal, value) for signal, value in pairs], axis=1)]  # [N, tensors, 2]

    total = np.concatenate([part[0] for part in run.map(energies)]).sum(axis=0)
    return {name: _decibels(signal, noise) for name, (signal, noise) in zip(names, total.tolist(), strict=True)}


def _energies(signal: np.ndarray, value: np.ndarray) -> np.ndarray:
    """float64 [N, 2]: of the signal, and of the difference, for each image."""
    axes = tuple(range(1, signal.ndim))
    return np.stack([(signal**2).sum(axis=axes), ((value - signal) ** 2).sum(axis=axes)], axis=1)


def _decibels(signal: float, noise: float) -> float:
    """10 log10 of the ratio; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    """float64 [N, classes]: logarithms of the class probabilities."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def rows_of(sensitivity: Sensitivity) -> list[Row]:
    """The rows of layers.csv, the most harmful layer first."""
    rows: list[Row] = []
    for effect in sensitivity.layers:
        layer = effect.layer
        row: Row = {
            "layer": layer.name if layer else OTHERS,
            "operator": layer.operator if layer else None,
            "weight_bits": layer.weight_bits if layer else None,
            "activation_bits": layer.activation_bits if layer else None,
        }
        parts = {"weights": effect.weights, "activations": effect.activations, "both": effect.both}
        for name, part in (*parts.items(), ("kept_float", effect.kept), ("quantized", sensitivity.quantized)):
            row |= {f"{name}_{column}": getattr(part, column, None) for column in ("kl", "flips", "accuracy")}
        snr = sensitivity.snr_db.get(layer.output) if layer else None
        row |= {"output_snr_db": snr, "float_accuracy": sensitivity.accuracy, "images": sensitivity.images}
        rows.append(row)
    return rows


def write(sensitivity: Sensitivity, folder: Path) -> None:
    """Write layers.csv and tensors.csv."""
    tensors: list[Row] = [{"tensor": name, "snr_db": value} for name, value in sensitivity.snr_db.items()]
    _write(folder / TENSORS, ["tensor", "snr_db"], tensors)
    rows = rows_of(sensitivity)
    _write(folder / LAYERS, list(rows[0]), rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)


def _text(value: str | int | float | None) -> str | int | None:
    """A cell; floats with six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else value
