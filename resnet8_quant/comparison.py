"""Two runs side by side, and whether their difference is real: ``python run.py compare RUN_A RUN_B``.

In: the folders of two runs on the same test images. Out: tables of what differs in their settings, what each reaches
and needs, which classes moved, and the bits of each layer; with --csv the same as a file. Exit code 0, or 1 after an
error.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet8_quant import terminal
from resnet8_quant.errors import COMMAND as PROGRAM
from resnet8_quant.errors import ExperimentError, as_typed_here
from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.files import read_json
from resnet8_quant.results import RunResult
from resnet8_quant.summary import check_output, write_output
from resnet8_quant.sweep.collect import Job, collect_all, varied
from resnet8_quant.sweep.collect import settings as settings_of
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.recommendation import flash, ram

COMMAND = f"{PROGRAM} compare"
SAME_IMAGES = ("data", "data_sha256", "eval_images", "calibration_overlap")
WIDEST = 24  # columns of a name or a value in a table


@dataclass(frozen=True)
class Table:
    """One table: a name for the CSV, its heading, and rows of texts."""

    name: str
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return terminal.exit_code(lambda: run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> None:
    """What the command line ``arguments`` asks for."""
    parser = argparse.ArgumentParser(prog=as_typed_here(COMMAND), description="Two runs side by side.")
    parser.add_argument("first", type=Path, metavar="RUN_A", help="folder of a run")
    parser.add_argument("second", type=Path, metavar="RUN_B", help="folder of another, on the same test images")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables, in one")
    options = terminal.parsed(parser, arguments, COMMAND)
    check_output("--csv", options.csv, "comparison.csv")
    jobs = [read_run(folder) for folder in (options.first, options.second)]
    check_images(jobs, (options.first, options.second))
    evidence = gather(jobs)
    sentences, moved = flips(evidence)
    tables = [table for table in (settings(jobs), figures(jobs), moved, layers(jobs)) if table is not None]
    sentences += [
        f"{name}: its run.json cannot be read, so that the bits of its layers are not known."
        for name, job in zip("AB", jobs, strict=True)
        if _widths(job) is None
    ]
    names = [f"A: {terminal.shown(options.first)}", f"B: {terminal.shown(options.second)}"]
    texts = [terminal.markdown(table.heading, [[_cut(cell) for cell in row] for row in table.rows]) for table in tables]
    terminal.show("\n\n".join(["\n".join(names), *texts, "\n".join(map(terminal.wrapped, sentences))]))
    if options.csv is not None:
        write_output("--csv", options.csv, lambda path: _write(path, tables))


def read_run(folder: Path) -> Job:
    """The run in a folder.

    Raises:
        ExperimentError: there is none, more than one, or it failed.
    """
    jobs = collect_all([folder])
    if len(jobs) != 1:
        raise ExperimentError(f"{folder} holds {len(jobs):,} runs, not one", f"{COMMAND} {jobs[0].path} {jobs[1].path}")
    if not jobs[0].ok:
        raise ExperimentError(f"{folder}: the run failed: {jobs[0].row.error}", "run that job again")
    return jobs[0]


def check_images(jobs: Sequence[Job], folders: Sequence[Path]) -> None:
    """Refuse runs that were evaluated on different images.

    Raises:
        ExperimentError: they were; with the columns that say so.
    """
    for name in SAME_IMAGES:
        first, second = (getattr(job.row, name) or 0 for job in jobs)
        if first != second:
            values = [f"{value:,}" if isinstance(value, int) else str(value)[:12] for value in (first, second)]
            raise ExperimentError(
                f"{folders[0]} and {folders[1]} were evaluated on different images: `{name}` is {values[0]} and "
                f"{values[1]}",
                "run both with the same data=, and with calibration.sampling=stratified",
            )


def settings(jobs: Sequence[Job]) -> Table | None:
    """The settings that differ; None: none does."""
    values = [settings_of(job.row) for job in jobs]
    rows = [(key, *(value.get(key, "default") for value in values)) for key in varied(jobs)]
    return Table("setting", ("Setting", "A", "B"), rows) if rows else None


def figures(jobs: Sequence[Job]) -> Table:
    """What the two reach and need, and B less A."""
    a, b = (job.row for job in jobs)

    def row(name: str, values: Sequence[Any], show: Any, difference: Any = None) -> tuple[str, ...]:
        texts = ["" if value is None else show(value) for value in values]
        known = None not in values and difference is not None
        return (name, *texts, difference(values[1] - values[0]) if known else "")

    def latency(result: RunResult) -> str:
        median, low, high = result.latency_us_median, result.latency_us_ci_low, result.latency_us_ci_high
        if median is None or low is None or high is None:
            return terminal.microseconds(median)
        return f"{median:.3g} ({low:.3g}-{high:.3g}) us"

    def signed(unit: str) -> Any:
        return lambda value: f"{value:+,.0f} {unit}"

    rows = [
        row("Quantization", (a.quant_type, b.quant_type), str),
        row("Top-1", (a.accuracy, b.accuracy), terminal.percent, terminal.points),
        row("Against float", (a.accuracy_delta, b.accuracy_delta), terminal.points),
        row("File", (a.model_bytes, b.model_bytes), terminal.size, signed("B")),
        row("Flash", (flash(a), flash(b)), terminal.size, signed("B")),
        row("RAM", (ram(a), ram(b)), terminal.size, signed("B")),
        ("Latency", latency(a), latency(b), _faster(a, b)),
        row("Kernels", (a.kernels, b.kernels), str),
        row("In LiteRT", (a.tflite_accuracy, b.tflite_accuracy), terminal.percent, terminal.points),
        row("In TFLite Micro", (a.tflm_accuracy, b.tflm_accuracy), terminal.percent, terminal.points),
    ]
    return Table("figure", ("", "A", "B", "B less A"), [row for row in rows if any(row[1:3])])


def _faster(a: RunResult, b: RunResult) -> str:
    """Time of A over that of B; times of different CPUs are not compared."""
    if not a.latency_us_median or not b.latency_us_median or a.cpu != b.cpu:
        return ""
    return f"{a.latency_us_median / b.latency_us_median:.2f}x as fast"


def flips(evidence: Evidence) -> tuple[list[str], Table | None]:
    """McNemar's test on the images that only one of the two gets right, in sentences, and these images by class."""
    a, b = evidence.predictions
    if evidence.labels is None or a is None or b is None:
        reasons = [evidence.no_labels, *evidence.notes] if evidence.labels is None else evidence.notes
        return [f"No paired test: {'; '.join(filter(None, reasons))}"], None
    labels, right_a, right_b = evidence.labels, a == evidence.labels, b == evidence.labels
    lost, gained = right_a & ~right_b, right_b & ~right_a
    p = mcnemar_p(int(lost.sum()), int(gained.sum()))
    sentences = [
        f"Of {len(labels):,} images B predicts {int((a != b).sum()):,} otherwise than A: {int(lost.sum()):,} that A "
        f"gets right, {int(gained.sum()):,} that A gets wrong. McNemar p = {p:.3g}, "
        f"{'real at the 5 % level' if p < 0.05 else 'within noise'}."
    ]
    rows = []
    for number in np.unique(labels[lost | gained]):
        of_class = labels == number
        counts = int((lost & of_class).sum()), int((gained & of_class).sum())
        name = evidence.classes[number] if number < len(evidence.classes) else str(number)
        rows.append((name, *(f"{count:,}" for count in counts), f"{counts[1] - counts[0]:+,}"))
    rows.sort(key=lambda row: int(row[3].replace(",", "")))
    return sentences, Table("class", ("Class", "B lost", "B gained", "Net"), rows) if rows else None


def layers(jobs: Sequence[Job]) -> Table | None:
    """Bits of weights and activations, layer by layer; None where both have the same, or a run.json is damaged."""
    widths = [_widths(job) for job in jobs]
    if widths[0] == widths[1] or None in widths:
        return None
    names = dict.fromkeys(name for width in widths for name in width or {})
    rows = [(name, *((width or {}).get(name, "float") for width in widths)) for name in names]
    return Table("layer", ("Layer", "A: weights, activations", "B: weights, activations"), rows)


def _widths(job: Job) -> dict[str, str] | None:
    entries = read_json(job.path / "run.json").get("layers")
    if not isinstance(entries, list):
        return None
    widths: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("output"), str):
            widths[entry["output"]] = f"{entry.get('weight_bits')}, {entry.get('activation_bits')} bits"
    return widths


def _cut(text: str) -> str:
    """A cell that leaves room for the others, without what a terminal would obey."""
    text = "".join(character if character.isprintable() and character != "|" else "?" for character in text)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 10]}..{text[-8:]}"


def _write(path: Path, tables: Sequence[Table]) -> None:
    from resnet8_quant.files import replacing

    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("table", "name", "a", "b", "difference"))
        for table in tables:
            writer.writerows((table.name, *row, *[""] * (4 - len(row))) for row in table.rows)


if __name__ == "__main__":
    sys.exit(main())
