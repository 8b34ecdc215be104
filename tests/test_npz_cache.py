"""Entries of arrays: computed once, and never trusted when damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.npz_cache import cache_key, cached

VALUE = np.arange(5.0)


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(VALUE.tobytes())] ^= 1
    path.write_bytes(data)


def rewrite(array):
    """Another array under the old key."""

    def damage(path):
        with path.open("wb") as file:
            np.savez(file, key=np.array(path.stem), x=array(path))

    return damage


DAMAGES = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "another file": lambda path: shutil.copyfile(path.with_name(f"{cache_key({'n': 2})}.npz"), path),
    "text": lambda path: path.write_text(json.dumps({"key": path.stem})),
    "pickled": rewrite(lambda path: np.array([Payload(path.with_name("executed"))], object)),
    "does not hold together": rewrite(lambda path: VALUE[:2]),
}


def get(folder, number=1, compute=lambda: VALUE):
    def from_arrays(arrays):
        if arrays["x"].shape != VALUE.shape:
            raise ValueError("another shape")
        return arrays["x"]

    return cached(folder, cache_key({"n": number}), compute, lambda value: {"x": value}, from_arrays)


def fail():
    raise ExperimentError("no value", "none")


def test_a_value_is_computed_once(tmp_path):
    value, from_cache = get(tmp_path / "new")
    assert (value.tolist(), from_cache) == (VALUE.tolist(), False)
    value, from_cache = get(tmp_path / "new", compute=fail)
    assert (value.tolist(), from_cache) == (VALUE.tolist(), True)
    assert not get(tmp_path / "new", 2)[1]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_computed_anew(tmp_path, caplog, damage):
    for number in (1, 2):
        get(tmp_path, number)
    path = tmp_path / f"{cache_key({'n': 1})}.npz"
    damage(path)
    with caplog.at_level("WARNING"):
        value, from_cache = get(tmp_path)
    assert (value.tolist(), from_cache) == (VALUE.tolist(), False)
    assert ["unusable cache entry is replaced" in record.message for record in caplog.records] == [True]
    assert not path.with_name("executed").exists()
    assert get(tmp_path)[1]
    assert list(tmp_path.rglob("*.part")) == []


def test_a_failure_leaves_no_entry(tmp_path):
    with pytest.raises(ExperimentError):
        get(tmp_path, compute=fail)
    assert list(tmp_path.glob("*.npz")) == []
    assert not get(tmp_path)[1]
