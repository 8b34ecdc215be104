"""Inputs that lie, one command line each: is every answer a sentence, and how long does it take?

Files that are damaged, endless, huge or of another kind, settings out of range, places that cannot be written. Out: a
Markdown table of groups, and below it every command that ended with a traceback, by a signal or not within the limit;
--all lists what each command said. Exit code 1 where one did.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant.machine import cpu_description  # noqa: E402
from resnet8_quant.terminal import markdown  # noqa: E402

SIZE, CLASSES = 8, 3
RUN = ["latency.runs=0", "evaluation.threads=1"]
HUGE = 2**40


@dataclass(frozen=True)
class Case:
    """One command line: its words, and where it is started."""

    group: str
    words: list[str]


# --- models -----------------------------------------------------------------------------------------------------------


def net(
    nodes: list[onnx.NodeProto] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    shape: tuple[object, ...] = ("N", 3, SIZE, SIZE),
    dtype: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("scores",),
    domain: str = "",
) -> onnx.ModelProto:
    """Conv, mean and Gemm; ``nodes`` come between the Conv ("c") and the mean of "r"."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(4, 3, 3, 3)), "g": rng.normal(size=(4, CLASSES))}
    tensors = {name: array.astype(np.float32) for name, array in arrays.items()} | (weights or {})
    node = helper.make_node
    middle = nodes if nodes is not None else [node("Relu", ["c"], ["r"])]
    graph = helper.make_graph(
        [
            node("Conv", ["image", "w"], ["c"], "conv"),
            *middle,
            node("GlobalAveragePool", ["r"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "g"], ["scores"], "dense"),
        ],
        "net",
        [helper.make_tensor_value_info("image", dtype, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def branch(condition: str) -> list[onnx.NodeProto]:
    """An If around a Relu."""
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    bodies = [helper.make_graph([helper.make_node(op, ["c"], ["t"])], op, [], [value]) for op in ("Relu", "Neg")]
    return [helper.make_node("If", [condition], ["r"], then_branch=bodies[0], else_branch=bodies[1])]


def endless() -> list[onnx.NodeProto]:
    """A Loop of 2^62 turns."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "one"], ["next"]), helper.make_node("Identity", ["k"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("k", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )
    return [helper.make_node("Loop", ["trips", "true", "c"], ["r"], body=body)]


def models() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Networks that load, or say why not."""
    node = helper.make_node
    norm = {name: np.ones(4, np.float32) for name in ("s", "b", "m", "v")}
    yield "two outputs", net(outputs=("scores", "scores"))
    yield "integer input", net(dtype=TensorProto.INT32)
    yield "double input", net(dtype=TensorProto.DOUBLE)
    yield "no batch axis", net(shape=(3, SIZE, SIZE))
    yield "other size", net(shape=("N", 3, 9, 9))
    yield "other channels", net(shape=("N", 4, SIZE, SIZE))
    yield "batch of ten million", net(shape=(9_999_000, 3, SIZE, SIZE))
    yield "batch of one", net(shape=(1, 3, SIZE, SIZE))
    yield "batch of zero", net(shape=(0, 3, SIZE, SIZE))
    yield "five axes", net(shape=("N", 3, SIZE, SIZE, 1))
    yield "free size", net(shape=("N", 3, "H", "W"))
    yield "If", net(branch("yes"), {"yes": np.array(True)})
    yield (
        "endless Loop",
        net(endless(), {"trips": np.array(2**62), "true": np.array(True), "one": np.array(1, np.float32)}),
    )
    yield "training mode", net([node("BatchNormalization", ["c", *norm], ["r", "x", "y"], training_mode=1)], norm)
    yield "custom operator", net([node("Wish", ["c"], ["r"], domain="nobody")], domain="nobody")
    yield "unknown operator", net([node("NoSuchOperator", ["c"], ["r"])])
    yield "cycle", net([node("Add", ["c", "r"], ["r"])])
    yield "unknown tensor", net([node("Relu", ["nothing"], ["r"])])
    yield "same name twice", net([node("Relu", ["c"], ["r"]), node("Neg", ["c"], ["r"])])
    yield "NaN weights", net(weights={"w": np.full((4, 3, 3, 3), np.nan, np.float32)})
    yield "infinite weights", net(weights={"g": np.full((4, CLASSES), np.inf, np.float32)})
    yield "weights of zero", net(weights={"w": np.zeros((4, 3, 3, 3), np.float32)})
    yield "huge weights", net(weights={"w": np.full((4, 3, 3, 3), 1e38, np.float32)})
    yield "double weight", net([node("Cast", ["d"], ["e"], to=1), node("Mul", ["c", "e"], ["r"])], {"d": np.ones(1)})
    yield "half weights", net(weights={"w": np.ones((4, 3, 3, 3), np.float16)})
    yield "padding of gigabytes", net([node("MaxPool", ["c"], ["r"], kernel_shape=[30001] * 2, pads=[30000] * 4)])
    constant = [node("ConstantOfShape", ["sh"], ["z"]), node("ReduceMax", ["z"], ["q"], keepdims=0)]
    yield (
        "constant of gigabytes",
        net([*constant, node("Add", ["c", "q"], ["r"])], {"sh": np.array([60_000, 60_000])}),
    )
    deep = [node("Relu", [f"c{i}" if i else "c"], [f"c{i + 1}" if i < 2999 else "r"]) for i in range(3000)]
    yield "three thousand layers", net(deep)
    quantize = [node("QuantizeLinear", ["c", "sc", "ze"], ["q"]), node("DequantizeLinear", ["q", "sc", "ze"], ["r"])]
    yield "quantized already", net(quantize, {"sc": np.array(1, np.float32), "ze": np.array(0, np.uint8)})
    yield "dead network", net([node("Mul", ["c", "zero"], ["r"])], {"zero": np.zeros(1, np.float32)})
    yield (
        "maximum of all images",
        net([node("ReduceMax", ["c"], ["top"], keepdims=0), node("Clip", ["c", "", "top"], ["r"])]),
    )


def model_cases(folder: Path, data: Path) -> Iterator[Case]:
    images = [f"data.path={data / 'good.npz'}", "data=arrays", "calibration.samples_per_class=2", "model=onnx"]
    for name, model in models():
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        words = [*images, f"model.path='{path}'", "evaluation.allow_chance=true", "evaluation.timeout=5"]
        yield Case("networks", ["quant=u8s8", *words])
        if name in ("If", "double weight", "maximum of all images", "batch of one", "dead network"):
            yield Case("networks", ["quant=w4a8", "refine=best", *words])
            yield Case("networks", ["quant=tflite_int8", "deploy=tflite", *words])
            yield Case("networks", ["quant=u8s7", "deploy=x86", *words])
    good = net().SerializeToString()
    split = onnx.load_from_string(good)
    onnx.save(split, folder / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    (folder / "apart.data").unlink()
    outside = onnx.load_from_string(good)
    onnx.external_data_helper.set_external_data(outside.graph.initializer[0], "../../../../etc/passwd")
    outside.graph.initializer[0].ClearField("raw_data")
    sparse = onnx.load_from_string(good)
    onnx.external_data_helper.set_external_data(sparse.graph.initializer[0], "sparse.data")
    sparse.graph.initializer[0].ClearField("raw_data")
    with open(folder / "sparse.data", "wb") as file:
        file.truncate(2**33)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"x")
    contents = {
        "empty": b"",
        "text": b"not a model\n",
        "random": np.random.default_rng(1).bytes(9999),
        "cut": good[: len(good) // 2],
        "pickle": archive.getvalue(),
        "outside": outside.SerializeToString(),
        "sparse": sparse.SerializeToString(),
    }
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    os.mkfifo(folder / "pipe.onnx")
    for name in (*contents, "apart", "pipe", "missing"):
        yield Case("model files", [*images, f"model.path='{folder / name}.onnx'"])
    for place in ("/dev/zero", str(folder), "~no_such_user/x.onnx", ""):
        yield Case("model files", [*images, f"model.path='{place}'"])
    for name in ("empty.h5", "text.keras", "bomb.keras", "random.h5"):
        (folder / name).write_bytes(contents.get(name.split(".")[0], b"text"))
    with zipfile.ZipFile(folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file:
        for member in ("config.json", "model.weights.h5"):
            file.writestr(member, bytes(2**26))
    for name in ("empty.h5", "text.keras", "bomb.keras", "random.h5", "missing.h5"):
        yield Case("model files", [*images, "model=keras", f"model.path='{folder / name}'"])


# --- data -------------------------------------------------------------------------------------------------------------


def archive(path: Path, **arrays: np.ndarray) -> None:
    """x_train, y_train, x_test, y_test of 12 images each, with ``arrays`` in their place."""
    rng, labels = np.random.default_rng(0), np.arange(12) % CLASSES
    train, test = rng.integers(0, 256, (2, 12, SIZE, SIZE, 3), dtype=np.uint8)
    every = {"x_train": train, "y_train": labels, "x_test": test, "y_test": labels}
    np.savez(path, allow_pickle=True, **{name: array for name, array in (every | arrays).items() if array is not None})


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that says that it has that shape, and holds nothing."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def data_cases(folder: Path, model: Path) -> Iterator[Case]:
    words = ["data=arrays", "calibration.samples_per_class=2", "model=onnx", f"model.path={model}", "quant=u8s8"]
    words += ["evaluation.allow_chance=true"]
    images, labels = np.zeros((12, SIZE, SIZE, 3), np.uint8), np.arange(12) % CLASSES
    altered: dict[str, dict[str, object]] = {
        "no labels": {"y_train": None},
        "no test": {"x_test": None, "y_test": None},
        "objects": {"x_train": np.array([{}] * 12, dtype=object)},
        "texts": {"x_train": np.array(["x"] * 12)},
        "NaN": {"x_train": np.full(images.shape, np.nan, np.float32)},
        "infinite": {"x_test": np.full(images.shape, np.inf, np.float32)},
        "complex": {"x_train": images.astype(complex)},
        "negative labels": {"y_train": labels - 5},
        "labels too large": {"y_test": labels + 1000},
        "labels of floats": {"y_train": labels + 0.5},
        "labels of texts": {"y_train": labels.astype(str)},
        "labels of three axes": {"y_train": labels.reshape(12, 1, 1)},
        "no labels at all": {"y_train": np.zeros((0, 0), np.int64)},
        "fewer labels": {"y_train": labels[:-1]},
        "no images": {"x_train": images[:0], "y_train": labels[:0]},
        "no test images": {"x_test": images[:0], "y_test": labels[:0]},
        "one axis": {"x_train": np.zeros(12, np.uint8)},
        "five axes": {"x_train": images[..., None]},
        "two channels": {"x_train": images[..., :2], "x_test": images[..., :2]},
        "other size in test": {"x_test": np.zeros((12, 9, 9, 3), np.uint8)},
        "sixteen bits": {"x_train": images.astype(np.uint16) + 999},
        "one class": {"y_train": labels * 0},
    }
    for name, arrays in altered.items():
        archive(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", header((2**31, SIZE, SIZE, 3)) + bytes(2**26))
    with zipfile.ZipFile(folder / "declared.npz", "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", header((HUGE,)))
    good = (folder / "good.npz").read_bytes()
    files = {
        "empty.npz": b"",
        "text.npz": b"text",
        "cut.npz": good[: len(good) // 2],
        "random.npz": np.random.default_rng(2).bytes(9999),
        "encrypted.npz": bytes(
            byte | 1 if good[max(0, i - 6) : i - 2] == b"PK\3\4" else byte for i, byte in enumerate(good)
        ),
        "empty_pair/x_train.npy": b"",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.npz")
    names = [*(f"{name}.npz" for name in altered), *files, "bomb.npz", "declared.npz", "pipe.npz", "missing.npz"]
    for name in names:
        yield Case("arrays", [*words, f"data.path='{folder / name}'"])
    for place in ("/dev/zero", "/dev/null", "/", "~no_such_user"):
        yield Case("arrays", [*words, f"data.path='{place}'"])
    index = folder / "index.csv"
    for name, text in {"words": "a,b\n", "beyond": "999999999\n", "negative": "-1\n", "empty": ""}.items():
        index.with_stem(name).write_text(text, encoding="utf-8")
        yield Case("arrays", ["data=sample", "quant=int8", f"calibration.index_file={index.with_stem(name)}"])
    yield Case("arrays", ["data=sample", "quant=int8", "calibration.index_file=/dev/zero"])


def folder_cases(folder: Path, model: Path) -> Iterator[Case]:
    words = ["data=folder", "calibration.samples_per_class=2", "model=onnx", f"model.path={model}", "quant=u8s8"]
    words += ["evaluation.allow_chance=true"]

    rng = np.random.default_rng(0)

    def tree(
        name: str, classes: tuple[str, ...] = ("a", "b", "c"), splits: tuple[str, ...] = ("train", "test")
    ) -> Path:
        for place in (folder / name / split / label for split in splits for label in classes):
            place.mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
        return folder / name

    yield Case("folders", [*words, f"data.path={tree('no_test', splits=('train',))}"])
    yield Case("folders", [*words, f"data.path={tree('one_class', ('a',))}"])
    yield Case("folders", [*words, f"data.path={tree('many', tuple('abcdefg'))}"])
    yield Case("folders", [*words, f"data.path={tree('names', ('a b', 'c=d', '[e]'))}"])
    good = tree("good")
    for size in ("[0,0]", "[-1,8]", "[8]", "[8,8,8]", "[1000000,1000000]", "word", "[1.5,8]"):
        yield Case("folders", [*words, f"data.path={good}", f"data.size={size}"])
    for setting in ("data.test_fraction=2", "data.test_fraction=nan", "data.max_bytes=1", "data.max_bytes=-1"):
        yield Case("folders", [*words, f"data.path={good}", setting])
    broken = tree("broken")
    for i, path in enumerate(sorted(broken.rglob("*.png"))):
        path.write_bytes(b"" if i % 2 else path.read_bytes()[:50])
    yield Case("folders", [*words, f"data.path={broken}"])
    empty = tree("empty_class")
    for path in (empty / "train" / "b").iterdir():
        path.unlink()
    yield Case("folders", [*words, f"data.path={empty}"])
    pipe = tree("pipe")
    os.mkfifo(pipe / "train" / "a" / "pipe.png")
    (pipe / "train" / "b" / "zero.png").symlink_to("/dev/zero")
    (pipe / "train" / "c" / "loop").symlink_to(pipe / "train")
    yield Case("folders", [*words, f"data.path={pipe}"])
    odd = tree("not_utf8")
    shutil.copy(odd / "train" / "a" / "0.png", os.fsencode(odd / "train" / "a") + b"/caf\xe9.png")
    yield Case("folders", [*words, f"data.path={odd}"])
    Image.new("L", (20_000, 20_000)).save(tree("large") / "train" / "a" / "large.png")
    yield Case("folders", [*words, f"data.path={folder / 'large'}"])
    tables = {
        "header": "path,label\n",
        "missing": "path,label\nnothing.png,a\n",
        "outside": "path,label\n/etc/passwd,a\n",
    }
    tables |= {"columns": "file\nx.png\n", "nul": "path,label\n\0,a\n", "quotes": 'path,label\n"a.png,a\n'}
    for name, text in tables.items():
        place = folder / f"csv_{name}"
        place.mkdir()
        for split in ("train", "test"):
            (place / f"{split}.csv").write_text(text, encoding="utf-8")
        yield Case("folders", [*words, f"data.path={place}"])


# --- settings, places -------------------------------------------------------------------------------------------------

SETTINGS = """
quant=int9
quant=w4a8 quant.weight_bits=1
quant=w4a8 quant.weight_bits=9
quant=w4a8 quant.activation_bits=0
quant=w4a8 quant.keep_first_last=0
quant=w4a8 quant.layers={nothing:{weight_bits:4}}
quant=w4a8 quant.layers={dense:{weight_bits:99}}
quant=w4a8 quant.layers={dense:4}
quant=int8 calibration=best
quant=int8 calibration.samples_per_class=0
quant=int8 calibration.samples_per_class=-1
quant=int8 calibration.samples_per_class=1e9
quant=int8 calibration=percentile calibration.percentile=101
quant=int8 calibration=percentile calibration.percentile=nan
quant=int8 calibration=entropy calibration.bins=0
quant=w4a8 refine=gptq refine.damping=1e400
quant=w4a8 refine=gptq refine.damping=nan
quant=w4a8 refine=gptq refine.images=0
quant=w4a8 refine.nothing=1
quant=int8 seed=-1
quant=int8 seed=99999999999999999999
quant=int8 evaluation.batch_size=0
quant=int8 evaluation.batch_size=1000000000000
quant=int8 evaluation.threads=-1
quant=int8 latency.runs=-1
quant=int8 model.std=[inf,inf,inf]
quant=int8 model.std=[0,0,0]
quant=int8 model.mean=[1]
quant=w4a8 allocate=bytes
quant=w4a8 allocate=bytes allocate.budget_bytes=1
quant=w4a8 allocate=bytes allocate.budget_bytes=1e21
quant=w4a8 allocate=accuracy allocate.max_accuracy_drop=-1
quant=w4a8 allocate=bytes allocate.budget_bytes=40000 allocate.choices=[]
quant=int8 deploy=tpu
quant=int8 deploy=x86 deploy.input=int3
quant=float refine=best
quant=float deploy=tflite
experiment=nothing
quant=int8 =5
quant
quant=int8 quant=uint8,
quant=int8,uint8
-m quant=int8 seed=range(0,0)
-m quant=int8 seed=glob(*)
-m quant=int8 seed=range(0,1000000000)
-m quant=int8 calibration.samples_per_class=
--multirun --run quant=int8
--config-name nothing
hydra.run.dir=/dev/null/x quant=int8
hydra.run.dir=/proc/x quant=int8
cache_dir=/dev/null quant=int8
summary /
summary /no/such/folder
report /dev/null
compare /dev/null /dev/zero
sensitivity /dev/null
profile /dev/zero
summary --where nonsense( .
"""


def settings_cases() -> Iterator[Case]:
    for line in SETTINGS.strip().splitlines():
        words = line.split(" ")
        command = words[0] in ("summary", "report", "compare", "sensitivity", "profile")
        yield Case("settings and places", words if command else [*words, "data=sample"])


def run(case: Case, place: Path, limit: float) -> tuple[Case, int | None, str, float]:
    """Exit code (None: not within ``limit``), what it said, and seconds."""
    words = list(case.words)
    if case.words[0] not in ("summary", "report", "compare", "sensitivity", "profile"):
        words += RUN
        if not any(word.startswith("hydra.run.dir") or word in ("-m", "--multirun") for word in words):
            words.append(f"hydra.run.dir={place / 'run'}")
        if "-m" in words or "--multirun" in words:
            words.append(f"hydra.sweep.dir={place / 'sweep'}")
    place.mkdir()
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, ROOT / "run.py", *words],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
        )
        code, said = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, said = None, (error.stdout or b"").decode(errors="replace")
    return case, code, said, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=60.0, metavar="S", help="seconds of one command; default 60")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="commands at a time; default 2")
    parser.add_argument("--all", action="store_true", help="list every command and what it said")
    options = parser.parse_args()
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("models", "arrays", "folders", "runs"):
            (folder / part).mkdir()
        archive(folder / "arrays" / "good.npz")
        (folder / "good.onnx").write_bytes(net().SerializeToString())
        cases = [
            *model_cases(folder / "models", folder / "arrays"),
            *data_cases(folder / "arrays", folder / "good.onnx"),
            *folder_cases(folder / "folders", folder / "good.onnx"),
            *settings_cases(),
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            places = [folder / "runs" / str(i) for i in range(len(cases))]
            answers = list(pool.map(run, cases, places, [options.limit] * len(cases)))
        text = report(answers, options.all).replace(name, "DIR")
    print(f"Date: {started:%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}; {options.jobs} commands at a time")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}\n\n{text}")
    return int("## Not a sentence" in text)


def report(answers: list[tuple[Case, int | None, str, float]], everything: bool) -> str:
    """The table, what went wrong, and on request every answer."""

    def wrong(code: int | None, said: str) -> bool:
        return code not in (0, 1) or "Traceback (most recent call last)" in said

    rows = []
    for group in dict.fromkeys(case.group for case, *_ in answers):
        own = [answer for answer in answers if answer[0].group == group]
        counts = [sum(test(*answer[1:3]) for answer in own) for test in (lambda code, said: code == 1, wrong)]
        rows.append((group, len(own), counts[0], counts[1], f"{max(answer[3] for answer in own):.0f} s"))
    columns = ["Group", "Commands", "Refused", "Traceback, signal or no end", "Longest"]
    total = ("all", len(answers), sum(row[2] for row in rows), sum(row[3] for row in rows), "")
    parts = [markdown(columns, [tuple(map(str, row)) for row in (*rows, total)])]
    bad = [answer for answer in answers if wrong(*answer[1:3])]
    if bad:
        parts.append("## Not a sentence")
    for case, code, said, seconds in [*bad, *(answers if everything else [])]:
        parts.append(f"{' '.join(case.words)}\nexit code {code}, {seconds:.1f} s\n{said.strip()[-900:]}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
