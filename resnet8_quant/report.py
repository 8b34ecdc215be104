"""The report of any runs as one HTML page: ``python -m resnet8_quant.report DIR...``

In: folders of runs, of sweeps, or above them. Out: report.html and, with --plots, each of its plots as PNG and SVG in a
folder plots/ beside it. Exit code 0, or 1 after an error that is shown.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet8_quant import terminal
from resnet8_quant.errors import ExperimentError, as_typed_here
from resnet8_quant.summary import WHERE, Parser, check_output, write_output
from resnet8_quant.sweep.collect import collect_all, name_choices
from resnet8_quant.sweep.report.page import write_report
from resnet8_quant.sweep.summary import select


def finite(text: str) -> float:
    """The number that ``text`` is.

    Raises:
        ValueError: it is none, or not a finite one.
    """
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def run(arguments: Sequence[str]) -> None:
    """What the command line ``arguments`` asks for."""
    prog = as_typed_here("python -m resnet8_quant.report")
    options = Parser(prog=prog, description="The report of any runs as one HTML page.")
    options.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder above them")
    options.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the first folder; with --where selection.html"
    )
    options.add_argument("--where", metavar="EXPR", help=f"runs to keep: \"model == 'resnet8'\"; {WHERE}")
    options.add_argument("--plots", action="store_true", help="also draw the plots as files, in plots/ beside the page")
    options.add_argument("--max-flash", type=int, metavar="BYTES", help="recommend within so much flash")
    options.add_argument("--max-ram", type=int, metavar="BYTES", help="recommend within so much RAM")
    options.add_argument("--max-lost", type=finite, metavar="POINTS", help="recommend what loses at most so much top-1")
    chosen = options.parse_args(arguments)
    limit_of = {"flash": chosen.max_flash, "ram": chosen.max_ram, "lost": chosen.max_lost}
    limits = {name: most for name, most in limit_of.items() if most is not None}
    check_output("--out", chosen.out)
    jobs = select(collect_all(chosen.folders), where=chosen.where)
    name_choices(jobs)
    if not jobs:
        raise ExperimentError("no run is left to report on", "another folder, or another --where")
    path = chosen.out or chosen.folders[0] / ("selection.html" if chosen.where else "report.html")
    plots = path.parent / "plots" if chosen.plots else None
    write_output(
        "--out", path, lambda page: write_report(jobs, page, limits=limits, plot_folder=plots), f"{len(jobs):,} runs. "
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return terminal.exit_code(lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
