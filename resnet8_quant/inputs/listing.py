"""Which image files a dataset has, and which class each is of.

In: ``data.path``, one of
- a folder with train/CLASS/... and test/CLASS/...; with train.csv and test.csv (columns path and label); or
- a folder of CLASS/..., or one such CSV file, which ``data.test_fraction`` divides.
Out: a `Listing`, and the names of the classes in the order of their numbers: that of the names, as by torchvision's
ImageFolder and Keras, or what ``data.classes`` says; labels of a CSV file that are whole numbers stay what they are.
Images of folders come in turns, the first of each class, then the second of each; those of a CSV file in its order.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import COMMAND, ExperimentError, typed_setting
from resnet8_quant.files import expanded, read_regular

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")
LARGEST_LIST = 64 << 20  # bytes of a CSV file
MOST_CLASSES = 10_000
SHOWN = 5  # suffixes that a message names
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


def folder_command(path: object, *words: str) -> str:
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
                folder_command(present, "data.test_fraction=0.2"),
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
                folder_command(config.path, "data.test_fraction=0.2"),
            )
        parts = _divided(parts[0], config.test_fraction, config.split_seed)
    elif config.test_fraction is not None:
        raise ExperimentError(
            f"{where} is divided into train and test, but `data.test_fraction` is {config.test_fraction}",
            folder_command(config.path, "data.test_fraction=null"),
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


def class_names(listing: Listing, config: DataConfig) -> list[str]:
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
