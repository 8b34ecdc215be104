"""The report: sections, each with what it shows or why it is left out, as one HTML file that needs no network.

In: the runs of a table and a path. Out: report.html and, where a folder is given, each plot as PNG and SVG.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

from resnet8_quant import terminal
from resnet8_quant.errors import missing_extra
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import portability
from resnet8_quant.sweep.collect import Job, settings
from resnet8_quant.sweep.report import plots, tables
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.figures import Plot, themes, vega_script, write_files
from resnet8_quant.sweep.report.flips import flipped
from resnet8_quant.sweep.report.provenance import command, launchers, measurement, provenance
from resnet8_quant.sweep.report.recommendation import LEVEL, Recommendation, recommend

log = logging.getLogger(__name__)

# Whatever a run's text might have smuggled in, the page can neither load nor send anything. DataTables is a module,
# which only an address can name: one that holds it (data:).
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' data:; img-src data: blob:"
MAX_TESTS = 60
MAX_FAILURES = 50
SERIOUS_P, SERIOUS_LOSS = 0.01, 0.01  # a loss of a point that chance does not explain is a warning, whatever its size


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor, and the macro of the template that shows ``content``.
        title: its heading.
        plots: where ``one_at_a_time`` is set, a list chooses one of them.
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
    one_at_a_time: bool = False


def write_report(jobs: Sequence[Job], path: Path, *, plot_folder: Path | None = None) -> None:
    """Write the page of ``jobs``, which have their choices named, and a PNG and an SVG of each plot if asked for.

    Raises:
        ExperimentError: a file cannot be written; ``plot_folder`` without vl-convert-python.
    """
    parts = sections(jobs)
    text = render(jobs, parts, vega_script(), datatables())
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if plot_folder is not None:
        write_files((plot for section in parts for plot in section.plots), plot_folder)


def sections(jobs: Sequence[Job]) -> list[Section]:
    """All sections, those that are left out included."""
    evidence = gather(jobs)
    recommendation = recommend(evidence)
    failed = [job for job in jobs if not job.ok]
    parts = [Section("answer", "Recommendation")]
    if recommendation is not None:
        answer = Section("answer", "Recommendation", content=headline(evidence, recommendation))
        parts = [answer, *_comparisons(evidence, recommendation)]
    if failed:
        note = f"The first {MAX_FAILURES} of {len(failed)}; the table has all." if len(failed) > MAX_FAILURES else ""
        parts.append(Section("failed", "Failed runs", content=failed[:MAX_FAILURES], note=note))
    cut = f"The first {tables.MAX_ROWS:,} of {len(jobs):,} runs; summary.csv has all."
    note = cut if len(jobs) > tables.MAX_ROWS else ""
    parts.append(Section("runs", "All runs", content=tables.all_runs(jobs, recommendation), note=note))
    return [*parts, Section("provenance", "Provenance", content=provenance(jobs))]


def _comparisons(evidence: Evidence, recommendation: Recommendation) -> list[Section]:
    """The plots, the flipped images and the tests."""
    jobs, close = evidence.jobs, plots.focus(evidence, recommendation.job)
    trade_offs, maps = plots.trade_offs(jobs, recommendation.job), plots.heat_maps(jobs)
    parts = [
        Section("pareto", "Trade-offs", trade_offs, missing="" if trade_offs else "no sizes, no latencies"),
        Section("grid", "Two settings at a time", maps, missing="" if maps else plots.NO_MAPS, one_at_a_time=True),
        _plotted("calibration", "Calibration images", plots.calibration_size(jobs)),
    ]
    of_a_run = {"Classes": plots.per_class, "Confusion": plots.confusion, "Layers": plots.layer_snr}
    none = "no quantized run has finished"
    for title, plot in of_a_run.items():
        parts.append(_plotted(title.lower(), title, none if close is None else plot(evidence, close)))
    flips, about = ([], none) if close is None else flipped(evidence, close)
    parts.append(Section("flips", "Flipped images", content=flips, note=about, missing="" if flips else about))
    return [*parts, _significance(evidence, recommendation)]


def _plotted(key: str, title: str, plot: Plot | str) -> Section:
    return Section(key, title, missing=plot) if isinstance(plot, str) else Section(key, title, (plot,))


def _significance(evidence: Evidence, recommendation: Recommendation) -> Section:
    title, count = "Significance against the best", len(recommendation.tests)
    if not count:
        reason = evidence.missing.get("labels", "there are no two models with predictions of the same images")
        return Section("significance", title, missing=reason)
    shown = f" The {MAX_TESTS} most accurate are listed." if count > MAX_TESTS else ""
    note = (
        "Exact McNemar test of each model against the most accurate one on the same images; p is corrected by Holm for "
        f"{count} comparisons. Runs that made the same model count once.{shown}"
    )
    return Section("significance", title, content=recommendation, note=note)


def headline(evidence: Evidence, recommendation: Recommendation) -> dict[str, Any]:
    """What the top of the page says about the recommended run, for the template to put into sentences.

    Returns:
        loss: against float: "serious", "real", "gain", "noise", or "" where it is not known.
        ratio: latency over that of float, the median over the runs of the model; None: not timed.
        timed: the runs that latency decided between; empty: it did not decide.
        other_seeds: accuracies of the same settings with other seeds: the recommended run may be a lucky draw.
    """
    row, own = recommendation.job.row, settings(recommendation.job.row)
    ratios = [
        run.row.latency_us_median / run.row.float_latency_us_median
        for run in recommendation.model.runs
        if run.row.latency_us_median and run.row.float_latency_us_median
    ]
    same = [job for job in evidence.jobs if settings(job.row) | {"seed": ""} == own | {"seed": ""}]
    return {
        "recommendation": recommendation,
        "evidence": evidence,
        "loss": _loss(row),
        "ratio": median(ratios) if ratios else None,
        "timed": [run for model in recommendation.timed for run in model.runs],
        "other_seeds": [job.row.accuracy for job in same if "seed" in own and job is not recommendation.job],
    }


def _loss(row: RunResult) -> str:
    delta, p = row.accuracy_delta, row.mcnemar_p
    if delta is None or p is None or row.calibration_method is None:
        return ""
    if p < SERIOUS_P and delta <= -SERIOUS_LOSS + 1e-9:  # the ratio was rounded
        return "serious"
    return "noise" if p >= LEVEL else "real" if delta < 0 else "gain"


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
    environment.filters |= {"percent": terminal.percent, "bytes": terminal.size, "mean": fmean, "points": _points}
    environment.filters |= {"p_value": tables.p_value, "shortened": tables.shortened, "measurement": measurement}
    environment.globals |= {"mark": portability.mark, "in_default_session": portability.in_default_session}
    environment.globals |= {"notes_on": portability.notes, "level": LEVEL, "max_tests": MAX_TESTS}
    environment.globals |= {"command": command, "launchers": launchers}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    assets = files("resnet8_quant.sweep.report") / "templates"
    module, module_style = datatables or ("", "")
    return environment.get_template("report.html.j2").render(
        jobs=jobs,
        subject=_subject(jobs),
        shown=[section for section in parts if not section.missing],
        left_out=[section for section in parts if section.missing],
        specs={plot.key: plot.spec for section in parts for plot in section.plots},
        themes=themes(),
        mark_note=portability.NOTE,
        policy=POLICY,
        plots_need=missing_extra("vl-convert-python", "report").remedy,
        style=Markup((assets / "style.css").read_text(encoding="utf-8")),
        script=Markup((assets / "page.js").read_text(encoding="utf-8")),
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


def _points(ratio: float) -> str:
    return terminal.points(ratio).replace("-", "\N{MINUS SIGN}")


def _subject(jobs: Sequence[Job]) -> str:
    """What the page is about, in a line."""
    rows = [job.row for job in jobs if job.ok]
    models = ", ".join(sorted({row.model for row in rows if row.model})[:4])
    data = ", ".join(sorted({row.data for row in rows if row.data})[:4])
    images = {row.eval_images for row in rows if row.eval_images}
    tested = f", {images.pop():,} test images" if len(images) == 1 else ""
    about = f" \N{MIDDLE DOT} {models} on {data}{tested}" if models else ""
    return f"{len(jobs):,} {'run' if len(jobs) == 1 else 'runs'}{about}"
