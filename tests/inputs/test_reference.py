"""The reference weights: fetched once and checked by digest; another file is not called the reference."""

from __future__ import annotations

import logging

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs import download, reference

CONTENT = b"stands for the weights"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A file that the official URL serves in these tests: CONTENT, until a test changes it."""
    source = tmp_path / "served.h5"
    source.write_bytes(CONTENT)

    def fetch(url, path, digest, size):
        assert digest == f"sha256:{sha256_bytes(CONTENT)}"
        if not source.exists():
            raise download.FetchError(f"{url}: 404")
        path.write_bytes(source.read_bytes())

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(reference, "FILE_SHA256", sha256_bytes(CONTENT))
    return source


def test_it_is_fetched_once_and_again_where_it_is_damaged(served, tmp_path):
    name, path = reference.reference_weights(None, tmp_path / "cache")
    assert (name, path.read_bytes()) == ("mlperf_tiny", CONTENT)
    path.write_bytes(b"cut")
    assert reference.reference_weights(None, tmp_path / "cache") == (name, path)
    assert path.read_bytes() == CONTENT
    served.unlink()
    assert reference.reference_weights(None, tmp_path / "cache") == (name, path)
    assert reference.reference_weights(str(path), tmp_path / "cache") == (name, path)


def test_without_a_file_the_remedies_are_named(served, tmp_path):
    served.unlink()
    with pytest.raises(ExperimentError, match="404") as caught:
        reference.reference_weights(None, tmp_path / "cache")
    assert "model.source=" in caught.value.remedy


def test_another_keras_file_is_not_called_the_reference(tmp_path, caplog):
    own = tmp_path / "own.h5"
    own.write_bytes(b"own weights")
    with caplog.at_level(logging.WARNING):
        assert reference.reference_weights(str(own), tmp_path) == ("keras:own", own)
    assert "not the MLPerf Tiny reference" in caplog.text


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match=r"model\.source"):
        reference.reference_weights(str(tmp_path / "absent.h5"), tmp_path)
