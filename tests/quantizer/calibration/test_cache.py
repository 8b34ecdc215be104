"""Statistics are computed once, found again by all that may share them, and never trusted when damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant import npz_cache
from resnet8_quant.config import Config, DType, QuantConfig
from resnet8_quant.files import sha256_bytes
from resnet8_quant.quantizer.calibration import cache as module
from resnet8_quant.quantizer.calibration.cache import cached_stats
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.calibration.collect import collect_stats
from resnet8_quant.quantizer.calibration.images import CalibrationImages

TENSORS = ("hidden", "image", "scores")
WARNING = "unusable cache entry is replaced"


def entries(folder):
    return sorted((folder / "observations").glob("*.npz"))


@pytest.fixture
def fetch(conv, small_images, tmp_path):
    """Collect through a cache in ``tmp_path``, with changes to what is asked for."""

    def call(model=None, tensors=TENSORS, images=small_images, bins=256, threads=1):
        return cached_stats(model or conv(), tensors, images, bins, threads=threads, cache=tmp_path)

    return call


@pytest.mark.parametrize("bins", [None, 256])
def test_the_second_time_they_come_from_the_cache(fetch, conv, small_images, assert_same, monkeypatch, bins):
    first, cached = fetch(bins=bins)
    assert not cached
    assert_same(first, collect_stats(conv(), TENSORS, small_images, bins, 1))
    monkeypatch.setattr(module, "collect_stats", None)  # whoever runs the model now fails
    second, cached = fetch(bins=bins, threads=2)
    assert cached
    assert_same(second, first)


def test_whatever_can_move_a_value_misses(fetch, conv, small_images, tmp_path, monkeypatch):
    fetch()
    pixels = small_images.images.copy()
    pixels[0, 0, 0, 0] ^= 1
    backwards = np.arange(len(pixels))[::-1]
    changes = [
        {"bins": 512},
        {"bins": None},
        {"tensors": TENSORS[:2]},
        {"images": CalibrationImages.of(pixels)},
        {"images": CalibrationImages.of(pixels, backwards)},
        {"images": CalibrationImages.of(small_images.images, backwards[:-1])},
        {"model": conv(bias=(0.5, -0.25))},
        {"model": conv(mean=(1.0, 1.0))},
        {"model": conv(std=(2.0, 1.0))},
        {"model": conv(batch=20)},
    ]
    for change in changes:
        assert not fetch(**change)[1], change
        assert fetch(**change)[1], change
    assert len(entries(tmp_path)) == 1 + len(changes)
    for name, value in (("ENGINE_VERSION", module.ENGINE_VERSION + 1), ("cpu_description", lambda: "another")):
        with monkeypatch.context() as context:
            context.setattr(module, name, value)
            assert not fetch()[1], name
    assert fetch()[1]


def test_methods_and_quant_types_share_an_entry(conv, small_images, configs, assert_same, tmp_path):
    first = calibrate(conv(), small_images, Config(calibration=next(iter(configs.values()))), cache=tmp_path)
    assert not first.cached
    for config in configs.values():
        for quant in (QuantConfig(activation_symmetric=True), QuantConfig(activation_type=DType.uint8)):
            found = calibrate(conv(), small_images, Config(quant, config), cache=tmp_path)
            assert found.cached
            assert_same(found.stats, first.stats)
    assert len(entries(tmp_path)) == 1


def _truncated(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path, other):
    path.write_bytes(b"")


def _flipped(path, other):
    data = bytearray(path.read_bytes())
    place = data.index(np.load(path)["0.image_lows"].tobytes())
    data[place] ^= 1
    path.write_bytes(data)


def _of_another_key(path, other):
    shutil.copyfile(other, path)


def _text(path, other):
    path.write_text(json.dumps({"key": path.stem}))


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _pickled(path, other):
    arrays = dict(np.load(path))
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "0.counts": np.array([Payload(path.with_name("executed"))], object)})


def _rewritten(change):
    """Damage under the right key and digest."""

    def damage(path, other):
        arrays = dict(np.load(path))
        key = arrays.pop("key")
        del arrays["digest"]
        change(arrays)
        with path.open("wb") as file:
            np.savez(file, key=key, digest=np.array(npz_cache.digest(arrays)), **arrays)

    return damage


def _wrong_digest(path, other):
    arrays = dict(np.load(path))
    arrays["0.image_lows"] = arrays["0.image_lows"] - 1
    with path.open("wb") as file:
        np.savez(file, **arrays)


DAMAGES = {
    "truncated": _truncated,
    "empty": _empty,
    "flipped": _flipped,
    "of another key": _of_another_key,
    "text": _text,
    "pickled": _pickled,
    "wrong digest": _wrong_digest,
    "missing array": _rewritten(lambda arrays: arrays.pop("1.counts")),
    "fewer images": _rewritten(lambda arrays: arrays.update({"0.image_lows": arrays["0.image_lows"][:-1]})),
    "other order": _rewritten(lambda arrays: arrays.update({"0.image_lows": arrays["0.image_highs"] + 1})),
    "double": _rewritten(lambda arrays: arrays.update({"2.image_lows": arrays["2.image_lows"].astype(np.float64)})),
    "no number": _rewritten(lambda arrays: arrays.update({"0.extremes": np.full(2, np.nan, np.float32)})),
    "no integers": _rewritten(lambda arrays: arrays.update({"0.counts": arrays["0.counts"] / 2})),
    "negative counts": _rewritten(lambda arrays: arrays.update({"0.counts": -arrays["0.counts"]})),
    "square counts": _rewritten(lambda arrays: arrays.update({"0.counts": arrays["0.counts"][None]})),
    "no power of two": _rewritten(lambda arrays: arrays.update({"0.width": np.array(0.3)})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_computed_anew(fetch, assert_same, tmp_path, caplog, damage):
    expected, _ = fetch()
    (path,) = entries(tmp_path)
    fetch(bins=512)
    other = next(entry for entry in entries(tmp_path) if entry != path)
    damage(path, other)
    with caplog.at_level("WARNING"):
        found, cached = fetch()
    assert not cached
    assert_same(found, expected)
    assert [record.levelname for record in caplog.records if WARNING in record.message] == ["WARNING"]
    assert not path.with_name("executed").exists()
    again, cached = fetch()
    assert cached
    assert_same(again, expected)
    assert list(tmp_path.rglob("*.part")) == []


def test_the_key_names_pixels_and_their_order():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    digests = [
        CalibrationImages.of(pixels).digest,
        CalibrationImages.of(pixels, np.arange(5)).digest,
        CalibrationImages.of(pixels, np.arange(6)[::-1]).digest,
        CalibrationImages.of(pixels ^ 1).digest,
        CalibrationImages.of(pixels, digest="known").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert CalibrationImages.of(pixels, np.arange(6, dtype=np.int32)).digest == digests[0]
    strided = CalibrationImages.of(np.repeat(pixels, 2, axis=0)[::2])
    assert strided.digest == digests[0]
    assert dataclasses.is_dataclass(strided)
    assert len(sha256_bytes(b"")) == len(digests[0])


def test_the_last_batch_is_filled_with_its_last_image():
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    images = CalibrationImages.of(pixels, np.array([4, 0, 2]))
    assert images.batch(0, 2).ravel().tolist() == [4, 0]
    assert images.batch(2, 3).ravel().tolist() == [2, 2, 2]
    assert len(images) == 3
