"""The plots of a few runs: accuracy of each class, where the answers moved, signal to noise of each layer.

In: `Evidence`, the recommended run and the run that is looked at closely. Out: plots, or why there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.chart import MOST_SERIES, Chart, Heat, Series
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.files import number, read_table
from resnet8_quant.sweep.report.markup import shortened

MOST_RUNS = 12
MOST_CLASSES = 40
NAME = 44  # characters of a run's name on an axis


def focus(evidence: Evidence, recommended: Job) -> Job | None:
    """The run whose errors are shown: the recommended one, or the most accurate quantized one where that is float."""
    if recommended.row.calibration_method is not None:
        return recommended
    quantized = [job for job in evidence.jobs if job.row.calibration_method is not None]
    return max(quantized, key=lambda job: job.row.accuracy or 0.0, default=None)


def selection(evidence: Evidence, first: Job, most: int = MOST_RUNS) -> list[Job]:
    """``first`` and then the most accurate quantized runs; of runs that differ only in the seed, one."""
    quantized = [job for job in evidence.jobs if job.row.calibration_method is not None]
    ordered = [first, *sorted(quantized, key=lambda job: -(job.row.accuracy or 0.0))]
    distinct: dict[str, Job] = {}
    for job in ordered:
        words = [word for word in (job.row.overrides or job.folder).split() if not word.startswith("seed=")]
        distinct.setdefault(" ".join(words), job)
    return list(distinct.values())[:most]


def per_class(evidence: Evidence, first: Job) -> tuple[Heat | None, str]:
    """How far each class moved from float, in points, for a few runs."""
    rows: list[tuple[Job, dict[str, tuple[float, str]]]] = []
    for job in selection(evidence, first):
        deltas: dict[str, tuple[float, str]] = {}
        for row in read_table(job.path / "per_class.csv", ("class_name", "images", "accuracy", "accuracy_delta")):
            delta, accuracy = number(row["accuracy_delta"]), number(row["accuracy"])
            if delta is not None and accuracy is not None:
                deltas[row["class_name"]] = (100 * delta, f"{100 * accuracy:.2f} % of {row['images']} images")
        if deltas:
            rows.append((job, deltas))
    if not rows:
        return None, "no run has a readable per_class.csv"
    classes = list(dict.fromkeys(name for _, deltas in rows for name in deltas))[:MOST_CLASSES]
    z = [[deltas[name][0] if name in deltas else None for name in classes] for _, deltas in rows]
    heat = Heat(
        key="per_class",
        title="Accuracy of each class against float",
        x_title="",
        y_title="",
        x=classes,
        y=_names([job for job, _ in rows]),
        z=z,
        cells=[["" if value is None else f"{value:+.1f}" if value else "0.0" for value in line] for line in z],
        hover=[
            [
                f"{job.label}: {job.choices}\n{name}: {deltas[name][0]:+.2f} points\n{deltas[name][1]}"
                if name in deltas
                else ""
                for name in classes
            ]
            for job, deltas in rows
        ],
        unit="Points",
        note="The recommended run first, then the most accurate others; of runs that differ only in the seed, one.",
        diverging=True,
    )
    return heat, ""


def confusion(evidence: Evidence, job: Job) -> tuple[Heat | None, str]:
    """Answers of the run minus answers of the float model, true class by predicted class."""
    labels, answers = evidence.labels, dict(zip(map(id, evidence.jobs), evidence.answers, strict=True)).get(id(job))
    before = evidence.float_answers(job)
    if labels is None:
        return None, evidence.missing["labels"]
    if answers is None or before is None:
        return None, "the run's or the float model's predictions are missing"
    count = int(max(labels.max(), answers.max(), before.max())) + 1
    if count > MOST_CLASSES:
        return None, f"{count} classes are more than fit, {MOST_CLASSES}"
    places = [np.bincount(labels * count + given, minlength=count * count) for given in (answers, before)]
    after_table, before_table = (table.reshape(count, count) for table in places)
    difference = after_table - before_table
    names = evidence.classes if len(evidence.classes) == count else [str(label) for label in range(count)]
    hover = [
        [
            f"true {true}, answer {answer}\n{after_table[i, j]} images, {before_table[i, j]} of the float model"
            for j, answer in enumerate(names)
        ]
        for i, true in enumerate(names)
    ]
    heat = Heat(
        key="confusion",
        title="Where the answers moved",
        x_title="Answer",
        y_title="True class",
        x=names,
        y=names,
        z=difference.astype(float).tolist(),
        cells=[[f"{value:+d}" if value else "" for value in row] for row in difference.tolist()],
        hover=hover,
        unit="Images",
        note=f"Confusion matrix of {job.label} ({job.choices}) minus that of its float model, in images. "
        "On the diagonal more is better, elsewhere less.",
        diverging=True,
    )
    return heat, ""


def layer_snr(evidence: Evidence, first: Job) -> tuple[Chart | None, str]:
    """Signal to quantization noise of each activation, in the order of the graph, for a few runs of the same graph."""
    found = [(job, noise) for job in selection(evidence, first) if (noise := _noise(job))]
    if not found:
        return None, "no run has a ranges.csv with signal-to-noise ratios (calibration.bins=null keeps no histograms)"
    tensors = list(found[0][1])
    shown = [(job, noise) for job, noise in found if list(noise) == tensors][:MOST_SERIES]
    series = tuple(
        Series(
            name,
            tensors,
            list(noise.values()),
            [f"{job.label}: {job.choices}\n{tensor}\n{value:.1f} dB" for tensor, value in noise.items()],
            mark="line",
            colour=place,
        )
        for place, (name, (job, noise)) in enumerate(zip(_names([job for job, _ in shown]), shown, strict=True))
    )
    chart = Chart(
        key="layer_snr",
        title="Signal to quantization noise of each activation",
        x_title="",
        y_title="SNR, dB",
        series=series,
        note="On the calibration images, in the order of the graph; higher is better, 6 dB are about one bit.",
    )
    return chart, ""


def _noise(job: Job) -> dict[str, float]:
    rows = read_table(job.path / "ranges.csv", ("tensor", "snr_db"))
    return {row["tensor"]: value for row in rows if (value := number(row["snr_db"])) is not None}


def _names(jobs: Sequence[Job]) -> list[str]:
    """One name for each run, no two alike."""
    names: list[str] = []
    for job in jobs:
        name = shortened(job.choices, NAME)
        names.append(name if name not in names else f"{shortened(name, NAME - 10)} ({job.label})")
    return names
