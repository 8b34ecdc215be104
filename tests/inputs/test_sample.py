"""The bundled sample: what it holds, that it is what its provenance says, and that a changed one is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from resnet8_quant.config import DataConfig, DataKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.cifar10 import ARRAYS
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.sample import SAMPLE, load_sample

PROVENANCE = json.loads(SAMPLE.with_suffix(".json").read_text())


def test_sample_has_100_images_of_each_class_and_needs_no_cache(tmp_path):
    dataset = load_dataset(DataConfig(kind=DataKind.sample), tmp_path / "absent")
    assert (dataset.name, dataset.classes) == ("sample", 10)
    for split in (dataset.train, dataset.test):
        assert split.images.shape == (1000, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [100] * 10
        assert not split.images.flags.writeable  # the jobs of a sweep share it
    assert not (tmp_path / "absent").exists()


def test_provenance_names_the_source():
    assert PROVENANCE["source_sha256"] == {name: digest for name, (_, digest) in ARRAYS.items()}
    assert "Krizhevsky" in PROVENANCE["origin"]
    for indices in (PROVENANCE["train_indices"], PROVENANCE["test_indices"]):
        assert indices == sorted(set(indices))
        assert len(indices) == 1000


def test_sample_is_the_images_that_its_provenance_names(real_cache):
    sample, full = load_sample(), load_dataset(DataConfig(), real_cache)
    for name in ("train", "test"):
        indices = PROVENANCE[f"{name}_indices"]
        ours, theirs = getattr(sample, name), getattr(full, name)
        np.testing.assert_array_equal(ours.images, theirs.images[indices])
        np.testing.assert_array_equal(ours.labels, theirs.labels[indices])


def test_changed_or_missing_sample_is_refused(tmp_path):
    copy = tmp_path / SAMPLE.name
    with pytest.raises(ExperimentError, match="cannot be read"):
        load_sample(copy)
    shutil.copy(SAMPLE.with_suffix(".json"), tmp_path)
    copy.write_bytes(SAMPLE.read_bytes() + b"\0")
    with pytest.raises(ExperimentError, match=f"expected {PROVENANCE['npz_sha256']}"):
        load_sample(copy)
