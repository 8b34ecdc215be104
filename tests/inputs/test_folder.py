"""data=folder: which files are found, how they are decoded, and that the cache never answers for other images."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet8_quant import compose
from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import folder as module
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.splits import digested
from resnet8_quant.sweep.digest import digest_of


def picture(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two cats and a dog to train, a dog and a cat to test."""
    names = ["train/cat/a.png", "train/dog/deep/b.PNG", "train/cat/c.png", "test/dog/d.png", "test/cat/e.png"]
    for seed, name in enumerate(names):
        write(tmp_path / "images" / name, picture(seed))
    (tmp_path / "images" / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "train" / ".hidden").mkdir()
    return tmp_path / "images"


def load(path: Path, **settings: object):
    config = DataConfig(kind=DataKind.folder, path=str(path), **settings)
    return load_dataset(config, path.parent / "cache")


def refusal(path: Path, **settings: object) -> ExperimentError:
    with pytest.raises(ExperimentError) as caught:
        load(path, **settings)
    return caught.value


def test_folders_are_read_in_turns_and_classes_sorted(root):
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 0], [0, 1])
    for split, seeds in ((data.train, [0, 1, 2]), (data.test, [4, 3])):
        np.testing.assert_array_equal(split.images, [picture(seed) for seed in seeds])
        assert not split.images.flags.writeable  # mapped, not held in memory
    assert data.digest == digested("x", data.train, data.test).digest


def test_the_order_of_classes_can_be_given(root):
    data = load(root, classes=["dog", "bird", "cat"])
    assert (data.classes, data.class_names) == (3, ("dog", "bird", "cat"))
    assert data.train.labels.tolist() == [2, 0, 2]
    error = refusal(root, classes=["dog"])
    assert "class 'cat', which `data.classes` does not list" in error.problem
    assert error.remedy.endswith(": 'data.classes=[dog,cat]'")
    error = refusal(root, classes=["dog", "cat", "dog"])
    assert (error.problem, error.remedy) == ("`data.classes` lists 'dog' more than once", "'data.classes=[dog,cat]'")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("suffix", [".webp", None])
def test_a_class_folder_without_images_does_not_renumber_the_others(root, suffix, split, caplog):
    place = root / split / "bird"
    place.mkdir()
    if suffix:
        (place / f"a{suffix}").write_bytes(b"an image of another kind")
    error = refusal(root)
    assert "class 'bird' has a folder, but no training images" in error.problem
    assert ("are passed over: 2 (1 .txt, 1 .webp)" in error.problem) is bool(suffix)
    (word,) = shlex.split(error.remedy.partition(" in the model")[0])
    config = compose("data=folder", f"data.path={root}", word)
    data = load(root, classes=config.data.classes)
    assert (data.class_names, data.train.labels.tolist()) == (("bird", "cat", "dog"), [1, 2, 1])
    assert "are passed over: " in caplog.text


def test_a_class_may_be_without_test_images(root):
    (root / "test" / "dog" / "d.png").rename(root / "test" / "dog" / "d.webp")
    assert load(root).test.labels.tolist() == [0]


def test_hidden_folders_are_passed_over(root):
    write(root / "test" / "dog" / ".ipynb_checkpoints" / "a-checkpoint.png", picture(9))
    assert len(load(root).test.labels) == 2


def test_links_to_folders_are_followed_once(root, tmp_path):
    write(tmp_path / "elsewhere" / "f.png", picture(9))
    (root / "test" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "test" / "dog" / "same").symlink_to(tmp_path / "elsewhere")
    (root / "test" / "dog" / "loop").symlink_to(root / "test" / "dog")
    (root / "test" / "dog" / "up").symlink_to(root)  # would make dogs of cats
    (tmp_path / "elsewhere" / "back").symlink_to(root / "test")
    (root / "test" / "cat").rename(tmp_path / "cats")
    (root / "test" / "cat").symlink_to(tmp_path / "cats")
    (tmp_path / "cats" / "up").symlink_to(root / "test")
    assert load(root).test.labels.tolist() == [0, 1, 1]
    table = next((root.parent / "cache" / "images").glob("*/test.csv"))
    assert table.read_text().splitlines()[3] == "test/dog/more/f.png,dog"


def test_a_link_to_another_class_gives_its_images_no_second_label(root):
    (root / "test" / "cat" / "like").symlink_to(root / "test" / "dog")
    assert load(root).test.labels.tolist() == [0, 1]
    (root / "train" / "lion").symlink_to(root / "train" / "cat")
    error = refusal(root)
    assert "'cat' and 'lion' in" in error.problem
    assert error.remedy == f"remove the link: rm {root / 'train' / 'lion'}"


@pytest.mark.parametrize("name", ["dog", "dog/deep"])
def test_a_folder_that_cannot_be_read_is_named(root, name, monkeypatch):
    """Not by its mode: root may read any folder."""
    scandir = os.scandir

    def refusing(path: str):
        if Path(path) == root / "train" / name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert f"train/{name}' cannot be read (Permission denied)" in refusal(root).problem


@pytest.mark.parametrize(("target", "reason"), [("gone", "No such file"), ("ant", "Too many levels of symbolic links")])
def test_a_link_of_a_class_that_leads_nowhere_is_named(root, target, reason):
    (root / "train" / "ant").symlink_to(root / "train" / target)
    assert f"train/ant' cannot be read ({reason}" in refusal(root).problem


def test_csv_files_keep_their_order_and_numbers(root):
    (root / "train.csv").write_text("label,path\n2,train/dog/deep/b.PNG\n0,train/cat/a.png\n")
    (root / "test.csv").write_text("path,label\r\ntest/dog/d.png,2\r\n")
    data = load(root)
    assert (data.train.labels.tolist(), data.test.labels.tolist(), data.classes) == ([2, 0], [2], 3)
    np.testing.assert_array_equal(data.train.images, [picture(1), picture(0)])
    (root / "test.csv").write_text("path,label\ntest/dog/d.png,dog\n")
    (root / "train.csv").write_text("path,label\ntrain/cat/a.png,cat\ntrain/dog/deep/b.PNG,dog\n")
    assert load(root).class_names == ("cat", "dog")


@pytest.mark.parametrize("content", [b"", b"file,label\na,b\n", b"path,label\na.png\n", b"\xff\xfe\x00"])
def test_a_csv_file_without_the_columns_is_refused(root, content):
    (root / "all.csv").write_bytes(content)
    assert re.search("is not a CSV file|holds no train images", refusal(root / "all.csv", test_fraction=0.5).problem)


def test_csv_files_of_another_layout_beside_the_folders_are_named(root):
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("id,label\n1,cat\n")  # as Kaggle's
    error = refusal(root)
    assert "train.csv and test.csv are read before the folders train and test" in error.problem
    subprocess.run(["sh", "-c", re.search("mv .*?(?=;)", error.remedy)[0]], check=True)
    assert len(load(root).train.labels) == 3
    assert "begin it with" in refusal(root / "test.csv", test_fraction=0.5).remedy[:13]


def test_remedies_quote_the_path(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "my [own] images" / "train" / "class (1)" / f"{name}.png", picture(0))
    error = refusal(tmp_path / "my [own] images")
    data = compose(*shlex.split(error.remedy)[2:]).data
    assert len(load_dataset(data, tmp_path).test.labels) == 1


def test_a_split_is_stratified_and_decided_by_its_seed(tmp_path):
    for number in range(30):
        name = "rare" if number < 4 else "common"
        write(tmp_path / "images" / name / f"{number:02}.png", np.full((2, 2, 3), number, np.uint8))
    first, again, other = (load(tmp_path / "images", test_fraction=0.25, split_seed=seed) for seed in (0, 0, 1))
    assert np.bincount(first.test.labels).tolist() == [6, 1]  # of 26 and of 4
    seen = [int(image[0, 0, 0]) for split in (first.train, first.test) for image in split.images]
    assert sorted(seen) == list(range(30))
    assert first.digest == again.digest != other.digest
    assert "`data.test_fraction` is not set" in refusal(tmp_path / "images").problem


def test_numbers_as_names_of_folders_are_not_guessed(tmp_path):
    for number in range(11):
        for split in ("train", "test"):
            write(tmp_path / "images" / split / str(number) / "a.png", picture(number))
    error = refusal(tmp_path / "images")
    assert "0,1,10,...,2" in error.problem
    order = re.search(r"data.classes=\[(.*)\]", error.remedy).group(1).split(",")
    assert load(tmp_path / "images", classes=order).train.labels[2] == 10  # 0, 1, 10: folders are read by name


def test_resizing(tmp_path):
    """A picture of red, green and blue thirds: what is left of them says which rule was followed."""
    thirds = np.zeros((4, 12, 3), np.uint8)
    for colour in range(3):
        thirds[:, 4 * colour : 4 * colour + 4, colour] = 200
    for split in ("train", "test"):
        write(tmp_path / "images" / split / "a" / "a.png", thirds)
    crop, pad, stretch = (
        load(tmp_path / "images", size=[4, 4], resize=rule).test.images[0] for rule in ("crop", "pad", "stretch")
    )
    np.testing.assert_array_equal(crop, thirds[:, 4:8])
    assert pad.any(axis=(1, 2)).tolist() == [False, False, True, False]  # one row of four is left, in the middle
    assert [stretch[0, column].argmax() for column in (0, 3)] == [0, 2]
    assert (stretch == stretch[:1]).all()
    assert load(tmp_path / "images", size=[4, 12]).test.images.tobytes() == thirds.tobytes()
    grey = load(tmp_path / "images", gray=True).test.images
    assert grey.shape == (1, 4, 12, 1)
    assert grey[0, 0, ::4, 0].tolist() == [60, 117, 23]  # 0.299, 0.587, 0.114 of 200


def test_modes_of_png_and_jpeg(tmp_path):
    pixels = np.full((8, 8, 3), (10, 200, 90), np.uint8)
    for split in ("train", "test"):
        folder = tmp_path / "images" / split / "a"
        write(folder / "palette.png", pixels)
        Image.fromarray(pixels).quantize(4).save(folder / "palette.png", transparency=0)
        Image.fromarray(np.dstack([pixels, np.zeros((8, 8), np.uint8)])).save(folder / "alpha.png")
        Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
        Image.fromarray(pixels).convert("CMYK").save(folder / "print.jpeg", quality=95)
    images = load(tmp_path / "images").test.images
    assert images.shape == (4, 8, 8, 3)
    assert np.abs(images.astype(int) - pixels).max() <= 4


def test_a_name_that_is_not_utf_8(root):
    name = b"caf\xe9.png"
    os.rename(root / "test" / "cat" / "e.png", os.fsencode(root / "test" / "cat") + b"/" + name)
    assert load(root).test.labels.tolist() == [0, 1]
    (table,) = (root.parent / "cache" / "images").glob("*/test.csv")
    assert b"test/cat/" + name + b",cat\n" in table.read_bytes()
    Image.new("RGB", (3, 3)).save(root / "test" / "cat" / "f.png")
    os.rename(root / "test" / "cat" / "f.png", os.fsencode(root / "test" / "cat") + b"/" + name)
    refusal(root).problem.encode()  # names it, and can be printed


def test_images_of_other_sizes_need_a_size(root):
    write(root / "test" / "dog" / "large.png", picture(9, 20, 30))
    error = refusal(root)
    assert "'test/dog/large.png' is 30x20 and others are 8x6" in error.problem
    assert load(root, size=[6, 8]).test.images.shape == (3, 6, 8, 3)
    assert "data.size=[6,8]" in error.remedy


def png_of_16_bits(color: int) -> bytes:
    """A PNG file of 6 rows of 8 pixels of the PNG specification's colour type."""
    channels = {0: 1, 2: 3, 6: 4}[color]
    rows = b"".join(b"\0" + picture(row, 1, 16)[..., 0].tobytes() * channels for row in range(6))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 8, 6, 16, color, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def break_(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how.endswith("16 bits"):
        path.write_bytes(png_of_16_bits({"gray 16 bits": 0, "RGB 16 bits": 2, "RGBA 16 bits": 6}[how]))
    elif how == "many pixels":
        Image.new("1", (9000, 9000)).save(path)
    elif how != "missing":
        path.write_bytes({"cut": content[:60], "empty": b"", "text": b"no image", "gif": b"GIF89a" + bytes(30)}[how])


@pytest.mark.parametrize(
    "how", ["cut", "empty", "text", "gif", "pipe", "gray 16 bits", "RGB 16 bits", "RGBA 16 bits", "many pixels"]
)
def test_a_broken_image_is_named_and_left_out(root, how, caplog):
    break_(root / "train" / "cat" / "a.png", how)
    error = refusal(root)
    assert "1 of 5 images cannot be read: 'train/cat/a.png' (" in error.problem
    assert "data.max_broken=0.2" in error.remedy
    data = load(root, max_broken=0.2)
    assert data.train.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(data.train.images, [picture(1), picture(2)])
    assert "'train/cat/a.png'" in caplog.text
    assert data.digest == digested("x", data.train, data.test).digest


def test_a_split_without_a_readable_image_is_refused(root):
    for name in ("dog/d.png", "cat/e.png"):
        break_(root / "test" / name, "text")
    assert "no test image can be read" in refusal(root, max_broken=1.0).problem


def test_files_are_decoded_once_and_changes_are_seen(root, monkeypatch):
    first, decoded = load(root), []
    original = module.decode
    monkeypatch.setattr(module, "decode", lambda path, config: decoded.append(path.name) or original(path, config))
    assert load(root).digest == first.digest
    os.utime(root / "train" / "cat" / "a.png", (1, 1))  # another time, the same content
    assert load(root).digest == first.digest
    assert decoded == []
    write(root / "train" / "cat" / "a.png", picture(99))
    changed = load(root)
    np.testing.assert_array_equal(changed.train.images[0], picture(99))
    assert len(decoded) == 5
    (root / "train" / "cat" / "c.png").unlink()
    assert len(load(root).train.labels) == 2


def test_the_limit_of_bytes_holds_for_decoded_images(root):
    assert load(root, max_bytes=720)
    assert "decoded, the images take 720 bytes" in refusal(root, max_bytes=719).problem


def test_a_damaged_entry_is_made_anew(root, caplog):
    first = load(root)
    (array,) = (root.parent / "cache" / "images").glob("*/train_images.npy")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.unlink()
    array.write_bytes(content)
    np.testing.assert_array_equal(load(root).train.images, first.train.images)
    assert "train_images.npy has other contents" in caplog.text
    (array.parent / "images.json").write_text(json.dumps({"digests": 3}))
    assert load(root).digest == first.digest


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {"test_fraction": 0.2}, "holds no train images"),
        (["a/a.txt"], {"test_fraction": 0.2}, "holds no train images"),
        (["a/a.png"], {"test_fraction": 0.2}, "holds no test images"),
        (["train/a/a.png"], {}, "holds the folder train and lacks test"),
        (["test/a/a.png"], {}, "holds the folder test and lacks train"),
        (["train/a/a.png", "test/a/a.txt"], {}, "holds no test images"),
        (["train/a/a.png", "test/a/a.png"], {"test_fraction": 0.2}, "is divided into train and test"),
        (["train/a/a.png", "test/b/a.png"], {}, "images of class 'b', of which there are no training images"),
        (["train/\x1b[31m/a.png", "test/\x1b[31m/a.png"], {}, "named '\\x1b[31m'; names of classes must be"),
        (["train/a/a.png", "test/a/a.png", "test/\x1b/a.txt"], {}, "named '\\x1b'; names of classes must be"),
        (["train/a/a.png", "test/a/a.png"], {"max_bytes": 287}, "decoded, the images take 288 bytes, more than"),
    ],
)
def test_refusals(tmp_path, names, settings, message):
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(0)).save(path, format="PNG")
    (tmp_path / "images").mkdir(exist_ok=True)
    error = refusal(tmp_path / "images", **settings)
    assert message in error.problem
    assert str(error).replace("\n", "").isprintable()


def test_a_missing_path_is_named(tmp_path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "absent", test_fraction=0.2).problem
    with pytest.raises(ExperimentError, match=r"`data.path` is not set"):
        load_dataset(DataConfig(kind=DataKind.folder), tmp_path)


def test_the_digest_of_a_job_changes_with_its_images(root, monkeypatch):
    from resnet8_quant.sweep import digest

    def now() -> str:
        digest._listing.cache_clear()  # looked at once in a process
        return digest_of(compose("data=folder", f"data.path={root}"))

    first = now()
    assert first == now() != digest_of(compose("data=folder", f"data.path={root}", "data.gray=true"))
    write(root / "train" / "cat" / "a.png", picture(99))
    assert first != now()
