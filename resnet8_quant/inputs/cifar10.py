"""CIFAR-10 from where it is nearest: the folder that the user names, the cache, the network.

In: ``data.root`` or None, and the cache folder. Out: a ``Dataset`` whose four arrays have the SHA-256 digests below,
whichever source they came from. Nothing else is ever returned: a source that was asked for and is missing, damaged or
different is an error, never a reason to take another one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import locked
from resnet8_quant.inputs import formats, store
from resnet8_quant.inputs.dataset import Dataset, Split, array_digest, combined_digest

if TYPE_CHECKING:
    from resnet8_quant.inputs.formats import Arrays, Source

log = logging.getLogger(__name__)

# SHA-256 of the raw bytes: images uint8 [N, 32, 32, 3] in the official order, labels uint8 [N].
DIGESTS = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


def load_cifar10(root: str | None, cache: Path) -> Dataset:
    """Load CIFAR-10: 50,000 train and 10,000 test images, uint8 ``[N, 32, 32, 3]``, mapped from the cache.

    Args:
        root: a folder that holds one of ``formats.SOURCES``, or one of these itself; None: the cache or the network.
        cache: the verified arrays are kept in its folder ``cifar10``.

    Raises:
        ExperimentError: ``root`` holds no CIFAR-10, or another one than the digests say; no network; cache unwritable.
    """
    expected = {name: (shape, DIGESTS[name]) for name, shape in formats.shapes().items()}
    folder = cache / "cifar10"
    found = None if root is None else find_source(root)
    arrays = _from_cache(folder, found, expected)
    if arrays is None:
        with locked(cache / "cifar10.lock"):
            # Another process may have been faster.
            arrays = _from_cache(folder, found, expected, holds_lock=True)
            if arrays is None:
                store.remove_leftovers(folder)
                _fill_cache(folder, found, expected)
                arrays = _from_cache(folder, found, expected)
    if arrays is None:
        raise ExperimentError(
            f"{folder} changes while it is read", "remove that folder, or choose another one: cache_dir=FOLDER"
        )
    train, test = (
        Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)) for split in ("train", "test")
    )
    return Dataset("cifar10", train, test, combined_digest(expected))


def find_source(root: str) -> tuple[Source, Path]:
    """The first of ``formats.SOURCES`` that ``root`` holds or is.

    Raises:
        ExperimentError: there is none.
    """
    place = Path(os.path.expanduser(root))
    for source in formats.SOURCES:
        for path in (place / source.name, place):
            right_kind = os.path.isdir(path) if source.prefix is None else os.path.isfile(path)
            if path.name == source.name and right_kind:
                return source, path.resolve()
    names = ", ".join(source.name for source in formats.SOURCES)
    problem = "holds no CIFAR-10" if os.path.exists(place) else "does not exist"
    raise ExperimentError(
        f"`data.root`: {root} {problem}; it may be one of these or a folder with one of them: {names}",
        "data.root=FOLDER with one of these; or leave data.root out to fetch it; or data=sample, which is bundled",
    )


def fingerprint(source: Source, path: Path) -> list[list[object]] | None:
    """Name, size and time of change of each file of a source; None where one is missing."""
    files = [path / name for name in source.parts] if source.prefix is None else [path]
    try:
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError:
        return None


def decode_verified(source: Source, path: Path) -> Arrays:
    """Decode a source and compare its arrays with ``DIGESTS``.

    Raises:
        ExperimentError: it is damaged, or an array has another digest.
    """
    arrays = formats.decode(source, path)
    for name, expected in DIGESTS.items():
        digest = array_digest(arrays[name])
        if digest != expected:
            raise ExperimentError(
                f"{path} is not the official CIFAR-10: "
                f"its {name.replace('_', ' ')} have SHA-256 {digest}, expected {expected}",
                "replace it by an unmodified copy, or leave data.root out to fetch one; "
                "for images of your own: data=arrays data.path=FILE.npz",
            )
    return arrays


def _from_cache(
    folder: Path, found: tuple[Source, Path] | None, expected: store.Expected, *, holds_lock: bool = False
) -> dict[str, store.Bytes] | None:
    """The cached arrays, unless the user names a source that has not been compared with them yet."""
    if found is not None:
        stamp = fingerprint(*found)
        if stamp is None or not store.knows_source(folder, found[1], stamp):
            return None
    return store.open_arrays(folder, expected, holds_lock=holds_lock)


def _fill_cache(folder: Path, found: tuple[Source, Path] | None, expected: store.Expected) -> None:
    """Decode the user's source or fetch one, verify it, and store what the cache lacks."""
    if found is None:
        from resnet8_quant.inputs.download import fetch

        arrays = fetch(folder, decode_verified)
        store.store_arrays(folder, arrays, expected)
        return
    source, path = found
    stamp = fingerprint(source, path)  # before decoding: a file that changes meanwhile is decoded again next time
    log.info("decoding CIFAR-10 from %s", path)
    arrays = decode_verified(source, path)
    if store.open_arrays(folder, expected, holds_lock=True) is None:
        store.store_arrays(folder, arrays, expected)
    store.remember_source(folder, path, stamp)
