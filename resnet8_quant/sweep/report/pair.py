"""Two runs side by side: settings that differ, what each reaches and needs, the images and classes that flip, bits.

In: runs that were evaluated on the same images. Out: tables of texts, as the command `compare` shows them; and what the
page needs to make the same tables of any two of its runs, in templates/pair.js.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_quant import terminal
from resnet8_quant.deploy.memory import FLOAT_BITS
from resnet8_quant.errors import COMMAND
from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.files import read_json
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, varied
from resnet8_quant.sweep.collect import settings as settings_of
from resnet8_quant.sweep.report.evidence import Evidence, Predictions, gather
from resnet8_quant.sweep.report.recommendation import LEVEL, flash, ram
from resnet8_quant.sweep.report.tables import shortened

SAME_IMAGES = ("data", "data_sha256", "eval_images", "calibration_overlap")
COMPARE = f"{COMMAND} compare RUN_A RUN_B"
MAX_PREDICTION_BYTES = 2_500_000  # of the page; a run on the test images of CIFAR-10 takes 1 to 2 kB of them
# What command and page say alike.
SENTENCES = {
    "other_images": "{a} and {b} were evaluated on different images: `{name}` is {value_a} and {value_b}",
    "test": "Of {images} images B predicts {changed} otherwise than A: {lost} that A gets right, {gained} that A gets "
    "wrong. McNemar p = {p}, {verdict}.",
    "real": "real at the 5 % level",
    "noise": "within noise",
    "no_test": "No paired test: {reason}",
    "no_file": "{name} has no predictions.npy that agrees with its results",
    "not_held": "{name} comes so late in the table that this page does not hold its predictions; `"
    + COMPARE
    + "` has it",
    "no_layers": "{name}: its run.json cannot be read, so that the bits of its layers are not known.",
    "old_layers": "{name}: its run.json is of an earlier version, which names a layer after a Relu that is part of it; "
    "this version names it as quant.layers does, so run that again.",
}
Bits = tuple[int | None, int | None]  # of weight and input
IN_FLOAT: Bits = (FLOAT_BITS, None)
ABSENT: Bits = (None, None)
HEADINGS = {
    "setting": ("Setting", "A", "B"),
    "figure": ("", "A", "B", "B less A"),
    "class": ("Class", "B lost", "B gained", "Net"),
    "layer": ("Layer", "A: weights, activations", "B: weights, activations"),
}


@dataclass(frozen=True)
class Table:
    """One table: its key in HEADINGS, and rows of texts."""

    name: str
    rows: list[tuple[str, ...]]

    @property
    def heading(self) -> tuple[str, ...]:
        return HEADINGS[self.name]


class Figure(NamedTuple):
    """What a run reaches or needs: its name, in words, and as a number that ``kind`` says how to compare."""

    name: str
    text: str
    value: float | None
    kind: str


class Flips(NamedTuple):
    """The images that two runs predict otherwise.

    Attributes:
        images: on which both were evaluated.
        changed: of them, those with two predictions.
        lost: those that A alone gets right.
        gained: those that B alone gets right.
        p: of the exact McNemar test.
        classes: (name, lost, gained) of each class with any, the worst for B first.
    """

    images: int
    changed: int
    lost: int
    gained: int
    p: float
    classes: list[tuple[str, int, int]]


class Layers(NamedTuple):
    """The quantized layers of a run.

    Attributes:
        bits: {its name in the float model: bits of weight and input}.
        model: digest of that model; "" in a run.json of an earlier version, which has names of the quantized model.
    """

    bits: dict[str, Bits]
    model: str


def images_of(row: RunResult) -> tuple[Any, ...]:
    """The values of SAME_IMAGES, which two runs on the same images have in common."""
    return tuple(getattr(row, name) or 0 for name in SAME_IMAGES)


def images_in_words(images: tuple[Any, ...]) -> list[str]:
    """Each of the values of SAME_IMAGES, a digest by its beginning."""
    return [f"{value:,}" if isinstance(value, int) else shortened(str(value), 13) for value in images]


def settings(jobs: Sequence[Job]) -> Table | None:
    """The settings that differ; None: none does."""
    values = [settings_of(job.row) for job in jobs]
    rows = [(key, *(value.get(key, "default") for value in values)) for key in varied(jobs)]
    return Table("setting", rows) if rows else None


def figures(jobs: Sequence[Job]) -> Table:
    """What the two reach and need, and B less A."""
    a, b = (job.row for job in jobs)
    pairs = zip(figures_of(a), figures_of(b), strict=True)
    rows = [
        (first.name, first.text, second.text, _difference(first, second, a.cpu == b.cpu)) for first, second in pairs
    ]
    return Table("figure", [row for row in rows if any(row[1:3])])


def figures_of(row: RunResult) -> list[Figure]:
    """The figures of a run, always the same ones; text and value are empty where it has none."""

    def figure(name: str, value: Any, show: Any, kind: str = "") -> Figure:
        return Figure(name, "" if value is None else show(value), value if kind else None, kind)

    return [
        figure("Quantization", row.quant_type, str),
        figure("Top-1", row.accuracy, terminal.percent, "points"),
        figure("Against float", row.accuracy_delta, terminal.points, "points"),
        figure("File", row.model_bytes, terminal.size, "bytes"),
        figure("Flash", flash(row), terminal.size, "bytes"),
        figure("RAM", ram(row), terminal.size, "bytes"),
        figure("Latency", row.latency_us_median, lambda _: _latency(row), "time"),
        figure("Kernels", row.kernels, str),
        figure("In LiteRT", row.tflite_accuracy, terminal.percent, "points"),
        figure("In TFLite Micro", row.tflm_accuracy, terminal.percent, "points"),
    ]


def _latency(row: RunResult) -> str:
    """The median, with its interval where that is known."""
    median, low, high = row.latency_us_median, row.latency_us_ci_low, row.latency_us_ci_high
    if median is None or low is None or high is None:
        return terminal.microseconds(median)
    shown = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in (median, low, high)]
    return "{} ({}-{}) us".format(*shown)


def _difference(first: Figure, second: Figure, same_cpu: bool) -> str:
    """B less A, or how many times as fast B is; times of different CPUs are not compared."""
    a, b = first.value, second.value
    if a is None or b is None:
        return ""
    if first.kind == "time":
        return f"{a / b:.2f}x as fast" if a and b and same_cpu else ""
    return terminal.points(b - a) if first.kind == "points" else f"{b - a:+,.0f} B"


def flips(evidence: Evidence) -> tuple[str, Table | None]:
    """McNemar's test on the images that only one of the two gets right, in a sentence, and these images by class."""
    found = count_flips(evidence)
    if found is None:
        reasons = [evidence.no_labels, *evidence.notes] if evidence.labels is None else evidence.notes
        return SENTENCES["no_test"].format(reason="; ".join(filter(None, reasons))), None
    sentence = SENTENCES["test"].format(
        images=f"{found.images:,}",
        changed=f"{found.changed:,}",
        lost=f"{found.lost:,}",
        gained=f"{found.gained:,}",
        p=f"{found.p:.3g}",
        verdict=SENTENCES["real" if found.p < LEVEL else "noise"],
    )
    rows: list[tuple[str, ...]] = [
        (name, f"{lost:,}", f"{gained:,}", f"{gained - lost:+,}") for name, lost, gained in found.classes
    ]
    return sentence, Table("class", rows) if rows else None


def count_flips(evidence: Evidence) -> Flips | None:
    """The images that the two predict otherwise; None without labels or predictions of both."""
    a, b = evidence.predictions
    labels = evidence.labels
    if labels is None or a is None or b is None:
        return None
    lost, gained = (a == labels) & (b != labels), (b == labels) & (a != labels)
    classes = []
    for number in np.unique(labels[lost | gained]):
        name = evidence.classes[number] if number < len(evidence.classes) else str(number)
        classes.append((name, int((lost & (labels == number)).sum()), int((gained & (labels == number)).sum())))
    classes.sort(key=lambda row: row[2] - row[1])
    counts = int(lost.sum()), int(gained.sum())
    return Flips(len(labels), int((a != b).sum()), *counts, mcnemar_p(*counts), classes)


def layers(both: Sequence[Layers | None]) -> tuple[list[str], Table | None]:
    """What stands in the way, in sentences, and the bits of weights and activations by layer; None: both the same."""
    bits = differing_bits(both)
    said = [
        SENTENCES["no_layers" if own is None else "old_layers"].format(name=name)
        for name, own in zip("AB", both, strict=True)
        if own is None or (bits and not own.model)
    ]
    return said, Table("layer", [(name, *map(bits_in_words, pair)) for name, pair in bits.items()]) if bits else None


def differing_bits(both: Sequence[Layers | None]) -> dict[str, tuple[Bits, Bits]]:
    """{layer: its bits in A and in B}; empty where all layers have the same, or a run.json cannot be read."""
    a, b = both
    if a is None or b is None or a.bits == b.bits:
        return {}
    absent = IN_FLOAT if a.model and a.model == b.model else ABSENT
    return {name: (a.bits.get(name, absent), b.bits.get(name, absent)) for name in a.bits | b.bits}


def bits_in_words(bits: Bits) -> str:
    """``8, 4 bits`` of weight and input."""
    return "float" if bits == IN_FLOAT else "-" if bits == ABSENT else "{}, {} bits".format(*bits)


def layers_of(job: Job) -> Layers | None:
    """The quantized layers of a run; None where its run.json cannot be read."""
    entries = read_json(job.path / "run.json").get("layers")
    if not isinstance(entries, list):
        return None
    found = [entry for entry in entries if isinstance(entry, dict)]
    named = all("name" in entry for entry in found)
    bits = {
        str(entry.get("name", entry.get("output"))): (_bits(entry, "weight"), _bits(entry, "activation"))
        for entry in found
    }
    return Layers(bits, str(job.row.float_model_sha256) if named else "")


def _bits(entry: dict[str, Any], part: str) -> int | None:
    bits = entry.get(f"{part}_bits")
    return bits if isinstance(bits, int) else None


# ---- any two runs of a page


def page_data(jobs: Sequence[Job], evidence: Evidence) -> tuple[dict[str, Any], str]:
    """What the page makes the tables of any two of ``jobs`` from, and a sentence where it cannot test all of them.

    What several runs share stands there once. Runs of a sweep predict much the same: of each the page holds where it
    differs from the first one on the same images, the exclusive or of the two, which packs to a tenth.

    Args:
        jobs: the rows of the table of runs; one that failed becomes None.
        evidence: of most of them; that of runs on other images is gathered here.
    """
    finished = [job for job in jobs if job.ok]
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in finished:
        groups.setdefault(images_of(job.row), []).append(job)
    known = {id(job) for job in evidence.jobs}
    sets = [evidence if all(id(job) in known for job in group) else gather(group) for group in groups.values()]
    images = _places(groups)
    packed, note = _packed_predictions(finished, sets)
    predictions, cpus = _places(packed.values()), _places(job.row.cpu for job in finished)
    layered = {id(job): _short_layers(job) for job in finished}
    layers = _places(layered.values())
    every = [settings_of(job.row) for job in finished]
    keys = {key for key in {key for setting in every for key in setting} if len({own.get(key) for own in every}) > 1}

    def run(job: Job) -> dict[str, Any]:
        text = packed.get(id(job))
        return {
            "name": shortened(f"{job.label} ({job.choices})"),
            "settings": [(key, shortened(value)) for key, value in settings_of(job.row).items() if key in keys],
            "figures": [(shortened(figure.text), figure.value) for figure in figures_of(job.row)],
            "cpu": cpus[job.row.cpu],
            "images": images[images_of(job.row)],
            "layers": layers[layered[id(job)]],
            "predictions": None if text is None else predictions[text] if text else -1,
        }

    data = {
        "runs": [run(job) if job.ok else None for job in jobs],
        "figures": [(figure.name, figure.kind) for figure in figures_of(RunResult())],
        "images": [
            {
                "values": images_in_words(values),
                "classes": [shortened(name) for name in own.classes],
                "labels": None if own.labels is None else pack(own.labels),
                "reference": None if (first := _reference(own)) is None else pack(first),
                "no_labels": own.no_labels,
            }
            for values, own in zip(images, sets, strict=True)
        ],
        "predictions": [*predictions],
        "layers": [*layers],
        "same_images": SAME_IMAGES,
        "sentences": SENTENCES,
        "headings": HEADINGS,
        "level": LEVEL,
    }
    return data, note


def pack(classes: NDArray[np.integer]) -> str:
    """Classes below 65,536, [N]: N low bytes, then N high bytes, compressed by zlib, in base64."""
    planes = classes.astype("<u2").view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


def _reference(evidence: Evidence) -> Predictions | None:
    """What the others are packed as differences from."""
    return next((predictions for predictions in evidence.predictions if predictions is not None), None)


def _packed_predictions(jobs: Sequence[Job], sets: Sequence[Evidence]) -> tuple[dict[int, str], str]:
    """{id of a job: its predictions, or "" where the page is full}, and a sentence that says so."""
    differences = {
        id(job): predicted ^ reference
        for own in sets
        if own.labels is not None and (reference := _reference(own)) is not None
        for job, predicted in zip(own.jobs, own.predictions, strict=True)
        if predicted is not None
    }
    packed = {id(job): "" for job in jobs if id(job) in differences}
    size = 0
    for count, job in enumerate(packed):
        if size >= MAX_PREDICTION_BYTES:
            return packed, (
                f"This page holds the predictions of the first {count:,} of {len(packed):,} runs, so that it stays "
                f"small; `{COMPARE}` has the paired test of any two."
            )
        packed[job] = pack(differences[job])
        size += len(packed[job])
    return packed, ""


def _short_layers(job: Job) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    own = layers_of(job)
    if own is None:
        return None
    return shortened(own.model, 13), tuple(
        (shortened(name), shortened(bits_in_words(bits))) for name, bits in own.bits.items()
    )


def _places(values: Iterable[Hashable]) -> dict[Any, int]:
    """{value: its place}, each value once."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}
