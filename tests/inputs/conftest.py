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

from resnet8_quant.inputs import cifar10, cifar10_files

BATCH = 20
BATCHES = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]


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


@dataclass
class TinyCifar:
    """Six batches of 20 images, and the writer of their files."""

    arrays: dict[str, np.ndarray] = field(repr=False)  # train_images, train_labels, test_images, test_labels; uint8

    def files(self, form: str) -> dict[str, bytes]:
        """File name -> content of one form: py or png."""
        files = {}
        for name in BATCHES:
            split, start = ("test", 0) if name == "test_batch" else ("train", BATCH * (int(name[-1]) - 1))
            images, labels = (self.arrays[f"{split}_{key}"][start : start + BATCH] for key in ("images", "labels"))
            if form == "py":
                files[name] = python2_pickle(images.transpose(0, 3, 1, 2).reshape(BATCH, 3072), labels.tolist())
            else:
                png = io.BytesIO()
                Image.fromarray(images.reshape(BATCH, 1024, 3)).save(png, "PNG")
                files[f"{name}.png"] = png.getvalue()
                files[f"{split}_lables.json"] = json.dumps(self.arrays[f"{split}_labels"].tolist()).encode()
        return files

    def write(self, name: str, parent: Path) -> Path:
        """Write the source ``name`` of cifar10_files.SOURCES into ``parent``."""
        files = self.files("png" if "tfjs" in name else "py")
        path = parent / name
        parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in (".gz", ".tgz"):
            path.mkdir()
            for key, content in files.items():
                (path / key).write_bytes(content)
            return path
        with tarfile.open(path, "w:gz") as tar:
            for key, content in files.items():
                info = tarfile.TarInfo(f"{'package' if 'tfjs' in name else 'cifar-10-batches-py'}/{key}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Path:
        raise AssertionError("a test must not fetch anything")

    monkeypatch.setattr(cifar10, "ORIGINS", {"network": refuse})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyCifar:
    """A small CIFAR-10; the package takes it for the real one during the test."""
    generator = np.random.default_rng(7)
    arrays = {}
    monkeypatch.setattr(cifar10_files, "IMAGES_PER_BATCH", BATCH)
    for split, count in (("train", 5 * BATCH), ("test", BATCH)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = (generator.permutation(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        monkeypatch.setitem(cifar10.ARRAYS, name, (array.shape, hashlib.sha256(array.tobytes()).hexdigest()))
    return TinyCifar(arrays)
