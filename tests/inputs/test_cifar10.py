"""CIFAR-10: every source gives the same arrays, the order of the sources, the cache, and what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, download, formats, store
from resnet8_quant.inputs.dataset import Dataset, array_digest, load_dataset

SOURCES = [source.name for source in formats.SOURCES]


def same(dataset: Dataset, tiny) -> bool:
    found = {
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
    }
    return all(np.array_equal(array, tiny.array(name)) for name, array in found.items())


def no_decoding(*_: object) -> None:
    raise AssertionError("decoded although the cache is warm")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("is_root", [False, True], ids=["in-root", "is-root"])
def test_every_source_decodes_to_the_same_arrays(tiny, tmp_path, name, is_root):
    path = tiny.write(name, tmp_path / "data")
    dataset = cifar10.load_cifar10(str(path if is_root else path.parent), tmp_path / "cache")
    assert same(dataset, tiny)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.classes == 10


def test_images_are_mapped_not_read(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path)
    images = cifar10.load_cifar10(str(tmp_path), tmp_path / "cache").train.images
    assert isinstance(images.base, np.memmap)
    assert not images.flags.writeable


def test_root_is_decoded_once_and_again_when_it_changes(tiny, tmp_path, monkeypatch):
    path = tiny.write("cifar-10-binary.tar.gz", tmp_path / "data")
    root, cache = str(path.parent), tmp_path / "cache"
    cifar10.load_cifar10(root, cache)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "decode", no_decoding)
        assert same(cifar10.load_cifar10(root, cache), tiny)
        assert same(cifar10.load_cifar10(None, cache), tiny)
    os.utime(path, ns=(1, 1))
    assert same(cifar10.load_cifar10(root, cache), tiny)
    os.utime(path, ns=(2, 2))
    monkeypatch.setattr(formats, "decode", no_decoding)
    with pytest.raises(AssertionError, match="decoded although"):
        cifar10.load_cifar10(root, cache)


def test_root_is_never_replaced_by_a_warm_cache(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path / "good")
    cache = tmp_path / "cache"
    cifar10.load_cifar10(str(tmp_path / "good"), cache)
    bad = tiny.write("cifar-10-batches-bin", tmp_path / "bad") / "test_batch.bin"
    content = bytearray(bad.read_bytes())
    content[5] ^= 1
    bad.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        cifar10.load_cifar10(str(tmp_path / "bad"), cache)
    images = tiny.array("test_images").copy()
    images[0, 0, 4, 0] ^= 1  # byte 5 of the file is pixel 4 of the red plane, after the label
    for part in ("test images", tiny.digests["test_images"], hashlib.sha256(images.tobytes()).hexdigest()):
        assert part in caught.value.problem
    assert str(tmp_path / "bad") in caught.value.problem


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


def test_missing_file_in_a_folder_is_named(tiny, tmp_path):
    (tiny.write("cifar-10-batches-py", tmp_path) / "data_batch_3").unlink()
    with pytest.raises(ExperimentError, match=r"cifar-10-batches-py lacks data_batch_3"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert not (tmp_path / "cache" / "cifar10").exists()


def test_short_and_long_files_are_named_with_their_sizes(tiny, tmp_path):
    file = tiny.write("cifar-10-batches-bin", tmp_path) / "data_batch_2.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ExperimentError, match=r"data_batch_2.bin has 61,459 bytes, expected 61,460"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    file.write_bytes(content * 2)
    with pytest.raises(ExperimentError, match=r"data_batch_2.bin has more than"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "is not a PNG image of 1024 x 20 pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 8, "is not a PNG image of 1024 x 20 pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\4\0\0\0\0\x14", "is a damaged PNG image"),
    ],
)
def test_sprites_are_measured_before_they_are_decoded(tiny, content, message):
    with pytest.raises(ExperimentError, match=message):
        formats.decode_sprite(content, 20, "sprite")


@pytest.mark.parametrize(
    "content", [b"[1, 2", b"{}", b"[1, 2, 3]", b"[1, true]", b"[1, 10]", b"[1, 2.0]", b"[" * 99999]
)
def test_labels_that_are_no_list_of_labels_are_refused(content):
    with pytest.raises(ExperimentError, match=r"labels.json (is|has)"):
        formats.decode_labels(content, 2, "labels.json")


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "text": lambda path: path.write_bytes(b"hello"),
    "missing": lambda path: path.unlink(),
    "other-type": lambda path: np.save(path, np.zeros(3)),
    "zip": lambda path: np.savez(path.open("wb"), x=np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_damaged_cache_is_rebuilt_and_said_so_once(tiny, tmp_path, monkeypatch, caplog, damage):
    archive = tiny.write("cifar-10-binary.tar.gz", tmp_path / "far")
    monkeypatch.setattr(download, "ORIGINS", (("far", lambda _: archive),))
    cache = tmp_path / "cache"
    cifar10.load_cifar10(None, cache)
    DAMAGES[damage](cache / "cifar10" / "train_images.npy")
    with caplog.at_level(logging.WARNING):
        assert same(cifar10.load_cifar10(None, cache), tiny)
    assert len(caplog.records) == 1
    assert "are damaged and will be made again" in caplog.messages[0]
    monkeypatch.setattr(formats, "decode", no_decoding)
    assert same(cifar10.load_cifar10(None, cache), tiny)


def test_cache_without_its_marker_counts_as_empty(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path)
    cache = tmp_path / "cache"
    cifar10.load_cifar10(str(tmp_path), cache)
    (cache / "cifar10" / store.MARKER).unlink()
    with pytest.raises(AssertionError, match="must not fetch"):
        cifar10.load_cifar10(None, cache)


def test_unwritable_cache_is_a_sentence(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ExperimentError, match="cannot write") as caught:
        cifar10.load_cifar10(str(tmp_path), blocked)
    assert "cache_dir=FOLDER" in caught.value.remedy
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cifar10").write_text("in the way")
    with pytest.raises(ExperimentError, match="cannot write"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")


def test_read_only_cache_serves_what_it_holds(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path)
    cache = tmp_path / "cache"
    cifar10.load_cifar10(str(tmp_path), cache)
    for folder in (cache / "cifar10", cache):
        folder.chmod(0o555)
    try:
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write to read-only folders")
        assert same(cifar10.load_cifar10(None, cache), tiny)
        assert same(cifar10.load_cifar10(str(tmp_path), cache), tiny)
    finally:
        for folder in (cache, cache / "cifar10"):
            folder.chmod(0o755)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_a_sentence_and_leaves_no_marker(tiny, tmp_path, monkeypatch):
    tiny.write("cifar-10-batches-bin", tmp_path)

    def full(file, array):
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(ExperimentError, match=r"cannot write .*No space left"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "cifar10").iterdir())


def test_real_cifar10_has_the_pinned_digests(real_cache):
    dataset = load_dataset(DataConfig(), real_cache)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert array_digest(dataset.test.images) == cifar10.DIGESTS["test_images"]
    assert array_digest(dataset.train.labels) == cifar10.DIGESTS["train_labels"]
    assert dataset.digest == "2011c0e6ff3388b8bf3901041b3ab45864bc881d643a7bcea4fff602945ab7d1"


def test_warm_start_imports_nothing_heavy(real_cache):
    script = (
        "import sys, json; from pathlib import Path; from resnet8_quant.config import DataConfig\n"
        "from resnet8_quant.inputs.dataset import load_dataset\n"
        "load_dataset(DataConfig(), Path(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script, real_cache], capture_output=True, check=True, text=True)
    heavy = {"PIL", "tarfile", "urllib.request", "subprocess", "filelock", "rich", "h5py", "onnx", "hydra", "omegaconf"}
    assert heavy.isdisjoint(json.loads(result.stdout))
