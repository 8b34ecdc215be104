"""CIFAR-10 from where it is nearest: the folder that the user names, the cache, the network.

In: ``data.root`` or None, and the cache folder. Out: a ``Dataset`` whose four arrays have the digests of
``cifar10_sources.ARRAYS``. Nothing else is ever returned: a source that was asked for and is missing, damaged or
different is an error, never a reason to take another one.

The cache is a folder of .npy files, memory-mapped when they are read. Digests are checked before the arrays are
stored; verified.json, written last, says so, and a folder without it counts as empty. At each opening the shapes,
types and lengths of the files are checked, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import locked, replacing, unwritable
from resnet8_quant.inputs import cifar10_sources
from resnet8_quant.inputs.cifar10_sources import ARRAYS, TEMPORARY, Arrays, find_source
from resnet8_quant.inputs.splits import Dataset, Split, combined_digest

if TYPE_CHECKING:
    from resnet8_quant.inputs.cifar10_files import Source

log = logging.getLogger(__name__)

MARKER = "verified.json"
KNOWN_SOURCES = "sources.json"  # path -> fingerprint of the users' own sources that were compared with the cache


def load_cifar10(root: str | None, cache: Path) -> Dataset:
    """Load CIFAR-10: 50,000 train and 10,000 test images, uint8 ``[N, 32, 32, 3]``, mapped from the cache.

    Args:
        root: a folder that holds one of ``cifar10_files.SOURCES``, or one of these itself; None: the cache or the
            network.
        cache: the verified arrays are kept in its folder ``cifar10``.

    Raises:
        ExperimentError: ``root`` holds no CIFAR-10, or another one than the digests say; no network; cache unwritable.
    """
    folder = cache / "cifar10"
    source = None if root is None else find_source(root)
    arrays = _open_for(source, folder)
    if arrays is None:
        with locked(cache / "cifar10.lock"):
            arrays = _open_for(source, folder)  # another process may have been faster
            if arrays is None:
                _fill_cache(source, folder)
                arrays = _open_for(source, folder)
    if arrays is None:
        raise ExperimentError(
            f"{folder} changes while it is read", "remove that folder, or choose another one: cache_dir=FOLDER"
        )
    train, test = (
        Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)) for split in ("train", "test")
    )
    return Dataset("cifar10", train, test, combined_digest(ARRAYS))


def is_cached(cache: Path) -> bool:
    """Whether all of CIFAR-10 lies verified in the cache, so that nothing would be fetched."""
    return _open_for(None, cache / "cifar10") is not None


def _fill_cache(source: tuple[Source, Path] | None, folder: Path) -> None:
    """Decode the user's source or fetch one, verify it, and store what the cache lacks; the lock is held.

    Raises:
        ExperimentError: no source can be decoded, the disk is full, or the folder is read-only.
    """
    _remove_leftovers(folder)
    usable = False
    try:
        usable = _open(folder) is not None
    except (OSError, ValueError, EOFError) as error:
        log.warning("the cached arrays in %s are damaged and will be made again: %s", folder, error)
        with contextlib.suppress(OSError):  # where it cannot be removed, storing will fail and say so
            (folder / MARKER).unlink()
    if source is None:
        _store(folder, cifar10_sources.fetch(folder))
        return
    fingerprint = _fingerprint(*source)  # before decoding: a file that changes meanwhile is decoded again next time
    log.info("decoding CIFAR-10 from %s", source[1])
    arrays = cifar10_sources.decode_verified(*source)
    if not usable:
        _store(folder, arrays)
    known = _read_json(folder / KNOWN_SOURCES)
    _write_json(folder / KNOWN_SOURCES, (known if isinstance(known, dict) else {}) | {str(source[1]): fingerprint})


def _open_for(source: tuple[Source, Path] | None, folder: Path) -> Arrays | None:
    """The cached arrays, or None where there are none or the user's source has not been compared with them yet."""
    if source is not None:
        known = _read_json(folder / KNOWN_SOURCES)
        fingerprint = _fingerprint(*source)
        if fingerprint is None or not isinstance(known, dict) or known.get(str(source[1])) != fingerprint:
            return None
    try:
        return _open(folder)
    except (OSError, ValueError, EOFError):
        return None


def _fingerprint(source: Source, path: Path) -> list[list[object]] | None:
    """Name, size and time of change of each file of a source; None where one is missing."""
    files = [path / name for name in source.parts] if source.prefix is None else [path]
    try:
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError:
        return None


def _digests() -> dict[str, str]:
    return {name: digest for name, (_, digest) in ARRAYS.items()}


def _open(folder: Path) -> Arrays | None:
    """Map the arrays of ``folder``, or return None where it was never filled.

    Raises:
        OSError, ValueError, EOFError: a file is missing or damaged.
    """
    if _read_json(folder / MARKER) != _digests():
        return None
    arrays = {}
    for name, (shape, _) in ARRAYS.items():
        path = folder / f"{name}.npy"
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError(f"{path.name} is not an .npy file")
        if array.dtype != np.uint8 or array.shape != shape:
            raise ValueError(f"{path.name} is {array.dtype} {array.shape}, expected uint8 {shape}")
        size, expected = path.stat().st_size, array.offset + array.nbytes
        if size != expected:
            raise ValueError(f"{path.name} has {size:,} bytes, expected {expected:,}")
        arrays[name] = array.view(np.ndarray)  # still mapped; a memmap's slices and sums would carry its type along
    return arrays


def _store(folder: Path, arrays: Arrays) -> None:
    """Write arrays whose digests have been checked, the marker last."""
    marker = folder / MARKER
    try:
        marker.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(marker, error) from error
    for name, array in arrays.items():
        with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())  # after a power cut the marker must not stand beside empty arrays
    _write_json(marker, _digests())


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in ``folder``."""
    for path in [*folder.glob(f"{TEMPORARY}*"), *folder.glob(".*.part")]:
        log.info("removing %s, left by a run that was killed", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
