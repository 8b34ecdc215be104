"""What the runtimes of a microcontroller and of a phone make of the same integers: mean and range over the seeds.

In: folders of finished sweeps with deploy=tflite whose runs differ in quant, refine and seed. Out: a Markdown table.

    python run.py -m quant=tflite_int8 seed=0,1,2,3,4 deploy=tflite latency.runs=0
    python benchmarks/targets.py outputs/sweeps/DATE_TIME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from five_seeds import CONFIGURATION, label, read_runs

from resnet8_quant.errors import ExperimentError
from resnet8_quant.terminal import exit_code, markdown, show, size

HEADER = ["Model", "Exact", "LiteRT", "changed", "TFLite Micro", "changed", "File", "Arena"]


def mean_and_range(values: pd.Series) -> str:
    """Top-1 in percent: the mean, and lowest and highest in brackets."""
    percents = 100 * values
    return f"{percents.mean():.2f} % ({percents.min():.2f}-{percents.max():.2f})"


def table(runs: pd.DataFrame) -> str:
    """A line for each configuration.

    Raises:
        ExperimentError: the runs have no figures of TensorFlow Lite Micro.
    """
    if "tflm_accuracy" not in runs or runs.tflm_accuracy.isna().any():
        raise ExperimentError(
            "the runs have no column `tflm_accuracy`, or not in every row",
            "python run.py -m quant=tflite_int8 seed=0,1,2,3,4 deploy=tflite, with the extra [tflite] installed",
        )
    lines = []
    for _, group in runs.groupby(CONFIGURATION, sort=False, dropna=False):
        lines.append(
            [
                label(group.iloc[0], runs).removesuffix(" deploy=tflite"),
                mean_and_range(group.accuracy),
                mean_and_range(group.tflite_accuracy),
                f"{group.tflite_changed.mean():.0f}",
                mean_and_range(group.tflm_accuracy),
                f"{group.tflm_changed.mean():.0f}",
                size(int(group.tflite_bytes.max())),
                size(int(group.arena_bytes.max())),
            ]
        )
    return markdown(HEADER, lines)


def main() -> None:
    """Print the table and what it is of."""
    parser = argparse.ArgumentParser(description="What LiteRT and TensorFlow Lite Micro make of the same integers.")
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_DIR", help="folder with a summary.csv")
    runs = read_runs(parser.parse_args().sweeps)
    first, seeds = runs.iloc[0], ", ".join(str(seed) for seed in sorted(set(runs.seed)))
    show(
        f"{table(runs)}\n\n{first.model} on {first.data}: {int(first.verified_images):,} test images, mean of seeds "
        f"{seeds} (range). changed: predictions that differ from the exact integers'. {first.cpu}."
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
