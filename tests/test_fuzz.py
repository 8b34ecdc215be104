"""Whatever stands in a file from elsewhere, only an ExperimentError comes out: valid files, mutated.

FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py looks for longer, and elsewhere each time.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import resnet8_quant as rq
from resnet8_quant import results
from resnet8_quant.config import DataConfig, ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.arrays import load_arrays
from resnet8_quant.inputs.cifar10_files import decode_batch, read_archive
from resnet8_quant.inputs.folder import decode
from resnet8_quant.inputs.keras_import import convert_h5
from resnet8_quant.inputs.listing import list_files
from resnet8_quant.inputs.model import load_model
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import collect
from resnet8_quant.sweep.plan import read_plan

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
FUZZ = settings(
    derandomize=EXAMPLES is None,
    max_examples=int(EXAMPLES or 200),
    deadline=None,
    database=None,
    phases=[Phase.generate],  # an example of 20 bytes needs no shrinking, which takes minutes
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# What is done to a file: (how, where in it, with what). Bytes that mean much in the formats come up more often.
TELLING = st.sampled_from(
    [b"\0", b"\xff", b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x1b[2J", b"(", b"[" * 999, b"-1", b",", b"\n"]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "overwrite", "insert", "delete", "cut", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(TELLING, st.binary(min_size=1, max_size=9)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """``content`` after each of the edits."""
    for how, where, value in edits:
        at, size = int(where * len(content)), len(value)
        if how == "flip":
            middle = bytes([content[at] ^ (1 << value[0] % 8)]) + content[at + 1 : at + 2] if content else b""
            content = content[:at] + middle + content[at + len(middle) :]
        elif how == "cut":
            content = content[:at]
        else:
            kept = {
                "overwrite": value,
                "insert": value + content[at : at + size],
                "repeat": content[at : at + size] * 2,
            }
            content = content[:at] + kept.get(how, b"") + content[at + size :]
    return content


@cache
def npz() -> bytes:
    stream = io.BytesIO()
    images = np.zeros((4, 2, 2, 3), np.uint8)
    np.savez_compressed(stream, x_train=images, y_train=np.arange(4), x_test=images[:2], y_test=np.arange(2))
    return stream.getvalue()


@cache
def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 2, 2, 3), np.uint8))
    return stream.getvalue()


def load_folder_of_npy(path: Path) -> None:
    """The folder of ``path``, x_train.npy, with three valid files beside it."""
    with np.load(io.BytesIO(npz())) as arrays:
        for name in ("y_train", "x_test", "y_test"):
            np.save(path.with_name(f"{name}.npy"), arrays[name])
    load_arrays(str(path.parent))


@cache
def h5() -> bytes:
    """A Keras file: Flatten and Dense."""
    names = {"Flatten": "flat", "Dense": "dense"}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 2, 2, 3]}},
        *({"class_name": kind, "config": {"name": name, "units": 3}} for kind, name in names.items()),
    ]
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": layers}})
        group = file.create_group("model_weights/dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group["dense/kernel:0"] = np.ones((12, 3), np.float32)
        group["dense/bias:0"] = np.ones(3, np.float32)
    return stream.getvalue()


@cache
def archive() -> bytes:
    """The same as Keras 3 writes it."""
    layers = [
        {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 2, 2, 3]}},
        *({"class_name": kind, "config": {"name": kind, "units": 3}} for kind in ("Flatten", "Dense")),
    ]
    weights, stream = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"] = np.ones((12, 3), np.float32)
        file["layers/dense/vars/1"] = np.ones(3, np.float32)
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("metadata.json", "{}")
        packed.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": layers}}))
        packed.writestr("model.weights.h5", weights.getvalue())
    return stream.getvalue()


@cache
def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        for name in ("top/a", "top/b"):
            info = tarfile.TarInfo(name)
            info.size = 600
            packed.addfile(info, io.BytesIO(bytes(600)))
    return stream.getvalue()


def read_packed(path: Path) -> None:
    """gzip's checksum would catch each mutation, so it comes after them."""
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    list(read_archive(packed, "top", {"a": 600, "b": 700}))


@cache
def net() -> bytes:
    """A convolution with BatchNormalization, so that it is folded, and a Gemm."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "variance": (4,), "dense": (16, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Flatten", ["r"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@cache
def batch() -> bytes:
    """A batch of CIFAR-10 as Python's pickle."""
    return pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}, protocol=2)


@cache
def row() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return results.write(RunResult(quant_type="int8", accuracy=0.5), Path(folder)).read_bytes()


def convert_forked(path: Path) -> None:
    """The Keras converter in a process that may crash or hang, as that of `convert_apart`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: there are threads, of libraries and xdist
        child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            signal.alarm(2)
            with suppress(ExperimentError):
                convert_h5(path)
            code = 0
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0


def load_onnx(path: Path) -> None:
    load_model(ModelConfig(kind=ModelKind.onnx, path=str(path)), (4, 4, 3), 3, path.parent)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(stream, "PNG")
    return stream.getvalue()


def list_and_decode(path: Path) -> None:
    for file in list_files(DataConfig(path=str(path), test_fraction=0.5)).files["train"]:
        decode(file.path, DataConfig())


READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], object]]] = {
    "npz": ("a.npz", npz, lambda path: load_arrays(str(path))),
    "npy": ("arrays/x_train.npy", npy, load_folder_of_npy),
    "pickle": ("data_batch_1", batch, lambda path: decode_batch(path.read_bytes(), 4, str(path))),
    "h5": ("a.h5", h5, convert_forked),
    "keras": ("a.keras", archive, convert_forked),
    "tar": ("a.tar", tar, read_packed),
    "onnx": ("a.onnx", net, load_onnx),
    "png": ("a.png", png, lambda path: decode(path, DataConfig(size=[3, 3]))),
    "list": ("a.csv", lambda: b"path,label\na.png,0\nb.png,1\nc.png,1\nd.png,0\n", list_and_decode),
    "csv": ("0_x/results.csv", row, lambda path: results.sound_row(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_the_files_are_valid_before(tmp_path, reader):
    name, valid, read = READERS[reader]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(valid())
    read(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
@FUZZ
@given(EDITS)
def test_only_experiment_errors_come_out(tmp_path_factory, reader, edits):
    name, valid, read = READERS[reader]
    path = tmp_path_factory.getbasetemp() / f"fuzz-{reader}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mutated(valid(), edits))
    with suppress(ExperimentError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)


@settings(FUZZ, max_examples=FUZZ.max_examples // 4)  # each takes 0.1 s
@given(EDITS)
def test_only_experiment_errors_come_out_of_option_files(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / "fuzz-yaml" / "quant" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    valid = b"# @package quant\nweight_bits: 4\nlayers:\n  dense: {weight_bits: 8}\n"
    path.write_bytes(mutated(valid, edits))
    with suppress(ExperimentError):
        rq.compose("quant=mine", config_dir=path.parents[1])


@FUZZ
@given(st.sampled_from(["sweep.json", "jobs.csv", "0_x/job.json", "0_x/run.json", "0_x/results.csv"]), EDITS)
def test_a_sweep_with_damaged_records_is_still_read(tmp_path_factory, name, edits):
    folder = tmp_path_factory.getbasetemp() / "fuzz-sweep"
    (folder / "0_x").mkdir(parents=True, exist_ok=True)
    records = {
        "sweep.json": b'{"overrides": ["quant=int8"], "jobs": 1, "threads": 0, "varied": [], "pid": 1, "session": "a"}',
        "jobs.csv": b"0,0_x,quant=int8\n",
        "0_x/job.json": b'{"digest": "abc", "overrides": ["quant=int8"], "number": 0, "session": "a"}',
        "0_x/run.json": b'{"files": {"model.onnx": 1}, "config": {}, "layers": []}',
    }
    for each, content in records.items():
        (folder / each).write_bytes(content)
    results.write(RunResult(quant_type="int8", accuracy=0.5), folder / "0_x")
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), edits))
    collect(folder, 1)
    read_plan(folder)
