"""The dataset itself: dispatch, digest, number of classes."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.files import forget_pages
from resnet8_quant.inputs import cifar10, dataset
from resnet8_quant.inputs.dataset import Dataset, Split, array_digest, dataset_of, load_dataset


def split(labels: list[int], seed: int = 0) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 5, 3), np.uint8)
    return Split(images, np.array(labels, np.int64))


def test_every_kind_has_a_loader():
    assert set(dataset.LOADERS) == set(DataKind)


def test_classes_count_the_largest_label_of_both_splits():
    assert dataset_of("x", split([0, 1]), split([4, 2])).classes == 5
    assert dataset_of("x", split([0, 6]), split([4, 2])).classes == 7


def test_datasets_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset_of("x", split([0]), split([0])).name = "y"  # type: ignore[misc]


def test_digest_depends_on_every_array_and_its_shape():
    base, other = split([0, 1]), split([0, 1], seed=1)
    flat = Split(base.images.reshape(2, 5, 4, 3), base.labels)
    variants = [
        dataset_of("x", base, base),
        dataset_of("x", other, base),
        dataset_of("x", base, other),
        dataset_of("x", Split(base.images, base.labels[::-1]), base),
        dataset_of("x", base, Split(base.images, base.labels[::-1])),
        dataset_of("x", flat, base),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert dataset_of("another name", base, base).digest == variants[0].digest


def test_array_digest_is_the_sha256_of_the_raw_bytes():
    images = split([3, 2]).images
    assert array_digest(images) == hashlib.sha256(images.tobytes()).hexdigest()
    assert array_digest(images[:, ::-1]) == hashlib.sha256(images[:, ::-1].tobytes()).hexdigest()
    assert array_digest(np.array([3, 255])) == hashlib.sha256(b"\x03\xff").hexdigest()


def test_digest_does_not_depend_on_the_source(tiny, tmp_path):
    tiny.write("cifar-10-batches-bin", tmp_path)
    known = cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    file = tmp_path / "same.npz"
    np.savez(
        file,
        x_train=known.train.images,
        y_train=known.train.labels,
        x_test=known.test.images,
        y_test=known.test.labels.astype(np.int32),
    )
    loaded: Dataset = load_dataset(DataConfig(kind=DataKind.arrays, path=str(file)), tmp_path)
    assert loaded.digest == known.digest


def test_forgotten_pages_are_read_again(tmp_path):
    expected = np.arange(5000, dtype=np.uint8)
    np.save(tmp_path / "a.npy", expected)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r").view(np.ndarray)[10:]
    forget_pages(mapped)
    np.testing.assert_array_equal(mapped, expected[10:])
    forget_pages(expected)  # not mapped: nothing happens
    np.testing.assert_array_equal(mapped, expected[10:])
