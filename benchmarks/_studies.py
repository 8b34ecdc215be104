"""What the scripts that write a study's page share: reading sweeps, facts, paired tests, errors.

In: the folder of a finished sweep. Out: its checked rows, sentences and tests about them, and the page as a file.
"""

from __future__ import annotations

import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.errors import HydraException
from scipy import stats

from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import COLUMNS
from resnet8_quant.sweep.compose import explain
from resnet8_quant.terminal import show_error

LEVEL = 0.05
PATHS = ("model.source", "model.path", "data.root", "data.path", "calibration.index_file")


@dataclass(frozen=True)
class Test:
    """A paired t-test over the seeds; differences in percentage points."""

    name: str
    difference: float
    low: float
    high: float
    p: float
    holm: float = 1.0


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Show what the user can fix as a sentence and exit with 1, also where Hydra found it."""
    try:
        yield
    except (ExperimentError, HydraException) as error:
        known = explain(error)
        if known is None:
            raise
        show_error(known)
        sys.exit(1)


def read_rows(folder: Path, remedy: str) -> pd.DataFrame:
    """The rows of a sweep's summary, in the order of its jobs.

    Raises:
        ExperimentError: no summary, failed jobs, or more than one model.
    """
    path = folder / "summary.csv"
    try:
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExperimentError(f"{path} cannot be read: {reason}", remedy) from error
    absent = [name for name in COLUMNS if name not in rows]
    if absent or rows.empty:
        raise ExperimentError(f"{path} is not a sweep's summary: no rows, or no column {', '.join(absent)}", remedy)
    failed = rows[rows.status != "ok"]
    if len(failed):
        raise ExperimentError(
            f"{path}: {len(failed)} of {len(rows)} jobs failed, the first with: {failed.error.iloc[0]}", remedy
        )
    needed = ["calibration_method", "calibration_images", "seed", "accuracy", "float_accuracy"]
    if rows[needed].isna().any(axis=None) or rows.model.nunique() != 1:
        raise ExperimentError(f"{path} holds jobs without calibration, or more than one model", remedy)
    return rows.sort_values("job") if "job" in rows else rows


def settings(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Of each job, what its command line set."""
    return [dict(word.split("=", 1) for word in str(words).split() if "=" in word) for words in rows.overrides]


def common_words(rows: pd.DataFrame) -> list[str]:
    """What the command line set to the same value in all jobs; of a path the file's name."""
    every = settings(rows)
    common = [(key, value) for key, value in sorted(every[0].items()) if all(one.get(key) == value for one in every)]
    return [f"{key}={Path(value).name if key in PATHS else value}" for key, value in common if key != "cache_dir"]


def values(rows: pd.DataFrame, column: str) -> list[Any]:
    """The different values of a column, in the order of the sweep; numbers ascending."""
    found = list(dict.fromkeys(rows[column]))
    return found if isinstance(found[0], str) else sorted(found)


def facts(rows: pd.DataFrame, command: str) -> str:
    """What made the rows, when, on which machine, how many, and what the float model reaches."""
    dates = sorted(str(text)[:10] for text in rows.started_utc)
    seeds = values(rows, "seed")
    return filled(
        f"`{command}`, {dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'}, "
        f"{', '.join(values(rows, 'cpu'))}, onnxruntime {', '.join(values(rows, 'onnxruntime_version'))}, "
        f"resnet8-quant {', '.join(values(rows, 'package_version'))}: {len(rows)} runs, "
        f"{f'{len(seeds)} seeds' if len(seeds) > 1 else f'seed {seeds[0]}'}, {rows.eval_images.iloc[0]:,} test images. "
        f"Float model: {100 * rows.float_accuracy.iloc[0]:.2f} %."
    )


def written(script: str, sweeps: int) -> str:
    """The beginning of a page: date, command and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pandas", "scipy", "matplotlib"))
    command = " ".join([f"python benchmarks/{script}.py", *["SWEEP_DIR"] * sweeps])
    return f"Written on {datetime.now(UTC):%Y-%m-%d} by `{command}` ({packages}) from the sweeps named below."


def spread(accuracies: np.ndarray) -> str:
    """Mean, smallest and largest, of percents."""
    return f"{accuracies.mean():.2f} ({accuracies.min():.2f}-{accuracies.max():.2f})"


def paired(name: str, accuracies: np.ndarray, base: np.ndarray) -> Test:
    """``accuracies`` minus ``base``, seed by seed, with a 95 % t-interval; not yet corrected."""
    differences = accuracies - base
    mean, error = float(differences.mean()), float(stats.sem(differences))
    if error < 1e-9:  # the same difference with every seed
        return Test(name, mean, mean, mean, 1.0 if abs(mean) < 1e-9 else 0.0)
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, error)
    return Test(name, mean, float(low), float(high), float(stats.ttest_rel(accuracies, base).pvalue))


def holm(tests: list[Test]) -> list[Test]:
    """With p values corrected for the number of tests (Holm 1979), in the same order."""
    corrected = [0.0] * len(tests)
    largest = 0.0
    for rank, i in enumerate(np.argsort([test.p for test in tests], kind="stable")):
        largest = max(largest, min(1.0, (len(tests) - rank) * tests[i].p))
        corrected[i] = largest
    return [replace(test, holm=p) for test, p in zip(tests, corrected, strict=True)]


def filled(text: str) -> str:
    """In lines of at most 120 columns."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def write_pages(options: Namespace, pages: Callable[[Namespace], dict[str, str]]) -> None:
    """Write what ``pages`` makes into ``options.out``, {file name: text}; an error of the user's ends in a sentence."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in pages(options).items():
            (options.out / name).write_text(text, encoding="utf-8")
    except ExperimentError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {options.out} cannot be written to: {error}")
