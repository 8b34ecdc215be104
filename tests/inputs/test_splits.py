"""The dataset itself: its digest, its number of classes."""

from __future__ import annotations

import hashlib

import numpy as np

from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.inputs import cifar10
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.splits import Split, array_digest, digested


def split(labels: list[int], seed: int = 0) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 5, 3), np.uint8)
    return Split(images, np.array(labels, np.int64))


def test_classes_count_the_largest_label_of_both_splits():
    assert digested("x", split([0, 1]), split([4, 2])).classes == 5
    assert digested("x", split([0, 6]), split([4, 2])).classes == 7


def test_digest_depends_on_every_array_and_its_shape_and_not_on_the_name():
    base, other = split([0, 1]), split([0, 1], seed=1)
    flat = Split(base.images.reshape(2, 5, 4, 3), base.labels)
    swapped = Split(base.images, base.labels[::-1])
    pairs = [(base, base), (other, base), (base, other), (swapped, base), (base, swapped), (flat, base)]
    assert len({digested("x", *pair).digest for pair in pairs}) == len(pairs)
    assert digested("another name", base, base).digest == digested("x", base, base).digest


def test_repr_fits_a_terminal():
    dataset = digested("x", split([0, 1]), split([4, 2]))
    assert repr(dataset) == "Dataset('x', train=<2 images of 4x5x3>, test=<2 images of 4x5x3>, 5 classes)"


def test_array_digest_is_the_sha256_of_the_raw_bytes():
    images = split([3, 2]).images
    assert array_digest(images) == hashlib.sha256(images.tobytes()).hexdigest()
    assert array_digest(images[:, ::-1]) == hashlib.sha256(images[:, ::-1].tobytes()).hexdigest()
    assert array_digest(np.array([3, 255])) == hashlib.sha256(b"\x03\xff").hexdigest()


def test_digest_does_not_depend_on_the_source(tiny, tmp_path):
    tiny.write("cifar-10-batches-py", tmp_path)
    known = cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    file = tmp_path / "same.npz"
    train, test = known.train, known.test
    np.savez(file, x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels.astype(np.int32))
    assert load_dataset(DataConfig(kind=DataKind.arrays, path=str(file)), tmp_path).digest == known.digest
