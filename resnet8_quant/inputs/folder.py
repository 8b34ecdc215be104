"""Folders of PNG and JPEG files as a dataset, decoded once into memory-mapped arrays in the cache.

In: ``data.path``, one of
- a folder with train/CLASS/... and test/CLASS/...; with train.csv and test.csv (columns path and label); or
- a folder of CLASS/..., or one such CSV file, which ``data.test_fraction`` divides.
Out: a ``Dataset`` with class names. Classes are numbered in the order of their names, as by torchvision's ImageFolder
and Keras, or as ``data.classes`` says; labels of a CSV file that are whole numbers stay what they are. Images of
folders come in turns, the first of each class, then the second of each; those of a CSV file in its order.

An entry of the cache is named by the names, labels and contents of the files and by the settings. Contents are read
again where a name, a size or a time of change is another one than when they were last read.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnet8_quant.config import DataConfig, Resize
from resnet8_quant.errors import COMMAND, ExperimentError, typed_setting
from resnet8_quant.files import expanded, locked, open_regular, read_json, read_regular, replacing, sha256_bytes
from resnet8_quant.inputs.splits import Dataset, Split, array_digest, combined_digest
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")
LARGEST_LIST = 64 << 20  # bytes of a CSV file
LARGEST_FILE = 64 << 20  # bytes of an image's file
MOST_PIXELS = 64 << 20  # of an image
MOST_CLASSES = 10_000
PNG_DEPTH = 24  # offset of the bits a channel in a PNG file: signature, then IHDR with width and height
SHOWN = 5  # broken images that a message names, or suffixes; the entry of the cache lists all images
ENTRY = 2  # count up when decoding or the content of an entry changes
MARKER = "images.json"
REMEDY = f"{COMMAND} data=folder data.path=DIR, where DIR holds train/CLASS/*.png and test/CLASS/*.png"

Files = dict[str, list["ImageFile"]]  # of each of SPLITS


@dataclass(frozen=True)
class ImageFile:
    """A file: the folder that its name begins at, that name, the name of its class, and whether a CSV file says so."""

    root: str
    name: str
    class_name: str
    listed: bool = False

    @property
    def path(self) -> str:
        """A string: of ten thousand files a ``Path`` each takes longer than asking for their times of change."""
        return os.path.join(self.root, self.name)


@dataclass(frozen=True)
class Listing:
    """The image files; classes that have a folder without images; of other files there, the count of each suffix."""

    files: Files = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)

    def passed_over(self) -> str:
        """How many files in folders of classes are no images, by their suffix; empty without any."""
        common = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        counts = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in common)
        total, suffixes = f"{self.others.total():,}", ", ".join(SUFFIXES)
        return counts and f"files other than {suffixes} that are passed over: {total} ({counts})"


def load_folder(config: DataConfig, cache: Path) -> Dataset:
    """Load the images below ``config.path``, decoded at the first time into the folder ``images`` of ``cache``.

    Raises:
        ExperimentError: no images, unknown classes, sizes that differ, too many broken images, or the cache cannot be
            written.
    """
    listing = list_files(config)
    files, classes = listing.files, _class_names(listing, config)
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


# ---------------------------------------------------------------- which files


def _command(path: object, *words: str) -> str:
    """The command that reads the images of ``path``."""
    return " ".join([COMMAND, "data=folder", typed_setting("data.path", str(path)), *words])


def list_files(config: DataConfig) -> Listing:
    """The image files of both splits; nothing is read but CSV files."""
    listing = Listing()
    if not config.path:
        raise ExperimentError("`data.path` is not set, and data=folder reads its images from there", REMEDY)
    root = expanded(config.path)
    where = f"`data.path`: {config.path}"
    tables = [root / f"{split}.csv" for split in SPLITS]
    folders = [root / split for split in SPLITS]
    try:
        if all(map(Path.is_file, tables)):
            parts = [_listed(table, table.parent, all(map(Path.is_dir, folders))) for table in tables]
        elif root.is_file():
            parts = [_listed(root, root.parent)]
        elif all(map(Path.is_dir, folders)):
            parts = [_walked(folder, root, listing) for folder in folders]
        elif any(map(Path.is_dir, folders)):
            present, absent = sorted(folders, key=Path.is_dir, reverse=True)
            raise ExperimentError(
                f"{where} holds the folder {present.name} and lacks {absent.name}",
                _command(present, "data.test_fraction=0.2"),
            )
        else:
            parts = [_walked(root, root, listing)]
    except OSError as error:
        at = f": {error.filename!r}" if error.filename not in (None, str(root)) else ""
        remedy = "make it readable, or name another folder: data.path=DIR" if at else REMEDY
        raise ExperimentError(f"{where}{at} cannot be read ({error.strerror or error})", remedy) from error
    if len(parts) == 1:
        if config.test_fraction is None:
            raise ExperimentError(
                f"{where} is not divided into train and test, and `data.test_fraction` is not set",
                _command(config.path, "data.test_fraction=0.2"),
            )
        parts = _divided(parts[0], config.test_fraction, config.split_seed)
    elif config.test_fraction is not None:
        raise ExperimentError(
            f"{where} is divided into train and test, but `data.test_fraction` is {config.test_fraction}",
            _command(config.path, "data.test_fraction=null"),
        )
    listing.files.update(zip(SPLITS, parts, strict=True))
    for split, part in listing.files.items():
        if not part:
            problem = f"{where} holds no {split} images ({', '.join(SUFFIXES)}) in folders of classes"
            raise ExperimentError("; ".join(filter(None, [problem, listing.passed_over()])), REMEDY)
    return listing


def _walked(folder: Path, root: Path, listing: Listing) -> list[ImageFile]:
    """The images in the folders of classes below ``folder``, in turns; what else is there is noted in ``listing``."""
    found: list[tuple[int, ImageFile]] = []
    classes: dict[Path, Path] = {}  # {where it really is: the folder of a class}
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not (place.is_dir() or (place.is_symlink() and not place.exists())):
            continue  # a link that leads nowhere is walked, which raises: it may be a class
        real = Path(os.path.realpath(place))
        if real in classes:
            raise ExperimentError(
                f"`data.path`: {classes[real].name!r} and {place.name!r} in {folder} are one folder, not two classes",
                f"remove the link: rm {shlex.quote(str(place if place.is_symlink() else classes[real]))}",
            )
        classes[real] = place
    for place in classes.values():
        paths: list[list[str]] = []
        # links to these have no end, or lead to other classes
        seen = {*_with_parents(folder), *_with_parents(place), *classes}
        for parent, folders, names in os.walk(place, onerror=_raise, followlinks=True):
            folders[:] = [name for name in sorted(folders) if not name.startswith(".") and _first(parent, name, seen)]
            parts = Path(parent).relative_to(root).parts
            for name in sorted(name for name in names if not name.startswith(".")):
                if name.lower().endswith(SUFFIXES):
                    paths.append([*parts, name])
                else:
                    listing.others[ascii(os.path.splitext(name)[1].lower())[1:-1]] += 1
        if not paths:
            listing.empty.add(place.name)
        found += [(turn, ImageFile(str(root), "/".join(p), place.name)) for turn, p in enumerate(sorted(paths))]
    return [file for _, file in sorted(found, key=lambda item: item[0])]


def _raise(error: OSError) -> None:
    raise error


def _with_parents(folder: Path) -> list[Path]:
    """The folder and those that it is in, wherever links lead."""
    real = Path(os.path.realpath(folder))  # Path.resolve raises a RuntimeError for links that lead to themselves
    return [real, *real.parents]


def _first(parent: str, name: str, seen: set[Path]) -> bool:
    """Whether the folder is seen for the first time, wherever links lead; it is seen from now on."""
    folder = Path(os.path.realpath(os.path.join(parent, name)))
    first = folder not in seen
    seen.add(folder)
    return first


def _listed(table: Path, root: Path, beside: bool = False) -> list[ImageFile]:
    """The images that a CSV file lists; paths in it begin at its folder.

    ``beside``: there are folders train and test, which are not read, as the two CSV files are there.
    """
    try:
        text = read_regular(table, LARGEST_LIST).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return [ImageFile(str(root), row["path"], row["label"].strip(), True) for row in rows]
    except (UnicodeDecodeError, csv.Error, KeyError, AttributeError, TypeError) as error:
        problem = f"`data.path`: {table} is not a CSV file with the columns path and label"
        problem = f"{problem} ({type(error).__name__}: {error})"
        remedy = "begin it with the line path,label and write one image on each further line: images/a.png,cat"
        if beside:
            problem = f"{problem}; train.csv and test.csv are read before the folders train and test"
            remedy = f"to read the folders: mv {shlex.quote(str(table))} {shlex.quote(f'{table}.other')}; or {remedy}"
        raise ExperimentError(problem, remedy) from error


def _divided(files: Sequence[ImageFile], fraction: float, seed: int) -> list[list[ImageFile]]:
    """Train and test files: of each class a share of ``fraction``, at least one, tests; of a single image none."""
    generator, testing = np.random.default_rng(seed), set[int]()
    members_of: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        members_of.setdefault(file.class_name, []).append(index)
    for _, members in sorted(members_of.items()):
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        testing.update(generator.permutation(members)[:count].tolist())
    return [[file for index, file in enumerate(files) if (index in testing) is wanted] for wanted in (False, True)]


def _class_names(listing: Listing, config: DataConfig) -> list[str]:
    """The names of the classes in the order of their numbers."""
    files, order = listing.files, config.classes
    train, test = ({file.class_name for file in files[split]} for split in SPLITS)
    if wrong := [
        name for name in (*(order or ()), *sorted(train | test | listing.empty)) if not name or not name.isprintable()
    ]:
        raise ExperimentError(
            f"`data.path`: a class is named {wrong[0]!r}; names of classes must be printable",
            "rename it: its folder, its label in the CSV file, its name in `data.classes`",
        )
    if order is None and (empty := sorted(listing.empty - train)):
        # Left out, it would renumber the classes behind it.
        passed_over = listing.passed_over()
        names = sorted(train | test | listing.empty)
        raise ExperimentError(
            f"`data.path`: class {empty[0]!r} has a folder, but no training images{passed_over and f'; {passed_over}'}",
            f"{typed_setting('data.classes', names)} in the model's order; "
            f"{typed_setting('data.classes', sorted(train | test))} if it is no class; or convert its images to PNG or "
            "JPEG, or remove its folder",
        )
    if order is not None:
        names, reason = list(order), "which `data.classes` does not list"
    elif all(name.isascii() and name.isdigit() and len(name) < 6 for name in train | test):
        names, reason = [str(number) for number in range(max(map(int, train | test)) + 1)], "not a number like others"
        if not all(file.listed for split in SPLITS for file in files[split]):
            names, reason = sorted(train, key=int), "of which there are no training images"
            if names != sorted(names):
                raise ExperimentError(
                    "`data.path`: its classes are numbers, which may stand for 0,1,2,...,10 or, as torchvision and "
                    "Keras sort names of folders, for 0,1,10,...,2",
                    f"{typed_setting('data.classes', names)} in the model's order",
                )
    else:
        names, reason = sorted(train), "of which there are no training images"
    if len(once := list(dict.fromkeys(names))) < len(names):
        twice = next(name for name in once if names.count(name) > 1)
        raise ExperimentError(f"`data.classes` lists {twice!r} more than once", typed_setting("data.classes", once))
    if unknown := sorted((train | test) - set(names)):
        every = sorted(train | test) if order is None else [*names, *unknown]
        raise ExperimentError(
            f"`data.path`: there are images of class {unknown[0]!r}, {reason}",
            f"rename or move them, or list all classes in the model's order: {typed_setting('data.classes', every)}",
        )
    if len(names) > MOST_CLASSES:
        raise ExperimentError(f"`data.path`: {len(names):,} classes, more than {MOST_CLASSES:,}", REMEDY)
    return names


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
    return _digest(listing.files, config, _class_names(listing, config), _state)


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
                        _command(config.path, typed_setting("data.size", shape[:2])),
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
            f"{_command(config.path, f'data.max_bytes={total}')}, if the cache has so much space",
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
