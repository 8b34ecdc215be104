"""CIFAR-10 in the cache: decoded once, verified, rebuilt where damaged, fetched once by two processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, cifar10_files
from resnet8_quant.inputs.dataset import Dataset, load_dataset
from resnet8_quant.inputs.splits import array_digest


def same(dataset: Dataset, tiny) -> bool:
    return all(
        np.array_equal(getattr(getattr(dataset, split), kind), tiny.arrays[f"{split}_{kind}"])
        for split in ("train", "test")
        for kind in ("images", "labels")
    )


def no_decoding(*_: object) -> None:
    raise AssertionError("decoded although the cache is warm")


def test_images_are_mapped_not_read(tiny, tmp_path):
    tiny.write("cifar-10-batches-py", tmp_path)
    dataset = cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert isinstance(dataset.train.images.base, np.memmap)
    assert not dataset.train.images.flags.writeable
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (np.uint8, np.int64)


def test_root_is_decoded_once_and_again_when_it_changes(tiny, tmp_path, monkeypatch):
    path = tiny.write("cifar-10-python.tar.gz", tmp_path / "data")
    root, cache = str(path.parent), tmp_path / "cache"
    assert not cifar10.is_cached(cache)
    cifar10.load_cifar10(root, cache)
    assert cifar10.is_cached(cache)
    with monkeypatch.context() as patch:
        patch.setattr(cifar10_files, "decode", no_decoding)
        assert same(cifar10.load_cifar10(root, cache), tiny)
        assert same(cifar10.load_cifar10(None, cache), tiny)
    os.utime(path, ns=(1, 1))
    assert same(cifar10.load_cifar10(root, cache), tiny)
    os.utime(path, ns=(2, 2))
    monkeypatch.setattr(cifar10_files, "decode", no_decoding)
    with pytest.raises(AssertionError, match="decoded although"):
        cifar10.load_cifar10(root, cache)


def test_root_is_never_replaced_by_a_warm_cache(tiny, tmp_path):
    tiny.write("cifar-10-batches-py", tmp_path / "good")
    cache = tmp_path / "cache"
    cifar10.load_cifar10(str(tmp_path / "good"), cache)
    images = tiny.arrays["test_images"]
    images[0, 0, 4, 0] ^= 1
    tiny.write("cifar-10-batches-py", tmp_path / "bad")
    with pytest.raises(ExperimentError) as caught:
        cifar10.load_cifar10(str(tmp_path / "bad"), cache)
    expected = cifar10.ARRAYS["test_images"][1]
    for part in ("test images", expected, hashlib.sha256(images.tobytes()).hexdigest(), str(tmp_path / "bad")):
        assert part in caught.value.problem


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
    archive = tiny.write("cifar-10-python.tar.gz", tmp_path / "far")
    monkeypatch.setattr(cifar10, "ORIGINS", {"far": lambda _: archive})
    cache = tmp_path / "cache"
    cifar10.load_cifar10(None, cache)
    DAMAGES[damage](cache / "cifar10" / "train_images.npy")
    with caplog.at_level(logging.WARNING):
        assert same(cifar10.load_cifar10(None, cache), tiny)
    assert len(caplog.records) == 1
    assert "are damaged and will be made again" in caplog.messages[0]
    monkeypatch.setattr(cifar10_files, "decode", no_decoding)
    assert same(cifar10.load_cifar10(None, cache), tiny)


def test_cache_without_its_marker_counts_as_empty(tiny, tmp_path):
    tiny.write("cifar-10-batches-py", tmp_path)
    cache = tmp_path / "cache"
    cifar10.load_cifar10(str(tmp_path), cache)
    (cache / "cifar10" / cifar10.MARKER).unlink()
    with pytest.raises(AssertionError, match="must not fetch"):
        cifar10.load_cifar10(None, cache)


def test_unwritable_cache_is_a_sentence(tiny, tmp_path):
    tiny.write("cifar-10-batches-py", tmp_path)
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
    tiny.write("cifar-10-batches-py", tmp_path)
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
    tiny.write("cifar-10-batches-py", tmp_path)

    def full(file, array):
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ExperimentError, match=r"cannot write .*No space left"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "cifar10").iterdir())


# Another process with the same small CIFAR-10 and an origin that notes each fetch, then waits.
PROCESS = """
import json, sys, time
from pathlib import Path
from resnet8_quant.inputs import cifar10, cifar10_files

arrays, archive, cache, notes, seconds = json.loads(sys.argv[1])
cifar10_files.IMAGES_PER_BATCH = 20
cifar10.ARRAYS.update({name: (tuple(shape), digest) for name, (shape, digest) in arrays.items()})

def origin(folder):
    (folder / "download.part").write_bytes(b"half")
    with open(notes, "a") as file:
        file.write("fetch ")
    time.sleep(seconds)
    return Path(archive)

cifar10.ORIGINS = {"far": origin}
print(cifar10.load_cifar10(None, Path(cache)).digest)
"""


def start(tiny, tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    archive = tmp_path / "far" / "cifar-10-python.tar.gz"
    if not archive.exists():
        tiny.write(archive.name, archive.parent)
    values = [cifar10.ARRAYS, str(archive), str(tmp_path / "cache"), str(tmp_path / "notes"), seconds]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(values)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_fetch_once(tiny, tmp_path):
    processes = [start(tiny, tmp_path, seconds=1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert (tmp_path / "notes").read_text() == "fetch "


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_fetch_leaves_nothing_that_matters(tiny, tmp_path):
    process = start(tiny, tmp_path, seconds=60)
    deadline = time.monotonic() + 30
    while not (tmp_path / "notes").exists():
        assert time.monotonic() < deadline, "the process did not begin to fetch"
        time.sleep(0.02)
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


def test_real_cifar10_has_the_pinned_digests(real_cache):
    dataset = load_dataset(DataConfig(), real_cache)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert array_digest(dataset.test.images) == cifar10.ARRAYS["test_images"][1]
    assert array_digest(dataset.train.labels) == cifar10.ARRAYS["train_labels"][1]
    assert dataset.digest == "2011c0e6ff3388b8bf3901041b3ab45864bc881d643a7bcea4fff602945ab7d1"


def test_warm_start_imports_nothing_heavy(real_cache):
    script = (
        "import sys, json; from pathlib import Path; from resnet8_quant.config import DataConfig\n"
        "from resnet8_quant.inputs.dataset import load_dataset\n"
        "load_dataset(DataConfig(), Path(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script, real_cache], capture_output=True, check=True, text=True)
    heavy = {"PIL", "tarfile", "pooch", "requests", "subprocess", "filelock", "rich", "h5py", "onnx", "hydra"}
    assert heavy.isdisjoint(json.loads(result.stdout))
