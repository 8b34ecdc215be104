"""What refine=distill owes to what: its start, its teacher and loss, what is tuned, its images, its steps.

In: the values of conf/quant/u8s8, conf/refine and conf/calibration, CIFAR-10, a float model. Out: Markdown on stdout, a
line for each variation of the default: top-1 on the test images, and loss and agreement with its own teacher on the
held-out training images, which alone decide; with --figure NAME.svg also top-1 against steps and images. What was
measured so far goes to stderr.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _plots import draw_distillation
from refine import CALIBRATIONS, WIDTHS, Case, config_of

from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.accuracy import predict
from resnet8_quant.experiment import Prepared, prepare
from resnet8_quant.machine import cpu_description, peak_rss_mb
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.quantizer.refine import distill
from resnet8_quant.quantizer.refine.student import Student
from resnet8_quant.quantizer.refine.torch_graph import TorchGraph
from resnet8_quant.terminal import markdown
from resnet8_quant.validation_split import training_images

FEATURE_WEIGHT = 0.1  # of the layers' mean squared error, relative to each one's variance, beside the KL divergence
ROUNDING_RATE = 2.5  # of learned rounding, which with refine.learning_rate is AdaRound's 0.01
ROUNDING_WEIGHT = 0.1  # of its undecided weights, beside the KL divergence
SCALES = ("weight scale", "activation scale", "zero point")
STARTS = ("none", "gptq", "best")
PARTS: dict[str, Callable[[str], bool]] = {
    "weights and biases": lambda name: not name.startswith(SCALES),
    "scales and zero points": lambda name: name.startswith(SCALES),
}


class Partial(Student):
    """Tunes only the parameters whose name ``chosen`` takes."""

    chosen: Callable[[str], bool]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rates = {name: rate if type(self).chosen(name) else 0.0 for name, rate in self.rates.items()}


class LearnedRounding(Student):
    """Chooses for each weight between its code and the next one on the float weight's side, in place of moving it.

    AdaRound (arXiv 2004.10568, equations 23 and 24), from refined codes: soft while it learns, hard where it is judged.
    """

    last: LearnedRounding
    steps: int

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        *_, model = arguments
        floats = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        self._codes, self._sides, self.step = {}, {}, 0
        for layer in self.plan.layers:
            name, scheme, zero = layer.output, self._schemes[layer.output], layer.weight.zero_point.astype(np.int64)
            codes = layer.weight.codes.astype(np.int64) - zero.reshape(self._shape(layer))
            away = floats[layer.weight.name] / layer.weight.scale.reshape(self._shape(layer)) - codes
            low, high = scheme.qmin - zero.min(), scheme.qmax - zero.max()
            side = np.clip(codes + np.where(away < 0, -1, 1), low, high) - codes
            share = np.clip(np.abs(away), 0.05, 0.45)  # of the way to the other code
            self._codes[name], self._sides[name] = (torch.tensor(x, dtype=torch.float32) for x in (codes, side))
            stretched = (share + 0.1) / 1.2
            self._add(f"weight {name}", np.log(stretched / (1 - stretched)), ROUNDING_RATE)
        LearnedRounding.last = self

    def share(self, name: str) -> torch.Tensor:
        """How far each weight is on its way to the other code, 0 to 1."""
        return torch.clamp(1.2 * torch.sigmoid(self.parameters[f"weight {name}"]) - 0.1, 0, 1)

    def _weight(self, layer: Any) -> torch.Tensor:
        share = self.share(layer.output)
        share = share if torch.is_grad_enabled() else torch.round(share)
        codes = self._codes[layer.output] + share * self._sides[layer.output]
        return codes * self._weight_scale(layer).reshape(self._shape(layer))

    def undecided(self) -> torch.Tensor:
        """Mean over the weights of 1 - |2 share - 1|^beta, beta from 20 to 2: pushes each share to 0 or 1."""
        self.step += 1
        beta = 2 + 9 * (1 + np.cos(np.pi * self.step / self.steps))
        shares = torch.cat([self.share(layer.output).flatten() for layer in self.plan.layers])
        return (1 - (2 * shares - 1).abs() ** beta).mean()


class Watched(Student):
    """Keeps what its layers read, and what the float model's layers read, of the last forward pass."""

    last: Watched

    def __init__(self, emitted: Any, plan: Any, bits: Any, config: Any, model: Any) -> None:
        super().__init__(emitted, plan, bits, config, model)
        self.teacher, self.errors, self._operator = TorchGraph(model), [], self.graph.operator
        self.graph.operator = self._watch  # type: ignore[method-assign]
        self._names = {layer.output for layer in plan.layers}
        Watched.last = self

    def _watch(self, node: Any, inputs: Any) -> Any:
        if node.output[0] in self._layers and torch.is_grad_enabled():
            target = self._targets[self._layers[node.output[0]].output]
            self.errors.append(((inputs[0] - target) ** 2).mean() / target.var())
        return self._operator(node, inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.errors = []
        if torch.is_grad_enabled():
            self._targets: dict[str, torch.Tensor] = {}

            def keep(node: Any, inputs: Any) -> None:
                if node.output[0] in self._names:
                    self._targets[node.output[0]] = inputs[0]

            with torch.no_grad():
                self.teacher.run(x, compute=keep)
        return super().forward(x)


def variations(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any], Any, Any]]:
    """Of each line its name, start, changes of ``refine``, student, and loss; None: as it is."""

    def with_features(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        errors = Watched.last.errors
        return loss(logits, targets) + (FEATURE_WEIGHT * sum(errors) / len(errors) if errors else 0.0)

    def with_rounding(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        undecided = LearnedRounding.last.undecided() if torch.is_grad_enabled() else 0.0
        return loss(logits, targets) + ROUNDING_WEIGHT * undecided

    loss, steps = distill._loss, options.steps
    LearnedRounding.steps = steps
    rows: list[tuple[str, str, dict[str, Any], Any, Any]] = []
    if "start" in options.parts:
        rows += [(f"from refine={start}", start, {}, None, None) for start in STARTS if start != "best"]
    rows += [("default: from refine=best, KL, mirror and shift, everything, all images", "best", {}, None, None)]
    if "loss" in options.parts:
        rows += [("mirror=false shift=0", "best", {"mirror": False, "shift": 0}, None, None)]
        rows += [("shift=0", "best", {"shift": 0}, None, None)]
        rows += [("KL and features", "best", {}, Watched, with_features)]
    if "parameters" in options.parts:
        students = {name: type("Part", (Partial,), {"chosen": staticmethod(part)}) for name, part in PARTS.items()}
        rows += [(f"only {name}", "best", {}, student, None) for name, student in students.items()]
    if "rounding" in options.parts:
        rows += [("learned rounding", "best", {}, LearnedRounding, with_rounding)]
    if "images" in options.parts:
        rows += [(f"{count:,} images", "best", {"distill_images": count}, None, None) for count in (1000, 5000)]
    if "steps" in options.parts:
        counts = (steps // 8, steps // 4, steps // 2, steps * 2)
        rows += [(f"{count:,} steps", "best", {"distill_steps": count}, None, None) for count in counts]
    return rows


@dataclass(frozen=True)
class Measured:
    """A variation: top-1 in %, and how the distillation went; seconds with what came before it."""

    name: str
    top1: float
    went: distill.Distillation
    seconds: float

    def line(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.top1:.2f}",
            "{:.4f} -> {:.4f}".format(*self.went.loss),
            "{:.1f} -> {:.1f}".format(*(100 * share for share in self.went.agreement)),
            f"{self.seconds:.0f}",
        )


def measure(options: argparse.Namespace, prepared: Prepared, width: str, variation: Any) -> Measured:
    name, start, changes, student, loss = variation
    case = Case(
        start, width, [options.seed], options.calibration, options.model, options.source, False, options.threads, None
    )
    config = config_of(case, options.seed)
    settings = {"distill": True, "mirror": True, "shift": 1, "distill_steps": options.steps} | changes
    config.refine = replace(config.refine, **settings)
    data, model = prepared.data, prepared.model
    chosen = choose_images(config.calibration, data.train.labels, len(data.test.labels), options.seed)
    images = CalibrationImages.of(data.train.images, chosen, f"train split of {data.digest}")
    before = distill.Student, distill._loss
    try:
        distill.Student = student or before[0]  # type: ignore[misc]
        distill._loss = loss or before[1]
        training = training_images(data.train, images, config, data.digest)
        done = quantize(model, images, config, training=training, cache=prepared.cache)
    finally:
        distill.Student, distill._loss = before  # type: ignore[misc]
    predictions = predict(done.serialized, model.input_spec, data.test.images, batch_size=500, threads=options.threads)
    assert done.distillation is not None
    top1 = 100 * float(np.mean(predictions.labels == data.test.labels))
    return Measured(name, top1, done.distillation, done.seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("start", "loss", "parameters", "rounding", "images", "steps")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="P", help=", ".join(parts))
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["W4A4"], metavar="W", help=", ".join(WIDTHS))
    parser.add_argument("--steps", type=int, default=2400, metavar="N", help="default 2400")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--calibration", choices=CALIBRATIONS, default="mse", metavar="M", help=", ".join(CALIBRATIONS))
    parser.add_argument(
        "--model", choices=("resnet8", "mobilenet", "mlperf_tiny"), default="resnet8", help="default resnet8"
    )
    parser.add_argument("--source", metavar="H5", help="of mlperf_tiny; default: download")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw it; a PNG is written beside it")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default 0: all cores")
    return parser.parse_args()


def main() -> None:
    options = parse()
    started = datetime.now(UTC)
    case = Case("best", "W4A4", [0], options.calibration, options.model, options.source, False, options.threads, None)
    prepared = prepare(config_of(case, options.seed))
    tables, curves = [], {}
    for width in options.widths:
        rows = []
        for variation in variations(options):
            rows.append(measure(options, prepared, width, variation))
            print(width, *rows[-1].line(), sep="; ", file=sys.stderr)
        heading = [width, "Top-1, %", "Loss, held out", "Agreement, %", "Seconds"]
        tables.append(markdown(heading, [row.line() for row in rows]))
        for what in ("steps", "images"):
            chosen = [row for row in rows if row.name.startswith("default") or row.name.endswith(f" {what}")]
            curves[f"{width}: {what}"] = sorted((getattr(row.went, what), row.top1, row.seconds) for row in chosen)
    if options.figure:
        labels = prepared.data.test.labels
        spec = prepared.model.input_spec
        plain = predict(prepared.model.serialized, spec, prepared.data.test.images, batch_size=500, threads=0)
        baseline = 100 * float(np.mean(plain.labels == labels))
        draw_distillation(options.figure.stem, curves, baseline, options.figure.parent)
    words = [Path(word).name if word == options.source else word for word in sys.argv[1:]]  # no folder of this machine
    print(f"Date: {started:%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime {version('onnxruntime')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/distillation.py', *words])}")
    print(f"Peak memory: {peak_rss_mb() or 0:,.0f} MB\n")
    print(
        f"refine=distill of {options.model}, seed {options.seed}, {options.steps:,} steps of {distill.BATCH} images:\n"
    )
    print("\n\n".join(tables))


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        sys.exit(f"error: {error}")
