"""Downloads: verified, bounded, with a reason for each failure. No network: a local site and an npm of the tests."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import download
from resnet8_quant.inputs.download import FetchError, fetch, fetch_npm


class Site:
    """A local web site with one answer; ``headers`` may claim what is not true."""

    body = b"stands for a data set" * 1000
    status = 200

    def __init__(site) -> None:
        site.headers: dict[str, str] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(site.status)
                for name, value in ({"Content-Length": str(len(site.body))} | site.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):  # when it is cut off
                    self.wfile.write(site.body)

            def log_message(self, *_: object) -> None:
                pass

        site.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        site.url = f"http://127.0.0.1:{site.server.server_port}/file"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    yield site
    site.server.shutdown()
    site.server.server_close()


def fetch_from(site: Site, folder: Path, size: int | None = None, digest: str = "md5:" + "0" * 32) -> None:
    fetch(site.url, folder / "file", digest, len(site.body) if size is None else size)


def test_a_file_gets_its_name_after_its_digest_is_right(site, tmp_path):
    digest = hashlib.md5(site.body).hexdigest()
    with pytest.raises(FetchError, match=f"{'0' * 32}.*{digest}"):
        fetch_from(site, tmp_path)
    assert list(tmp_path.iterdir()) == []
    fetch_from(site, tmp_path, digest=f"md5:{digest}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == site.body
    site.status = 404
    fetch_from(site, tmp_path, digest=f"md5:{digest}")  # is there already


def test_an_archive_that_is_called_an_encoding_is_not_unpacked(site, tmp_path):
    site.body, site.headers = gzip.compress(bytes(2**20)), {"Content-Encoding": "x-gzip"}
    fetch_from(site, tmp_path, digest=f"md5:{hashlib.md5(site.body).hexdigest()}")
    assert (tmp_path / "file").read_bytes() == site.body


@pytest.mark.parametrize("claimed", [str(2**25), "10"])
def test_a_site_that_sends_more_than_expected_is_cut_off(site, tmp_path, monkeypatch, claimed):
    site.body, site.headers = bytes(2**25), {"Content-Length": claimed}
    written = []  # what the progress bar is told, chunk by chunk
    monkeypatch.setattr(download, "progress", lambda *_: nullcontext(written.append))
    with pytest.raises(FetchError, match=r"more than the expected 1,000,000 bytes|hash"):
        fetch_from(site, tmp_path, size=1_000_000)
    assert sum(written) <= 1_000_000
    assert list(tmp_path.iterdir()) == []


def test_failures_of_the_network_are_reasons(site, tmp_path):
    site.status = 404
    with pytest.raises(FetchError, match="404 Client Error: Not Found"):
        fetch_from(site, tmp_path)
    site.status, site.headers = 200, {"Content-Length": "99999"}
    with pytest.raises(FetchError, match=site.url):
        fetch_from(site, tmp_path)
    for url, reason in (("http://127.0.0.1:1/file", "refused"), ("nonsense", "nonsense")):
        with pytest.raises(FetchError, match=reason):
            fetch(url, tmp_path / "file", "md5:" + "0" * 32, 10)
    assert list(tmp_path.iterdir()) == []


def test_silent_site_times_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
        with pytest.raises(FetchError, match="timed out"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/", tmp_path / "file", "md5:" + "0" * 32, 10)


def test_a_folder_that_cannot_be_written_is_not_blamed_on_the_site(site, tmp_path):
    (tmp_path / "blocked").write_text("in the way")
    with pytest.raises(ExperimentError, match="cannot write"):
        fetch_from(site, tmp_path / "blocked")


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an npm of our own on the PATH; $FOLDER is its --pack-destination."""
    script = folder / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nFOLDER="$5"\n{body}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)


def pack(folder: Path, sha256: str = "0" * 64, size: int = 1000) -> None:
    fetch_npm("name@1.0", folder / "name-1.0.tgz", sha256, size)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
class TestNpm:
    def test_archive_is_checked(self, tmp_path, monkeypatch):
        fake_npm(tmp_path, monkeypatch, 'echo "$@" >"$FOLDER/args"; echo hello >"$FOLDER/name-1.0.tgz"')
        digest = hashlib.sha256(b"hello\n").hexdigest()
        with pytest.raises(FetchError, match=f"has SHA-256 {digest}, expected 0000"):
            pack(tmp_path)
        pack(tmp_path, digest)
        arguments = (tmp_path / "args").read_text()
        assert arguments.startswith(f"pack name@1.0 --ignore-scripts --pack-destination {tmp_path} --cache")

    CODES = "npm error code E404\\nnpm error 404 Not Found"

    @pytest.mark.parametrize(
        ("body", "reason"), [(f"printf '{CODES}' >&2; exit 1", "404 Not Found"), ("exit 3", "exit status 3")]
    )
    def test_reason_is_npms_own_or_the_exit_status(self, tmp_path, monkeypatch, body, reason):
        fake_npm(tmp_path, monkeypatch, body)
        with pytest.raises(FetchError, match=rf"npm pack name@1.0 failed \({reason}\)"):
            pack(tmp_path)

    def test_missing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FetchError, match="npm is not installed"):
            pack(tmp_path)

    @pytest.mark.parametrize(
        ("work", "reason"), [("", "received nothing for"), ("head -c 4001 /dev/zero >zeros", "more than the expected")]
    )
    def test_npm_that_stalls_or_swells_is_killed(self, tmp_path, monkeypatch, work, reason):
        monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
        fake_npm(tmp_path, monkeypatch, f"{work}\necho $$ >{tmp_path}/pid; exec sleep 60")
        with pytest.raises(FetchError, match=reason):
            pack(tmp_path)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
