"""data=arrays: what is admitted, and how each refusal reads."""

from __future__ import annotations

import io
import pickle
import re
import zipfile

import numpy as np
import pytest

from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.errors import ExperimentError
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
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(ExperimentError, match=rf"{re.escape(str(path))} is not a file"):
            load_arrays(str(path))


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
