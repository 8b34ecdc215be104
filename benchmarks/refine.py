"""Time, memory and accuracy of refine=, against the goals of the issue.

In: the values of conf/quant/u8s8, conf/refine and conf/calibration, CIFAR-10, a float model. Out: Markdown on stdout:
top-1 of every refinement and width, seconds and peak memory of the refinement, and which goals that keeps. Each
refinement and width has a process of its own; what was measured so far goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    ModelKind,
    QuantConfig,
    RefineConfig,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.accuracy import predict
from resnet8_quant.experiment import prepare
from resnet8_quant.machine import cpu_description, peak_rss_mb
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.terminal import markdown
from resnet8_quant.validation import validate
from resnet8_quant.validation_split import training_images

CONF = Path(__file__).resolve().parent.parent / "conf"
CALIBRATIONS = sorted(path.stem for path in (CONF / "calibration").glob("*.yaml"))
REFINES = ("none", "gptq", "best", "distill")
QUICK = REFINES[:3]  # seconds each; distill takes minutes
WIDTHS = ("W8A8", "W6A6", "W5A5", "W4A8", "W4A4", "W3A8", "W2A8", "W2A4")
GOALS = {  # of model=mlperf_tiny with the first and last layer at 8 bits, top-1 in %: must, aim
    ("best", "W8A8"): (87.1, 87.2),
    ("best", "W6A6"): (87.0, 87.1),
    ("best", "W5A5"): (86.8, 87.0),
    ("best", "W4A8"): (86.6, 87.0),
    ("best", "W4A4"): (85.5, 86.5),
    ("best", "W3A8"): (85.3, 86.3),
    ("best", "W2A8"): (76.0, 83.0),
    ("distill", "W8A8"): (87.2, 87.3),
    ("distill", "W4A8"): (87.05, 87.19),
    ("distill", "W4A4"): (86.8, 87.1),
    ("distill", "W3A8"): (86.9, 87.1),
    ("distill", "W2A8"): (85.0, 86.5),
    ("distill", "W2A4"): (84.0, 86.0),
}
GOALS |= {("gptq", width): goals for (refine, width), goals in GOALS.items() if refine == "best"}
GOALS_ALL_LAYERS = {("distill", "W4A4"): (85.8, 86.6)}
GOAL_SECONDS = {"gptq": 10.0, "best": 120.0, "distill": 300.0}
GOAL_MEMORY_MB = {"none": 1500, "gptq": 1500, "best": 1500, "distill": 2000}


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    refine: str
    width: str
    seeds: list[int]
    calibration: str
    model: str
    source: str | None
    all_layers: bool
    threads: int
    steps: int | None


@dataclass(frozen=True)
class Measured:
    """Of each seed: top-1 in % and seconds of quantization after calibration; and the process's peak, 10^6 bytes."""

    top1: list[float]
    seconds: list[float]
    peak_mb: float
    images: int
    tested: int


def configured(kind: type, path: str, **changes: Any) -> Any:
    """A file of conf/ as its dataclass, with ``changes``."""
    loaded = OmegaConf.load(CONF / f"{path}.yaml")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), loaded, changes))


def config_of(case: Case, seed: int) -> Config:
    """The configuration of a run; 8 bits are the width of u8s8's types, and are not set."""
    weight, activation = map(int, case.width[1:].split("A"))
    steps = {"distill_steps": case.steps} if case.steps else {}
    quant = configured(
        QuantConfig,
        "quant/u8s8",
        weight_bits=None if weight == 8 else weight,
        activation_bits=None if activation == 8 else activation,
        keep_first_last=None if case.all_layers else 8,
    )
    config = Config(
        quant=quant,
        calibration=configured(CalibrationConfig, f"calibration/{case.calibration}"),
        refine=configured(RefineConfig, f"refine/{case.refine}", **steps),
        evaluation=EvaluationConfig(threads=case.threads),
        model=ModelConfig(ModelKind[case.model], source=case.source),
        seed=seed,
    )
    validate(config)
    return config


def measure(case: Case) -> Measured:
    """Quantize with each seed and read the memory; then evaluate, which must not count."""
    prepared = prepare(config_of(case, case.seeds[0]))
    data, model = prepared.data, prepared.model
    quantized = []
    for seed in case.seeds:
        config = config_of(case, seed)
        chosen = choose_images(config.calibration, data.train.labels, len(data.test.labels), seed)
        images = CalibrationImages.of(data.train.images, chosen, f"train split of {data.digest}")
        training = training_images(data.train, images, config, data.digest)
        quantized.append(quantize(model, images, config, training=training, cache=prepared.cache))
        print(f"seed {seed}: {quantized[-1].distillation}", file=sys.stderr)
    peak, top1 = peak_rss_mb() or 0.0, []
    for one in quantized:
        predictions = predict(one.serialized, model.input_spec, data.test.images, batch_size=500, threads=case.threads)
        top1.append(100 * float(np.mean(predictions.labels == data.test.labels)))
    return Measured(top1, [one.seconds for one in quantized], peak, len(images), len(data.test.labels))


# (refinement, width) -> measurements
Results = dict[tuple[str, str], Measured]


def run(options: argparse.Namespace) -> Results:
    """Each refinement and width in a fresh process, one after the other."""
    results: Results = {}
    for refine in options.refine:
        for width in options.widths:
            calibrated = options.calibration, options.model, options.source
            case = Case(refine, width, options.seeds, *calibrated, options.all_layers, options.threads, options.steps)
            command = [sys.executable, __file__, "measure", json.dumps(asdict(case))]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"exit code {done.returncode}: refine={refine}, {width}")
            results[refine, width] = Measured(**json.loads(done.stdout.splitlines()[-1]))
            print(f"refine={refine}, {width}: {results[refine, width]}", file=sys.stderr)
    return results


def accuracy_table(results: Results, options: argparse.Namespace) -> str:
    def cell(values: list[float]) -> str:
        return f"{mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    rows = [(refine, *(cell(results[refine, width].top1) for width in options.widths)) for refine in options.refine]
    return markdown(["refine=", *options.widths], rows)


def cost_table(results: Results, options: argparse.Namespace) -> str:
    """Over all widths and seeds of a refinement."""
    rows = []
    for refine in options.refine:
        chosen = {width: results[refine, width] for width in options.widths}
        seconds = [one for measured in chosen.values() for one in measured.seconds]
        slowest = max(chosen, key=lambda width: max(chosen[width].seconds))
        peak = max(measured.peak_mb for measured in chosen.values())
        goal = GOAL_SECONDS.get(refine)
        rows.append(
            (
                refine,
                f"{median(seconds):.2f}",
                f"{max(seconds):.2f} ({slowest})",
                "" if goal is None else f"{goal:g}: {'met' if max(seconds) <= goal else 'missed'}",
                f"{peak:,.0f}",
                f"{GOAL_MEMORY_MB[refine]:,}: {'met' if peak <= GOAL_MEMORY_MB[refine] else 'missed'}",
            )
        )
    return markdown(["refine=", "Seconds, median", "Seconds, largest", "Goal, at most", "Peak, MB", "Goal"], rows)


def goal_table(results: Results, goals: dict[tuple[str, str], tuple[float, float]]) -> str:
    """The mean over the seeds as it is printed, to two decimals, against what is asked for."""
    rows = []
    for (refine, width), measured in results.items():
        if (refine, width) in goals:
            must, aim = goals[refine, width]
            value = round(mean(measured.top1), 2)
            reached = "aim" if value >= aim else "must" if value >= must else f"missed by {must - value:.2f}"
            rows.append((refine, width, f"{must:.2f}", f"{aim:.2f}", f"{value:.2f}: {reached}"))
    return markdown(["refine=", "Width", "Must", "Aim", "Measured"], rows)


def report(results: Results, options: argparse.Namespace) -> str:
    any_one = next(iter(results.values()))
    narrow = "every layer as narrow" if options.all_layers else "first and last layer at 8 bits"
    seeds = ", ".join(map(str, options.seeds))
    parts = [
        f"Top-1 of {options.model} on {any_one.tested:,} test images, %, mean of seeds {seeds} (smallest-largest); "
        f"u8s8 per channel, {narrow}, {options.calibration} calibration on {any_one.images:,} training images:",
        accuracy_table(results, options),
        "Quantization after calibration, all widths and seeds, and peak memory of the process before evaluation:",
        cost_table(results, options),
    ]
    goals = GOALS_ALL_LAYERS if options.all_layers else GOALS
    if options.model == "mlperf_tiny" and results.keys() & goals.keys():
        parts += ["Goals for the mean top-1, %:", goal_table(results, goals)]
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--refine", nargs="+", choices=REFINES, default=list(QUICK), metavar="R", help=", ".join(REFINES)
    )
    parser.add_argument(
        "--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS), metavar="W", help=", ".join(WIDTHS)
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of distill; 0: all cores")
    parser.add_argument("--steps", type=int, metavar="N", help="of distill; default: refine.distill_steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="default 0 to 4")
    parser.add_argument("--calibration", choices=CALIBRATIONS, default="mse", metavar="M", help=", ".join(CALIBRATIONS))
    parser.add_argument(
        "--all-layers", action="store_true", help="the first and the last layer as narrow as the others"
    )
    parser.add_argument(
        "--model", choices=("resnet8", "mobilenet", "mlperf_tiny"), default="resnet8", help="default resnet8"
    )
    parser.add_argument("--source", metavar="H5", help="of mlperf_tiny; default: download")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[2]))))))
        return
    options = parse()
    started = datetime.now(UTC)
    results = run(options)
    words = [Path(word).name if word == options.source else word for word in sys.argv[1:]]  # no folder of this machine
    print(f"Date: {started:%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, numpy {version('numpy')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/refine.py', *words])}\n")
    print(report(results, options))


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        sys.exit(f"error: {error}")
