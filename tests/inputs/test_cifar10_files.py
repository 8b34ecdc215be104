"""Files of CIFAR-10: only regular files of the expected names, sizes and contents are read; nothing is extracted."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, cifar10_files
from resnet8_quant.inputs.cifar10_files import SOURCES, decode, decode_labels, decode_sprite, load_batch, read_archive


def write(path, *entries: tuple[str, bytes | str, bytes]):
    """A .tar.gz of (name, content or link target, type)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, member_type in entries:
            info = tarfile.TarInfo(name)
            info.type = member_type
            if isinstance(content, str):
                info.linkname, content = content, b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "member_type", "message"),
    [
        ("../escaped", b"x", tarfile.REGTYPE, r"member '../escaped' leads out"),
        ("top/../../escaped", b"x", tarfile.REGTYPE, "leads out"),
        ("top\\..\\..\\escaped", b"x", tarfile.REGTYPE, "leads out"),
        ("/tmp/escaped", b"x", tarfile.REGTYPE, r"member '/tmp/escaped' leads out"),
        ("top/a", "/etc/passwd", tarfile.SYMTYPE, r"member 'top/a' is a link"),
        ("top/extra", "top/a", tarfile.LNKTYPE, r"member 'top/extra' is a link"),
        ("top/a", b"", tarfile.FIFOTYPE, r"member 'top/a' is a link or a device"),
        ("top/a", b"x" * 11, tarfile.REGTYPE, "member 'top/a' has 11 bytes"),
    ],
)
def test_dangerous_members_refuse_the_archive(tmp_path, name, content, member_type, message):
    path = write(tmp_path / "a.tar.gz", (name, content, member_type), ("top/a", b"good", tarfile.REGTYPE))
    with pytest.raises(ExperimentError, match=message) as caught:
        list(read_archive(path, "top", {"a": 10}))
    assert str(path) in caught.value.problem
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar.gz"]


def test_expected_members_are_yielded_once_others_skipped_missing_ones_named(tmp_path):
    path = write(
        tmp_path / "a.tar.gz",
        ("top", b"", tarfile.DIRTYPE),
        ("top/readme.html", b"hello", tarfile.REGTYPE),
        ("top/b", b"bb", tarfile.REGTYPE),
        ("top/a", b"a", tarfile.REGTYPE),
        ("top/b", b"again", tarfile.REGTYPE),
    )
    assert list(read_archive(path, "top", {"a": 10, "b": 10})) == [("b", b"bb"), ("a", b"a")]
    with pytest.raises(ExperimentError, match="lacks top/c, top/d"):
        list(read_archive(path, "top", dict.fromkeys("abcd", 10)))


def test_archives_that_swell_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10_files, "LARGEST_ARCHIVE", 1000)
    path = write(tmp_path / "a.tar.gz", ("zeros", b"\0" * 1001, tarfile.REGTYPE))
    with pytest.raises(ExperimentError, match="'zeros' has 1,001 bytes"):
        list(read_archive(path, "top", {"a": 10}))


@pytest.mark.parametrize("kept", [0, 5, 30, 0.3, 0.9, 0.999])
def test_truncated_archives_are_a_sentence(tiny, tmp_path, kept):
    path = tiny.write("cifar-10-python.tar.gz", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ExperimentError, match=r"python.tar.gz (is truncated|is not a readable)") as caught:
        decode(SOURCES[path.name], path)
    assert "data.root=FOLDER" in caught.value.remedy


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_an_archive_with_a_changed_byte_is_refused_or_gives_the_same_images(tiny, position, change):
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write("cifar-10-python.tar.gz", Path(folder))
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] ^= change
        path.write_bytes(content)
        try:
            dataset = cifar10.load_cifar10(folder, Path(folder) / "cache")
        except ExperimentError:
            return
        np.testing.assert_array_equal(dataset.train.images, tiny.arrays["train_images"])
        np.testing.assert_array_equal(dataset.test.labels, tiny.arrays["test_labels"])


def test_files_of_a_folder_are_missing_or_too_large(tiny, tmp_path):
    folder = tiny.write("cifar-10-batches-py", tmp_path)
    file = folder / "data_batch_3"
    file.write_bytes(bytes(SOURCES[folder.name].parts[file.name].limit + 1))
    with pytest.raises(ExperimentError, match="data_batch_3 has more than"):
        decode(SOURCES[folder.name], folder)
    file.unlink()
    with pytest.raises(ExperimentError, match="cifar-10-batches-py lacks data_batch_3"):
        decode(SOURCES[folder.name], folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((20, 3071), np.uint8)}, r"has data of \(20, 3071\), expected \(20, 3072\)"),
        ({b"data": [1, 2]}, "has data of list"),
        ({b"labels": [1] * 19}, "has 19 labels, expected 20"),
        ({b"labels": [1] * 19 + [10]}, "other than the integers 0 to 9"),
        ({b"labels": b"1" * 20}, "has no list of labels"),
    ],
)
def test_batches_of_another_shape_are_refused(tiny, tmp_path, change, message):
    folder = tiny.write("cifar-10-batches-py", tmp_path)
    batch = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [1] * 20} | change
    (folder / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(ExperimentError, match=message) as caught:
        decode(SOURCES[folder.name], folder)
    assert "test_batch" in caught.value.problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "is not a PNG image of 1024 x 20 pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 8, "is not a PNG image of 1024 x 20 pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\4\0\0\0\0\x14", "is a damaged PNG image"),
    ],
)
def test_sprites_are_measured_before_they_are_decoded(content, message):
    with pytest.raises(ExperimentError, match=message):
        decode_sprite(content, 20, "sprite")


@pytest.mark.parametrize(
    "content", [b"[1, 2", b"{}", b"[1, 2, 3]", b"[1, true]", b"[1, 10]", b"[1, 2.0]", b"[" * 99999]
)
def test_labels_that_are_no_list_of_labels_are_refused(content):
    with pytest.raises(ExperimentError, match=r"labels.json (is|has)"):
        decode_labels(content, 2, "labels.json")


# ---------------------------------------------------------------- pickles


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_exploits_are_refused_and_do_not_run(tmp_path, protocol):
    witness = tmp_path / "witness"
    data = pickle.dumps({b"data": Call(os.system, f"touch {witness}")}, protocol)
    with pytest.raises(ExperimentError, match=r"batch is refused: it asks for \w+\.system"):
        load_batch(data, "batch")
    assert not witness.exists()
    pickle.loads(data)  # noqa: S301  # the exploit is real: Python's own unpickler runs it
    assert witness.exists()


NAMES = ["numpy load", "numpy.core.multiarray fromfile", "numpy ndarray.tofile", "os popen"]


@pytest.mark.parametrize("name", [*NAMES, "builtins eval", "__builtin__ eval", "builtins getattr"])
def test_only_the_names_of_an_array_are_admitted(name):
    strings = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split())
    with pytest.raises(ExperimentError, match="is refused: it asks for"):
        load_batch(b"\x80\x04" + strings + b"\x93.", "batch")


def test_exploit_in_a_folder_names_the_file(tiny, tmp_path):
    witness = tmp_path / "witness"
    folder = tiny.write("cifar-10-batches-py", tmp_path)
    (folder / "data_batch_4").write_bytes(pickle.dumps(Call(os.system, f"touch {witness}"), 2))
    with pytest.raises(ExperimentError, match=r"data_batch_4 is refused: it asks for \w+\.system"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert not witness.exists()


def test_python_2_batches_decode_as_pythons_own_unpickler_does(tiny):
    data = tiny.files("py")["data_batch_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy.core has moved
        expected = pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()  # noqa: S301
    batch = load_batch(data, "batch")
    assert batch.keys() == expected.keys() == {b"data", b"labels", b"batch_label", b"filenames"}
    assert batch[b"data"].dtype == np.uint8
    np.testing.assert_array_equal(batch[b"data"], expected[b"data"])
    assert batch[b"labels"] == expected[b"labels"]
    assert batch[b"filenames"] == expected[b"filenames"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_written_again_by_python_3_decode(protocol, order):
    array = np.asarray(np.random.default_rng(3).integers(0, 256, (6, 7), np.uint8), order=order)
    batch = load_batch(pickle.dumps({b"data": array, b"labels": [1, 2]}, protocol), "batch")
    np.testing.assert_array_equal(batch[b"data"], array)
    assert batch[b"labels"] == [1, 2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02]q\x01.",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros(3)}, 4),
        pickle.dumps({b"data": np.array([None])}, 4),
        pickle.dumps({b"data": np.zeros(300, np.uint8)}, 4).replace(b"\x4d\x2c\x01", b"\x4d\x2d\x01"),
        b"\x80\x02}U\x04datacnumpy\ndtype\n)Rs.",
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"T\xff\xff\xff\x7f.",
    ],
)
def test_damaged_pickles_are_a_sentence(data):
    with pytest.raises(ExperimentError, match="batch is a damaged pickle"):
        load_batch(data, "batch")
