"""Archives: only regular files of expected names and sizes enter, and nothing is written to the disk."""

from __future__ import annotations

import io
import tarfile

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10, members
from resnet8_quant.inputs.members import read_archive


def write(path, *entries: tuple[str, bytes | str, bytes]):
    """A .tar.gz of (name, content or link target, type)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname, content = content, b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("../escaped", b"x", tarfile.REGTYPE, r"member '../escaped' leads out"),
        ("top/../../escaped", b"x", tarfile.REGTYPE, "leads out"),
        ("top\\..\\..\\escaped", b"x", tarfile.REGTYPE, "leads out"),
        ("/tmp/escaped", b"x", tarfile.REGTYPE, r"member '/tmp/escaped' leads out"),
        ("top/a", "/etc/passwd", tarfile.SYMTYPE, r"member 'top/a' is a link"),
        ("top/extra", "top/a", tarfile.LNKTYPE, r"member 'top/extra' is a link"),
        ("top/a", b"", tarfile.FIFOTYPE, r"member 'top/a' is a device"),
        ("top/a", b"x" * 11, tarfile.REGTYPE, r"member top/a has 11 bytes of at most 10"),
    ],
)
def test_dangerous_members_refuse_the_archive(tmp_path, name, content, kind, message):
    path = write(tmp_path / "a.tar.gz", (name, content, kind), ("top/a", b"good", tarfile.REGTYPE))
    with pytest.raises(ExperimentError, match=message) as caught:
        list(read_archive(path, "top", {"a": 10}))
    assert str(path) in caught.value.problem
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar.gz"]


def test_expected_members_are_yielded_once_and_others_skipped(tmp_path):
    path = write(
        tmp_path / "a.tar.gz",
        ("top", b"", tarfile.DIRTYPE),
        ("top/readme.html", b"hello", tarfile.REGTYPE),
        ("top/b", b"bb", tarfile.REGTYPE),
        ("top/a", b"a", tarfile.REGTYPE),
        ("top/b", b"again", tarfile.REGTYPE),
    )
    assert list(read_archive(path, "top", {"a": 10, "b": 10})) == [("b", b"bb"), ("a", b"a")]


def test_missing_members_are_named(tmp_path):
    path = write(tmp_path / "a.tar.gz", ("top/a", b"a", tarfile.REGTYPE))
    with pytest.raises(ExperimentError, match="lacks top/b, top/c"):
        list(read_archive(path, "top", {"a": 10, "b": 10, "c": 10}))


def test_archives_that_swell_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "LARGEST_ARCHIVE", 1000)
    path = write(tmp_path / "a.tar.gz", ("zeros", b"\0" * 1001, tarfile.REGTYPE))
    with pytest.raises(ExperimentError, match="'zeros' brings it to 1,001 bytes"):
        list(read_archive(path, "top", {"a": 10}))


@pytest.mark.parametrize("kept", [0, 5, 30, 0.3, 0.9, 0.999])
def test_truncated_archives_are_a_sentence(tiny, tmp_path, kept):
    path = tiny.write("cifar-10-python.tar.gz", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ExperimentError, match=r"python.tar.gz (is truncated|is not a readable)") as caught:
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert "data.root=FOLDER" in caught.value.remedy


def test_archives_with_flipped_bytes_never_pass(tiny, tmp_path):
    path = tiny.write("cifar-10-binary.tar.gz", tmp_path)
    content = path.read_bytes()
    for position in range(40, len(content) - 8, len(content) // 12):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(ExperimentError):
            cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")


def test_text_is_no_archive(tiny, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_text("<html>404</html>")
    with pytest.raises(ExperimentError, match=r"is not a readable .tar.gz archive"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
