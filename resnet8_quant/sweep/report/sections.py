"""The sections of the report, in their order: what each says and draws, or why it is left out.

In: the jobs of a table. Out: `Section`s. The page and the files with the plots are made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import tables
from resnet8_quant.sweep.report.answer import Answer, recommend
from resnet8_quant.sweep.report.chart import Chart, Heat
from resnet8_quant.sweep.report.detail import confusion, focus, layer_snr, per_class
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.flips import flipped
from resnet8_quant.sweep.report.overview import calibration_size, fronts, heat_maps
from resnet8_quant.sweep.report.provenance import provenance
from resnet8_quant.sweep.report.recommendation import headline


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        drawings: its plots; where ``choice`` is set, one is shown at a time.
        markup: safe HTML below them.
        note: sentence below the heading, plain text.
        missing: why it is left out; empty: it is not.
    """

    key: str
    title: str
    drawings: Sequence[Chart | Heat] = ()
    markup: str = ""
    note: str = ""
    missing: str = ""
    choice: bool = False


def sections(jobs: Sequence[Job]) -> list[Section]:
    """All sections, those that are left out included."""
    evidence = gather(jobs)
    answer = recommend(evidence)
    found = [_answer(jobs, evidence, answer)]
    if answer is not None:
        found += _plots(jobs, evidence, answer)
        found.append(_significance(evidence, answer))
    failed = tables.failures(jobs)
    if failed:
        found.append(Section("failed", "Failed runs", markup=failed))
    note = "Click a heading to sort; filter by words and by columns: accuracy>0.87 as in the CSV, top-1>87 as shown."
    if len(jobs) > tables.MOST_ROWS:
        note += f" The first {tables.MOST_ROWS:,} of {len(jobs):,} runs; summary.csv has all."
    found.append(Section("runs", "All runs", markup=tables.all_runs(jobs, answer), note=note))
    found.append(Section("provenance", "Provenance", markup=provenance(jobs)))
    return found


def _answer(jobs: Sequence[Job], evidence: Evidence, answer: Answer | None) -> Section:
    if answer is None:
        return Section("answer", "Recommendation", markup="<p>No run has finished: there is nothing to recommend.</p>")
    return Section("answer", "Recommendation", markup=headline(jobs, evidence, answer))


def _plots(every: Sequence[Job], evidence: Evidence, answer: Answer) -> list[Section]:
    jobs = evidence.jobs
    fronts_found = fronts(jobs, answer.job)
    folders = {job.path for job in jobs}
    maps, no_maps = heat_maps([job for job in every if job.ok and job.path in folders])  # with twins: a whole grid
    size, no_size = calibration_size(jobs)
    found = [
        Section("pareto", "Trade-offs", fronts_found, missing="" if fronts_found else "no sizes, no latencies"),
        Section("grid", "Two settings at a time", maps, missing=no_maps, choice=True),
        Section("calibration", "Calibration images", _drawn(size), missing=no_size),
    ]
    close = focus(evidence, answer.job)
    if close is None:
        reason = "no quantized run has finished"
        titles = {"classes": "Classes", "confusion": "Confusion", "layers": "Layers", "flips": "Flipped images"}
        return found + [Section(key, title, missing=reason) for key, title in titles.items()]
    classes, no_classes = per_class(evidence, close)
    moved, not_moved = confusion(evidence, close)
    layers, no_layers = layer_snr(evidence, close)
    images, about_images = flipped(evidence, close)
    return [
        *found,
        Section("classes", "Classes", _drawn(classes), missing=no_classes),
        Section("confusion", "Confusion", _drawn(moved), missing=not_moved),
        Section("layers", "Layers", _drawn(layers), missing=no_layers),
        Section("flips", "Flipped images", markup=images, note=about_images, missing="" if images else about_images),
    ]


def _significance(evidence: Evidence, answer: Answer) -> Section:
    title = "Significance against the best"
    if not answer.tests:
        reason = evidence.missing.get("labels", "there are no two runs with predictions of the same images")
        return Section("significance", title, missing=reason)
    shown = f" The {tables.MOST_TESTS} most accurate are listed." if len(answer.tests) > tables.MOST_TESTS else ""
    note = (
        "Exact McNemar test of each run against the most accurate one on the same images; p is corrected by Holm for "
        f"{len(answer.tests)} comparisons.{shown}"
    )
    return Section("significance", title, markup=tables.significance(answer), note=note)


def _drawn(drawing: Chart | Heat | None) -> tuple[Chart | Heat, ...]:
    return () if drawing is None else (drawing,)
