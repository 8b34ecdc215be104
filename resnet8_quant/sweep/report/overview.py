"""The plots of all runs: accuracy against bytes and latency, heat maps of two settings, calibration size.

In: the compared jobs and the recommended one. Out: `Chart`s and `Heat`s, or the sentence that says why there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from resnet8_quant import terminal
from resnet8_quant.sweep.collect import Job, settings, varied
from resnet8_quant.sweep.portability import MARK, in_default_session, mark
from resnet8_quant.sweep.report.chart import MOST_SERIES, Chart, Heat, Series, window

MOST_POINTS = 2000
MOST_MAPS = 10
MOST_LEVELS = 30
LATENCY = "Median latency, \N{MICRO SIGN}s"
LOG_RATIO = 8  # an axis that spans more than this is logarithmic
SIZE = "calibration.samples_per_class"
# Settings that say how or where something is measured, not what.
ASIDE = ("latency.", "evaluation.", "cache_dir", "hydra.", "resume", "tracking", "experiment", "data.root")


def compared_settings(jobs: Sequence[Job]) -> list[str]:
    """Keys of the overrides that vary and that make a difference."""
    return [key for key in varied(jobs) if not key.startswith(ASIDE)]


def fronts(jobs: Sequence[Job], recommended: Job) -> list[Chart]:
    """Accuracy against bytes and against latency, each with its Pareto front; empty where neither is known."""
    found = (
        _front(jobs, recommended, "pareto_bytes", "Accuracy against size", "Model, kB", _kilobytes),
        _front(jobs, recommended, "pareto_latency", "Accuracy against latency", LATENCY, _latency),
    )
    return [chart for chart in found if chart is not None]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: none is as far left and higher, or as high and further left."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _front(
    jobs: Sequence[Job], recommended: Job, key: str, title: str, x_title: str, measure: Callable[[Job], float | None]
) -> Chart | None:
    known = [(job, x, _percent(job)) for job in jobs if (x := measure(job)) is not None and x > 0]
    if not known:
        return None
    front = pareto([(x, y) for _, x, y in known])
    kept = set(sorted(range(len(known)), key=lambda i: -known[i][2])[:MOST_POINTS]) | set(front)
    names = _groups([known[i][0] for i in kept], jobs)
    series = []
    for place, name in enumerate(dict.fromkeys(names.values())):
        chosen = [known[i] for i in sorted(kept) if names[id(known[i][0])] == name]
        hover = [describe(job) for job, _, _ in chosen]
        colour = None if name == "other" else place
        series.append(Series(name, [x for _, x, _ in chosen], [y for *_, y in chosen], hover, colour=colour))
    line = [known[i] for i in front]
    series.insert(0, Series("Pareto front", [x for _, x, _ in line], [y for *_, y in line], mark="front", colour=None))
    at = [(x, y) for job, x, y in known if job is recommended]
    if at:
        hover = [f"Recommended\n{describe(recommended)}"]
        series.append(Series("Recommended", [at[0][0]], [at[0][1]], hover, mark="ring"))
    y_range, below = window([y for *_, y in known])
    hidden = f" The {len(kept):,} most accurate runs of {len(known):,} are drawn." if len(kept) < len(known) else ""
    every = [x for _, x, _ in known]
    return Chart(
        key=key,
        title=title,
        x_title=x_title,
        y_title="Top-1, %",
        series=tuple(series),
        note=f"Up and to the left is better; the line joins the runs that no other run beats in both. {below}{hidden}",
        log_x=max(every) > LOG_RATIO * min(every),
        y_range=y_range,
        level=_float_level(jobs),
    )


def heat_maps(jobs: Sequence[Job]) -> tuple[list[Heat], str]:
    """Mean accuracy over each pair of settings that vary; the second value says why there is none.

    A twin fills the cell of its own settings with the run that it equals; a run counts once in each cell.
    """
    keys = [key for key in compared_settings(jobs) if key != "seed"]
    usable = [key for key in keys if 1 < len(_levels(jobs, key)) <= MOST_LEVELS]
    maps = [heat for y, x in combinations(usable, 2) if (heat := _heat(jobs, x, y)) is not None]
    maps.sort(key=lambda heat: sum(z is None for row in heat.z for z in row))  # whole grids first
    if maps:
        return maps[:MOST_MAPS], ""
    return [], f"fewer than two settings vary (besides the seed) with {MOST_LEVELS} values at most"


def _heat(jobs: Sequence[Job], x_key: str, y_key: str) -> Heat | None:
    """None where no two values of one setting were run with the same value of the other."""
    jobs = [job for job in jobs if {x_key, y_key} <= settings(job.row).keys()]
    x, y = _levels(jobs, x_key), _levels(jobs, y_key)
    if len(x) < 2 or len(y) < 2:
        return None
    cells: dict[tuple[str, str], dict[Path, float]] = {}
    for job in jobs:
        setting = settings(job.row)
        cells.setdefault((setting[y_key], setting[x_key]), {})[job.path] = _percent(job)
    grid = [[[*cells.get((row, column), {}).values()] for column in x] for row in y]
    hover = [
        [_cell_hover(x_key, column, y_key, row, values) for column, values in zip(x, line, strict=True)]
        for row, line in zip(y, grid, strict=True)
    ]
    return Heat(
        key=f"heat_{_plain(y_key)}_{_plain(x_key)}",
        title=f"{y_key} by {x_key}",
        x_title=x_key,
        y_title=y_key,
        x=x,
        y=y,
        z=[[fmean(values) if values else None for values in line] for line in grid],
        cells=[[f"{fmean(values):.2f}" if values else "" for values in line] for line in grid],
        hover=hover,
        unit="Top-1, %",
        note="Each cell is the mean over all runs with these two values, whatever else they vary."
        + (" A duplicate has the value of the run that it equals." if any(job.twin for job in jobs) else ""),
    )


def calibration_size(jobs: Sequence[Job]) -> tuple[Chart | None, str]:
    """Accuracy against the number of calibration images; a band over the seeds. The second value: why there is none."""
    known = [job for job in jobs if job.row.calibration_images]
    if len({job.row.calibration_images for job in known}) < 2:
        return None, "the number of calibration images does not vary"
    keys = [key for key in compared_settings(known) if key not in (SIZE, "seed")]
    lines: dict[str, dict[int, list[float]]] = {}
    for job in known:
        setting = settings(job.row)
        name = " ".join(setting[key] for key in keys if key in setting) or "all runs"
        lines.setdefault(name, {}).setdefault(job.row.calibration_images or 0, []).append(_percent(job))
    ranked = sorted(lines.items(), key=lambda line: -max(fmean(values) for values in line[1].values()))
    shown = [(name, sizes) for name, sizes in ranked if len(sizes) > 1][:MOST_SERIES]
    if not shown:
        return None, "no configuration was run with more than one number of calibration images"
    series = tuple(_size_line(name, sizes, place) for place, (name, sizes) in enumerate(shown))
    seeds = max(len(values) for _, sizes in shown for values in sizes.values())
    band = f"Line: mean over {seeds} seeds; band: smallest to largest." if seeds > 1 else "One seed: no band."
    left = f" The {len(shown)} most accurate of {len(lines)} configurations." if len(shown) < len(lines) else ""
    y_range, below = window([y for line in series for y in line.y])
    chart = Chart(
        key="calibration_size",
        title="Accuracy against calibration images",
        x_title="Calibration images",
        y_title="Top-1, %",
        series=series,
        note=f"{band}{left} {below}".strip(),
        log_x=True,
        y_range=y_range,
        level=_float_level(jobs),
    )
    return chart, ""


def _size_line(name: str, sizes: dict[int, list[float]], place: int) -> Series:
    ordered = sorted(sizes.items())
    several = any(len(values) > 1 for values in sizes.values())
    hover = [
        f"{name}\n{size:,} images: {fmean(values):.2f} %\n{min(values):.2f} to {max(values):.2f}, n = {len(values)}"
        for size, values in ordered
    ]
    return Series(
        name,
        [size for size, _ in ordered],
        [fmean(values) for _, values in ordered],
        hover,
        mark="line",
        low=[min(values) for _, values in ordered] if several else (),
        high=[max(values) for _, values in ordered] if several else (),
        colour=place,
    )


def describe(job: Job) -> str:
    """A run in a few lines, for the label of its point."""
    row = job.row
    parts = [f"{job.label}: {job.choices}", f"Top-1 {terminal.percent(row.accuracy)}{mark(row)}"]
    if row.accuracy_ci_low is not None and row.accuracy_ci_high is not None:
        parts[-1] += f" ({terminal.interval(row.accuracy_ci_low, row.accuracy_ci_high)})"
    if row.accuracy_delta is not None:
        parts.append(f"{terminal.points(row.accuracy_delta)} points against float")
    measures = [terminal.size(row.model_bytes), terminal.microseconds(row.latency_us_median), row.kernels or ""]
    lines = [
        *parts,
        ", ".join(filter(None, measures)),
        f"{MARK} not portable" if mark(row) else "",
        in_default_session(row),
    ]
    return "\n".join(filter(None, lines))


def _levels(jobs: Sequence[Job], key: str) -> list[str]:
    """The values of a setting, numbers by size, others in the order of their appearance."""
    found = list(dict.fromkeys(setting[key] for job in jobs if key in (setting := settings(job.row))))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def _groups(drawn: Sequence[Job], jobs: Sequence[Job]) -> dict[int, str]:
    """id of a job -> the name of its colour: the value of the first varied setting, the rarest ones as "other"."""
    keys = [key for key in compared_settings(jobs) if len(_levels(jobs, key)) > 1 and key != "seed"]
    key = "quant" if "quant" in keys else keys[0] if keys else None
    value = {id(job): _group(job, key) for job in drawn}
    counts: dict[str, int] = {}
    for name in value.values():
        counts[name] = counts.get(name, 0) + 1
    common = sorted(counts, key=lambda name: -counts[name])[:MOST_SERIES]
    return {job: name if name in common else "other" for job, name in value.items()}


def _group(job: Job, key: str | None) -> str:
    value = settings(job.row).get(key) if key else None
    return f"{key}={value}" if value else job.row.quant_type or "runs"


def _float_level(jobs: Sequence[Job]) -> tuple[str, float] | None:
    levels = {job.row.float_accuracy for job in jobs}
    value = levels.pop() if len(levels) == 1 else None
    return None if value is None else (f"Float, {100 * value:.2f} %", 100 * value)


def _cell_hover(x_key: str, x: str, y_key: str, y: str, values: Sequence[float]) -> str:
    head = f"{y_key}={y}\n{x_key}={x}\n"
    if not values:
        return head + "no run"
    return f"{head}mean {fmean(values):.2f} %, {min(values):.2f} to {max(values):.2f}, n = {len(values)}"


def _kilobytes(job: Job) -> float | None:
    return None if job.row.model_bytes is None else job.row.model_bytes / 1000


def _latency(job: Job) -> float | None:
    return job.row.latency_us_median


def _percent(job: Job) -> float:
    return 100 * (job.row.accuracy or 0.0)


def _plain(key: str) -> str:
    """``key`` as part of a file's name."""
    return "".join(character if character.isalnum() else "_" for character in key)[:40]
