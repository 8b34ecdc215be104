"""The reference weights: fetched once and checked by digest, converted once, a damaged conversion made again."""

from __future__ import annotations

import logging

import pytest
from onnx import TensorProto, helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs import download, keras_import, reference

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


@pytest.fixture
def conversions(served, monkeypatch):
    """The files that were converted."""
    done = []

    def convert(path):
        done.append(path)
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
        return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))

    monkeypatch.setattr(keras_import, "convert_h5", convert)
    return done


def test_it_is_fetched_and_converted_once(served, conversions, tmp_path):
    first = reference.reference_model(None, tmp_path / "cache")
    served.unlink()
    assert reference.reference_model(None, tmp_path / "cache") == first
    assert first[0] == "mlperf_tiny"
    assert len(conversions) == 1
    assert (tmp_path / "cache" / "models" / reference.FILE_NAME).read_bytes() == CONTENT


def test_without_a_file_the_remedies_are_named(served, conversions, tmp_path):
    served.unlink()
    with pytest.raises(ExperimentError, match="404") as caught:
        reference.reference_model(None, tmp_path / "cache")
    assert "model.source=" in caught.value.remedy
    assert not conversions


def test_a_damaged_download_or_conversion_is_made_again(conversions, tmp_path):
    _, converted = reference.reference_model(None, tmp_path)
    whole, fetched = converted.read_bytes(), converted.with_name(reference.FILE_NAME)
    converted.write_bytes(whole[: len(whole) // 2])
    fetched.write_bytes(b"cut")
    reference.reference_model(None, tmp_path)
    assert (converted.read_bytes(), fetched.read_bytes()) == (whole, CONTENT)
    assert len(conversions) == 2


def test_another_keras_file_is_not_called_the_reference(conversions, tmp_path, caplog):
    own = tmp_path / "own.h5"
    own.write_bytes(b"own weights")
    with caplog.at_level(logging.WARNING):
        assert reference.reference_model(str(own), tmp_path / "cache")[0] == "keras:own"
    assert "not the MLPerf Tiny reference" in caplog.text


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match=r"model\.source"):
        reference.reference_model(str(tmp_path / "absent.h5"), tmp_path)
