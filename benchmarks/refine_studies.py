"""The pages of the studies of refine=: how narrow a model can be, what each step adds, the smallest file above a bar.

In: folders of finished sweeps of `python run.py experiment=bit_map`, `ablation` or `smallest`, told apart by their
grids, one for each model. Out: in --out EXPERIMENT.md and for each model EXPERIMENT_MODEL.svg and .png. Every number on
a page is computed here from summary.csv and the jobs' run.json; only the TFLite file's come from the command line.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _plots import draw_ablation, draw_bit_map, draw_smallest
from _studies import (
    LEVEL,
    Test,
    common_words,
    facts,
    filled,
    holm,
    paired,
    read_rows,
    settings,
    spread,
    write_pages,
    written,
)
from omegaconf import OmegaConf

from resnet8_quant.errors import ExperimentError
from resnet8_quant.terminal import markdown

CONF = Path(__file__).resolve().parent.parent / "conf" / "experiment"
GRIDS = {  # of each experiment what its command lines vary
    "bit_map": ("refine", "quant.weight_bits", "quant.activation_bits"),
    "ablation": ("quant", "refine", "seed"),
    "smallest": ("allocate.budget_bytes", "seed"),
}
TITLES = {
    "bit_map": "Bit map: how narrow weights and activations can be",
    "ablation": "Ablation: what each step of refine=best adds",
    "smallest": "Smallest file: bytes against accuracy",
}
NEAR = 1.0  # points below the float model that the bit map counts
BAR = 85.0  # top-1 in % that the smallest file must keep
TFLITE_MODEL = "mlperf_tiny"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its jobs' (row, run.json) by their place in the grid."""

    experiment: str
    model: str
    command: str
    rows: pd.DataFrame
    jobs: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]]

    def axis(self, i: int) -> list[Any]:
        """The values of an axis of the grid, in the order of the sweep."""
        return list(dict.fromkeys(place[i] for place in self.jobs))

    def top1(self, *place: Any) -> float:
        """In percent."""
        return 100 * float(self.jobs[place][0].accuracy)

    @property
    def baseline(self) -> float:
        return 100 * float(self.rows.float_accuracy.iloc[0])

    @property
    def refines(self) -> list[str]:
        """The refinements in it, as `refine=` names them."""
        return list(dict.fromkeys(self.rows.refine))

    @property
    def title(self) -> str:
        """The model; which refinement, where that is not what the experiment asks for."""
        return f"{self.model}, refine=distill" if "distill" in self.refines else self.model

    @property
    def name(self) -> str:
        return f"{self.experiment}_{self.title.replace(', refine=', '_')}"


def load(folder: Path) -> Sweep:
    """Read and check a sweep.

    Raises:
        ExperimentError: not a sweep of these experiments, failed jobs, points that are missing, or no run.json.
    """
    rows = read_rows(folder, f"python run.py experiment=... hydra.sweep.dir={folder}")
    every = settings(rows)
    varied = {key for one in every for key in one if len({other.get(key) for other in every}) > 1}
    experiment = next((n for n, g in GRIDS.items() if varied <= {*g} and all({*g} <= {*one} for one in every)), None)
    if experiment is None:
        known = "; ".join(f"{name}: {', '.join(grid)}" for name, grid in GRIDS.items())
        raise ExperimentError(
            f"{folder} is the sweep of another grid: its jobs differ in {', '.join(sorted(varied)) or 'nothing'}",
            f"the known grids are {known}",
        )
    remedy = f"python run.py experiment={experiment} hydra.sweep.dir={folder}"
    places = [tuple(int(v) if v.isdecimal() else v for v in map(one.__getitem__, GRIDS[experiment])) for one in every]
    axes = [list(dict.fromkeys(place[i] for place in places)) for i in range(len(places[0]))]
    missing = [place for place in itertools.product(*axes) if place not in places]
    if experiment == "bit_map":
        missing += [("a second refinement",)] if len(axes[0]) < 2 else []
    if experiment == "ablation" and (len(axes[1]) < 2 or len(axes[2]) < 2):
        missing.append(("a second step or seed",))
    if missing or len({*places}) < len(rows):
        example = f", for example {' '.join(map(str, missing[0]))}" if missing else ""
        shape = " x ".join(str(len(axis)) for axis in axes)
        raise ExperimentError(
            f"{folder} is not a whole {experiment}: {len(rows)} jobs for a grid of {shape}, {len(missing)} missing"
            f"{example}",
            remedy,
        )
    records = []
    for name in rows.folder:
        try:
            records.append(json.loads((folder / name / "run.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{folder / name / 'run.json'} cannot be read: {error}", remedy) from error
    jobs = dict(zip(places, zip(rows.itertuples(index=False), records, strict=True), strict=True))
    usual = OmegaConf.load(CONF / f"{experiment}.yaml").hydra.sweeper.params
    values = [",".join(map(str, axis)) for axis in axes]
    grid = [f"{key}={value}" for key, value in zip(GRIDS[experiment], values, strict=True) if value != str(usual[key])]
    command = " ".join(["python run.py", *(["-m"] if grid else []), *common_words(rows), *grid])
    return Sweep(experiment, rows.model.iloc[0], command, rows, jobs)


def widths(sweep: Sweep) -> str:
    """What calibrated, and which layers are not as narrow as the others."""
    row = sweep.rows.iloc[0]
    quants = [record["config"]["quant"] for _, record in sweep.jobs.values()]
    kept = {q["keep_first_last"] for q in quants if q["weight_bits"] or q["activation_bits"] or q["keep_first_last"]}
    keep = " or ".join(f"at least {bits} bits" if bits else "the width of the others" for bits in sorted(kept, key=str))
    rest = " or ".join(sorted({str(q["residual_bits"]) for q in quants}))
    first = f"The first and the last layer have {keep} (quant.keep_first_last). " if kept else ""
    if any(q["activation_bits"] for q in quants):
        first += f"Narrow activations are the inputs of Conv, Gemm and MatMul; all others have {rest} bits. "
    return f"{first}Calibration: {row.calibration_method}, {row.calibration_images:,} training images."


def bit_map(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    weights, activations = (sorted(sweep.axis(i), reverse=True) for i in (1, 2))
    refines = [word for word in ("none", "best", "distill") if word in sweep.axis(0)]
    grids = {word: np.array([[sweep.top1(word, w, a) for a in activations] for w in weights]) for word in refines}
    name = draw_bit_map(sweep.name, grids, weights, activations, sweep.baseline, options.out)
    parts = [filled(widths(sweep)), f"![Top-1 of every pair of widths, refine={' and '.join(refines)}]({name})"]
    for word, grid in grids.items():
        rows = [(f"W{w}", *(f"{x:.2f}" for x in line)) for w, line in zip(weights, grid, strict=True)]
        parts += [f"Top-1 in %, refine={word}:", markdown([f"refine={word}", *(f"A{a}" for a in activations)], rows)]
    near = ", ".join(
        f"{(grid > sweep.baseline - NEAR - 0.001).sum()} with refine={word}" for word, grid in grids.items()
    )
    before, after = refines[-2:]
    gain = grids[after] - grids[before]
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    parts.append(
        filled(
            f"At most {NEAR:g} point below the float model, of {gain.size}: {near}. refine={after} is ahead in "
            f"{(gain > 0).sum()} of {gain.size}, most at W{weights[i]}A{activations[j]}: {grids[before][i, j]:.2f} to "
            f"{grids[after][i, j]:.2f} %."
        )
    )
    return parts


def label(quant: str) -> str:
    """The widths that a value of quant= stands for."""
    return {"u8s8": "W8A8"}.get(quant, quant.upper())


def ablation(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    quants, steps, seeds = (sweep.axis(i) for i in range(3))
    at = {(q, s): np.array([sweep.top1(q, s, seed) for seed in seeds]) for q in quants for s in steps}
    configs = [sweep.jobs[quants[0], step, seeds[0]][1]["config"]["refine"] for step in steps]
    changes = [
        ", ".join(f"{k}={v}" for k, v in b.items() if k != "name" and a[k] != v) for a, b in itertools.pairwise(configs)
    ]
    pairs = [(q, i) for i in range(1, len(steps)) for q in quants]
    tests = holm([paired(f"{label(q)} {steps[i]}", at[q, steps[i]], at[q, steps[i - 1]]) for q, i in pairs])
    tested = dict(zip(pairs, tests, strict=True))

    def cell(test: Test) -> str:
        text = f"{test.difference:+.2f} ({'<0.001' if test.holm < 0.001 else f'{test.holm:.2g}'})"
        return f"**{text}**" if test.holm < LEVEL else text

    panels = {label(q): {step: at[q, step] for step in steps} for q in quants}
    figure = draw_ablation(sweep.name, panels, sweep.baseline, options.out)
    head = [*(label(q) for q in quants)]
    means = [(step, *(spread(at[q, step]) for q in quants)) for step in steps]
    rows = [(steps[i], changes[i - 1], *(cell(tested[q, i]) for q in quants)) for i in range(1, len(steps))]
    return [
        filled(
            f"W8A8 is quant=u8s8, the other columns are {', '.join(q for q in quants if q != 'u8s8')}. {widths(sweep)} "
            f"They are drawn with seeds {', '.join(map(str, seeds))}."
        ),
        f"![Top-1 after each step, a panel for each width]({figure})",
        "Top-1 in %, mean over the seeds (smallest-largest); each refine= has all that the ones above it have:",
        markdown(["refine=", *head], means),
        "Mean change against the step before, in points, and in brackets p (paired t-test, Holm); bold: below 0.05:",
        markdown(["refine=", "New in it", *head], rows),
    ]


def smallest(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    budgets, seeds = sweep.axis(0), sweep.axis(1)
    files = {}  # {budget: bytes of the largest of its files, top-1 of each}
    for budget in sorted(budgets):
        bytes_of = [sweep.jobs[budget, seed][0].model_bytes for seed in seeds]
        files[budget] = max(bytes_of), np.array([sweep.top1(budget, seed) for seed in seeds])
    above = [(size, float(top1.mean()), budget) for budget, (size, top1) in files.items() if top1.mean() >= BAR]
    least = min(above, default=None)
    verdict = f"No file keeps {BAR:g} %."
    if least:
        verdict = f"Smallest file that keeps {BAR:g} %: {least[0]:,} bytes, {least[1]:.2f} % (budget {least[2]:,})."
    reference = (options.tflite_bytes, 100 * options.tflite_accuracy) if sweep.model == TFLITE_MODEL else None
    if reference:
        ratio = f", {reference[0] / least[0]:.1f} times as large" if least else ""
        verdict += (
            f" The reference TFLite file of MLPerf Tiny (pretrainedResnet_quant.tflite) has {reference[0]:,} "
            f"bytes{ratio}, and reaches {reference[1]:.2f} % on the same test images."
        )
    rows = []
    for budget, (size, top1) in files.items():
        row, record = sweep.jobs[budget, seeds[0]]
        significance = [f"{row.mcnemar_p:.2g}"] if len(seeds) == 1 else []
        bits = " ".join(str(layer["weight_bits"]) for layer in record["layers"])
        shown = spread(top1) if len(seeds) > 1 else f"{top1[0]:.2f}"
        delta = f"{top1.mean() - sweep.baseline:+.2f}"
        rows.append((f"{budget:,}", f"{size:,}", shown, delta, *significance, bits))
    points = [(size, float(top1.mean())) for size, top1 in files.values()]
    figure = draw_smallest(sweep.name, points, least and least[:2], BAR, sweep.baseline, reference, options.out)
    first = f", seed {seeds[0]}" if len(seeds) > 1 else ""
    p = ["p, McNemar"] if len(seeds) == 1 else []
    columns = ["Budget, bytes", "File, bytes", "Top-1, %", "Delta, points", *p, f"Weight bits of each layer{first}"]
    one = sweep.jobs[budgets[0], seeds[0]][0]
    several = f"the mean of seeds {', '.join(map(str, seeds))}, and the largest of their files" if first else "one seed"
    return [
        filled(
            f"{verdict} The float file has {one.float_model_bytes:,} bytes. The choice is "
            f"made on the test images, with {several}. {widths(sweep)}"
        ),
        f"![Top-1 against the bytes of the file]({figure})",
        markdown(columns, rows),
    ]


SECTIONS = {"bit_map": bit_map, "ablation": ablation, "smallest": smallest}


def pages(options: argparse.Namespace) -> dict[str, str]:
    """{file name: text} of every experiment among the sweeps; the figures are written."""
    sweeps = [load(folder) for folder in options.sweeps]
    if len({sweep.name for sweep in sweeps}) < len(sweeps):
        raise ExperimentError("two sweeps are of the same experiment, model and refinement", "name one sweep for each")
    texts = {}
    for experiment, section in SECTIONS.items():
        chosen = [sweep for sweep in sweeps if sweep.experiment == experiment]
        if not chosen:
            continue
        parts = [f"# {TITLES[experiment]}", filled(written("refine_studies", len(chosen)))]
        for sweep in chosen:
            parts += [f"## {sweep.title}", facts(sweep.rows, sweep.command), *section(sweep, options)]
        texts[f"{experiment}.md"] = "\n\n".join(parts) + "\n"
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_DIR", help="finished sweeps")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER", help="default docs")
    parser.add_argument("--tflite-bytes", type=int, default=98_496, metavar="N", help="of MLPerf Tiny's TFLite file")
    parser.add_argument("--tflite-accuracy", type=float, default=0.8697, metavar="RATIO", help="top-1 of that file")
    write_pages(parser.parse_args(), pages)


if __name__ == "__main__":
    main()
