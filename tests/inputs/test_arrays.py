"""data=arrays: what is admitted, and how each refusal reads."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import resnet8_quant as rq
from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import splits
from resnet8_quant.inputs.arrays import load_arrays
from resnet8_quant.inputs.dataset import load_dataset


def arrays(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "x_train": np.zeros((4, 8, 6, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 1], np.uint8),
        "x_test": np.ones((2, 8, 6, 3), np.uint8),
        "y_test": np.array([2, 0], np.int32),
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def test_arrays_are_loaded(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays(extra=np.zeros(2)))
    dataset = load_dataset(DataConfig(kind=DataKind.arrays, path=str(tmp_path / "a.npz")), tmp_path)
    assert (dataset.name, dataset.classes) == ("arrays", 3)
    assert dataset.train.images.shape == (4, 8, 6, 3)
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int64
    assert dataset.test.labels.tolist() == [2, 0]


def test_grey_images_are_admitted(tmp_path):
    grey = {f"x_{split}": np.zeros((count, 8, 6, 1), np.uint8) for split, count in (("train", 4), ("test", 2))}
    np.savez(tmp_path / "a.npz", **arrays(**grey))
    assert load_arrays(str(tmp_path / "a.npz")).test.images.shape == (2, 8, 6, 1)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[0], [1], [2], [1]], np.uint8),  # as Keras' CIFAR-10
        np.eye(3)[[0, 1, 2, 1]],
        np.eye(3, dtype=bool)[[0, 1, 2, 1]],
        np.array([0.0, 1.0, 2.0, 1.0], np.float32),
        np.array([[0.0], [1.0], [2.0], [1.0]]),
    ],
)
def test_labels_in_every_form(tmp_path, labels):
    np.savez(tmp_path / "a.npz", **arrays(y_train=labels))
    train = load_arrays(str(tmp_path / "a.npz")).train
    assert (train.labels.tolist(), train.labels.dtype) == ([0, 1, 2, 1], np.int64)


def test_labels_from_1(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(y_train=np.array([1, 2, 3, 2]), y_test=np.array([3, 1])))
    assert load_arrays(str(tmp_path / "a.npz")).classes == 4  # class 0 may have no image
    data = load_arrays(str(tmp_path / "a.npz"), first_label=1)
    assert (data.train.labels.tolist(), data.test.labels.tolist(), data.classes) == ([0, 1, 2, 1], [2, 0], 3)
    np.savez(tmp_path / "a.npz", **arrays())
    with pytest.raises(ExperimentError, match="y_train holds 0, expected labels of at least 1"):
        load_arrays(str(tmp_path / "a.npz"), first_label=1)


@pytest.mark.parametrize("axes", [(0, 3, 1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_channels_first_or_without(tmp_path, axes, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, channels), np.uint8)
    np.savez(tmp_path / "a.npz", **arrays(x_train=images.transpose(axes), x_test=images[:2]))
    np.testing.assert_array_equal(load_arrays(str(tmp_path / "a.npz")).train.images, images)
    if channels == 1:
        np.savez(tmp_path / "a.npz", **arrays(x_train=images[..., 0], x_test=images[:2, ..., 0]))
        np.testing.assert_array_equal(load_arrays(str(tmp_path / "a.npz")).train.images, images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"lacks y_test; it holds x_train, y_train, x_test$"),
        ({"x_train": np.zeros((4, 8, 6, 3))}, r"x_train is float64 \[4, 8, 6, 3\], expected uint8 \[N, H, W, C\]"),
        ({"x_test": np.zeros((2, 8), np.uint8)}, r"x_test is uint8 \[2, 8\], expected uint8 \[N, H, W, C\]"),
        ({"x_test": np.zeros((0, 8, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"x_test": np.zeros((2, 8, 6, 0), np.uint8)}, "x_test is empty"),
        ({"x_test": np.zeros((2, 6, 8, 3), np.uint8)}, r"x_train are \[8, 6, 3\], of x_test \[6, 8, 3\]"),
        ({"y_train": np.zeros((4, 3), int)}, r"y_train is int64 \[4, 3\], expected whole numbers \[N\]"),
        ({"y_train": np.zeros((0, 0))}, r"y_train is float64 \[0, 0\], expected whole numbers"),
        ({"y_train": np.full(4, 0.5)}, r"y_train is float64 \[4\], expected whole numbers"),
        ({"y_train": np.array([0, 1, np.nan, np.inf])}, r"y_train is float64 \[4\], expected whole numbers"),
        ({"y_train": np.full((4, 3), 1 / 3)}, r"y_train is float64 \[4, 3\], expected whole numbers"),
        ({"y_train": np.ones((4, 2), bool)}, r"y_train is int64 \[4, 2\], expected whole numbers"),
        ({"y_train": np.zeros(5, int)}, "y_train has 5 labels, expected 4"),
        ({"y_test": np.array([1, -1])}, "y_test holds -1, expected labels of at least 0"),
        ({"y_test": np.array([1, 2**64 - 1], np.uint64)}, "y_test holds -1"),
        ({"y_test": np.array([1, None])}, "y_test is not a plain array of numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ExperimentError) as caught:
        load_arrays(str(tmp_path / "a.npz"))
    assert f"`data.path`: {tmp_path / 'a.npz'}" in caught.value.problem
    assert "data.path=data.npz" in caught.value.remedy
    assert re.search(message, caught.value.problem)


def npy(shape: tuple[int, ...] = (3,)) -> bytes:
    """An array of three numbers whose header declares ``shape``."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(24)


def zipped(content: bytes, cut: int = 0, name: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for key in [name] if name else ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", content)
    data = stream.getvalue()
    return data[:cut] + b"\xff" * 8 + data[cut + 8 :] if cut else data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an .npz file"),
        (b"hello", "is not an .npz file"),
        (npy(), "is not an .npz file"),
        (pickle.dumps({"x_train": 1}), "is not an .npz file"),
        (zipped(b"hello"), "x_train is not a plain array"),
        (zipped(npy(), name="x_train"), r"lacks y_train, x_test, y_test; it holds x_train"),
        (zipped(npy((10**12,))), "x_train is not a plain array of numbers .it declares 8,000,000,000,000 bytes"),
        (zipped(npy()[:40]), "x_train is not a plain array"),
        (zipped(npy(), cut=60), "is damaged"),
    ],
)
def test_files_that_are_no_npz_are_refused(tmp_path, content, message):
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(ExperimentError, match=message):
        load_arrays(str(file))


def test_pickles_inside_do_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Exploit:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    np.savez(tmp_path / "a.npz", **arrays(x_train=np.array([Exploit()])))
    with pytest.raises(ExperimentError, match="x_train is not a plain array of numbers"):
        load_arrays(str(tmp_path / "a.npz"))
    assert not witness.exists()


@pytest.mark.parametrize("path", [None, ""])
def test_missing_path_names_the_field(path):
    with pytest.raises(ExperimentError, match=r"`data.path` is not set") as caught:
        load_arrays(path)
    assert "data=arrays data.path=" in caught.value.remedy


def test_absent_file_and_folder_are_named(tmp_path):
    absent = tmp_path / "absent.npz"
    with pytest.raises(ExperimentError, match=rf"{re.escape(str(absent))} is neither an .npz file nor a folder"):
        load_arrays(str(absent))
    with pytest.raises(ExperimentError, match=r"is a folder without x_train.npy, y_train.npy, x_test.npy, y_test.npy"):
        load_arrays(str(tmp_path))


def test_the_limit_of_all_arrays_together_is_stated(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    total = sum(info.file_size for info in zipfile.ZipFile(tmp_path / "a.npz").infolist())
    load_arrays(str(tmp_path / "a.npz"), total)
    message = f"unpacks to {total:,} bytes, more than `data.max_bytes`, {total - 1:,}"
    with pytest.raises(ExperimentError, match=message) as caught:
        load_arrays(str(tmp_path / "a.npz"), total - 1)
    assert f"data.max_bytes={total}" in caught.value.remedy


def test_a_member_cannot_claim_more_than_deflate_can_hold(tmp_path):
    """Both the zip directory and the header of the array say 1 GB, of a file of a few bytes."""
    content = bytearray(zipped(npy((2**27,))))
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:  # the entries of the directory
        content[place + 24 : place + 28] = (2**30 + 128).to_bytes(4, "little")  # bytes when unpacked
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"declares 1,073,741,824 bytes, its file has \d,\d+,\d+\)"):
        load_arrays(str(tmp_path / "a.npz"), 2**50)


@pytest.mark.parametrize("shape", [(-1,), (2**40, 2**40), (0, -3)])
def test_impossible_shapes_are_refused(tmp_path, shape):
    (tmp_path / "a.npz").write_bytes(zipped(npy(shape)))
    with pytest.raises(ExperimentError, match=r"x_train is not a plain array of numbers .it declares"):
        load_arrays(str(tmp_path / "a.npz"))


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(zipped(npy()))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + flags] |= 1
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(ExperimentError, match=r"is damaged .*encrypted"):
        load_arrays(str(tmp_path / "a.npz"))


def save_folder(folder: Path, **changes: object) -> str:
    """The arrays as .npy files; the path of their folder."""
    for key, array in arrays(**changes).items():
        np.save(folder / f"{key}.npy", np.asarray(array))
    return str(folder)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_npy_files_are_mapped_and_equal_the_npz(tmp_path, axes, fortran):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 3), np.uint8)
    stored = images.transpose(axes)
    stored = np.asfortranarray(stored) if fortran else stored
    changes = {"x_train": stored[:4], "x_test": stored[4:]}
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    from_file, mapped = load_arrays(str(tmp_path / "a.npz")), load_arrays(save_folder(tmp_path, **changes))
    np.testing.assert_array_equal(mapped.train.images, images[:4])
    np.testing.assert_array_equal(mapped.test.labels, from_file.test.labels)
    assert mapped.digest == from_file.digest
    base = mapped.train.images
    while isinstance(base, np.ndarray):
        assert not base.flags.owndata
        base = base.base
    assert isinstance(base, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped.train.images[0] = 0


def test_a_digest_of_parts_is_that_of_the_whole(tmp_path, monkeypatch):
    whole = load_arrays(save_folder(tmp_path)).digest
    monkeypatch.setattr(splits, "PART", 8 * 6 * 3 + 1)
    assert load_arrays(str(tmp_path)).digest == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x_test.npy is not a plain array of numbers"),
        (b"hello", r"x_test.npy is not a plain array of numbers"),
        (npy()[:40], r"x_test.npy is not a plain array of numbers"),
        (npy((10**12,)), "declares 8,000,000,000,000 bytes, its file has"),
        (npy((4,)), "declares 32 bytes, its file has 24 of data"),
        (npy((-1,)), "it declares -8 bytes"),
        (npy((0, -3)), "it declares"),
        (npy((2**40, 2**40)), "it declares"),
        (npy((0,)), r"x_test is float64 \[0\]"),
    ],
)
def test_npy_files_that_lie_are_refused(tmp_path, content, message):
    (Path(save_folder(tmp_path)) / "x_test.npy").write_bytes(content)
    with pytest.raises(ExperimentError, match=message) as caught:
        load_arrays(str(tmp_path))
    assert "data.path=FOLDER" in caught.value.remedy


def test_pickles_and_pipes_among_npy_files_are_refused(tmp_path):
    np.save(Path(save_folder(tmp_path)) / "y_test.npy", np.array([1, None]), allow_pickle=True)
    with pytest.raises(ExperimentError, match=r"y_test.npy is not a plain array of numbers .it holds pickled objects"):
        load_arrays(str(tmp_path))
    (tmp_path / "y_test.npy").unlink()
    os.mkfifo(tmp_path / "y_test.npy")
    with pytest.raises(ExperimentError, match=r"y_test.npy cannot be read .it is a pipe or a device"):
        load_arrays(str(tmp_path))


# ---------------------------------------------------------------- float images

PIXELS = np.random.default_rng(3).integers(0, 256, (6, 8, 6, 3), np.uint8)
PIXELS[0, 0, :2] = [[0, 0, 0], [255, 255, 255]]
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
UNIT = {"std": (255.0, 255.0, 255.0)}


def floats(**changes: object) -> dict[str, object]:
    """Changes that make float images of PIXELS: with ``mean``, ``std`` and ``dtype``."""
    mean, std = (np.array(changes.get(name, (default,) * 3)) for name, default in (("mean", 0.0), ("std", 1.0)))
    images = ((PIXELS - mean) / std).astype(str(changes.get("dtype", "float32")))
    return {"x_train": images[:4], "x_test": images[4:]}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("store", ["npz", "npy"])
@pytest.mark.parametrize(
    ("images", "model"),
    [
        (UNIT, UNIT),
        (UNIT, IMAGENET),  # pixels / 255 for a model that normalizes further
        (IMAGENET, IMAGENET),
        ({"mean": (127.5,) * 3, "std": (127.5,) * 3}, {"mean": [127.5] * 3, "std": [127.5] * 3}),
        ({}, {}),  # whole numbers 0 to 255 of a float type
        ({}, IMAGENET),
        ({}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_float_images_become_the_pixels_they_were(tmp_path, images, model, store, dtype):
    changes = floats(**images, dtype=dtype)
    if store == "npz":
        np.savez(tmp_path / "a.npz", **arrays(**changes))
    path = save_folder(tmp_path, **changes) if store == "npy" else str(tmp_path / "a.npz")
    data = load_arrays(path, **model)
    assert data.train.images.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]), PIXELS)
    np.savez(tmp_path / "pixels.npz", **arrays(x_train=PIXELS[:4], x_test=PIXELS[4:]))
    assert data.digest == load_arrays(str(tmp_path / "pixels.npz")).digest


@pytest.mark.parametrize(
    ("images", "model", "message", "typed"),
    [
        (
            UNIT,
            {},
            r"x_train float32 .*x_test .* from 0 to 1, but without .*; they are whole pixels when read as 0 to 1",
            "[255,255,",
        ),
        (
            IMAGENET,
            {},
            r"from -2\.118 to 2\.64, .* whole pixels when read as ImageNet's mean and std",
            "model.mean=[123.675,116.28,103.53]",
        ),
        (
            {"mean": [127.5] * 3, "std": [127.5] * 3},
            IMAGENET,
            r"from -1 to 1, .* pixels from 46 to 182",
            "[127.5,127",
        ),
        (IMAGENET, UNIT, r"from -2\.118 to 2\.64, .* pixels from -540 to 673", "model.std=[58.395,57.12,57.375]"),
        ({"std": (7.0,) * 3}, {}, r"from 0 to 36\.43, but without", "model.mean=[R,G,B]"),
    ],
)
def test_other_float_images_are_refused_with_a_remedy_that_works(tmp_path, images, model, message, typed):
    np.savez(tmp_path / "a.npz", **arrays(**floats(**images)))
    with pytest.raises(ExperimentError, match=message) as caught:
        load_arrays(str(tmp_path / "a.npz"), **model)
    assert typed in caught.value.remedy
    if "R,G,B" in typed:
        return
    words = caught.value.remedy.split(", ")[0].split()
    config = rq.compose("model=onnx", "model.path=m.onnx", "data=arrays", f"data.path={tmp_path / 'a.npz'}", *words)
    np.testing.assert_array_equal(load_dataset(config.data, tmp_path, config.model).test.images, PIXELS[4:])


def test_float_images_that_are_no_whole_pixels_are_rounded_and_said_so(tmp_path, caplog):
    exact = np.random.default_rng(0).uniform(0, 1, (6, 8, 6, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **arrays(x_train=exact[:4], x_test=exact[4:]))
    data = load_arrays(str(tmp_path / "a.npz"), **UNIT)
    assert np.abs(data.test.images - 255.0 * exact[4:]).max() <= 0.5 + 1e-4
    assert "rounded, by up to 0.50 of 255" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_float_images_that_are_no_numbers_are_refused(tmp_path, value):
    changes = floats(**UNIT, dtype="float64")
    changes["x_test"][1, 2, 3, 0] = value
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ExperimentError, match="NaN or infinite"):
        load_arrays(str(tmp_path / "a.npz"), **UNIT)


def test_float_images_have_limits_and_channels_too(tmp_path):
    path = save_folder(tmp_path, **floats(**UNIT))
    with pytest.raises(ExperimentError, match=r"take 864 bytes, more than `data.max_bytes`, 863"):
        load_arrays(path, 863, **UNIT)
    with pytest.raises(ExperimentError, match=r"`model\.std` has 1 values, the images have 3 channels"):
        load_arrays(path, std=[255.0])
    np.save(tmp_path / "x_test.npy", PIXELS[4:])  # one of each type
    with pytest.raises(ExperimentError, match=r"x_train is float32 \[4, 8, 6, 3\], expected uint8"):
        load_arrays(path, **UNIT)
