"""One drawing of each plot, as a Vega-Lite specification: the page embeds it, and the files are rendered from it.

In: points with their labels as plain text. Out: `Plot`s; vega.js for the page; PNG and SVG files. Vega draws text as
text, so that nothing in a label is read as markup.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import cache_folder, replacing

log = logging.getLogger(__name__)

# Okabe and Ito's colours, told apart by colour-blind readers, and on white as well as on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
GREY = "#8A8F98"
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "stroke")
MAX_SERIES = len(PALETTE)
MAX_CELLS_WITH_TEXT = 400
MAX_TICKS = 8  # up to so many values a logarithmic axis is labelled at the values themselves
LETTER = 6  # pixels; where the cells of a heat map are narrower than their text, it is not drawn
FILE_WIDTH = 560  # pixels of the drawing area, before PNG_SCALE
PNG_SCALE = 2
LOG_RATIO = 8  # an axis that spans more than this is logarithmic

LIGHT = {"ink": "#1b1f24", "soft": "#5b6470", "grid": "#e1e4e8", "paper": "#ffffff"}
DARK = {"ink": "#e6e9ed", "soft": "#9aa4b1", "grid": "#2d333b", "paper": "#14171b"}
# Loss to gain. The middle is the page's background; white text is readable on both ends.
DIVERGING = {
    "light": ["#B4480A", "#EBA577", "#F3F2EF", "#79B0DA", "#005F9E"],
    "dark": ["#C4571C", "#7A452A", "#23282F", "#2C618A", "#2F86C8"],
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A plot of the page.

    Attributes:
        key: name of its files and its place on the page.
        title: what it shows.
        note: sentence below it.
        spec: Vega-Lite, without width, title and colours, which the page and the files add.
    """

    key: str
    title: str
    note: str
    spec: Row


def theme(colours: dict[str, str], diverging: Sequence[str]) -> Row:
    """The Vega-Lite config of a light or a dark page."""
    soft, grid = colours["soft"], colours["grid"]
    axis = {"labelColor": soft, "titleColor": soft, "gridColor": grid, "domainColor": grid, "tickColor": grid}
    return {
        "aria": False,  # Vega-Lite would write titles into expressions without escaping them; the page labels its plots
        "background": colours["paper"],
        "font": "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif",
        "view": {"stroke": None},
        "axis": {**axis, "labelLimit": 230, "titleFontWeight": "normal", "titlePadding": 8},
        "legend": {"labelColor": soft, "titleColor": soft, "labelLimit": 260, "orient": "top", "columns": 4},
        "title": {"color": colours["ink"], "anchor": "start", "fontSize": 13},
        "text": {"color": colours["ink"]},
        "range": {"diverging": list(diverging)},
    }


def themes() -> dict[str, Row]:
    """{"light": config, "dark": config}, of which the page takes one."""
    return {"light": theme(LIGHT, DIVERGING["light"]), "dark": theme(DARK, DIVERGING["dark"])}


def scatter(
    points: Sequence[Row],
    series: Sequence[str],
    front: Sequence[Row],
    recommended: Sequence[Row],
    *,
    x_title: str,
    y_title: str,
    level: tuple[str, float] | None,
    y_range: tuple[float, float] | None,
) -> Row:
    """Points of a few colours with the front that no other point beats and a ring around the recommended one.

    Args:
        points: {"x", "y", "series", "hover"}; y in percent.
        series: names in the order of their colours; "other" is grey.
        front: {"x", "y"}, by rising x.
        recommended: like ``points``, one or none.
        x_title, y_title: of the axes.
        level: name and height of a dashed line.
        y_range: of the axis at first, points outside it are drawn on request; None: all are.
    """
    xs = [point["x"] for point in points]
    x = {"field": "x", "type": "quantitative", "title": x_title, "scale": _x_scale(xs), "axis": _x_axis(xs)}
    y = {"field": "y", "type": "quantitative", "title": y_title, "scale": _y_scale(points, y_range)}
    colours = [GREY if name == "other" else PALETTE[place % MAX_SERIES] for place, name in enumerate(series)]
    legend = {"title": None, "symbolOpacity": 1}
    drawn = {
        "data": {"values": list(points)},
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.85, "clip": True},
        "params": [ZOOM],
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "series", "scale": {"domain": list(series), "range": colours}, "legend": legend},
            "shape": {"field": "series", "scale": {"domain": list(series), "range": _shapes(series)}, "legend": legend},
            "tooltip": {"field": "hover"},
        },
    }
    line = {
        "data": {"values": list(front)},
        "mark": {"type": "line", "interpolate": "step-after", "color": GREY, "strokeWidth": 1.5, "clip": True},
        "encoding": {"x": x, "y": y},
    }
    place = {"data": {"values": list(recommended)}, "encoding": {"x": x, "y": y, "tooltip": {"field": "hover"}}}
    ring = {"type": "point", "filled": False, "size": 320, "strokeWidth": 2.5, "color": PALETTE[0], "clip": True}
    left = bool(recommended) and recommended[0]["x"] < (min(xs) + max(xs)) / 2
    beside: Row = {"align": "left", "dx": 12} if left else {"align": "right", "dx": -12}
    name = {"type": "text", "text": "recommended", "dy": -12, "color": PALETTE[0], "fontWeight": "bold", **beside}
    layers = [line, drawn, place | {"mark": ring}, place | {"mark": name}, *_level(level, y)]
    return {"layer": layers, "height": 380, **_all_runs(y_range)}


def lines(
    points: Sequence[Row],
    series: Sequence[str],
    *,
    x_title: str,
    y_title: str,
    level: tuple[str, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Row:
    """A line for each of ``series`` through its points, with a band from "low" to "high" where points have them.

    Args:
        points: {"x", "y", "series", "hover"} and perhaps {"low", "high"}; x are all numbers or all words.
        series: names in the order of their colours.
        x_title, y_title, level, y_range: as of `scatter`.
    """
    xs = [point["x"] for point in points]
    words = any(isinstance(value, str) for value in xs)
    x: Row = {"field": "x", "type": "nominal" if words else "quantitative", "title": x_title or None}
    if words:
        x |= {"sort": None, "axis": {"labelAngle": -60, "labelFontSize": 9, "labelLimit": 120}}
    else:
        x |= {"scale": _x_scale(xs), "axis": _x_axis(xs)}
    y = {"field": "y", "type": "quantitative", "title": y_title, "scale": _y_scale(points, y_range)}
    scale = {"domain": list(series), "range": list(PALETTE)}
    colour = {"field": "series", "type": "nominal", "scale": scale, "legend": {"title": None, "symbolOpacity": 1}}
    encoding = {"x": x, "y": y, "color": colour}
    line = {"mark": {"type": "line", "strokeWidth": 2, "clip": True}, "encoding": encoding}
    mark = {"type": "point", "filled": True, "size": 45, "clip": True}
    dots = {"mark": mark, "encoding": {**encoding, "tooltip": {"field": "hover"}}}
    layers: list[Row] = [line, dots]
    if any("low" in point for point in points):
        edges = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.16, "clip": True}, "encoding": {**encoding, **edges}})
    spec = {"layer": [*layers, *_level(level, y)], "height": 380, **_all_runs(y_range)}
    return {"data": {"values": list(points)}, **spec}


def heat_map(
    cells: Sequence[Row], columns: Sequence[str], rows: Sequence[str], *, x_title: str, y_title: str, unit: str,
    diverging: bool = False,
) -> Row:  # fmt: skip
    """Coloured cells with their values.

    Args:
        cells: {"x", "y", "z", "text", "hover"}; a cell that is not there stays empty.
        columns, rows: all x and all y, in their order.
        x_title, y_title, unit: of the axes and of the colours.
        diverging: colours from loss to gain with zero in the middle; else from low to high.
    """
    values = [float(cell["z"]) for cell in cells]
    bound = max(map(abs, values), default=0.0) or 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    scale: Row = (
        {"domain": [-bound, bound], "range": "diverging", "interpolate": "rgb"} if diverging else {"scheme": "viridis"}
    )
    legend = {"title": unit, "orient": "right", "columns": 1, "gradientLength": 120}
    x: Row = {"field": "x", "type": "nominal", "sort": None, "scale": {"domain": list(columns)}}
    y: Row = {"field": "y", "type": "nominal", "sort": None, "scale": {"domain": list(rows)}}
    long = max(map(len, columns), default=0) * len(columns) > 80
    x |= {"title": x_title or None, "axis": {"labelAngle": -60 if long else 0, "grid": False, "ticks": False}}
    y |= {"title": y_title or None, "axis": {"grid": False, "ticks": False}}
    colour = {"field": "z", "type": "quantitative", "scale": scale, "legend": legend}
    layers: list[Row] = [{
        "mark": {"type": "rect", "stroke": None},
        "encoding": {"x": x, "y": y, "color": colour, "tooltip": {"field": "hover"}},
    }]  # fmt: skip
    if len(columns) * len(rows) <= MAX_CELLS_WITH_TEXT:
        # Text on the cell's own colour: white on dark ends, black on viridis' light half, else the page's ink.
        strong = f"abs(datum.z) > {0.6 * bound}" if diverging else f"datum.z < {low + 0.6 * (high - low)}"
        ink: Row = {"condition": {"test": strong, "value": "white"}}
        ink |= {} if diverging else {"value": "black"}
        longest = max((len(str(cell["text"])) for cell in cells), default=0)
        narrow = {"condition": {"test": f"width < {LETTER * longest * max(1, len(columns))}", "value": 0}, "value": 1}
        text = {"field": "text", "type": "nominal"}
        encoding = {"x": x, "y": y, "text": text, "color": ink, "opacity": narrow}
        layers.append({"mark": {"type": "text", "fontSize": 11, "tooltip": None}, "encoding": encoding})
    bands = {"scale": {"bandPaddingInner": 0.04, "bandPaddingOuter": 0.02}}
    return {"data": {"values": list(cells)}, "layer": layers, "height": 32 * len(rows), "config": bands}


ZOOM: Row = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"},
    "bind": "scales",
}


def _is_log(values: Sequence[float]) -> bool:
    return max(values, default=1) > LOG_RATIO * min(values, default=1) > 0


def _x_scale(values: Sequence[float]) -> Row:
    return {"type": "log", "nice": False, "padding": 12} if _is_log(values) else {"zero": False, "padding": 12}


def _x_axis(values: Sequence[float]) -> Row:
    """Where the axis is logarithmic and the values are few, labels at the values themselves."""
    distinct = sorted(set(values))
    at_values = _is_log(values) and len(distinct) <= MAX_TICKS
    return {"values": distinct, "format": ",.4~g"} if at_values else {"format": ",.4~g"}


def _shapes(series: Sequence[str]) -> list[str]:
    return ["circle" if name == "other" else SHAPES[place % MAX_SERIES] for place, name in enumerate(series)]


def _y_scale(points: Sequence[Row], y_range: tuple[float, float] | None) -> Row:
    if y_range is None:
        return {"zero": False, "padding": 16}
    lowest = min(point["y"] for point in points)
    return {"zero": False, "domainMin": {"expr": f"all_runs ? {lowest - 1} : {y_range[0]}"}, "domainMax": y_range[1]}


def _all_runs(y_range: tuple[float, float] | None) -> Row:
    """A box to tick that draws the points outside the range too."""
    if y_range is None:
        return {}
    return {"params": [{"name": "all_runs", "value": False, "bind": {"input": "checkbox", "name": "all runs "}}]}


def _level(level: tuple[str, float] | None, y: Row) -> list[Row]:
    if level is None:
        return []
    name, height = level
    data = {"values": [{"y": height, "name": name}]}
    text = {"type": "text", "align": "right", "dx": -4, "dy": -7, "fontSize": 11, "color": GREY, "clip": True}
    rule = {"type": "rule", "strokeDash": [5, 4], "color": GREY, "clip": True}
    return [
        {"data": data, "mark": rule, "encoding": {"y": y}},
        {"data": data, "mark": text, "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "name"}}},
    ]


def vega_script() -> str | None:
    """Vega, Vega-Lite and Vega-Embed as one script; None, with a warning, where vl-convert-python is not installed.

    It is the same for each version of the package and takes a second to bundle, so it is kept in the cache folder.
    """
    try:
        import vl_convert
    except ModuleNotFoundError:
        log.warning("the report has no plots: %s", missing_extra("vl-convert-python", "report").remedy)
        return None
    try:
        kept = cache_folder() / f"vega-{version('vl-convert-python')}.js"
        if not kept.is_file():
            with replacing(kept) as temporary:
                temporary.write_text(vl_convert.javascript_bundle(), encoding="utf-8")  # type: ignore[call-arg]
        return kept.read_text(encoding="utf-8")
    except ExperimentError:  # no cache that can be written to
        return vl_convert.javascript_bundle()  # type: ignore[call-arg]


def write_files(plots: Iterable[Plot], folder: Path) -> list[Path]:
    """Write each plot as KEY.png and KEY.svg into ``folder``, on white; every file is whole or absent.

    Raises:
        ExperimentError: vl-convert-python is not installed, or the folder cannot be written to.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise missing_extra("vl-convert-python", "report") from error
    written = []
    config = themes()["light"]
    for plot in plots:
        spec = {**plot.spec, "width": FILE_WIDTH, "title": plot.title, "padding": 12}
        rendered = {
            "png": vl_convert.vegalite_to_png(spec, config=config, scale=PNG_SCALE),
            "svg": vl_convert.vegalite_to_svg(spec, config=config).encode(),
        }
        for kind, content in rendered.items():
            path = folder / f"{plot.key}.{kind}"
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            written.append(path)
    return written
