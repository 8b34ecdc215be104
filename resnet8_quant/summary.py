"""The summary of any runs, also across sweeps and machines: ``python -m resnet8_quant.summary DIR...``

In: folders of runs, of sweeps, or above them. Out: a table on the terminal and, where asked for, a CSV file with every
column and the report. Exit code 0, or 1 after an error that is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from resnet8_quant import results, terminal
from resnet8_quant.errors import ExperimentError, as_typed_here
from resnet8_quant.sweep import plan, summary
from resnet8_quant.sweep.collect import MARKS, collect_all, name_choices

COMMAND = "python -m resnet8_quant.summary"
TABLE = "Job,Choices,Top-1,Delta,p,Size,Latency"
# What runs and sweeps write about themselves; a results.csv anywhere else would be taken for a run.
RECORDS = MARKS | {plan.FILE_NAME, results.RECORD, *results.FILES}
RECORDS |= {"run.log", "multirun.yaml", "search.db", "pareto.csv"}
OUTPUTS = {"--csv": "summary.csv", "--report": "report.html", "--out": "report.html"}  # a name that is free for each

WHERE = (
    "an expression of pandas' DataFrame.query over the columns of the CSV, which pandas evaluates in your own process, "
    "as your shell would; write one that you trust"
)


def parser() -> argparse.ArgumentParser:
    """The options; --help shows them."""
    options = argparse.ArgumentParser(
        prog=as_typed_here(COMMAND), description="The table of any runs, filtered and sorted."
    )
    options.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder above them")
    options.add_argument("--where", metavar="EXPR", help=f'rows to keep: "accuracy > 0.87 and seed == 1"; {WHERE}')
    options.add_argument("--sort", metavar="COLUMN,...", help="e.g. model_bytes,-accuracy; a leading - for descending")
    options.add_argument("--top", type=int, metavar="N", help="only the first N rows")
    options.add_argument(
        "--columns", default=TABLE, metavar="NAME,...", help=f"of the table, default {TABLE}; any column of the CSV too"
    )
    options.add_argument("--csv", type=Path, metavar="FILE", help="write the rows with all columns")
    options.add_argument("--report", type=Path, metavar="FILE", help="write the report of the rows as one HTML page")
    return options


def check_output(option: str, path: Path | None, free: str | None = None) -> None:
    """Refuse a file that would take the place of a run's own record, whichever folder it is in.

    The remedy proposes the name ``free``, or that of `OUTPUTS`.
    """
    if path is not None and path.name.casefold() in RECORDS:  # not every disk tells Results.csv from results.csv
        raise ExperimentError(
            f"`{option}`: {path} has the name of a run's own record, which it would replace or be taken for",
            f"{option} {path.with_name(free or OUTPUTS[option])}",
        )


def write_output(option: str, path: Path, write: Callable[[Path], str | None], said: str = "") -> None:
    """``write`` to ``path`` and say so, after ``said``, with what it returns.

    Where that fails, the remedy is ``option`` of the command.
    """
    try:
        text = write(path)
    except ExperimentError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # another file would not help
            raise
        remedy = f"free some space, or choose a file in another folder: {option} FOLDER/{OUTPUTS[option]}"
        raise ExperimentError(f"`{option}`: {error.problem}", remedy) from error
    terminal.show("\n".join(filter(None, [f"{said}Written to {terminal.shown(path)}", text])))


def run(arguments: Sequence[str]) -> None:
    """What the command line ``arguments`` asks for."""
    options = terminal.parsed(parser(), _joined(arguments), COMMAND)
    check_output("--csv", options.csv)
    check_output("--report", options.report)
    if options.csv is not None and options.csv == options.report:
        raise ExperimentError(f"`--csv` and `--report` are both {options.csv}", "--report report.html")
    jobs = collect_all(options.folders)
    settings = {name for job in jobs for name in job.row.settings}
    known = dict.fromkeys((*summary.COLUMNS, "job", "folder", *results.COLUMNS, *sorted(settings)))
    columns = [summary.column_named(name.strip(), known, "--columns") for name in options.columns.split(",")]
    chosen = summary.select(jobs, where=options.where, sort=options.sort, top=options.top)
    name_choices(jobs)
    failed = sum(not job.ok for job in chosen)
    note = f" {failed} of them failed." if failed else ""
    count = f"{len(chosen):,} of {terminal.counted(len(jobs), 'run')}"
    terminal.show(f"{summary.table(chosen, columns)}\n\n{count}.{note}")
    if options.csv is not None:
        write_output("--csv", options.csv, lambda path: summary.write_csv(chosen, path))
    if options.report is not None:
        from resnet8_quant.sweep.report.page import write_report

        write_output("--report", options.report, lambda path: write_report(chosen, path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return terminal.exit_code(lambda: run(sys.argv[1:] if arguments is None else arguments))


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--sort -accuracy`` as ``--sort=-accuracy``: argparse takes a word that begins with - for an option."""
    result = [*arguments]
    while "--sort" in result[:-1]:
        place = result.index("--sort")
        result[place : place + 2] = [f"--sort={result[place + 1]}"]
    return result


if __name__ == "__main__":
    sys.exit(main())
