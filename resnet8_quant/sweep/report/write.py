"""The page as one file: sections, style, script, Plotly and the data, with nothing left to fetch.

In: the jobs of a table and a path. Out: report.html and, where a folder is given, each plot as PNG and SVG.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from resnet8_quant.errors import missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.chart import Chart, Heat
from resnet8_quant.sweep.report.markup import escape, script_json
from resnet8_quant.sweep.report.plotly_figures import figure
from resnet8_quant.sweep.report.sections import Section, sections

log = logging.getLogger(__name__)

# Whatever a run's text might have smuggled in, the page can neither load nor send anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def write_report(jobs: Sequence[Job], path: Path, *, plots: Path | None = None) -> None:
    """Write the page.

    Args:
        jobs: with their choices named, in the order of the table.
        path: of the page.
        plots: folder for a PNG and an SVG of each plot; None: none are drawn.

    Raises:
        ExperimentError: a file cannot be written; ``plots`` without matplotlib.
    """
    found = sections(jobs)
    script = plotly_script()
    with replacing(path) as temporary:
        temporary.write_text(page(jobs, found, script), encoding="utf-8")
    if plots is not None:
        from resnet8_quant.sweep.report.static_figures import draw

        draw((drawing for section in found for drawing in section.drawings), plots)


def plotly_script() -> str | None:
    """plotly.js; None, with a warning, where Plotly is not installed: the page then has no plots and says so."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        log.warning("the report has no plots: %s", missing_extra("plotly", "report").remedy)
        return None
    return str(get_plotlyjs())


def page(jobs: Sequence[Job], found: Sequence[Section], plotly: str | None) -> str:
    """The HTML of the whole page; ``plotly`` is the script that draws, None: there is none."""
    shown = [section for section in found if not section.missing]
    left_out = [section for section in found if section.missing]
    figures: dict[str, Any] = {}
    parts = [_section(section, figures, plotly is not None) for section in shown]
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in shown[1:])
    if left_out:
        items = "".join(f"<li>{escape(section.title)}: {escape(section.missing)}.</li>" for section in left_out)
        parts.insert(-1, f'<section id="left-out"><h2>Not in this report</h2><ul>{items}</ul></section>')
    assets = files("resnet8_quant.sweep.report") / "assets"
    drawn = "" if plotly is None else f"<script>{plotly}</script>\n"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Quantization report: {_subject(jobs)}</title>
<style>
{(assets / "style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<div><h1>Quantization report</h1><p>{_subject(jobs)}</p></div>
<button type="button" id="theme" aria-label="Switch between light and dark" hidden>Dark</button>
</header>
<nav aria-label="Sections">{links}</nav>
<main>
{"".join(parts)}</main>
<script type="application/json" id="figures">{script_json(figures)}</script>
{drawn}<script>
{(assets / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _subject(jobs: Sequence[Job]) -> str:
    """What the page is about, in a line."""
    rows = [job.row for job in jobs if job.ok]
    models = ", ".join(sorted({row.model for row in rows if row.model})[:4])
    data = ", ".join(sorted({row.data for row in rows if row.data})[:4])
    images = {row.eval_images for row in rows if row.eval_images}
    tested = f", {images.pop():,} test images" if len(images) == 1 else ""
    about = f" \N{MIDDLE DOT} {models} on {data}{tested}" if models else ""
    return escape(f"{len(jobs):,} {'run' if len(jobs) == 1 else 'runs'}{about}")


def _section(section: Section, figures: dict[str, Any], drawable: bool) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    body = _drawings(section, figures) if drawable else ""
    if section.drawings and not drawable:
        body = f"<p>The plots need the package plotly: {escape(missing_extra('plotly', 'report').remedy)}</p>"
    extra = _filter() if section.key == "runs" else ""
    return (
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{note}{extra}{body}{section.markup}</section>\n'
    )


def _drawings(section: Section, figures: dict[str, Any]) -> str:
    parts = []
    options = "".join(
        f'<option value="{escape(drawing.key)}">{escape(drawing.title)}</option>' for drawing in section.drawings
    )
    if section.choice and len(section.drawings) > 1:
        parts.append(f'<label class="pick">Show <select data-picks="{section.key}">{options}</select></label>')
    for place, drawing in enumerate(section.drawings):
        figures[drawing.key] = figure(drawing)
        hidden = " hidden" if section.choice and place else ""
        parts.append(_place(drawing, hidden))
    return f'<div class="plots" data-count="{1 if section.choice else len(section.drawings)}">{"".join(parts)}</div>'


def _place(drawing: Chart | Heat, hidden: str) -> str:
    return (
        f'<figure id="f-{escape(drawing.key)}"{hidden}><h3>{escape(drawing.title)}</h3>'
        f'<div class="plot" data-figure="{escape(drawing.key)}" role="img" aria-label="{escape(drawing.title)}"></div>'
        f"<figcaption>{escape(drawing.note)}</figcaption></figure>"
    )


def _filter() -> str:
    return (
        '<div class="tools"><input type="search" id="filter" placeholder="e.g. int8 accuracy&gt;0.87 status!=failed" '
        'aria-label="Filter the runs"><label><input type="checkbox" id="more"> all columns</label>'
        '<output id="count"></output><output id="hint"></output></div>'
    )
