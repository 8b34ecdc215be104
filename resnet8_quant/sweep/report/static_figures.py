"""A chart as files: PNG for a page, SVG for a paper, on white, with the marks and colours of the report.

In: `Chart`s and `Heat`s and a folder. Out: KEY.png and KEY.svg for each. Every file is whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from resnet8_quant.errors import missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.sweep.report.chart import GREY, Chart, Heat, Series, log_ticks
from resnet8_quant.sweep.report.plotly_figures import DIVERGING, MOST_WRITTEN

MARKS = {0: "o", 1: "s", 2: "D", 3: "^", 4: "v", 5: "P", 6: "*"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # a name with $ in it is a name
    "svg.hashsalt": "resnet8-quant",
}
STOPS: Any = [tuple(stop) for stop in DIVERGING]
LEGEND = 24  # characters of a name in the legend


def draw(drawings: Iterable[Chart | Heat], folder: Path) -> list[Path]:
    """Write each drawing as PNG and SVG into ``folder``.

    Raises:
        ExperimentError: matplotlib is not installed, or the folder cannot be written to.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "report") from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    with matplotlib.rc_context(STYLE):
        for drawing in drawings:
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            paint: Callable[[Any, Any], None] = _heat if isinstance(drawing, Heat) else _chart
            paint(figure, drawing)
            for kind in ("png", "svg"):
                path = folder / f"{drawing.key}.{kind}"
                options = {"dpi": 140} if kind == "png" else {"metadata": {"Date": None}}
                with replacing(path) as temporary:
                    figure.savefig(temporary, format=kind, facecolor="white", **options)
                written.append(path)
    return written


def _chart(figure: Any, chart: Chart) -> None:
    words = any(isinstance(x, str) for series in chart.series for x in series.x)
    figure.set_size_inches(7.6, 5.2 if words else 4.2)
    axis = figure.subplots()
    for series in chart.series:
        _series(axis, series)
    if chart.level:
        name, height = chart.level
        axis.axhline(height, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=name)
    if chart.log_x and not words:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        ticks = [tick for tick in log_ticks(chart) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:,.4g}" for tick in ticks])
        axis.minorticks_off()
    if words:
        axis.tick_params(axis="x", rotation=60, labelsize=7)
        for text in axis.get_xticklabels():
            text.set_ha("right")
    if chart.y_range:
        axis.set_ylim(*chart.y_range)
    axis.set_xlabel(chart.x_title)
    axis.set_ylabel(chart.y_title)
    axis.set_title(chart.title, fontsize=10, fontweight="bold", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _series(axis: Any, series: Series) -> None:
    name = series.name if len(series.name) <= LEGEND else f"{series.name[: LEGEND - 1]}\N{HORIZONTAL ELLIPSIS}"
    name = f" {name}" if name.startswith("_") else name  # matplotlib hides such names
    colour = series.hex
    if series.mark == "front":
        axis.step(series.x, series.y, where="post", color=colour, linewidth=1.2, label=name)
    elif series.mark == "ring":
        axis.plot(series.x, series.y, "o", color=colour, markersize=13, fillstyle="none", mew=2, label=name)
    elif series.mark == "points":
        shape = MARKS[(series.colour or 0) % len(MARKS)]
        axis.plot(series.x, series.y, shape, color=colour, markersize=5, alpha=0.85, mew=0, label=name)
    else:
        if series.low:
            axis.fill_between(series.x, series.low, series.high, color=colour, alpha=0.16, linewidth=0)
        shape = MARKS[(series.colour or 0) % len(MARKS)]
        axis.plot(series.x, series.y, marker=shape, color=colour, markersize=4, linewidth=1.4, label=name)


def _heat(figure: Any, heat: Heat) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    figure.set_size_inches(7.6, min(14.0, 1.6 + max(0.34 * len(heat.y), 1.6)))
    axis = figure.subplots()
    z = np.array([[np.nan if value is None else value for value in row] for row in heat.z], float)
    colours: Any = "viridis"
    limits: dict[str, float] = {}
    if heat.diverging:
        bound = float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 1.0
        colours = LinearSegmentedColormap.from_list("loss_gain", STOPS)
        limits = {"vmin": -(bound or 1.0), "vmax": bound or 1.0}
    mesh = axis.pcolormesh(z, cmap=colours, edgecolors="white", linewidth=1.2, **limits)
    if z.size <= MOST_WRITTEN:
        for (i, j), value in np.ndenumerate(z):
            if np.isfinite(value):
                *colour, _ = mesh.cmap(mesh.norm(value))
                dark = np.dot((0.2126, 0.7152, 0.0722), np.power(colour, 2.2)) < 0.18  # relative luminance
                ink = "white" if dark else "black"
                axis.text(j + 0.5, i + 0.5, heat.cells[i][j], ha="center", va="center", color=ink, fontsize=7.5)
    axis.set_xticks(np.arange(len(heat.x)) + 0.5, list(heat.x), fontsize=8)
    axis.set_yticks(np.arange(len(heat.y)) + 0.5, list(heat.y), fontsize=8)
    if max(map(len, heat.x), default=0) * len(heat.x) > 80:
        axis.tick_params(axis="x", rotation=60)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.invert_yaxis()
    axis.set_xlabel(heat.x_title)
    axis.set_ylabel(heat.y_title)
    axis.set_title(heat.title, fontsize=10, fontweight="bold", loc="left")
    bar = figure.colorbar(mesh, ax=axis, pad=0.01, aspect=30)
    bar.set_label(heat.unit)
    bar.outline.set_visible(False)
