"""Mean and range over the seeds, one line for each configuration of one or more sweeps.

In: folders of finished sweeps, as of ``python run.py experiment=five_seeds`` and ``experiment=five_seeds_low_bit``.
Out: a Markdown table, and under it where the numbers are from. Configurations may differ in quant, calibration, refine
and deploy, the runs of one configuration in their seed alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.terminal import exit_code, markdown, microseconds, points, show, size  # noqa: E402

CONFIGURATION = ["quant_type", "calibration_method", "refine", "deploy"]
SAME = ["model", "data", "eval_images", "cpu", "onnxruntime_version"]  # in all runs of a table
HEADER = ["Model", "Top-1 (range)", "Delta", "Size", "Latency", "Default session exact on"]


def read_runs(folders: list[Path]) -> pd.DataFrame:
    """The rows of the sweeps' summaries, one below the other.

    Raises:
        ExperimentError: a summary cannot be read, has failed jobs, or its runs cannot stand in one table.
    """
    summaries = []
    for folder in folders:
        path = folder / "summary.csv"
        try:
            summaries.append(pd.read_csv(path, keep_default_na=False, na_values=[""]).sort_values("job"))
        except (OSError, ValueError, KeyError) as error:
            raise ExperimentError(f"{path} cannot be read: {error}", "python run.py experiment=five_seeds") from error
    runs = pd.concat(summaries, ignore_index=True)
    failed = int((runs.status != "ok").sum())
    if failed:
        raise ExperimentError(f"{failed} of {len(runs)} jobs failed", "run the sweep again with resume=true")
    several = [name for name in SAME if runs[name].nunique() != 1]
    if several:
        raise ExperimentError(
            f"the runs differ in {', '.join(several)}", "give sweeps of one model, on one data set and one machine"
        )
    return runs


def label(run: pd.Series, runs: pd.DataFrame) -> str:
    """The words of a configuration: its quant type, and of the others those that are not the default."""
    methods = runs.calibration_method[runs.quant_type == run.quant_type].nunique()
    words = ["FP32" if run.quant_type == "float" else str(run.quant_type)]
    words += [f"calibration={run.calibration_method}"] if methods > 1 else []
    words += [f"{name}={run[name]}" for name in ("refine", "deploy") if not pd.isna(run[name]) and run[name] != "none"]
    return " ".join(words)


def table(runs: pd.DataFrame) -> str:
    """A line for each configuration, in the order of the sweeps.

    Raises:
        ExperimentError: the runs of a configuration differ in more than their seed.
    """
    varied = [name for name in runs if name.startswith("config.") and not name.endswith("seed")]
    lines = []
    for _, group in runs.groupby(CONFIGURATION, sort=False, dropna=False):
        group = group.drop_duplicates(["seed", "model_sha256"])  # FP32 is the same with every seed
        others = [name for name in varied if group[name].nunique(dropna=False) != 1]
        if others or group.seed.duplicated().any():
            settings = ", ".join(others) or "settings that these columns do not tell"
            raise ExperimentError(
                f"the runs of quant={group.quant_type.iloc[0]} differ in {settings}",
                "give sweeps whose runs differ in quant, calibration, refine, deploy and seed only",
            )
        top1 = 100 * group.accuracy
        spread = "" if top1.min() == top1.max() else f" ({top1.min():.2f}-{top1.max():.2f})"
        latency = group.latency_us_median.median()
        lines.append(
            [
                label(group.iloc[0], runs),
                f"{top1.mean():.2f} %{spread}",
                points(round(float(group.accuracy_delta.fillna(0.0).mean()), 6)),
                size(int(group.model_bytes.max())),
                "" if pd.isna(latency) else microseconds(float(latency)),
                "every CPU" if group.portable.all() else "not without VNNI",
            ]
        )
    return markdown(HEADER, lines)


def sources(runs: pd.DataFrame) -> str:
    """What the numbers are of, and which machine the latencies are from."""
    first = runs.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(set(runs.seed)))
    text = (
        f"{first.model} on {first.data}: {int(first.eval_images):,} test images, mean of seeds {seeds}; "
        f"delta in points. {first.cpu}, onnxruntime {first.onnxruntime_version}."
    )
    timed = runs[runs.latency_us_median.notna()]
    if len(timed):
        busy = int((timed.machine_busy.astype(str) == "True").sum())
        text += f" Latency: median of the seeds; the machine was busy in {busy} of {len(timed)} runs."
    return text


def main() -> None:
    """Print the table and its sources."""
    parser = argparse.ArgumentParser(description="Mean and range over the seeds of one or more sweeps.")
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_DIR", help="folder with a summary.csv")
    runs = read_runs(parser.parse_args().sweeps)
    show(f"{table(runs)}\n\n{sources(runs)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
