"""A folder of verified arrays: memory-mapped when it is read, complete or absent when it is written.

In: a folder, and the shape and SHA-256 of each array expected there. Out: the arrays, mapped read-only.
The digests are checked before the arrays are stored; verified.json, written last, says so, and a folder without it
counts as empty. At each opening the shapes, types and lengths of the files are checked, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.files import replacing, unwritable

log = logging.getLogger(__name__)

MARKER = "verified.json"
KNOWN_SOURCES = "sources.json"
TEMPORARY = "fetch."

Bytes = NDArray[np.uint8]
Expected = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, SHA-256)


def open_arrays(folder: Path, expected: Expected, *, holds_lock: bool = False) -> dict[str, Bytes] | None:
    """Map the arrays of ``folder``, or return None where it is empty, unfinished or damaged.

    Args:
        folder: where ``store_arrays`` has written.
        expected: what must be there.
        holds_lock: the caller is alone with the folder and will fill it: damage is logged and the marker removed.
    """
    if _read_json(folder / MARKER) != _marker(expected):
        return None
    try:
        return {name: _open(folder / f"{name}.npy", shape) for name, (shape, _) in expected.items()}
    except (OSError, ValueError, EOFError) as error:
        if holds_lock:
            log.warning("the cached arrays in %s are damaged and will be made again: %s", folder, error)
            with contextlib.suppress(OSError):  # where it cannot be removed, storing will fail and say so
                (folder / MARKER).unlink()
        return None


def store_arrays(folder: Path, arrays: Mapping[str, Bytes], expected: Expected) -> None:
    """Write arrays whose digests have been checked, the marker last.

    Raises:
        ExperimentError: the disk is full or the folder read-only.
    """
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
    _write_json(marker, _marker(expected))


def knows_source(folder: Path, path: Path, fingerprint: object) -> bool:
    """Whether ``path``, with this fingerprint, has been decoded to the arrays of ``folder`` before."""
    known = _read_json(folder / KNOWN_SOURCES)
    return isinstance(known, dict) and known.get(str(path)) == fingerprint


def remember_source(folder: Path, path: Path, fingerprint: object) -> None:
    """Note that ``path`` decodes to the arrays of ``folder`` as long as its fingerprint stays the same."""
    known = _read_json(folder / KNOWN_SOURCES)
    _write_json(folder / KNOWN_SOURCES, (known if isinstance(known, dict) else {}) | {str(path): fingerprint})


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in ``folder``; to be called while its lock is held."""
    for path in [*folder.glob(f"{TEMPORARY}*"), *folder.glob(".*.part")]:
        log.info("removing %s, left by a run that was killed", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _open(path: Path, shape: tuple[int, ...]) -> Bytes:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise ValueError(f"{path.name} is not an .npy file")
    if array.dtype != np.uint8 or array.shape != shape:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, expected uint8 {shape}")
    size = path.stat().st_size
    if size != array.offset + array.nbytes:
        raise ValueError(f"{path.name} has {size:,} bytes, expected {array.offset + array.nbytes:,}")
    return array.view(np.ndarray)  # still mapped; a memmap's slices and sums would carry its type along


def _marker(expected: Expected) -> dict[str, str]:
    return {name: digest for name, (_, digest) in expected.items()}


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
