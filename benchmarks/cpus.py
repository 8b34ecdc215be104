"""What ONNX Runtime makes of the same models on CPUs that one does not own: accuracy, by QEMU's user emulation.

Makes int8, uint8, u8s8, u8s7, w4a8 and w4a4 models, plain and for each deploy target, by run.py, and runs them in ONNX
Runtime's default session, which is what an application opens: on this machine's kernels, on x86 without VNNI (AVX2) and
without AVX (SSE4.1), and, with --arm-root, on Arm's (NEON dot product, i8mm). Out: a Markdown table of top-1 and of the
predictions that differ from exact integer arithmetic. Emulation shows accuracy, not speed. Needs an x86-64 PC with
Linux and Debian's package qemu-user; tools/arm_root.py makes the Arm root.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from hydra import compose, initialize_config_dir
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._studies import errors_as_sentences  # noqa: E402
from resnet8_quant import results  # noqa: E402
from resnet8_quant.errors import ExperimentError  # noqa: E402
from resnet8_quant.experiment import Prepared, prepare  # noqa: E402
from resnet8_quant.graphs.session import open_session, run_batch  # noqa: E402
from resnet8_quant.machine import cpu_description, usable_cores  # noqa: E402
from resnet8_quant.sweep.compose import register, to_config  # noqa: E402

EMULATED = Path(__file__).resolve().parent / "_emulated.py"
REFINED = ("refine=best", "calibration=mse")
PRESETS: dict[str, tuple[str, ...]] = {
    "int8": (),
    "uint8": (),
    "u8s8": (),
    "u8s7": (),
    "w4a8": REFINED,
    "w4a4": REFINED,
}
DEPLOYS = ("none", "x86", "arm")
BATCH = 50
# The probe's exact answer; kernels that saturate answer about half of it.
PROBE, PROBE_EXACT = "probe", 200
# NumPy's BLAS is told by these which kernels to use, on some machines; the emulated CPU has others.
NOT_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


@dataclass(frozen=True)
class Cpu:
    """A CPU: its column's title, and the command that runs a Python program on it."""

    title: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model to run everywhere: its words for run.py, whether its row calls it portable, and what it answers exactly.

    Attributes:
        outputs: float32 [N, classes], computed exactly.
    """

    name: str
    words: str
    portable: bool
    file: Path
    outputs: np.ndarray


def cpus(arm_root: Path | None) -> list[Cpu]:
    """This machine's CPU and the emulated ones.

    Raises:
        ExperimentError: QEMU or the Arm root is missing.
    """
    if platform.machine() != "x86_64":
        raise ExperimentError(
            f"this machine is {platform.machine()}; cpus.py compares x86-64 CPUs with others", "run it on an x86-64 PC"
        )
    for program in ("qemu-x86_64", *(["qemu-aarch64"] if arm_root else [])):
        if shutil.which(program) is None:
            raise ExperimentError(f"{program} is missing", "apt-get install qemu-user")
    cpus = [
        Cpu("This machine", (sys.executable,)),
        Cpu("x86 AVX2", ("qemu-x86_64", "-cpu", "max", sys.executable)),
        Cpu("x86 SSE4.1", ("qemu-x86_64", "-cpu", "Nehalem", sys.executable)),
    ]
    if arm_root is not None:
        cpus.append(Cpu("Arm NEON dot product", arm_command(arm_root, "neoverse-n1")))
        cpus.append(Cpu("Arm i8mm", arm_command(arm_root, "max,sve=off")))
    return cpus


def arm_command(root: Path, cpu: str) -> tuple[str, ...]:
    """The command that runs a Python program on an emulated Arm CPU.

    Args:
        root: made by tools/arm_root.py.
        cpu: QEMU's name of it.

    Raises:
        ExperimentError: there is no Python in ``root``.
    """
    python = next(iter(sorted((root / "usr/bin").glob("python3.*"))), None)
    if python is None:
        raise ExperimentError(f"{root} is no Arm root: no usr/bin/python3.* in it", "python tools/arm_root.py FOLDER")
    packages = root / "usr/lib/python3/dist-packages"
    options = ("-L", str(root), "-E", f"PYTHONPATH={packages}", "-E", f"PYTHONHOME={root / 'usr'}")
    return ("qemu-aarch64", *options, "-cpu", cpu, str(python), "-S")


def emulate(command: tuple[str, ...], files: list[Path]) -> None:
    """Run _emulated.py on a CPU.

    Args:
        command: of the CPU.
        files: model, input, output, and so on.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    words = [*command, str(EMULATED), *map(str, files)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nexit code {done.returncode}: {shlex.join(words)}")


def write_probe(folder: Path) -> None:
    """Write probe.onnx, a QLinearConv of 64 channels with weights of 127, and its input of 255, to ``folder``."""
    channels, code, weight = 64, 255, 127
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "w": np.full((channels, channels, 1, 1), weight, np.int8),
        "w_zero": np.int8(0),
        "scale": np.float32(channels * code * weight / PROBE_EXACT),
    }
    inputs = ["x", "one", "zero", "w", "one", "w_zero", "scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", inputs, ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, channels, 8, 8])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / f"{PROBE}.onnx")
    np.save(folder / f"{PROBE}_input.npy", np.full((1, channels, 8, 8), code, np.uint8))


def make(preset: str, deploy: str, words: list[str], folder: Path, prepared: Prepared, count: int) -> Model:
    """Run run.py for a preset and a deploy target, and compute the exact outputs for the first ``count`` images."""
    own = [f"quant={preset}", *PRESETS[preset], f"deploy={deploy}"]
    target = folder / f"{preset}-{deploy}"
    command = [sys.executable, "run.py", *own, "latency.runs=0", *words, f"hydra.run.dir={target}"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nexit code {done.returncode}: {shlex.join(command)}")
    print(f"made {target.name}", file=sys.stderr, flush=True)
    row = results.read(target / results.FILE_NAME)
    file = target / "model.onnx"
    session = open_session(file.read_bytes(), 0)
    images, input_spec = prepared.data.test.images[:count], prepared.model.input_spec
    outputs = np.concatenate(
        [
            run_batch(session, input_spec.name, input_spec.prepare(images[start : start + BATCH]))
            for start in range(0, len(images), BATCH)
        ]
    )
    predictions = np.load(target / "predictions.npy")
    if len(predictions) != len(prepared.data.test.labels) or (outputs.argmax(1) != predictions[:count]).any():
        sys.exit(f"predictions.npy is not what an exact session answers on the test images: {shlex.join(command)}")
    return Model(f"{preset}-{deploy}", " ".join(own), bool(row.portable), file, outputs)


def close_calls(outputs: np.ndarray) -> np.ndarray:
    """The images whose two largest outputs are equal, or one step of the output's integers apart.

    Args:
        outputs: [N, classes], probabilities; their logarithms differ as the logits do.

    Returns:
        bool [N].
    """
    with np.errstate(divide="ignore"):
        largest = np.sort(np.log(outputs.astype(np.float64)), axis=1)[:, -2:]
    gaps = largest[:, 1] - largest[:, 0]
    above = gaps[gaps > 1e-4]  # less is the rounding of softmax
    return gaps <= (1.01 * above.min() if len(above) else 0)


def cell(outputs: np.ndarray, model: Model, labels: np.ndarray) -> str:
    """Top-1, predictions that differ from exact ones, and how many of those are close calls."""
    predictions = outputs.argmax(axis=1)
    differ = predictions != model.outputs.argmax(axis=1)
    text = f"{100 * np.mean(predictions == labels):.2f} / {differ.sum()}"
    return f"{text} ({(differ & close_calls(model.outputs)).sum()})" if differ.any() else text


def run_everywhere(models: list[Model], machines: list[Cpu], folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """The outputs of the probe and of each model on each CPU; as many processes at a time as there are cores."""
    files = {PROBE: folder / f"{PROBE}.onnx"} | {model.name: model.file for model in models}
    jobs = [(cpu, name) for name in files for cpu in machines]

    def run(job: tuple[Cpu, str]) -> np.ndarray:
        cpu, name = job
        given = folder / (f"{PROBE}_input.npy" if name == PROBE else "images.npy")
        wanted = folder / f"{name}-{machines.index(cpu)}.npy"
        emulate(cpu.command, [files[name], given, wanted])
        print(f"{name} on {cpu.title}", file=sys.stderr, flush=True)
        return np.asarray(np.load(wanted))

    with ThreadPoolExecutor(usable_cores()) as pool:
        outputs = list(pool.map(run, jobs))
    return {(name, cpu.title): output for (cpu, name), output in zip(jobs, outputs, strict=True)}


def table(
    models: list[Model], machines: list[Cpu], outputs: dict[tuple[str, str], np.ndarray], labels: np.ndarray
) -> str:
    """The Markdown table: the probe's row, then one for each model."""
    titles = ["Model", "Portable", "Exact", *(cpu.title for cpu in machines)]
    lines = [f"| {' | '.join(titles)} |", f"|---|---|{'---:|' * (len(titles) - 2)}"]
    sums = [int(outputs[PROBE, cpu.title].min()) for cpu in machines]
    probed = [f"{total} {'exact' if total == PROBE_EXACT else 'saturates'}" for total in sums]
    lines.append(f"| {' | '.join(['probe', '', str(PROBE_EXACT), *probed])} |")
    for model in models:
        exact = f"{100 * np.mean(model.outputs.argmax(axis=1) == labels):.2f}"
        cells = [cell(outputs[model.name, cpu.title], model, labels) for cpu in machines]
        lines.append(f"| {' | '.join([model.words, 'yes' if model.portable else 'no', exact, *cells])} |")
    return "\n".join(lines)


PAGE = """\
# The same models on other CPUs

What ONNX Runtime's default session, which is what an application opens, makes of a model on each kind of CPU, beside
exact integer arithmetic. Emulation shows accuracy, not speed.

{origin}

Each cell: top-1 in % of the first {count} test images / predictions that differ from the exact ones. In brackets: how
many of these are ties or near ties, where in exact arithmetic the two largest outputs are equal, or the smallest step
apart that any image shows. Exact is what the integers of the model say: the run's `accuracy`, on these images.
Portable is what the run says of the model: on no x86 CPU can its kernels saturate.

The probe is a convolution of 64 channels of 255 with weights of 127, whose exact result is 200: it tells whether a
CPU's kernels for uint8 activations with int8 weights saturate.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="OVERRIDE", help="for run.py, e.g. model=mlperf_tiny")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="first test images (default 1000)")
    parser.add_argument("--arm-root", type=Path, metavar="FOLDER", help="made by tools/arm_root.py; without it: no Arm")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page there, e.g. docs/cpus.md")
    options = parser.parse_args()
    if options.images < 1:
        parser.error("--images must be at least 1")
    with errors_as_sentences():
        page = measure(options.words, options.images, options.arm_root)
    if options.out is None:
        print(page)
    else:
        options.out.write_text(page, encoding="utf-8")


def measure(words: list[str], count: int, arm_root: Path | None) -> str:
    """Make the models, run them everywhere, and write the page."""
    machines = cpus(arm_root and arm_root.resolve())
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        prepared = prepare(to_config(compose("config", words), words))
    test = prepared.data.test
    if count > len(test.labels):
        raise ExperimentError(f"--images {count}: there are {len(test.labels)} test images", "give less")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_probe(folder)
        np.save(folder / "images.npy", prepared.model.input_spec.prepare(test.images[:count]))
        models = [make(preset, deploy, words, folder, prepared, count) for preset in PRESETS for deploy in DEPLOYS]
        outputs = run_everywhere(models, machines, folder)
    qemu = subprocess.run(["qemu-x86_64", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    emulated = ", ".join(f"{cpu.title} by -cpu {cpu.command[cpu.command.index('-cpu') + 1]}" for cpu in machines[1:])
    origin = (
        f"Written on {datetime.now(UTC):%Y-%m-%d} by `{shlex.join(['python', 'benchmarks/cpus.py', *sys.argv[1:]])}`. "
        f"This machine: {cpu_description()}; Python {platform.python_version()}, onnxruntime {version('onnxruntime')}. "
        f"The others: {qemu}, {emulated}."
    )
    if arm_root is None:
        origin += " Without --arm-root FOLDER, and so without Arm's columns."
    lines = textwrap.fill(origin, 120, break_long_words=False, break_on_hyphens=False)
    return PAGE.format(origin=lines, count=count, table=table(models, machines, outputs, test.labels[:count]))


if __name__ == "__main__":
    main()
