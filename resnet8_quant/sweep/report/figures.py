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
LEGEND = {"title": None, "symbolOpacity": 1}
ZOOM = {"name": "zoom", "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"}, "bind": "scales"}

# Diverging colours go from loss to gain. The middle is the page's background; white text is readable on both ends.
COLOURS = {
    "light": {"ink": "#1b1f24", "soft": "#5b6470", "grid": "#e1e4e8", "paper": "#ffffff"},
    "dark": {"ink": "#e6e9ed", "soft": "#9aa4b1", "grid": "#2d333b", "paper": "#14171b"},
}
DIVERGING = {
    "light": ["#B4480A", "#EBA577", "#F3F2EF", "#79B0DA", "#005F9E"],
    "dark": ["#C4571C", "#7A452A", "#23282F", "#2C618A", "#2F86C8"],
}

Row = dict[str, Any]
Rows = Sequence[Row]


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


@dataclass(frozen=True)
class Axes:
    """Titles, name and height of a dashed line, and where y ends at first: points outside are drawn on request."""

    x_title: str
    y_title: str
    level: tuple[str, float] | None = None
    y_range: tuple[float, float] | None = None

    def spec(self, points: Rows, layers: Rows, params: Rows = ()) -> Row:
        """The plot of ``points``, which all ``layers`` share, with the dashed line and the box to tick."""
        shown = [*layers]
        if self.level is not None:
            name, height = self.level
            data = {"values": [{"y": height, "name": name}]}
            across = {"x": {"value": 0}, "x2": {"value": "width"}}
            at_the_end = {"x": {"value": "width"}, "text": {"field": "name"}}
            rule = {"type": "rule", "strokeDash": [5, 4], "color": GREY, "clip": True}
            text = {"type": "text", "align": "right", "dx": -4, "dy": -7, "fontSize": 11, "color": GREY, "clip": True}
            shown += [{"data": data, "mark": rule, "encoding": across}]
            shown += [{"data": data, "mark": text, "encoding": at_the_end}]
        # The ends are said, because Vega warns where it has to find them in a layer that is empty.
        heights = [point[name] for point in points for name in ("y", "low", "high") if name in point]
        heights += [self.level[1]] if self.level is not None else []
        scale: Row = {"zero": False, "padding": 16, "domain": [min(heights), max(heights)]}
        if self.y_range is not None:
            low, high = self.y_range
            scale = {"zero": False, "domain": [{"expr": f"all_runs ? {min(heights) - 1} : {low}"}, high]}
            box = {"name": "all_runs", "value": False, "bind": {"input": "checkbox", "name": "all runs "}}
            params = [*params, box]
        y = {"field": "y", "type": "quantitative", "title": self.y_title, "scale": scale}
        encoding = {"x": self._x([point["x"] for point in points]), "y": y}
        shared = {"data": {"values": list(points)}, "encoding": encoding, "params": list(params)}
        return {**shared, "layer": shown, "height": 380}

    def _x(self, values: Sequence[Any]) -> Row:
        """The x axis of numbers or of words; numbers are on a logarithmic scale where they span much."""
        title = self.x_title or None
        if any(isinstance(value, str) for value in values):
            labels = {"labelAngle": -60, "labelFontSize": 9, "labelLimit": 120}
            return {"field": "x", "type": "nominal", "title": title, "sort": None, "axis": labels}
        logarithmic = max(values, default=1) > LOG_RATIO * min(values, default=1) > 0
        scale: Row = {"type": "log", "nice": False} if logarithmic else {"zero": False}
        distinct = sorted(set(values))
        scale |= {"padding": 12, "domain": [distinct[0], distinct[-1]]}
        # Where the axis is logarithmic and the values are few, labels stand at the values themselves.
        ticks = {"values": distinct} if logarithmic and len(distinct) <= MAX_TICKS else {}
        axis = {**ticks, "format": ",.4~g"}
        return {"field": "x", "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def themes() -> dict[str, Row]:
    """{"light": config, "dark": config} of Vega-Lite, of which the page takes one."""
    return {name: _theme(colours, DIVERGING[name]) for name, colours in COLOURS.items()}


def _theme(colours: dict[str, str], diverging: Sequence[str]) -> Row:
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


def scatter(points: Rows, series: Sequence[str], recommended: int, axes: Axes) -> Row:
    """Points of a few colours with the front that no other point beats and a ring around the recommended one.

    Args:
        points: {"x", "y", "series", "hover", "front", "place", "left"}; y in percent; whether it is on the front; which
            candidate it stands for, or None; whether it is in the left half.
        series: names in the order of their colours; "other" is grey.
        recommended: the candidate with the ring at first; the page changes it.
        axes: of numbers.
    """
    colours = [GREY if name == "other" else PALETTE[place % MAX_SERIES] for place, name in enumerate(series)]
    shapes = ["circle" if name == "other" else SHAPES[place % MAX_SERIES] for place, name in enumerate(series)]
    hover = {"tooltip": {"field": "hover"}}
    encoding = {"color": _by_series(series, colours), "shape": _by_series(series, shapes), **hover}
    step = {"type": "line", "interpolate": "step-after", "color": GREY, "strokeWidth": 1.5, "clip": True}
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 0.85, "clip": True}
    ring = {"type": "point", "filled": False, "size": 320, "strokeWidth": 2.5, "color": PALETTE[0], "clip": True}
    name = {"type": "text", "text": "recommended", "dy": -12, "color": PALETTE[0], "fontWeight": "bold"}
    is_it = "datum.place === recommended"
    layers: list[Row] = [
        {"transform": [{"filter": "datum.front"}], "mark": step},
        {"mark": dot, "params": [ZOOM], "encoding": encoding},
        {"transform": [{"filter": is_it}], "mark": ring, "encoding": hover},
        {"transform": [{"filter": f"{is_it} && datum.left"}], "mark": {**name, "align": "left", "dx": 12}},
        {"transform": [{"filter": f"{is_it} && !datum.left"}], "mark": {**name, "align": "right", "dx": -12}},
    ]
    return axes.spec(points, layers, [{"name": "recommended", "value": recommended}])


def lines(points: Rows, series: Sequence[str], axes: Axes) -> Row:
    """A line for each of ``series`` through its points, with a band from "low" to "high" where points have them.

    Args:
        points: {"x", "y", "series", "hover"} and perhaps {"low", "high"}; x are all numbers or all words.
        series: names in the order of their colours.
        axes: of numbers or words.
    """
    colour = _by_series(series, PALETTE)
    mark = {"type": "point", "filled": True, "size": 45, "clip": True}
    layers: list[Row] = [
        {"mark": {"type": "line", "strokeWidth": 2, "clip": True}, "encoding": {"color": colour}},
        {"mark": mark, "encoding": {"color": colour, "tooltip": {"field": "hover"}}},
    ]
    if any("low" in point for point in points):
        edges = {"color": colour, "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.16, "clip": True}, "encoding": edges})
    return axes.spec(points, layers)


def _by_series(series: Sequence[str], values: Sequence[str]) -> Row:
    scale = {"domain": list(series), "range": list(values)}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": LEGEND}


def heat_map(
    cells: Rows, columns: Sequence[str], rows: Sequence[str], titles: tuple[str, str, str], *, diverging: bool = False
) -> Row:
    """Coloured cells with their values.

    Args:
        cells: {"x", "y", "z", "text", "hover"}; a cell that is not there stays empty.
        columns, rows: all x and all y, in their order.
        titles: of the x axis, the y axis and the colours.
        diverging: colours from loss to gain with zero in the middle; else from low to high.
    """
    x_title, y_title, unit = titles
    values = [float(cell["z"]) for cell in cells]
    bound = max(map(abs, values), default=0.0) or 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    scale: Row = (
        {"domain": [-bound, bound], "range": "diverging", "interpolate": "rgb"} if diverging else {"scheme": "viridis"}
    )
    legend = {"title": unit, "orient": "right", "columns": 1, "gradientLength": 120}
    axis = {"grid": False, "ticks": False}
    turned = {"labelAngle": -60 if max(map(len, columns), default=0) * len(columns) > 80 else 0}
    nominal: Row = {"type": "nominal", "sort": None}
    x = {"field": "x", **nominal, "scale": {"domain": list(columns)}, "title": x_title or None, "axis": turned | axis}
    y = {"field": "y", **nominal, "scale": {"domain": list(rows)}, "title": y_title or None, "axis": axis}
    colour = {"field": "z", "type": "quantitative", "scale": scale, "legend": legend}
    encoding: Row = {"x": x, "y": y, "color": colour, "tooltip": {"field": "hover"}}
    layers: list[Row] = [{"mark": {"type": "rect", "stroke": None}, "encoding": encoding}]
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


def write_files(plots: Iterable[Plot], folder: Path) -> None:
    """Write each plot as KEY.png and KEY.svg into ``folder``, on white; every file is whole or absent."""
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise missing_extra("vl-convert-python", "report") from error
    config = themes()["light"]
    for plot in plots:
        spec = {**plot.spec, "width": FILE_WIDTH, "title": plot.title, "padding": 12}
        rendered = {
            "png": vl_convert.vegalite_to_png(spec, config=config, scale=PNG_SCALE),
            "svg": vl_convert.vegalite_to_svg(spec, config=config).encode(),
        }
        for kind, content in rendered.items():
            with replacing(folder / f"{plot.key}.{kind}") as temporary:
                temporary.write_bytes(content)
