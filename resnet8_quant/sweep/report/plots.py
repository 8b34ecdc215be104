"""What the report draws: trade-offs, pairs of settings, calibration size, classes, confusion, flipped images, layers.

In: the compared runs, `Evidence` and the recommended run. Out: `Plot`s and thumbnails, or the sentence that says why
there are none.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_quant import terminal
from resnet8_quant.sweep.collect import Job, settings, varied
from resnet8_quant.sweep.portability import MARK, in_default_session, mark
from resnet8_quant.sweep.report.evidence import Evidence, number, read_table
from resnet8_quant.sweep.report.figures import MAX_SERIES, Axes, Plot, Row, heat_map, lines, scatter
from resnet8_quant.sweep.report.recommendation import Model
from resnet8_quant.sweep.report.tables import measured, shortened

MAX_POINTS = 2000
MAX_MAPS = 10
MAX_LEVELS = 30
MAX_RUNS = 12
MAX_CLASSES = 40
MAX_IMAGES = 24
MAX_SIDE = 96  # pixels of a thumbnail
MAX_LAYERS = 60  # rows of a heat map
MAX_NAME = 44  # characters of a run's name on an axis
WINDOW = 10.0  # percentage points below the best where an axis of accuracy ends at first
SIZE = "calibration.samples_per_class"
ACCURACY = "Top-1, %"
# Parts of layers.csv, and the names of their columns in the plot.
HARMS = {"weights": "weights", "activations": "input", "both": "both", "kept_float": "gained in float"}
# Settings that say how or where something is measured, not what.
MEASUREMENT = ("latency.", "evaluation.", "cache_dir", "hydra.", "resume", "tracking", "experiment", "data.root")
NO_PREDICTIONS = "the run's or the float model's predictions are missing"
NO_MAPS = f"fewer than two settings vary (besides the seed) with {MAX_LEVELS} values at most"
# Key, measurement on the x axis, name of the plot, title of the axis, what the measurement is divided by.
TRADE_OFFS = (
    ("pareto_bytes", "model_bytes", "size", "Model, kB", 1000),
    ("pareto_latency", "latency_us_median", "latency", "Median latency, \N{MICRO SIGN}s", 1),
    ("pareto_flash", "flash", "flash", "Flash, kB", 1000),
    ("pareto_ram", "ram", "RAM", "RAM, kB", 1000),
    ("pareto_macs", "macs", "multiply-accumulates", "Multiply-accumulates, millions", 1e6),
)
MEASURED_ON_TARGET = {
    "flash": ("tflite_bytes", "Of {} flash is the size of model.tflite, of {} that of weights, biases and scales."),
    "ram": ("arena_bytes", "Of {} RAM is the arena of TensorFlow Lite Micro, of {} the activations alive at once."),
}


def compared_settings(jobs: Sequence[Job]) -> list[str]:
    """Keys of the settings that vary and that make a difference."""
    return [key for key in varied(jobs) if not key.removeprefix("config.").startswith(MEASUREMENT)]


# ---- all runs


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: none is as far left and higher, or as high and further left."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def trade_offs(jobs: Sequence[Job], models: Sequence[Model], recommended: Model) -> list[Plot] | str:
    """Accuracy against what a model costs, each with its Pareto front."""
    plots, places = [], {id(model.job): model.place for model in models}
    for key, column, name, x_title, unit in TRADE_OFFS:
        known = [(job, value / unit, _percent(job)) for job in jobs if (value := measured(job.row, column))]
        if not known or (column == "macs" and len({x for _, x, _ in known}) < 2):
            continue
        front = pareto([(x, y) for _, x, y in known])
        kept = sorted({*sorted(range(len(known)), key=lambda i: -known[i][2])[:MAX_POINTS], *front})
        names = _series([known[i][0] for i in kept], jobs)
        middle = (min(x for _, x, _ in known) + max(x for _, x, _ in known)) / 2
        points = []
        for i, series in zip(kept, names, strict=True):
            job, x, y = known[i]
            about = {"series": series, "hover": describe(job), "place": places.get(id(job))}
            points.append({"x": x, "y": y, **about, "front": i in front, "left": x < middle})
        axes, below = _axes(x_title, jobs, [y for *_, y in known])
        notes = ["Up and to the left is better; the grey line joins the runs that no other run beats in both.", below]
        if column in MEASURED_ON_TARGET:
            on_target, sentence = MEASURED_ON_TARGET[column]
            count = sum(getattr(job.row, on_target) is not None for job, *_ in known)
            notes.append(sentence.format(_runs(count), _runs(len(known) - count)))
        if len(kept) < len(known):
            notes.append(f"The {len(kept):,} most accurate runs of {len(known):,} are drawn.")
        busy = sum(bool(job.row.machine_busy) for job, *_ in known)
        if busy and column == "latency_us_median":
            notes.append(f"{busy} of {len(known)} runs were timed on a busy machine.")
        spec = scatter(points, list(dict.fromkeys(names)), recommended.place, axes)
        plots.append(Plot(key, f"Accuracy against {name}", " ".join(filter(None, notes)), spec))
    return plots or "no sizes, no latencies"


def _axes(x_title: str, jobs: Sequence[Job], values: Sequence[float]) -> tuple[Axes, str]:
    """Axes of a plot of accuracies in percent, and the sentence that says what lies below where they end at first."""
    levels = {job.row.float_accuracy for job in jobs}
    level = levels.pop() if len(levels) == 1 else None
    line = None if level is None else (f"Float, {100 * level:.2f} %", 100 * level)
    best = max(values)
    low = best - WINDOW
    below = sum(value < low for value in values)
    if not below:
        return Axes(x_title, ACCURACY, line), ""
    lie = "run lies" if below == 1 else "runs lie"
    ends = (low, best + 0.06 * WINDOW)
    return Axes(x_title, ACCURACY, line, ends), f"{below} {lie} below {low:.1f} %: the box below the plot shows all."


def heat_maps(jobs: Sequence[Job]) -> list[Plot] | str:
    """Mean accuracy over each pair of settings that vary, whole grids first."""
    keys = [key for key in compared_settings(jobs) if key != "seed" and 1 < len(_levels(jobs, key)) <= MAX_LEVELS]
    maps = [pair for y, x in combinations(keys, 2) if (pair := _heat(jobs, x, y)) is not None]
    return [plot for _, plot in sorted(maps, key=lambda pair: pair[0])[:MAX_MAPS]] or NO_MAPS


def _heat(jobs: Sequence[Job], x_key: str, y_key: str) -> tuple[int, Plot] | None:
    """The number of empty cells and the map; None where no two values of one setting meet the same of the other."""
    jobs = [job for job in jobs if {x_key, y_key} <= settings(job.row).keys()]
    columns, rows = _levels(jobs, x_key), _levels(jobs, y_key)
    if len(columns) < 2 or len(rows) < 2:
        return None
    accuracies: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        setting = settings(job.row)
        accuracies.setdefault((setting[x_key], setting[y_key]), []).append(_percent(job))
    cells = []
    for (x, y), values in accuracies.items():
        mean, hover = fmean(values), f"{y_key}={y}\n{x_key}={x}\nmean {_spread(values)}"
        cells.append({"x": x, "y": y, "z": mean, "text": f"{mean:.2f}", "hover": hover})
    spec = heat_map(cells, columns, rows, (x_key, y_key, ACCURACY))
    note = "Each cell is the mean over all runs with these two values, whatever else they vary."
    plot = Plot(f"heat_{_plain(y_key)}_{_plain(x_key)}", f"{y_key} by {x_key}", note, spec)
    return len(columns) * len(rows) - len(cells), plot


def calibration_size(jobs: Sequence[Job]) -> list[Plot] | str:
    """Accuracy against the number of calibration images; a band over the seeds."""
    known = [job for job in jobs if job.row.calibration_images]
    if len({job.row.calibration_images for job in known}) < 2:
        return "the number of calibration images does not vary"
    keys = [key for key in compared_settings(known) if key.removeprefix("config.") not in (SIZE, "seed")]
    configurations: dict[str, dict[int, list[float]]] = {}
    for job in known:
        setting = settings(job.row)
        name = " ".join(setting[key] for key in keys if key in setting) or "all runs"
        sizes = configurations.setdefault(name, {})
        sizes.setdefault(job.row.calibration_images or 0, []).append(_percent(job))
    ranked = sorted(configurations.items(), key=lambda item: -max(fmean(values) for values in item[1].values()))
    shown = dict([(name, sizes) for name, sizes in ranked if len(sizes) > 1][:MAX_SERIES])
    if not shown:
        return "no configuration was run with more than one number of calibration images"
    points: list[Row] = []
    for name, sizes in shown.items():
        several = any(len(values) > 1 for values in sizes.values())
        for size, values in sorted(sizes.items()):
            hover = f"{name}\n{size:,} images: {_spread(values)}"
            band = {"low": min(values), "high": max(values)} if several else {}
            points.append({"x": size, "y": fmean(values), "series": name, "hover": hover, **band})
    seeds = max(len(values) for sizes in shown.values() for values in sizes.values())
    notes = [f"Line: mean over {seeds} seeds; band: smallest to largest." if seeds > 1 else "One seed: no band."]
    if len(shown) < len(configurations):
        notes.append(f"The {len(shown)} most accurate of {len(configurations)} configurations.")
    axes, below = _axes("Calibration images", jobs, [point["y"] for point in points])
    spec = lines(points, list(shown), axes)
    note = " ".join(filter(None, (*notes, below)))
    return [Plot("calibration_size", "Accuracy against calibration images", note, spec)]


def describe(job: Job) -> str:
    """A run in a few lines, for the label of its point."""
    row = job.row
    interval = terminal.interval(row.accuracy_ci_low, row.accuracy_ci_high)
    measures = (terminal.size(row.model_bytes), terminal.microseconds(row.latency_us_median), row.kernels)
    parts = (
        _title(job),
        f"Top-1 {terminal.percent(row.accuracy)}{mark(row)}{interval and f' ({interval})'}",
        f"{terminal.points(row.accuracy_delta)} points against float" if row.accuracy_delta is not None else "",
        ", ".join(filter(None, measures)),
        "timed on a busy machine" if row.machine_busy else "",
        f"{MARK} not portable" if mark(row) else "",
        in_default_session(row),
    )
    return "\n".join(filter(None, parts))


# ---- a few runs


def focus(evidence: Evidence, recommended: Job) -> Job | None:
    """The run whose errors are shown: the recommended one, or the most accurate quantized one where that is float."""
    if recommended.row.calibration_method is not None:
        return recommended
    return max(_quantized(evidence), key=_percent, default=None)


def selection(evidence: Evidence, first: Job, most: int = MAX_RUNS) -> list[Job]:
    """``first`` and then the most accurate quantized runs; of runs that differ only in the seed, one."""
    distinct: dict[object, Job] = {}
    for job in [first, *sorted(_quantized(evidence), key=lambda job: -_percent(job))]:
        setting = {key: value for key, value in settings(job.row).items() if key != "seed"}
        distinct.setdefault(tuple(setting.items()) or job.folder, job)
    return list(distinct.values())[:most]


def per_class(evidence: Evidence, first: Job) -> list[Plot] | str:
    """How far each class moved from float, in points, for a few runs."""
    cells = []
    jobs = selection(evidence, first)
    for job, run in zip(jobs, _names(jobs), strict=True):
        for row in read_table(job.path / "per_class.csv", ("class_name", "images", "accuracy", "accuracy_delta")):
            delta, accuracy, name = number(row["accuracy_delta"]), number(row["accuracy"]), row["class_name"]
            if delta is None or accuracy is None:
                continue
            moved = f"{name}: {100 * delta:+.2f} points\n{100 * accuracy:.2f} % of {row['images']} images"
            text = f"{100 * delta:+.1f}" if delta else "0.0"
            cells.append({"x": name, "y": run, "z": 100 * delta, "text": text, "hover": f"{_title(job)}\n{moved}"})
    if not cells:
        return "no run has a readable per_class.csv"
    classes = list(dict.fromkeys(str(cell["x"]) for cell in cells))[:MAX_CLASSES]
    cells = [cell for cell in cells if cell["x"] in classes]
    rows = list(dict.fromkeys(str(cell["y"]) for cell in cells))
    spec = heat_map(cells, classes, rows, ("", "", "Points"), diverging=True)
    note = "The recommended run first, then the most accurate others; of runs that differ only in the seed, one."
    return [Plot("per_class", "Accuracy of each class against float", note, spec)]


def confusion(evidence: Evidence, job: Job) -> list[Plot] | str:
    """Predictions of the run minus predictions of the float model, true class by predicted class."""
    labels, after, before = evidence.labels, evidence.predictions_of(job), evidence.float_predictions(job)
    if labels is None or after is None or before is None:
        return evidence.no_labels or NO_PREDICTIONS
    count = int(max(labels.max(), after.max(), before.max())) + 1
    if count > MAX_CLASSES:
        return f"{count} classes are more than fit, {MAX_CLASSES}"
    # A pair of classes is one number, so that counting numbers counts pairs: a confusion matrix.
    pairs = (np.bincount(labels * count + predicted, minlength=count**2) for predicted in (after, before))
    new, old = (table.reshape(count, count) for table in pairs)
    moved = new - old
    names = evidence.classes if len(evidence.classes) == count else [str(label) for label in range(count)]
    cells = [
        {
            "x": names[j],
            "y": names[i],
            "z": int(moved[i, j]),
            "text": f"{moved[i, j]:+d}" if moved[i, j] else "",
            "hover": f"true {names[i]}, predicted {names[j]}\n{new[i, j]} images, {old[i, j]} of the float model",
        }
        for i, j in np.ndindex(count, count)
    ]
    spec = heat_map(cells, names, names, ("Predicted", "True class", "Images"), diverging=True)
    note = (
        f"Confusion matrix of {job.label} ({job.choices}) minus that of its float model, in images. "
        "On the diagonal more is better, elsewhere less."
    )
    return [Plot("confusion", "Where the predictions moved", note, spec)]


class Flip(NamedTuple):
    """An image that only one of the two models gets right: its place in the test set, its classes, and a PNG of it."""

    place: int
    true: str
    before: str
    after: str
    wrong: bool
    picture: str


class Flips(NamedTuple):
    """The first images that flipped, and a sentence about them."""

    images: list[Flip]
    note: str


def flipped(evidence: Evidence, job: Job) -> Flips | str:
    """The first flips of a run, those to wrong first."""
    labels, images = evidence.labels, evidence.images
    after, before = evidence.predictions_of(job), evidence.float_predictions(job)
    if labels is None or images is None or after is None or before is None:
        return evidence.no_labels or NO_PREDICTIONS
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        return f"images of shape {list(images.shape[1:])} cannot be shown"
    to_wrong = np.flatnonzero((before == labels) & (after != labels))
    to_right = np.flatnonzero((before != labels) & (after == labels))
    if not len(to_wrong) + len(to_right):
        return "no image flipped between right and wrong"
    # Half of the places each, and what the one kind leaves goes to the other.
    shown_wrong = max(MAX_IMAGES // 2, MAX_IMAGES - len(to_right))
    chosen = [*to_wrong[:shown_wrong], *to_right[: MAX_IMAGES - min(shown_wrong, len(to_wrong))]]
    names = dict(enumerate(evidence.classes))
    flips = []
    for index in map(int, chosen):
        true, old, new = (names.get(int(of[index]), str(of[index])) for of in (labels, before, after))
        flips.append(Flip(index, true, old, new, bool(after[index] != labels[index]), data_uri(images[index])))
    shown = "All" if len(chosen) == len(to_wrong) + len(to_right) else f"The first {len(chosen)}"
    sentence = (
        f"{job.label} ({job.choices}) against its float model: {len(to_wrong)} flipped to wrong, {len(to_right)} to "
        f"right. {shown} in the order of the test set, to wrong first. Each with its true class, then the prediction "
        "before and after."
    )
    return Flips(flips, sentence)


def data_uri(image: NDArray[np.uint8]) -> str:
    """A PNG of an image, uint8 [H, W, C] with C in 1, 3, 4, as an address that holds it."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def layer_snr(evidence: Evidence, first: Job) -> list[Plot] | str:
    """Signal to quantization noise of each activation, in the order of the graph, for a few runs of the same graph."""
    known = [(job, ratios) for job in selection(evidence, first) if (ratios := _snr(job))]
    if not known:
        return "no run has a ranges.csv with signal-to-noise ratios (calibration.bins=null keeps no histograms)"
    tensors = list(known[0][1])
    shown = [(job, ratios) for job, ratios in known if list(ratios) == tensors][:MAX_SERIES]
    names = _names([job for job, _ in shown])
    points = [
        {"x": tensor, "y": snr, "series": name, "hover": f"{_title(job)}\n{tensor}\n{snr:.1f} dB"}
        for name, (job, ratios) in zip(names, shown, strict=True)
        for tensor, snr in ratios.items()
    ]
    note = "On the calibration images, in the order of the graph; higher is better, 6 dB are about one bit."
    spec = lines(points, names, Axes("", "SNR, dB"))
    return [Plot("layer_snr", "Signal to quantization noise of each activation", note, spec)]


def layer_plots(evidence: Evidence, first: Job) -> list[Plot] | str:
    """What is known of single layers: noise of the activations, and which layer hurts where a run was analyzed."""
    ratios = layer_snr(evidence, first)
    harms = layer_harm(evidence, first)
    return harms + ratios if isinstance(ratios, list) else harms or ratios


def layer_harm(evidence: Evidence, first: Job) -> list[Plot]:
    """Divergence that each layer causes, the most harmful first, of the first run that has a layers.csv."""
    columns = ("layer", "quantized_kl", *(f"{part}_{name}" for part in HARMS for name in ("kl", "flips", "accuracy")))
    for job in selection(evidence, first, len(evidence.jobs)):
        cells: list[Row] = []
        for row in read_table(job.path / "layers.csv", columns)[:MAX_LAYERS]:
            for part, title in HARMS.items():
                kl, whole, accuracy = (number(row[name]) for name in (f"{part}_kl", "quantized_kl", f"{part}_accuracy"))
                if kl is None or whole is None or accuracy is None:
                    continue
                value = whole - kl if part == "kept_float" else kl
                about = f"KL {kl:.4f}, {row[f'{part}_flips']} flips, {100 * accuracy:.2f} %"
                about = f"{row['layer']}: {title}\n{about}"
                cells.append({"x": title, "y": row["layer"], "z": value, "text": f"{value:.4f}", "hover": about})
        if cells:
            rows = list(dict.fromkeys(str(cell["y"]) for cell in cells))
            spec = heat_map(cells, list(HARMS.values()), rows, ("", "", "KL"))
            note = (
                f"Of {job.label} ({job.choices}), on training images: KL divergence from the float model's class "
                "probabilities with a layer's weights or input alone quantized, and by how much the quantized model's "
                "falls with this layer in float."
            )
            return [Plot("layer_harm", "Which layer hurts", note, spec)]
    return []


def _snr(job: Job) -> dict[str, float]:
    rows = read_table(job.path / "ranges.csv", ("tensor", "snr_db"))
    return {row["tensor"]: value for row in rows if (value := number(row["snr_db"])) is not None}


def _quantized(evidence: Evidence) -> list[Job]:
    return [job for job in evidence.jobs if job.row.calibration_method is not None]


def _names(jobs: Sequence[Job]) -> list[str]:
    """One name for each run, no two alike."""
    names: list[str] = []
    for job in jobs:
        name = shortened(job.choices, MAX_NAME)
        names.append(f"{shortened(name, MAX_NAME - 10)} ({job.label})" if name in names else name)
    return names


def _levels(jobs: Sequence[Job], key: str) -> list[str]:
    """The values of a setting, numbers by size, others in the order of their appearance."""
    levels = list(dict.fromkeys(setting[key] for job in jobs if key in (setting := settings(job.row))))
    try:
        return sorted(levels, key=float)
    except ValueError:
        return levels


def _series(drawn: Sequence[Job], jobs: Sequence[Job]) -> list[str]:
    """For each drawn run the name of its colour: the value of the first varied setting, the rarest ones as "other"."""
    keys = [key for key in compared_settings(jobs) if len(_levels(jobs, key)) > 1 and key != "seed"]
    key = "quant" if "quant" in keys else keys[0] if keys else ""
    names = []
    for job in drawn:
        value = settings(job.row).get(key)
        names.append(f"{key}={value}" if value else job.row.quant_type or "runs")
    common = {name for name, _ in Counter(names).most_common(MAX_SERIES)}
    return [name if name in common else "other" for name in names]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} %, {min(values):.2f} to {max(values):.2f}, n = {len(values)}"


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _title(job: Job) -> str:
    return f"{job.label}: {job.choices}"


def _percent(job: Job) -> float:
    return 100 * (job.row.accuracy or 0.0)


def _plain(key: str) -> str:
    """``key`` as part of a file's name."""
    return "".join(character if character.isalnum() else "_" for character in key)[:40]
