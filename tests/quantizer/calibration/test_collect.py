"""One pass over the images: what comes out depends neither on batches nor on threads, and padding is not counted."""

import numpy as np
import pytest
from nets import net, run, with_outputs
from onnx import helper

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.calibration import collect
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.calibration.collect import collect_stats
from resnet8_quant.quantizer.calibration.images import CalibrationImages

TENSORS = ("dense", "image", "nchw", "relu", "stack2.conv2", "stack3.relu2")


@pytest.mark.parametrize("bins", [None, 2048])
def test_statistics_are_those_of_the_graph_as_written(model, images, assert_same, monkeypatch, bins):
    """For all batches and threads."""
    stats = collect_stats(model, TENSORS, images, bins, 1)
    for batch_bytes in (1, 1_500_000):  # one image; a few, and a short last batch
        monkeypatch.setattr(collect, "BATCH_BYTES", batch_bytes)
        for threads in (1, 2, 3):
            assert_same(collect_stats(model, TENSORS, images, bins, threads), stats)
    names = [name for name in TENSORS if name != "image"]
    feed = model.input_spec.prepare(images.batch(0, len(images)))
    arrays = run(with_outputs(model.proto(), names), {"image": feed}, outputs=names)
    for name, values in {**dict(zip(names, arrays, strict=True)), "image": feed}.items():
        assert (stats[name].low, stats[name].high) == (values.min(), values.max()), name
        flat = values.reshape(len(images), -1)
        np.testing.assert_allclose(stats[name].image_lows, flat.min(axis=1), atol=1e-4 * np.abs(flat).max())
        np.testing.assert_allclose(stats[name].image_highs, flat.max(axis=1), atol=1e-4 * np.abs(flat).max())
        assert (stats[name].histogram is None) == (bins is None)
        assert bins is None or stats[name].histogram.total == flat.size


def test_a_chosen_subset_is_what_is_observed(conv, small_images, assert_same):
    pixels, chosen = small_images.images, np.array([17, 3, 11])
    subset, copied = CalibrationImages.of(pixels, chosen), CalibrationImages.of(pixels[chosen])
    stats = collect_stats(conv(), ("image",), subset, 256, 1)  # the input alone
    assert_same(stats, collect_stats(conv(), ("image",), copied, 256, 1))
    np.testing.assert_array_equal(stats["image"].image_highs, pixels[chosen].max(axis=(1, 2, 3)))
    assert stats["image"].histogram.zeros == np.count_nonzero(pixels[chosen] == 0)


@pytest.mark.parametrize("batch", [1, 8, 20, 32])
def test_a_fixed_batch_is_filled_up_and_the_filling_is_not_counted(conv, small_images, assert_same, batch):
    sizes = {"hidden": 2 * 4 * 4, "image": 2 * 6 * 6, "scores": 2 * 4 * 4}
    stats = collect_stats(conv(batch), tuple(sizes), small_images, 256, 2)
    assert_same(stats, collect_stats(conv(), tuple(sizes), small_images, 256, 2))
    for name, size in sizes.items():
        assert stats[name].histogram.total == len(small_images) * size


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1)])
def test_a_tensor_that_is_not_of_an_image(small_images, monkeypatch, shape):
    nodes = [
        helper.make_node("Sigmoid", ["c"], ["constant"]),
        helper.make_node("Mul", ["image", "constant"], ["scores"]),
    ]
    model = net(nodes, outputs={"scores": (2, None, None)}, c=np.zeros(shape))
    for batch_bytes in (1, 8 << 20):
        monkeypatch.setattr(collect, "BATCH_BYTES", batch_bytes)
        stats = collect_stats(model, ("constant", "scores"), small_images, 256, 1)
        assert (stats["constant"].low, stats["constant"].high) == (0.5, 0.5)
        np.testing.assert_array_equal(stats["constant"].image_lows, np.full(len(small_images), 0.5))
        assert stats["scores"].histogram.total == small_images.images.size


@pytest.mark.parametrize(("weight", "bias"), [(np.nan, 0.0), (3e38, 0.0), (0.0, -np.inf)])
def test_not_finite_names_the_tensor(conv, small_images, weight, bias):
    model = conv(weight=np.full((2, 2, 3, 3), weight), bias=(bias, bias))
    with pytest.raises(ExperimentError, match=r"activation 'hidden' is NaN or infinite") as caught:
        collect_stats(model, ("image", "hidden"), small_images, 256, 2)
    assert "model.mean" in caught.value.remedy


def test_one_image_is_enough_for_every_method(model, images, configs):
    one = CalibrationImages.of(images.images, np.array([5]))
    for method, config in configs.items():
        calibration = calibrate(model, one, Config(calibration=config))
        for name, (low, high) in calibration.ranges.items():
            assert np.isfinite([low, high]).all(), (method, name)
            assert calibration.params[name].scale > 0, (method, name)
            if name in calibration.stats:
                stats = calibration.stats[name]
                assert stats.low <= low <= high <= stats.high, (method, name)
