"""The figures of the studies' pages, as SVG and PNG on white, 900 pixels wide or less on a page.

In: plain arrays of top-1 in percent, and a folder. Out: the name of the SVG, which has a PNG beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resnet8_quant.errors import missing_extra

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#00795A", "#444444"  # told apart by colour-blind readers
DASHED = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}
CUT = 4.0  # points below a panel's best mean where the axis of the ablation ends


def plotting(salt: str) -> Any:
    """matplotlib.pyplot without a screen, in the pages' style.

    Raises:
        ExperimentError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "bench") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 8, "svg.hashsalt": salt, "axes.spines.top": False})
    pyplot.rcParams.update({"axes.spines.right": False, "axes.edgecolor": "#666666"})
    return pyplot


def save(figure: Any, folder: Path, name: str) -> str:
    """Write NAME.svg and NAME.png on white; returns the SVG's name."""
    from matplotlib import pyplot

    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white")
    pyplot.close(figure)
    return f"{name}.svg"


def draw_bit_map(
    name: str, grids: dict[str, np.ndarray], weights: list[int], activations: list[int], baseline: float, folder: Path
) -> str:
    """A heat map for each refinement, [weights, activations], with one scale of colours and a number in each cell."""
    plt = plotting("bit_map")
    from matplotlib.colors import PowerNorm

    every = np.array([*grids.values()])
    norm = PowerNorm(3, every.min(), max(every.max(), baseline))  # most of the colours for the useful accuracies
    figure, axes = plt.subplots(1, len(grids), figsize=(9.2, 4.0), sharey=True, layout="constrained")
    for axis, (title, grid) in zip(axes, grids.items(), strict=True):
        image = axis.pcolormesh(grid, norm=norm, cmap="viridis", edgecolors="white", linewidth=1.5)
        for (i, j), value in np.ndenumerate(grid):
            *colour, _ = image.cmap(norm(value))
            dark = np.dot((0.2126, 0.7152, 0.0722), np.power(colour, 2.2)) < 0.18  # relative luminance
            at, ink = (j + 0.5, i + 0.5), "white" if dark else "black"
            axis.text(*at, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=9.5)
        axis.set_title(f"refine={title}", fontweight="bold", fontsize=10)
        axis.set_xticks(np.arange(len(activations)) + 0.5, [f"A{a}" for a in activations], fontsize=9)
        axis.set_yticks(np.arange(len(weights)) + 0.5, [f"W{w}" for w in weights], fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("Bits of the activations", fontsize=9)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("Bits of the weights", fontsize=9)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.set_label(f"Top-1, % (float model: {baseline:.2f})", fontsize=9)
    bar.set_ticks([tick for tick in (20, 50, 60, 70, 75, 80, 85) if norm.vmin <= tick <= norm.vmax])
    bar.outline.set_visible(False)
    return save(figure, folder, name)


def draw_ablation(name: str, panels: dict[str, dict[str, np.ndarray]], baseline: float, folder: Path) -> str:
    """A panel for each width; in it a row for each step, {step: top-1 of each seed}: mean, smallest and largest."""
    plt = plotting("ablation")
    figure, axes = plt.subplots(1, len(panels), figsize=(9.2, 2.9), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, steps) in zip(axes[0], panels.items(), strict=True):
        end = max(values.mean() for values in steps.values()) - CUT
        shown = [values for values in steps.values() if values.mean() > end]
        low, high = min(values.min() for values in shown), max(baseline, *(values.max() for values in shown))
        margin = 0.1 * (high - low)
        axis.axvline(baseline, **DASHED)
        for y, values in enumerate(steps.values()):
            if values.mean() <= end:
                text = f" \N{BLACK LEFT-POINTING TRIANGLE} {values.mean():.1f}"
                axis.text(low - margin, y, text, va="center", color=BLUE, fontsize=8.5)
                continue
            axis.plot([values.min(), values.max()], [y, y], color=BLUE, linewidth=7, alpha=0.3, solid_capstyle="butt")
            axis.plot(values.mean(), y, "o", color=BLUE, markersize=4)
        axis.set_title(title, fontweight="bold", fontsize=10)
        axis.set(xlim=(low - margin, high + margin), ylim=(len(steps) - 0.5, -0.5))
        axis.grid(axis="x", color="#E8E8E8", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=4)
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.08)
    names = list(next(iter(panels.values())))
    axes[0][0].set_yticks(range(len(names)), [step.rpartition("/")[2] for step in names], fontsize=8.5)
    figure.supxlabel(
        f"Top-1, %, each panel on a scale of its own. Dot: mean; band: smallest to largest seed; number: a mean to the "
        f"left of the scale; dashed: float, {baseline:.2f} %",
        fontsize=8,
    )
    return save(figure, folder, name)


def draw_smallest(
    name: str,
    points: list[tuple[int, float]],
    least: tuple[int, float] | None,
    bar: float,
    baseline: float,
    reference: tuple[int, float] | None,
    folder: Path,
) -> str:
    """(bytes, top-1) of files; ``least`` is written beside its point, ``reference`` is the TFLite file."""
    plt = plotting("smallest")
    figure, axis = plt.subplots(figsize=(7.8, 3.6), layout="constrained")
    place, offset = axis.get_yaxis_transform(), {"textcoords": "offset points"}
    axis.axhline(baseline, **DASHED)
    axis.axhline(bar, color=GREEN, linewidth=1)
    axis.annotate(f"float model, {baseline:.2f} %", (0.995, baseline), (0, 4), place, **offset, ha="right", color=GREY)
    axis.annotate(f"bar, {bar:g} %", (0.01, bar), (0, -3), place, **offset, va="top", color=GREEN)
    axis.plot(*zip(*sorted(points), strict=True), "o-", color=BLUE, linewidth=1.2, markersize=5)
    if least:
        text = f"{least[0]:,} bytes, {least[1]:.2f} %"
        axis.plot(*least, "o", color=BLUE, markersize=11, fillstyle="none")
        axis.annotate(text, least, (-9, 5), **offset, ha="right", fontweight="bold", color=BLUE)
    if reference:
        text = f"TFLite int8\n{reference[0]:,} bytes, {reference[1]:.2f} %"
        axis.plot(*reference, "D", color=ORANGE, markersize=7)
        axis.annotate(text, reference, (4, -10), **offset, ha="right", va="top", color=ORANGE)
    largest = max(reference[0] if reference else 0, *(size for size, _ in points))
    top = max(baseline, *(accuracy for _, accuracy in points))
    lowest = min(bar, *(accuracy for _, accuracy in points))
    axis.set(xlim=(0, 1.04 * largest), ylim=(lowest - 0.06 * (top - lowest), top + 0.1 * (top - lowest)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set(xlabel="Bytes of the file", ylabel="Top-1, %")
    axis.grid(color="#E8E8E8", linewidth=0.6)
    axis.set_axisbelow(True)
    return save(figure, folder, name)


def draw_distillation(
    name: str, curves: dict[str, list[tuple[int, float, float]]], baseline: float, folder: Path
) -> str:
    """A panel for each {title: (steps or images, top-1, seconds)}; the last word of the title names the axis.

    Seconds are shown for steps: another number of images takes as long.
    """
    plt = plotting("distillation")
    figure, axes = plt.subplots(
        1, len(curves), figsize=(3.6 * len(curves), 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, points) in zip(axes[0], curves.items(), strict=True):
        axis.axhline(baseline, **DASHED)
        places, top1s, _ = zip(*points, strict=True)
        axis.plot(places, top1s, "o-", color=BLUE, linewidth=1.2, markersize=5)
        for at, top1, _ in points:
            axis.annotate(f"{top1:.2f}", (at, top1), (0, -12), textcoords="offset points", ha="center", color=BLUE)
        axis.set_xscale("log")
        what = title.rpartition(" ")[2]
        axis.set_xticks(places, [f"{at:,}" + f"\n{seconds:.0f} s" * (what == "steps") for at, _, seconds in points])
        axis.minorticks_off()
        axis.set(xlabel=what.capitalize(), title=title.partition(":")[0])
        axis.margins(0.12, 0.2)
        axis.grid(color="#E8E8E8", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0, 0].set_ylabel(f"Top-1, % (dashed: float model, {baseline:.2f})")
    return save(figure, folder, name)
