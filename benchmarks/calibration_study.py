"""The page of the calibration study: which method, how many images, and what of it is more than the luck of the draw.

In: folders of finished sweeps of `python run.py experiment=calibration_study`, one for each model. Out: in --out
calibration_study.md, and for each model calibration_study_MODEL.svg and .png. Every number and every list of names on
the page is computed here from the sweeps' summary.csv.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _plots import plotting, save
from _studies import (
    LEVEL,
    Test,
    common_words,
    facts,
    filled,
    holm,
    paired,
    read_rows,
    spread,
    values,
    write_pages,
    written,
)

from resnet8_quant.errors import ExperimentError
from resnet8_quant.terminal import markdown

KEYS = ["quant_type", "calibration_method", "calibration_images", "seed"]
BASE, FEW, USUAL, MANY = "minmax", 100, 1000, 10_000  # what the tests compare
SIGNIFICANT = "Significant at 5 % after Holm"
SWEEP = "python run.py experiment=calibration_study"
# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Study:
    """A finished sweep of one model: its rows, and the words that named the model on the command line."""

    model: str
    rows: pd.DataFrame
    words: str

    def values(self, column: str) -> list[Any]:
        return values(self.rows, column)

    def accuracies(self, quant: str, method: str, images: int) -> np.ndarray:
        """Of each seed, in the order of the seeds, in percent."""
        rows = self.rows
        chosen = (rows.quant_type == quant) & (rows.calibration_method == method) & (rows.calibration_images == images)
        return 100 * rows[chosen].sort_values("seed").accuracy.to_numpy(float)


def load(folder: Path) -> Study:
    """Read and check a sweep.

    Raises:
        ExperimentError: no summary, failed jobs, more than one model, or points of the grid that are missing.
    """
    remedy = f"{SWEEP} hydra.sweep.dir={folder}"
    rows, path = read_rows(folder, remedy), folder / "summary.csv"
    axes = [list(dict.fromkeys(rows[key])) for key in KEYS]
    missing = sorted(set(itertools.product(*axes)) - set(rows[KEYS].itertuples(index=False, name=None)))
    missing += [(axes[0][0], BASE, size, "all seeds") for size in (FEW, USUAL, MANY) if size not in axes[2]]
    if missing or BASE not in axes[1] or len(rows) != np.prod([*map(len, axes)]) or len(axes[3]) < 2:
        example = f", for example {' '.join(map(str, missing[0]))}" if missing else ""
        raise ExperimentError(
            f"{path} is not a whole study: {len(rows)} jobs for {' x '.join(str(len(axis)) for axis in axes)} quant "
            f"types, methods, numbers of images and seeds, {len(missing)} missing{example}",
            remedy,
        )
    words = [word for word in common_words(rows) if word.startswith("model")]
    return Study(rows.model.iloc[0], rows, " ".join(words))


def accuracy_table(study: Study, quant: str) -> str:
    sizes = study.values("calibration_images")
    rows = []
    for method in study.values("calibration_method"):
        cells = (study.accuracies(quant, method, size) for size in sizes)
        rows.append((method, *map(spread, cells)))
    return markdown([f"{quant}, images", *(f"{size:,}" for size in sizes)], rows)


def test_table(tests: list[Test]) -> str:
    rows = [
        (
            t.name,
            f"{t.difference:+.3f}",
            f"{t.low:+.3f} to {t.high:+.3f}",
            f"{t.p:.2g}",
            f"{t.holm:.2g}",
        )
        for t in tests
    ]
    return markdown(["", "Mean difference", "95 % interval", "p", "p, Holm"], rows)


def listed(tests: Iterable[Test]) -> str:
    """Names of the significant ones, with their differences."""
    significant = [f"{t.name} ({t.difference:+.2f})" for t in tests if t.holm < LEVEL]
    return ", ".join(significant) or "none"


def draw(study: Study, folder: Path) -> str:
    """A panel for each quant type and method, the other methods in grey; returns the SVG's name."""
    plt = plotting("calibration_study")
    quants, methods, sizes = (study.values(key) for key in KEYS[:3])
    figure, axes = plt.subplots(
        *(len(quants), len(methods)),
        figsize=(9.4, 0.5 + 2.2 * len(quants)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    baseline = 100 * study.rows.float_accuracy.iloc[0]
    for row, quant in zip(axes, quants, strict=True):
        every = {m: np.array([study.accuracies(quant, m, size) for size in sizes]) for m in methods}
        # a band that reaches far below the lowest mean is cut, and its end is written there
        top = max(baseline, *(values.max() for values in every.values()))
        lowest_mean = min(values.mean(axis=1).min() for values in every.values())
        bottom = max(min(values.min() for values in every.values()), lowest_mean - (top - lowest_mean) / 2)
        margin = 0.08 * (top - bottom)
        for axis, method, colour in zip(row, methods, itertools.cycle(COLOURS), strict=False):
            for other in methods:
                axis.plot(sizes, every[other].mean(axis=1), color="#C4C4C4", linewidth=0.8, zorder=1)
            values = every[method]
            axis.axhline(baseline, color="#444444", linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            axis.fill_between(sizes, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.25, linewidth=0)
            axis.plot(sizes, values.mean(axis=1), color=colour, linewidth=1.8, marker="o", markersize=3.5, zorder=3)
            for size, low in zip(sizes, values.min(axis=1), strict=True):
                if low < bottom - margin:
                    axis.annotate(
                        f"to {low:.1f}", (size, bottom - margin), (2, 2), textcoords="offset points", fontsize=7
                    )
            axis.set(xscale="log", ylim=(bottom - margin, top + margin), xlim=(sizes[0] / 1.4, sizes[-1] * 1.4))
            axis.grid(axis="y", color="#E8E8E8", linewidth=0.6)
            axis.set_axisbelow(True)
            if quant == quants[0]:
                axis.set_title(method, fontweight="bold", fontsize=9)
            axis.set_xticks(sizes, [f"{size // 1000}k" if size >= 1000 else str(size) for size in sizes])
            axis.minorticks_off()
        row[0].set_ylabel(f"{quant}: top-1, %")
    seeds = len(study.values("seed"))
    figure.supxlabel(
        f"Calibration images. Line: mean of {seeds} seeds; band: smallest to largest; grey: the other methods; "
        f"dashed: float model, {baseline:.2f} %",
        fontsize=8,
    )
    return save(figure, folder, f"calibration_study_{study.model}")


def section(study: Study, folder: Path) -> str:
    """The part of the page about one model; its figure goes to ``folder``."""
    quants, methods = study.values("quant_type"), study.values("calibration_method")
    pairs = list(itertools.product(quants, methods))
    at = study.accuracies
    methods_tests = holm([paired(f"{q} {m}", at(q, m, USUAL), at(q, BASE, USUAL)) for q, m in pairs if m != BASE])
    sizes_tests = holm([paired(f"{q} {m}", at(q, m, MANY), at(q, m, FEW)) for q, m in pairs])
    best = {q: max(methods, key=lambda m, q=q: at(q, m, USUAL).mean()) for q in quants}  # type: ignore[misc]
    leaders = ", ".join(f"{q}: {m}, {at(q, m, USUAL).mean():.2f} %" for q, m in best.items())
    luck = ", ".join(f"{q}: {np.ptp(at(q, BASE, USUAL)):.2f}" for q in quants)
    parts = [
        f"## {study.model}",
        facts(study.rows, f"{SWEEP} {study.words}".strip()),
        f"![Top-1 against the number of calibration images, a panel for each method]({draw(study, folder)})",
        "Top-1 in %, mean over the seeds (smallest-largest):",
        *(accuracy_table(study, quant) for quant in quants),
        f"Each method minus {BASE}, both with the same {USUAL:,} images, in points:",
        test_table(methods_tests),
        filled(
            f"{SIGNIFICANT}: {listed(methods_tests)}. Highest mean at {USUAL:,} images: {leaders}. "
            f"Largest minus smallest of {BASE} over the seeds at {USUAL:,} images, in points: {luck}."
        ),
        f"{MANY:,} images minus {FEW}, in points:",
        test_table(sizes_tests),
        filled(f"{SIGNIFICANT}: {listed(sizes_tests)}."),
    ]
    return "\n\n".join(parts)


def page(studies: list[Study], folder: Path) -> str:
    head = (
        f"{written('calibration_study', len(studies))} A seed "
        "draws the training images that calibrate, the same ones for every method and quant type: differences are "
        "taken seed by seed, with a paired t-test and Student's interval, and p is corrected (Holm) for the number of "
        "rows of its table. This tells the luck of the draw from the rest; that the test images are a sample as well "
        "is not in it, and few seeds find only large differences. One image of 10,000 is 0.01 points."
    )
    title = "# Calibration study: which method, how many images"
    return "\n\n".join([title, filled(head), *(section(study, folder) for study in studies)]) + "\n"


def pages(options: argparse.Namespace) -> dict[str, str]:
    studies = [load(folder) for folder in options.sweeps]
    if len({study.model for study in studies}) < len(studies):
        raise ExperimentError("two sweeps are of the same model", "name one sweep for each model")
    return {"calibration_study.md": page(studies, options.out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_DIR", help="finished sweeps, one for each model")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER", help="default docs")
    write_pages(parser.parse_args(), pages)


if __name__ == "__main__":
    main()
