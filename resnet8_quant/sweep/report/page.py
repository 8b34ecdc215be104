"""The report: sections, each with what it shows or why it is left out, as one HTML file that needs no network.

In: the runs of a table and a path. Out: report.html and, where a folder is given, each plot as PNG and SVG.
"""

from __future__ import annotations

import base64
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resnet8_quant import terminal
from resnet8_quant.errors import missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import pair, plots, tables
from resnet8_quant.sweep.report.answer import answer, points
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.figures import Plot, themes, vega_script, write_files
from resnet8_quant.sweep.report.plots import Flips
from resnet8_quant.sweep.report.recommendation import LEVEL, Limits, Model, Recommendation, models_of, recommend

log = logging.getLogger(__name__)

# Whatever a run's text might have smuggled in, the page can neither load nor send anything. DataTables is a module,
# which only an address can name: one that holds it (data:).
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' data:; img-src data: blob:"
MAX_TESTS = 60
MAX_FAILURES = 50
NO_LIMITS: Limits = MappingProxyType({})


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor, and the macro of the template that shows ``content``.
        title: its heading.
        plots: of more than ``places`` the reader chooses which are shown.
        content: what the macro takes.
        note: sentence below the heading.
        missing: why it is left out; empty: it is not.
    """

    key: str
    title: str
    plots: Sequence[Plot] = ()
    content: Any = None
    note: str = ""
    missing: str = ""
    places: int = 1


def write_report(
    jobs: Sequence[Job], path: Path, *, limits: Limits = NO_LIMITS, plot_folder: Path | None = None
) -> str:
    """Write the page of ``jobs``, which have their choices named, and a PNG and an SVG of each plot if asked for.

    Args:
        jobs: all of them.
        path: of the page.
        limits: what the recommendation keeps to at first; a reader of the page can change them.
        plot_folder: where the plots go as files; None: nowhere.

    Returns:
        Which file the page recommends, a line for the terminal; empty where it recommends none.

    Raises:
        ExperimentError: a file cannot be written; ``plot_folder`` without vl-convert-python.
    """
    parts, recommendation = sections(jobs, limits)
    text = render(jobs, parts, vega_script(), datatables())
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if plot_folder is not None:
        write_files((plot for section in parts for plot in section.plots), plot_folder)
    if recommendation is None:
        return ""
    job, row = recommendation.job, recommendation.job.row
    accuracy = f"{terminal.percent(row.accuracy)}{portability.mark(row)}"
    lost = "" if row.accuracy_delta is None else f" ({terminal.points(row.accuracy_delta)})"
    size = terminal.size(row.tflite_bytes or row.model_bytes)
    file = terminal.shown(job.path / ("model.onnx" if row.tflite_bytes is None else "model.tflite"))
    return f"Recommended: {row.quant_type}, {accuracy}{lost}, {size}: {file}"


def sections(jobs: Sequence[Job], limits: Limits = NO_LIMITS) -> tuple[list[Section], Recommendation | None]:
    """All sections, those that are left out included, and the choice; None where no model is within the limits."""
    evidence = gather(jobs)
    models = models_of(evidence)
    recommendation = recommend(models, limits)
    failed = [job for job in jobs if not job.ok]
    parts = [Section("answer", "Recommendation", content=answer(evidence, models, limits))]
    # Where no model is within the limits, what is shown of one run is of the one recommended without them.
    shown = recommendation or recommend(models, NO_LIMITS)
    if shown is not None:
        parts += _comparisons(evidence, models, shown)
    if failed:
        note = f"The first {MAX_FAILURES} of {len(failed)}; the table has all." if len(failed) > MAX_FAILURES else ""
        parts.append(Section("failed", "Failed runs", content=failed[:MAX_FAILURES], note=note))
    cut = f"The first {tables.MAX_ROWS:,} of {len(jobs):,} runs; summary.csv has all."
    note = cut if len(jobs) > tables.MAX_ROWS else ""
    parts.append(Section("runs", "All runs", content=tables.all_runs(jobs, models, recommendation), note=note))
    parts.append(_pair(jobs[: tables.MAX_ROWS], evidence))
    parts.append(Section("provenance", "Provenance", content=tables.provenance(jobs)))
    return parts, recommendation


def _comparisons(evidence: Evidence, models: Sequence[Model], recommendation: Recommendation) -> list[Section]:
    """The plots, the flipped images and the tests."""
    jobs, close = evidence.jobs, plots.focus(evidence, recommendation.job)
    none = "no quantized run has finished"
    return [
        _drawn("pareto", "Trade-offs", plots.trade_offs(jobs, models, recommendation.model), places=2),
        _drawn("grid", "Two settings at a time", plots.heat_maps(jobs)),
        _drawn("calibration", "Calibration images", plots.calibration_size(jobs)),
        _drawn("classes", "Classes", plots.per_class(evidence, close) if close else none),
        _drawn("confusion", "Confusion", plots.confusion(evidence, close) if close else none),
        _drawn("layers", "Layers", plots.layer_plots(evidence, close) if close else none),
        _drawn("flips", "Flipped images", plots.flipped(evidence, close) if close else none),
        _significance(evidence, recommendation),
    ]


def _pair(jobs: Sequence[Job], evidence: Evidence) -> Section:
    """Of two runs that the reader ticks in the table."""
    title = "Side by side"
    if sum(job.ok for job in jobs) < 2:
        return Section("pair", title, missing="fewer than two runs have finished")
    data, cut = pair.page_data(jobs, evidence)
    note = (
        "The two runs that are ticked in the table above: A, then B; a third takes the place of B. p is that of the "
        "exact McNemar test of these two alone: it is not corrected for the number of pairs that are looked at."
    )
    return Section("pair", title, content=data, note=f"{note} {cut}".strip())


def _drawn(key: str, title: str, content: Sequence[Plot] | Flips | str, places: int = 1) -> Section:
    """The section of some plots or images, or of the reason why there are none."""
    if isinstance(content, str):
        return Section(key, title, missing=content)
    if isinstance(content, Flips):
        return Section(key, title, content=content.images, note=content.note)
    return Section(key, title, content, places=places)


def _significance(evidence: Evidence, recommendation: Recommendation) -> Section:
    title, count = "Significance against the best", len(recommendation.tests)
    if not count:
        reason = evidence.no_labels or "there are no two models with predictions of the same images"
        return Section("significance", title, missing=reason)
    shown = f" The {MAX_TESTS} most accurate are listed." if count > MAX_TESTS else ""
    note = (
        "Exact McNemar test of each model against the most accurate one on the same images; p is corrected by Holm for "
        f"{count} comparisons. Runs that made the same model count once.{shown}"
    )
    return Section("significance", title, content=recommendation, note=note)


def render(jobs: Sequence[Job], parts: Sequence[Section], vega: str | None, datatables: tuple[str, str] | None) -> str:
    """The HTML of the whole page.

    Without ``vega``, the script that draws, it says what its plots need; without ``datatables``, module and style of
    the widget, its table is plain.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("resnet8_quant.sweep.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"points": points, "p_value": tables.p_value, "shortened": tables.shortened}
    environment.globals |= {"mark": portability.mark, "notes_on": portability.notes}
    environment.globals |= {"level": LEVEL, "max_tests": MAX_TESTS}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    assets = files("resnet8_quant.sweep.report") / "templates"
    module, module_style = datatables or ("", "")
    texts, choice = parts[0].content
    return environment.get_template("report.html.j2").render(
        jobs=jobs,
        subject=_subject(jobs),
        shown=[section for section in parts if not section.missing],
        left_out=[section for section in parts if section.missing],
        data={
            "plots": {plot.key: vars(plot) for section in parts for plot in section.plots},
            "themes": themes(),
            "choice": choice,
            "pair": next((section.content for section in parts if section.key == "pair"), None),
        },
        texts=defaultdict(str, texts),
        choice=choice,
        mark_note=portability.NOTE,
        policy=POLICY,
        plots_need=missing_extra("vl-convert-python", "report").remedy,
        style=Markup((assets / "style.css").read_text(encoding="utf-8")),
        script=Markup("".join((assets / name).read_text(encoding="utf-8") for name in ("page.js", "pair.js"))),
        vega=None if vega is None else Markup(vega),
        datatables=base64.b64encode(module.encode()).decode(),
        datatables_style=Markup(module_style),
    )


def datatables() -> tuple[str, str] | None:
    """DataTables as itables bundles it, module and style; None, with a warning, where itables is not installed.

    The bundle is read without importing itables, which would import pandas and IPython for nothing.
    """
    package = find_spec("itables")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "html"
        module, style = folder / "dt_bundle.js", folder / "dt_bundle.css"
        if module.is_file() and style.is_file():
            return module.read_text(encoding="utf-8"), style.read_text(encoding="utf-8")
    log.warning("the report's table does not filter: %s", missing_extra("itables", "report").remedy)
    return None


def _subject(jobs: Sequence[Job]) -> str:
    """What the page is about, in a line."""
    rows = [job.row for job in jobs if job.ok]
    models = ", ".join(sorted({row.model for row in rows if row.model})[:4])
    data = ", ".join(sorted({row.data for row in rows if row.data})[:4])
    images = {row.eval_images for row in rows if row.eval_images}
    tested = f", {images.pop():,} test images" if len(images) == 1 else ""
    about = f" \N{MIDDLE DOT} {models} on {data}{tested}" if models else ""
    return f"{len(jobs):,} {'run' if len(jobs) == 1 else 'runs'}{about}"
