"""Statistics are computed once, and shared by all that may share them."""

import numpy as np
import pytest

from resnet8_quant.config import Config, DType, QuantConfig
from resnet8_quant.quantizer.calibration import cache as module
from resnet8_quant.quantizer.calibration.cache import cached_stats
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.calibration.images import CalibrationImages

TENSORS = ("hidden", "image", "scores")


@pytest.fixture
def fetch(conv, small_images, tmp_path):
    """Collect through a cache in ``tmp_path``, with changes to what is asked for."""

    def call(model=None, tensors=TENSORS, images=small_images, bins=256, threads=1):
        return cached_stats(model or conv(), tensors, images, bins, threads=threads, cache=tmp_path)

    return call


def test_whatever_can_move_a_value_misses(fetch, conv, small_images, tmp_path, monkeypatch):
    assert not fetch()[1]
    assert fetch(threads=2)[1]
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
    assert len(list((tmp_path / "observations").glob("*.npz"))) == 1 + len(changes)
    for name, value in (("ENGINE_VERSION", module.ENGINE_VERSION + 1), ("cpu_description", lambda: "another")):
        with monkeypatch.context() as context:
            context.setattr(module, name, value)
            assert not fetch()[1], name
    assert fetch()[1]


def test_methods_and_quant_types_share_an_entry(conv, small_images, configs, assert_same, tmp_path):
    first = calibrate(conv(), small_images, Config(), cache=tmp_path)
    assert not first.cached
    assert_same(first.stats, calibrate(conv(), small_images, Config()).stats)
    for calibration in configs.values():
        for quant in (QuantConfig(activation_symmetric=True), QuantConfig(activation_type=DType.uint8)):
            other = calibrate(conv(), small_images, Config(quant, calibration), cache=tmp_path)
            assert other.cached
            assert_same(other.stats, first.stats)


WRONG = {
    "missing array": lambda arrays: arrays.pop("1.counts"),
    "fewer images": lambda arrays: arrays.update({"0.image_lows": arrays["0.image_lows"][:-1]}),
    "other order": lambda arrays: arrays.update({"0.image_lows": arrays["0.image_highs"] + 1}),
    "double": lambda arrays: arrays.update({"2.image_lows": arrays["2.image_lows"].astype(np.float64)}),
    "no number": lambda arrays: arrays.update({"0.extremes": np.full(2, np.nan, np.float32)}),
    "no integers": lambda arrays: arrays.update({"0.counts": arrays["0.counts"] / 2}),
    "negative counts": lambda arrays: arrays.update({"0.counts": -arrays["0.counts"]}),
    "square counts": lambda arrays: arrays.update({"0.counts": arrays["0.counts"][None]}),
    "no power of two": lambda arrays: arrays.update({"0.width": np.array(0.3)}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_arrays_that_do_not_hold_together_are_computed_anew(fetch, assert_same, tmp_path, caplog, change):
    """Even under the right key."""
    expected, _ = fetch()
    (path,) = (tmp_path / "observations").glob("*.npz")
    arrays = dict(np.load(path))
    change(arrays)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    stats, cached = fetch()
    assert not cached
    assert "unusable cache entry is replaced" in caplog.text
    assert_same(stats, expected)
    assert fetch()[1]
