"""Two runs side by side, and whether their difference is real: ``python run.py compare RUN_A RUN_B``.

In: the folders of two runs on the same test images. Out: tables of what differs in their settings, what each reaches
and needs, which classes moved, and the bits of each layer, and McNemar's test; with --csv the same as values in a file.
Exit code 0, or 1 after an error.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from resnet8_quant import terminal
from resnet8_quant.errors import COMMAND as PROGRAM
from resnet8_quant.errors import ExperimentError, as_typed_here
from resnet8_quant.files import replacing
from resnet8_quant.results import RunResult
from resnet8_quant.summary import check_output, write_output
from resnet8_quant.sweep.collect import Job, collect_all
from resnet8_quant.sweep.report.evidence import Evidence, gather
from resnet8_quant.sweep.report.pair import (
    SAME_IMAGES,
    SENTENCES,
    Layers,
    count_flips,
    differing_bits,
    figures,
    flips,
    images_in_words,
    images_of,
    layers,
    layers_of,
    settings,
)
from resnet8_quant.sweep.report.recommendation import flash, ram

COMMAND = f"{PROGRAM} compare"
WIDEST = 24  # columns of a name or a value in a table
_COLUMNS = (  # of results.csv
    *("quant_type", "eval_images", "accuracy", "accuracy_delta", "model_bytes"),
    *("latency_us_median", "latency_us_ci_low", "latency_us_ci_high", "kernels", "tflite_accuracy", "tflm_accuracy"),
)
FIGURES: dict[str, Callable[[RunResult], Any]] = {name: attrgetter(name) for name in _COLUMNS}
FIGURES |= {"flash_bytes": flash, "ram_bytes": ram}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return terminal.exit_code(lambda: run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> None:
    """What the command line ``arguments`` asks for."""
    parser = argparse.ArgumentParser(prog=as_typed_here(COMMAND), description="Two runs side by side.")
    parser.add_argument("first", type=Path, metavar="RUN_A", help="folder of a run")
    parser.add_argument("second", type=Path, metavar="RUN_B", help="folder of another, on the same test images")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write what is shown as values, in one table")
    options = terminal.parsed(parser, arguments, COMMAND)
    check_output("--csv", options.csv, "comparison.csv")
    jobs = [read_run(folder) for folder in (options.first, options.second)]
    check_images(jobs, (options.first, options.second))
    evidence = gather(jobs)
    sentence, moved = flips(evidence)
    layered = [layers_of(job) for job in jobs]
    unnamed, bits = layers(layered)
    tables = [table for table in (settings(jobs), figures(jobs), moved, bits) if table is not None]
    sentences = [sentence, *unnamed]
    names = [f"A: {terminal.shown(options.first)}", f"B: {terminal.shown(options.second)}"]
    texts = [terminal.markdown(table.heading, [[_cut(cell) for cell in row] for row in table.rows]) for table in tables]
    terminal.show("\n\n".join(["\n".join(names), *texts, "\n".join(map(terminal.wrapped, sentences))]))
    if options.csv is not None:
        write_output("--csv", options.csv, lambda path: _write(path, values(jobs, evidence, layered)))


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
    found = [images_of(job.row) for job in jobs]
    for name, a, b, *values in zip(SAME_IMAGES, *found, *map(images_in_words, found), strict=True):
        if a != b:
            raise ExperimentError(
                SENTENCES["other_images"].format(
                    a=folders[0], b=folders[1], name=name, value_a=values[0], value_b=values[1]
                ),
                "run both with the same data=, and with calibration.sampling=stratified",
            )


def _cut(text: str) -> str:
    """A cell that leaves room for the others, without what a terminal would obey."""
    text = "".join(character if character.isprintable() and character != "|" else "?" for character in text)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 10]}..{text[-8:]}"


def _write(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("table", "name", "a", "b", "difference"))
        writer.writerows(rows)


def values(jobs: Sequence[Job], evidence: Evidence, both: Sequence[Layers | None]) -> Iterator[tuple[Any, ...]]:
    """Table, name, value of A, of B, and B less A where both are numbers: what the tables and the sentence say."""
    a, b = (job.row for job in jobs)
    table = settings(jobs)
    for row in table.rows if table else ():
        yield "setting", *row, None
    for name, read in FIGURES.items():
        if read(a) is not None or read(b) is not None:
            same = a.cpu == b.cpu or not name.startswith("latency")
            yield "figure", name, read(a), read(b), _difference(read(a), read(b)) if same else None
    if found := count_flips(evidence):
        yield "test", "changed_predictions", None, None, found.changed
        yield "test", "right_alone", found.lost, found.gained, found.gained - found.lost
        yield "test", "mcnemar_p", None, None, found.p
        for name, lost, gained in found.classes:
            yield "class", name, lost, gained, gained - lost
    for name, bits in differing_bits(both).items():
        for column, of_a, of_b in zip(("weight_bits", "activation_bits"), *bits, strict=True):
            yield column, name, of_a, of_b, _difference(of_a, of_b)


def _difference(a: object, b: object) -> float | None:
    return round(b - a, 12) if isinstance(a, int | float) and isinstance(b, int | float) else None


if __name__ == "__main__":
    sys.exit(main())
