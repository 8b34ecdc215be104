"""A chart as Plotly reads it: traces and a layout, as plain data for the page.

In: `Chart` or `Heat`. Out: a dict for JSON. Colours of text, lines and background are left to page.js, which knows
whether the page is light or dark. Every label from a run is escaped, because Plotly reads some tags.
"""

from __future__ import annotations

from typing import Any

from resnet8_quant.sweep.report.chart import GREY, SYMBOLS, Chart, Heat, Series, log_ticks
from resnet8_quant.sweep.report.markup import label

MOST_WRITTEN = 400  # cells with a number in them
SEQUENTIAL = "Viridis"
DIVERGING = [[0.0, "#B4480A"], [0.25, "#EBA577"], [0.5, "#F3F2EF"], [0.75, "#79B0DA"], [1.0, "#005F9E"]]


def figure(drawing: Chart | Heat) -> dict[str, Any]:
    """``drawing`` as {"data": [...], "layout": {...}}."""
    return _heat(drawing) if isinstance(drawing, Heat) else _chart(drawing)


def _chart(chart: Chart) -> dict[str, Any]:
    traces = [trace for series in chart.series for trace in _traces(series)]
    words = any(isinstance(x, str) for series in chart.series for x in series.x)
    x_axis: dict[str, Any] = _axis(chart.x_title)
    if words:
        x_axis |= {"type": "category", "tickangle": -60, "tickfont": {"size": 10}}
    elif chart.log_x:
        ticks = log_ticks(chart)
        x_axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.4g}" for tick in ticks]}
    y_axis: dict[str, Any] = _axis(chart.y_title)
    if chart.y_range:
        y_axis["range"] = list(chart.y_range)
    layout: dict[str, Any] = {
        "xaxis": x_axis,
        "yaxis": y_axis,
        "height": 560 if words else 440,
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "margin": {"l": 56, "r": 16, "t": 24, "b": 52},
    }
    if chart.level:
        name, height = chart.level
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}
            | {"line": {"dash": "dash", "width": 1}, "layer": "below"}
        ]
        entry = {"mode": "lines", "line": {"dash": "dash", "width": 1.2, "color": GREY}, "hoverinfo": "skip"}
        traces.append({"type": "scatter", "x": [None], "y": [None], "name": label(name), **entry})  # for the legend
    return {"data": traces, "layout": layout}


def _traces(series: Series) -> list[dict[str, Any]]:
    x = [label(value) if isinstance(value, str) else value for value in series.x]
    base: dict[str, Any] = {"type": "scatter", "x": x, "y": list(series.y), "name": label(series.name)}
    if series.hover:
        base |= {"hovertext": [label(text) for text in series.hover], "hoverinfo": "text"}
    else:
        base["hoverinfo"] = "skip"
    colour = series.hex
    symbol = SYMBOLS[(series.colour or 0) % len(SYMBOLS)] if series.colour is not None else "circle"
    if series.mark == "front":
        return [base | {"mode": "lines", "line": {"color": colour, "width": 1.5, "shape": "hv"}}]
    if series.mark == "ring":
        ring = {"symbol": "circle-open", "size": 18, "color": colour, "line": {"width": 2.5}}
        return [base | {"mode": "markers", "marker": ring}]
    marker = {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.85}
    if series.mark == "points":
        return [base | {"mode": "markers", "marker": marker}]
    group = {"legendgroup": label(series.name)}
    line = base | group | {"mode": "lines+markers", "marker": marker, "line": {"color": colour, "width": 2}}
    if not series.low:
        return [line]
    edge = {"type": "scatter", "x": x, "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": _transparent(colour)}
    return [edge | group | {"y": list(series.low)}, edge | group | fill | {"y": list(series.high)}, line]


def _heat(heat: Heat) -> dict[str, Any]:
    values = [value for row in heat.z for value in row if value is not None]
    bound = max((abs(value) for value in values), default=0.0) or 1.0
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [label(name) for name in heat.x],
        "y": [label(name) for name in heat.y],
        "z": [list(row) for row in heat.z],
        "hovertext": [[label(text) for text in row] for row in heat.hover],
        "hoverinfo": "text",
        "xgap": 2,
        "ygap": 2,
        "colorscale": DIVERGING if heat.diverging else SEQUENTIAL,
        "colorbar": {"title": {"text": label(heat.unit), "side": "right"}, "thickness": 10, "outlinewidth": 0},
    }
    if heat.diverging:
        trace |= {"zmin": -bound, "zmax": bound, "meta": "diverging"}  # page.js has darker colours for it
    if len(heat.x) * len(heat.y) <= MOST_WRITTEN:
        trace |= {"text": [list(row) for row in heat.cells], "texttemplate": "%{text}"}
    plain = {"type": "category", "showgrid": False}
    layout = {
        "xaxis": _axis(heat.x_title) | plain,
        "yaxis": _axis(heat.y_title) | plain | {"autorange": "reversed"},
        "height": min(1000, 150 + max(34 * len(heat.y), 150)),
        "margin": {"l": 56, "r": 8, "t": 16, "b": 52},
    }
    return {"data": [trace], "layout": layout}


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": label(title), "standoff": 12}, "automargin": True}


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
