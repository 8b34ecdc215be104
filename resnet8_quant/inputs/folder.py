"""Folders of PNG and JPEG files as a dataset, decoded once into memory-mapped arrays in the cache.

In: the files that listing.py finds. Out: a ``Dataset`` with class names.

An entry of the cache is named by the names, labels and contents of the files and by the settings. Contents are read
again where a name, a size or a time of change is another one than when they were last read.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnet8_quant.config import DataConfig, Resize
from resnet8_quant.errors import ExperimentError, typed_setting
from resnet8_quant.files import locked, open_regular, read_json, replacing, sha256_bytes
from resnet8_quant.inputs.listing import REMEDY, SPLITS, Files, ImageFile, class_names, folder_command, list_files
from resnet8_quant.inputs.splits import Dataset, Split, array_digest, combined_digest
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress

log = logging.getLogger(__name__)

LARGEST_FILE = 64 << 20  # bytes of an image's file
MOST_PIXELS = 64 << 20  # of an image
PNG_DEPTH = 24  # offset of the bits a channel in a PNG file: signature, then IHDR with width and height
SHOWN = 5  # broken images that a message names; the entry of the cache lists all images
ENTRY = 2  # count up when decoding or the content of an entry changes
MARKER = "images.json"


def load_folder(config: DataConfig, cache: Path) -> Dataset:
    """Load the images below ``config.path``, decoded at the first time into the folder ``images`` of ``cache``.

    Raises:
        ExperimentError: no images, unknown classes, sizes that differ, too many broken images, or the cache cannot be
            written.
    """
    listing = list_files(config)
    files, classes = listing.files, class_names(listing, config)
    if passed_over := listing.passed_over():
        log.warning("`data.path`: %s", passed_over)
    known = cache / "images" / f"{_digest(files, config, classes, _state)}.json"
    entry = _open(cache / "images" / str(read_json(known).get("entry", "")))
    if entry is None:
        with locked(cache / "images.lock"):
            folder = cache / "images" / _digest(files, config, classes, _content)
            if _open(folder) is None:
                _store(files, config, classes, folder)
            with replacing(known) as temporary:
                temporary.write_text(json.dumps({"entry": folder.name}), encoding="utf-8")
            entry = _open(folder)
    if entry is None:
        raise ExperimentError(f"{folder} changes while it is read", "remove that folder, or cache_dir=FOLDER")
    arrays, facts = entry
    _check_bytes(files, arrays["train_images"].shape[1:], config)
    _check_broken(facts["broken"], sum(map(len, files.values())), config.max_broken)
    train, test = (Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in SPLITS)
    digest = combined_digest({name: (array.shape, facts["digests"][name]) for name, array in arrays.items()})
    return Dataset("folder", train, test, digest, tuple(classes))


# ---------------------------------------------------------------- decoding


def decode(path: Path, config: DataConfig) -> NDArray[np.uint8] | str:
    """An image as uint8 [H,W,C], or why it cannot be read; neither EXIF orientation nor transparency is looked at."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            start = file.read(PNG_DEPTH + 1)
            if start.startswith(b"\x89PNG") and start[PNG_DEPTH:] > b"\x08":  # Pillow would open RGB as of 8 bits
                return "its pixels have more than 8 bits"
            file.seek(0)
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if math.prod(image.size) > MOST_PIXELS:
                    return f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}"
                plain = image.convert("RGBA") if "transparency" in image.info else image
                pixels = np.asarray(_fitted(plain.convert("L" if config.gray else "RGB"), config))
                return pixels[..., None] if config.gray else pixels
    except Exception as error:  # Pillow's decoders raise their own kinds, and any of them means a broken image
        return (str(error) if not isinstance(error, OSError) or not error.strerror else error.strerror).split(" <")[0]


def _fitted(image: Image.Image, config: DataConfig) -> Image.Image:
    """The image in the size that the config asks for, bilinear with antialiasing."""
    if config.size is None or image.size == tuple(config.size[::-1]):
        return image
    size, bilinear = (config.size[1], config.size[0]), Image.Resampling.BILINEAR
    if config.resize is Resize.crop:
        return ImageOps.fit(image, size, bilinear)
    if config.resize is Resize.pad:
        return ImageOps.pad(image, size, bilinear)
    return image.resize(size, bilinear)


# ---------------------------------------------------------------- the cache


def _state(file: ImageFile) -> object:
    """What changes whenever a file is written to."""
    try:
        state = os.stat(file.path)
    except (OSError, ValueError):  # a name with a zero byte
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _content(file: ImageFile) -> object:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        with open_regular(Path(file.path), LARGEST_FILE) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):  # a name with a zero byte
        return None


def _digest(files: Files, config: DataConfig, classes: Sequence[str], look: Callable[[ImageFile], object]) -> str:
    """SHA-256, hexadecimal, of names, labels, what ``look`` sees of each file, and of all that decoding depends on."""
    settings = [ENTRY, config.size, config.resize.name, config.gray, list(classes), PIL.__version__]
    facts = [[[file.name, file.class_name, look(file)] for file in files[split]] for split in SPLITS]
    return sha256_bytes(json.dumps([settings, facts]).encode())


def listing_digest(config: DataConfig) -> str:
    """What names the images without reading them: their names, sizes and times of change."""
    listing = list_files(config)
    return _digest(listing.files, config, class_names(listing, config), _state)


def _store(files: Files, config: DataConfig, classes: Sequence[str], folder: Path) -> None:
    """Decode all images into the arrays of ``folder``; its marker, written last, says that they are whole."""
    (folder / MARKER).unlink(missing_ok=True)
    digests: dict[str, str] = {}
    broken: list[list[str]] = []
    shape: tuple[int, ...] | None = None if config.size is None else (*config.size, 1 if config.gray else 3)
    log.info("decoding %d images of %s", sum(map(len, files.values())), config.path)
    for split, part in files.items():
        labels: list[int] = []
        number = {name: index for index, name in enumerate(classes)}
        used: list[ImageFile] = []
        with replacing(folder / f"{split}_images.npy") as temporary, temporary.open("wb") as file:
            hashed, start = hashlib.sha256(), 0
            for image_file, pixels in _decoded(part, config, f"decoding {split} images"):
                if isinstance(pixels, str):
                    broken.append([image_file.name, pixels])
                    continue
                if shape is None or not start:
                    shape = shape or pixels.shape
                    _check_bytes(files, shape, config)
                    start = _write_header(file, (len(part), *shape))
                if pixels.shape != shape:
                    raise ExperimentError(
                        f"`data.path`: images differ in size, {image_file.name!r} is "
                        f"{pixels.shape[1]}x{pixels.shape[0]} and others are {shape[1]}x{shape[0]}, and `data.size` "
                        "is not set",
                        folder_command(config.path, typed_setting("data.size", shape[:2])),
                    )
                content = np.ascontiguousarray(pixels).data.cast("B")
                file.write(content)
                hashed.update(content)
                used.append(image_file)
                labels.append(number[image_file.class_name])
            if not used:
                first = f": {broken[0][0]!r} ({broken[0][1]})" if broken else ""
                raise ExperimentError(f"`data.path`: no {split} image can be read{first}", REMEDY)
            assert shape is not None
            file.seek(0)
            if _write_header(file, (len(used), *shape)) != start:  # NumPy leaves room for a length that changes
                raise AssertionError("the header has another length")
        label_array = np.array(labels, np.int64)
        with replacing(folder / f"{split}_labels.npy") as temporary, temporary.open("wb") as file:
            np.save(file, label_array)
        # Names of files need not be UTF-8: Python's surrogates are written as the bytes that they stand for.
        with (
            replacing(folder / f"{split}.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
        ):
            csv.writer(text, lineterminator="\n").writerows(
                [["path", "label"], *([each.name, each.class_name] for each in used)]
            )
        digests |= {f"{split}_images": hashed.hexdigest(), f"{split}_labels": array_digest(label_array)}
    facts = {"digests": digests, "broken": broken, "states": _array_states(folder)}
    with replacing(folder / MARKER) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _decoded(
    files: Sequence[ImageFile], config: DataConfig, description: str
) -> Iterable[tuple[ImageFile, NDArray[np.uint8] | str]]:
    """The images in order, decoded by worker threads, a few at a time."""
    chunk = 256
    with progress(description, len(files), "images") as advance, ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(files), chunk):
            part = files[start : start + chunk]
            yield from zip(part, pool.map(lambda file: decode(Path(file.path), config), part), strict=True)
            advance(len(part))


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    """Write the header of an .npy file of uint8; returns its length."""
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return int(file.tell())


def _check_bytes(files: Files, shape: Sequence[int], config: DataConfig) -> None:
    total = sum(map(len, files.values())) * math.prod(shape)
    if total > config.max_bytes:
        raise ExperimentError(
            f"`data.path`: decoded, the images take {total:,} bytes, more than `data.max_bytes`, {config.max_bytes:,}",
            f"{folder_command(config.path, f'data.max_bytes={total}')}, if the cache has so much space",
        )


def _array_states(folder: Path) -> dict[str, list[int]]:
    """What changes whenever one of the arrays is written to."""
    states = {}
    for name in (f"{split}_{key}" for split in SPLITS for key in ("images", "labels")):
        state = (folder / f"{name}.npy").stat()
        states[name] = [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
    return states


def _open(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Map the arrays of an entry; None where there is none, or it is damaged: then it is none from now on."""
    facts = read_json(folder / MARKER)
    if not facts:
        return None
    arrays: dict[str, NDArray[Any]] = {}
    try:
        states = _array_states(folder)
        for name in states:
            path = folder / f"{name}.npy"
            open_regular(path).close()  # a pipe would wait for its writer
            array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if facts["states"] != states and array_digest(array) != facts["digests"][name]:
                raise ValueError(f"{path.name} has other contents than when it was written")
            arrays[name] = array
        if facts["states"] != states:
            with contextlib.suppress(ExperimentError), replacing(folder / MARKER) as temporary:
                temporary.write_text(json.dumps(facts | {"states": states}, indent=1), encoding="utf-8")
        return arrays, {"broken": [(str(name), str(why)) for name, why in facts["broken"]], "digests": facts["digests"]}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        log.warning("the decoded images in %s are damaged and will be made again: %s", folder, error)
        with contextlib.suppress(OSError):
            (folder / MARKER).unlink()
        return None


def _check_broken(broken: Sequence[tuple[str, str]], total: int, most: float) -> None:
    """Name the images that could not be read, and refuse where their share is above ``most``."""
    if not broken:
        return
    shown = "; ".join(f"{name!r} ({why})" for name, why in broken[:SHOWN])
    more = f"; and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
    problem = f"{len(broken):,} of {total:,} images cannot be read: {shown}{more}"
    if len(broken) > most * total:
        share = math.ceil(1000 * len(broken) / total) / 1000
        raise ExperimentError(
            f"`data.path`: {problem}; `data.max_broken` is {most}", f"remove them, or data.max_broken={share}"
        )
    log.warning("%s; they are left out", problem)
