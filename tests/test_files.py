"""Files that are whole or absent, folders that belong to one run, mapped pages."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import irregular
import numpy as np
import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import claimed, expanded, forget_pages, open_regular, read_regular, replacing, temporary_folder


def test_forgotten_pages_are_read_again(tmp_path):
    expected = np.arange(5000, dtype=np.uint8)
    np.save(tmp_path / "a.npy", expected)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r").view(np.ndarray)[10:]
    forget_pages(mapped)
    np.testing.assert_array_equal(mapped, expected[10:])
    forget_pages(expected)  # not mapped: nothing happens
    np.testing.assert_array_equal(mapped, expected[10:])


def test_error_pickles() -> None:
    back = pickle.loads(pickle.dumps(ExperimentError("problem", "remedy")))  # noqa: S301
    assert (type(back), back.problem, back.remedy) == (ExperimentError, "problem", "remedy")


def test_failed_replacement_keeps_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacement_is_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    path, plain = tmp_path / "new" / "file", tmp_path / "plain"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # as the umask says


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
def test_what_the_process_has_open_is_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        (tmp_path / "stdout").symlink_to(own)  # as /dev/stdout is
        for path in (own, tmp_path / "stdout"):
            with pytest.raises(ExperimentError, match="not a regular file"), replacing(path):
                pass
        assert (tmp_path / "stdout").is_symlink()


def test_unwritable_place_is_an_experiment_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot write"), replacing(tmp_path / "file" / "below"):
        pass


def test_second_holder_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    claim = (
        "import sys, pathlib; from resnet8_quant.files import claimed\nwith claimed(pathlib.Path(sys.argv[1])): pass"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", claim, folder], capture_output=True, text=True).stderr

    with claimed(folder):
        assert "another run is writing" in other()
    assert other() == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "absent"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "input"
    if kind in ("pipe", "device", "folder"):
        irregular.put(path, kind)
    elif kind == "large":
        path.write_bytes(bytes(11))
    with pytest.raises(OSError, match=r"it is|it has 11 bytes, more than 10|No such file"):
        open_regular(path, 10)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with pytest.raises(OSError, match=str(path) if kind == "absent" else "it "):
        read_regular(path, 10)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link", 7) == b"content"


def test_a_user_that_there_is_not_is_a_name_like_any_other() -> None:
    assert expanded("~no_such_user/x") == Path("~no_such_user/x")
    assert expanded("~/x") == Path.home() / "x"


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fill() -> None:
        with temporary_folder() as folder:
            assert folder.parent == tmp_path
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ExperimentError, match=rf"{tmp_path}: No space left") as caught:
        fill()
    assert "TMPDIR=FOLDER" in caught.value.remedy
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(ExperimentError, match="absent"), temporary_folder():
        pass
