"""What calibration costs beside onnxruntime's own calibrators: seconds, peak memory, and the top-1 that comes of it.

In: CIFAR-10 in the cache and a float model. Out: Markdown tables of the measured values, each with its goals. Every
measurement is a process of its own, which loads the data, draws stratified training images, and then starts the clock.
It reads its memory when calibration ends; only then it builds the u8s8 model for top-1 on the 10,000 test images. Both
sides go through the same code before and after calibration.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DataConfig,
    DType,
    Method,
    ModelConfig,
    ModelKind,
    QuantConfig,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.accuracy import predict
from resnet8_quant.files import cache_folder
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.model import FloatModel, load_model
from resnet8_quant.machine import cpu_description, peak_rss_mb
from resnet8_quant.quantizer.calibration.calibrate import OPERATORS, Calibration, calibrate
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images
from resnet8_quant.quantizer.insert_ranges import insert_ranges
from resnet8_quant.terminal import markdown

NO_HISTOGRAM = "minmax, no histogram"
OURS: dict[str, dict[str, Any]] = {  # the values of conf/calibration
    NO_HISTOGRAM: {"method": Method.minmax, "bins": None},
    "minmax": {"method": Method.minmax},
    "moving_average": {"method": Method.moving_average, "averaging_constant": 0.01},
    "percentile": {"method": Method.percentile, "percentile": 99.999},
    "entropy": {"method": Method.entropy},
    "mse": {"method": Method.mse},
    "lp": {"method": Method.lp, "norm": 2.4},
}
THEIRS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}  # of CalibrationMethod
RIVALS = {NO_HISTOGRAM: "minmax", **{name: name for name in THEIRS}}  # what each of ours is compared with
THEIRS_LARGEST = 10_000  # images
THEIRS_BYTES = 1e6  # of an image: with entropy and percentile all its activations stay in memory
FEEDS = (1, 50)  # images of a feed: as in onnxruntime's examples, and a large one
FORWARD = "forward pass"
ALL = 50_000  # images, the whole training set
GOAL_MEMORY_MB, GOAL_FLAT, GOAL_FORWARD = 600, 1.15, 8.0
GOAL_RATIO = {3.0: (NO_HISTOGRAM, "minmax"), 8.0: ("percentile", "entropy")}


@dataclass(frozen=True)
class Measured:
    """Wall seconds, peak memory and mapped files at the end of calibration (10^6 bytes), top-1 of the u8s8 model, %."""

    seconds: float
    peak_mb: float
    mapped_mb: float = 0.0
    top1: float = 0.0

    @property
    def private_mb(self) -> float:
        return self.peak_mb - self.mapped_mb


# (method, images per feed; 0: ours) -> number of images -> measurements
Results = dict[tuple[str, int], dict[int, list[Measured]]]


def measure(method: str, feed: int, size: int, kind: str, source: str | None) -> Measured:
    """Load, calibrate by the clock, quantize, evaluate: in a fresh process, for the memory's sake."""
    cache = cache_folder()
    data = load_dataset(DataConfig(), cache)
    model = load_model(ModelConfig(ModelKind[kind], source=source), (32, 32, 3), data.classes, cache)
    if method == FORWARD:
        clock = time.perf_counter()
        predict(model.serialized, model.input_spec, data.train.images[:size], batch_size=500, threads=0)
        return Measured(time.perf_counter() - clock, peak_rss_mb() or 0.0)
    config = CalibrationConfig(**OURS[method], samples_per_class=size // data.classes)
    chosen = choose_images(config, data.train.labels, len(data.test.labels), seed=0)
    images = CalibrationImages.of(data.train.images, chosen, data.digest)
    quant = QuantConfig("u8s8", DType.uint8, DType.int8, per_channel=True)
    clock = time.perf_counter()
    if feed:
        ranges = onnxruntime_ranges(model, images, CalibrationMethod[THEIRS[method]], feed)
        calibration = Calibration(ranges, {}, {}, False, 0.0)
    else:
        calibration = calibrate(model, images, Config(quant, config))
    seconds, peak, mapped = time.perf_counter() - clock, peak_rss_mb(), kilobytes("/proc/self/status", "RssFile")
    predictions = predict(
        insert_ranges(model, calibration, quant), model.input_spec, data.test.images, batch_size=500, threads=0
    )
    top1 = 100 * float(np.mean(predictions.labels == data.test.labels))
    return Measured(seconds, peak or 0.0, (mapped or 0) * 1024 / 1e6, top1)


def onnxruntime_ranges(
    model: FloatModel, images: CalibrationImages, method: CalibrationMethod, feed: int
) -> dict[str, tuple[np.float32, np.float32]]:
    """{tensor: (low, high)} by onnxruntime's calibrator with its own defaults, asymmetric as in quantize_static."""

    input_spec = model.input_spec
    feeds = ({input_spec.name: input_spec.prepare(images.batch(i, feed))} for i in range(0, len(images), feed))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path, augmented = Path(folder) / "model.onnx", Path(folder) / "augmented.onnx"
        path.write_bytes(model.serialized)
        calibrator = create_calibrator(path, OPERATORS, str(augmented), method, extra_options={"symmetric": False})
        calibrator.collect_data(SimpleNamespace(get_next=lambda: next(feeds, None)))
        computed = calibrator.compute_data()
    ends = {name: [np.asarray(end).item() for end in tensor.range_value] for name, tensor in computed.items()}
    return {name: (np.float32(low), np.float32(high)) for name, (low, high) in ends.items()}


def kilobytes(path: str, field: str) -> int | None:
    """A field of a file in /proc; None where the system has no such file."""
    with contextlib.suppress(OSError):
        return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(field))
    return None


def run(options: argparse.Namespace) -> tuple[Results, list[str]]:
    """All measurements, and sentences about those that were left out."""
    results: Results = {}
    left_out = []

    def add(method: str, size: int, feed: int = 0) -> float:
        case = json.dumps([method, feed, size, options.model, options.source])
        command = [sys.executable, __file__, "measure", case]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\nexit code {done.returncode}: measure {case}")
        measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
        print(f"{named(method, feed)}, {size} images: {measured}", file=sys.stderr)
        results.setdefault((method, feed), {}).setdefault(size, []).append(measured)
        return measured.seconds

    for _ in range(options.runs):  # one of each in turn, so that a slow minute of the machine meets all
        for size in options.sizes:
            for method in (*options.methods, *((FORWARD,) if size == ALL else ())):
                add(method, size)
    for method in dict.fromkeys(RIVALS[name] for name in options.methods if name in RIVALS):
        feeds: tuple[int, ...] = FEEDS
        for size in (size for size in options.sizes if size <= THEIRS_LARGEST):
            need, free = size * THEIRS_BYTES, kilobytes("/proc/meminfo", "MemAvailable")
            if method != "minmax" and free is not None and free * 1024 < need:
                left_out.append(f"onnxruntime {method}, {size:,} images: not run: needs {need / 1e9:.1f} GB.")
                continue
            times = {feed: add(method, size, feed) for feed in feeds}
            if method != "minmax":  # at larger sizes the faster one
                feeds = (min(times, key=lambda feed: times[feed]),)
    return results, left_out


def named(method: str, feed: int) -> str:
    return f"onnxruntime {method}, feeds of {feed}" if feed else method


def middle(results: Results, method: str, feed: int, size: int, value: str = "seconds") -> float | None:
    runs = results.get((method, feed), {}).get(size)
    return median(getattr(one, value) for one in runs) if runs else None


def verdict(goal: str, values: dict[str, float], limit: float, *, at_least: bool = False) -> str:
    """A goal and whether all ``values`` keep it; those that do not are named."""
    missed = [f"{name} {value:.2f}" for name, value in values.items() if (value < limit if at_least else value > limit)]
    outcome = f"missed: {', '.join(missed)}" if missed else "met" if values else "not measured"
    return f"Goal: {goal}: {outcome}."


def time_table(results: Results, sizes: list[int]) -> str:
    rows, ratios = [], {}
    for size in sizes:
        for method in (method for method in OURS if (method, 0) in results):
            ours = middle(results, method, 0, size) or 0.0
            times = [middle(results, RIVALS.get(method, ""), feed, size) for feed in FEEDS]
            cells = ["" if time is None else f"{time:.2f}" for time in times]
            cells += ["" if time is None else f"{time / ours:.1f}x" for time in times]
            rows.append((f"{method}, {size:,}", f"{ours:.2f}", *cells))
            if size == THEIRS_LARGEST and any(times):
                ratios[method] = min(time for time in times if time is not None) / ours
    feeds = [f"onnxruntime, feeds of {feed}, s" for feed in FEEDS]
    lines = [markdown(["Method, images", "Ours, s", *feeds, *(f"Ratio, feeds of {feed}" for feed in FEEDS)], rows)]
    for limit, methods in GOAL_RATIO.items():
        goal = f"{' and '.join(methods)}: onnxruntime's faster feed takes {limit:.0f} times as long at 10,000 images"
        chosen = {method: ratios[method] for method in methods if method in ratios}
        lines.append(verdict(goal, chosen, limit, at_least=True))
    return "\n\n".join(lines)


def size_table(
    results: Results, sizes: list[int], value: str, text: str, *, per: float | None = None, ours: bool = False
) -> tuple[str, dict[str, float], dict[str, float]]:
    """A row for each method, a column for each size; and of each of ours the largest value, and the last / first."""
    rows, largest, growth = [], {}, {}
    for method, feed in sorted(results, key=lambda case: case[1] > 0):
        if method == FORWARD or (ours and feed):
            continue
        medians = {size: middle(results, method, feed, size, value) for size in sizes}
        values = {size: one / (size / per if per else 1) for size, one in medians.items() if one is not None}
        first, *_, last = [*values.values(), *values.values()]
        cells = [text.format(values[size]) if size in values else "" for size in sizes]
        rows.append((named(method, feed), *cells, f"{last / first:.3f}"))
        if not feed:
            largest[method], growth[method] = max(values.values()), last / first
    columns = ["Images", *(f"{size:,}" for size in sizes), "last / first"]
    if value == "top1":
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return markdown(columns, rows), largest, growth


def forward_table(results: Results) -> str:
    forward = middle(results, FORWARD, 0, ALL)
    if forward is None:
        return f"Not measured: --sizes does not have {ALL}."
    times = {method: by_size[ALL] for (method, _), by_size in results.items() if ALL in by_size}
    seconds = {method: median(one.seconds for one in many) for method, many in times.items()}
    table = markdown(
        ["Method", "Seconds", "Forward passes"],
        [(method, f"{one:.2f}", f"{one / forward:.2f}") for method, one in seconds.items()],
    )
    ratios = {method: one / forward for method, one in seconds.items()}
    return f"{table}\n\n{verdict(f'at most {GOAL_FORWARD:.0f} forward passes', ratios, GOAL_FORWARD)}"


def report(results: Results, left_out: list[str], options: argparse.Namespace) -> str:
    sizes = options.sizes
    peak, largest, growth = size_table(results, sizes, "peak_mb", "{:,.0f}")
    private, _, private_growth = size_table(results, sizes, "private_mb", "{:,.0f}")
    each, _, each_growth = size_table(results, sizes, "seconds", "{:.3f}", per=1000.0, ours=True)
    parts = [
        f"Time of calibration, median of {options.runs} (onnxruntime: one run):",
        time_table(results, sizes),
        *left_out,
        "Peak memory when calibration ends, MB, the images included, which are mapped from the cache:",
        peak,
        verdict(f"at most {GOAL_MEMORY_MB} MB", largest, GOAL_MEMORY_MB),
        verdict("at the most images at most 1.15 times that at the fewest", growth, GOAL_FLAT),
        "The same less mapped files (images that were read, libraries), whose pages the system takes back at will:",
        private,
        verdict("at the most images at most 1.15 times that at the fewest", private_growth, GOAL_FLAT),
        "Top-1 of the u8s8 model on the 10,000 test images, %:",
        size_table(results, sizes, "top1", "{:.2f}")[0],
        f"All {ALL:,} training images, and a plain forward pass of the float model over them, in batches of 500:",
        forward_table(results),
        "Seconds per 1,000 images:",
        each,
        verdict("linear: at the most images at most 1.15 times that at the fewest", each_growth, GOAL_FLAT),
    ]
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 10_000, ALL], metavar="N")
    parser.add_argument("--methods", nargs="+", choices=OURS, default=list(OURS), metavar="M", help=", ".join(OURS))
    parser.add_argument(
        "--model", choices=("resnet8", "mobilenet", "mlperf_tiny"), default="resnet8", help="default resnet8"
    )
    parser.add_argument("--source", metavar="H5", help="of mlperf_tiny; default: download")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of ours, default 3; onnxruntime's run once")
    parser.add_argument("--quick", action="store_true", help="1,000 images, one run")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.runs = [1000], 1
    options.sizes = sorted(set(options.sizes))
    if options.runs < 1 or options.sizes[0] < 50 or options.sizes[-1] > ALL or any(size % 50 for size in options.sizes):
        parser.error(f"--runs must be at least 1, --sizes multiples of 50 up to {ALL}")
    return options


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(asdict(measure(*json.loads(sys.argv[2])))))
        return
    options = parse()
    started = datetime.now(UTC)
    results, left_out = run(options)
    words = [Path(word).name if word == options.source else word for word in sys.argv[1:]]  # no folder of this machine
    print(f"Date: {started:%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, numpy {version('numpy')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/calibration.py', *words])}\n")
    print(report(results, left_out, options))


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        sys.exit(f"error: {error}")
