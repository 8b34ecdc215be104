"""What data=folder costs beside data=cifar10, and how much memory decoding many images takes.

Starts run.py as a user does, in processes of its own: CIFAR-10's 10,000 test images as JPEG files in a new cache (first
run), the same again (later run), and data=cifar10, in turns; then 50,000 JPEG files of 96x96 are decoded into a cache.
In: CIFAR-10, from the cache or fetched. Out: a Markdown table; files are made in a temporary folder (3 GB).
"""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import resnet8_quant as rq  # noqa: E402
from resnet8_quant.inputs.dataset import Split  # noqa: E402
from resnet8_quant.machine import cpu_description, load_per_core, usable_cores  # noqa: E402

GOAL_FIRST, GOAL_LATER = 3.0, 1.1  # times data=cifar10
TRAIN_EACH = 200  # training images of each class
LARGE = 96  # height and width of the many images

# Prints seconds and peak memory of a process that does nothing but load the images, or import what loads them.
LOAD = """
import sys, time
import resnet8_quant as rq
from resnet8_quant.machine import peak_rss_mb
start, rows = time.perf_counter(), 0
if len(sys.argv) > 1:
    rows = len(rq.load_dataset(rq.compose("data=folder", *sys.argv[1:])).train.labels)
else:
    import PIL.Image, resnet8_quant.inputs.folder
print(rows, time.perf_counter() - start, peak_rss_mb())
"""


def write_jpegs(split: Split, folder: Path, size: int | None = None) -> int:
    """Write the images of a split as ``folder``/CLASS/NUMBER.jpg, resized where ``size`` says so; returns bytes."""
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)

    def write(number: int) -> int:
        image = Image.fromarray(split.images[number])
        if size is not None:
            image = image.resize((size, size))
        path = folder / str(split.labels[number]) / f"{number:05}.jpg"
        image.save(path, quality=95)
        return path.stat().st_size

    with ThreadPoolExecutor(usable_cores()) as pool:
        return sum(pool.map(write, range(len(split.labels))))


def run_seconds(output: Path, *words: str) -> float:
    """Seconds from start to exit of a run of quant=u8s7 in a process of its own; ends the benchmark if it fails."""
    command = [sys.executable, "run.py", "quant=u8s7", *words, f"hydra.run.dir={output}"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}: {shlex.join(command)}")
    return time.perf_counter() - start


def load(*words: str) -> tuple[int, float, float]:
    """Training images, seconds and peak memory in MB of a process that loads a folder; of one that loads nothing."""
    command = [sys.executable, "-c", LOAD, *words]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    rows, seconds, peak = done.stdout.split()[-3:]
    return int(rows), float(seconds), float(peak)


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def times(folder: Path, data: rq.Dataset, repeats: int) -> list[tuple[str, str, str]]:
    """Rows of the table: whole runs on JPEG files of CIFAR-10 beside data=cifar10."""
    rows = np.concatenate([np.flatnonzero(data.train.labels == label)[:TRAIN_EACH] for label in range(10)])
    write_jpegs(Split(data.train.images[rows], data.train.labels[rows]), folder / "jpeg" / "train")
    write_jpegs(data.test, folder / "jpeg" / "test")
    words = ["data=folder", f"data.path={folder / 'jpeg'}"]
    kept = f"cache_dir={folder / 'cache'}"
    run_seconds(folder / "warm_up", *words, kept)  # fills the caches that the later runs start from
    run_seconds(folder / "warm_up_cifar10")
    measured: dict[str, list[float]] = {"data=cifar10": [], "first": [], "later": []}
    for index in range(repeats):
        output = folder / f"run{index}"
        measured["data=cifar10"].append(run_seconds(output / "cifar10"))
        measured["first"].append(run_seconds(output / "first", *words, f"cache_dir={output / 'cache'}"))
        measured["later"].append(run_seconds(output / "later", *words, kept))
    base = median(measured["data=cifar10"])
    first, later = (f"{median(measured[name]) / base:.2f} x" for name in ("first", "later"))
    return [
        ("`data=cifar10`, a later run", spread(measured["data=cifar10"]), ""),
        ("`data=folder`, first run", f"{spread(measured['first'])}, {first}", f"{GOAL_FIRST:g} x"),
        ("`data=folder`, later run", f"{spread(measured['later'])}, {later}", f"{GOAL_LATER:g} x"),
    ]


def memory(folder: Path, data: rq.Dataset) -> list[tuple[str, str, str]]:
    """Rows of the table: decoding 50,000 larger images, and opening them again."""
    many, few = folder / "many", 100
    size = write_jpegs(data.train, many / "train", LARGE)
    write_jpegs(Split(data.test.images[:few], data.test.labels[:few]), many / "test", LARGE)
    words = [f"data.path={many}", f"cache_dir={folder / 'many_cache'}"]
    _, _, imported = load()
    count, first, peak = load(*words)
    _, later, later_peak = load(*words)
    decoded = count * LARGE * LARGE * 3 / 1e6
    what = f"{count:,} JPEG files of {LARGE}x{LARGE}"
    return [
        (f"{what}, {size / 1e6:.0f} MB: decoded into the cache, {decoded:,.0f} MB", f"{first:.1f} s", ""),
        (f"{what}: peak memory of that; of a process that only imports", f"{peak:.0f} MB; {imported:.0f} MB", ""),
        (f"{what}: opened again; peak memory", f"{later:.1f} s; {later_peak:.0f} MB", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds of three runs (default 5)")
    parser.add_argument("--only", choices=("times", "memory"), help="default: both")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    data = rq.load_dataset(rq.compose("data=cifar10"))
    load_before = load_per_core()
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        if options.only != "memory":
            rows += times(Path(temporary), data, options.repeats)
        if options.only != "times":
            rows += memory(Path(temporary), data)
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}; load per core before: {load_before or 0:.2f}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, Pillow {version('pillow')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/image_folders.py', *sys.argv[1:]])}\n")
    print("\n".join(["| What | Measured | Goal |", "|------|---------:|-----:|"]))
    print("\n".join(f"| {what} | {value} | {goal} |" for what, value, goal in rows))


if __name__ == "__main__":
    main()
