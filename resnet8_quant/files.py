"""Files that are whole or absent: atomic writes, locks, digests, reading files from elsewhere, and the cache folder.

In: paths. Out: files that appear under their name only when complete, so that a killed run leaves nothing half-written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import mmap
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet8_quant.errors import ExperimentError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

CACHE_VARIABLE = "RESNET8_QUANT_CACHE"
LARGEST_RECORD = 64 << 20  # bytes of a JSON file; run.json of 3,000 layers has 2 MB


def cache_folder(configured: str | None = None) -> Path:
    """The cache folder, made if needed: ``configured``, else $RESNET8_QUANT_CACHE, else the user's cache folder.

    Raises:
        ExperimentError: the folder cannot be made or written to.
    """
    if configured or os.environ.get(CACHE_VARIABLE):
        folder = expanded(configured or os.environ[CACHE_VARIABLE])
    else:
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("resnet8_quant", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        raise ExperimentError(
            f"`cache_dir`: {folder} cannot be written to ({error.strerror or error})",
            f"choose another folder: cache_dir=FOLDER, or export {CACHE_VARIABLE}=FOLDER",
        ) from error
    return folder


def expanded(path: str) -> Path:
    """``path`` with ~ and ~USER replaced; a user that there is not stays as it is written, a name like any other."""
    return Path(os.path.expanduser(path))


def open_regular(path: Path, largest: int | None = None) -> io.BufferedReader:
    """Open a file that somebody else may have put there, for reading.

    A pipe would wait for its writer for ever and a device may have no end: both are refused without reading.

    Args:
        path: of a regular file, or of a link to one.
        largest: bytes that it may have; None: any number.

    Raises:
        OSError: it cannot be opened, is no regular file, or has more bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
            raise OSError(errno.EINVAL, f"it is {kind}, not a file")
        if largest is not None and state.st_size > largest:
            raise OSError(errno.EFBIG, f"it has {state.st_size:,} bytes, more than {largest:,}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_pipe(*paths: Path) -> None:
    """Raise an OSError where a path is that of a pipe: to open one for writing is to wait for a reader."""
    for path in paths:
        if path.is_fifo():
            raise OSError(errno.EINVAL, "it is a pipe, not a file", str(path))


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a file as `open_regular` opens it; never more than ``largest`` bytes."""
    with open_regular(path, largest) as file:
        return file.read(largest)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        content = json.loads(read_regular(path, LARGEST_RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end.

    Raises:
        ExperimentError: it cannot be made or written to; an OSError of the block counts as that.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="resnet8_quant.") as folder:
            yield Path(folder)
    except OSError as error:
        raise ExperimentError(
            f"cannot write to the folder for temporary files, {tempfile.tempdir}: {error.strerror or error}",
            "free some space there, or choose another one: export TMPDIR=FOLDER",
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file, hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(*parts: bytes | memoryview) -> str:
    """SHA-256 of the concatenation of ``parts``, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure.

    A link stays, and what it leads to is replaced.

    Raises:
        ExperimentError: the disk is full, the folder is read-only, the name is too long, it is no file's name.
    """
    temporary = None
    try:
        if path.exists() and (_open_already(path) or not (path.is_file() or path.is_dir())):
            raise ExperimentError(f"cannot write {path}: it is not a regular file", "choose another file")
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        temporary.touch(exist_ok=False)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _open_already(path: Path) -> bool:
    """Whether ``path`` stands for a file that this process has open, as /dev/stdout does."""
    folder = Path(os.path.realpath(path.parent))
    target = folder / os.readlink(path) if path.is_symlink() else path
    return folder.is_relative_to("/proc") or target.is_relative_to("/proc")


def unwritable(path: Path, error: OSError) -> ExperimentError:
    """The error for a file that cannot be written: full disk, read-only folder, a file in the way."""
    return ExperimentError(
        f"cannot write {path}: {error.strerror or error}",
        "free some space or choose a writable folder: hydra.run.dir=FOLDER (a sweep: hydra.sweep.dir=FOLDER), "
        "cache_dir=FOLDER",
    )


def forget_pages(array: np.ndarray) -> None:
    """Take what was read of a memory-mapped array out of this process's memory; leave any other array alone."""
    import numpy as np

    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


@contextmanager
def locked(path: Path, refusal: ExperimentError | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; where another process holds it, wait, or raise ``refusal``.

    The operating system lets go of the lock when its holder dies, however it dies.

    Raises:
        ExperimentError: the lock file cannot be written, or ``refusal``.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            if refusal is not None:
                raise refusal from error
            log.info("waiting for another process that holds %s", path)
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder``, made if needed, for one run: a second one that writes there at the same time is refused.

    Raises:
        ExperimentError: another process holds it, or it cannot be written to.
    """
    lock = folder / ".lock"
    remedy = "wait for it, or choose another folder: hydra.run.dir=FOLDER (a sweep: hydra.sweep.dir=FOLDER)"
    with locked(lock, ExperimentError(f"another run is writing to {folder}", remedy)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
