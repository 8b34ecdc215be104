"""One pass over the images: what comes out depends neither on batches nor on threads, and padding is not counted."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.calibration import collect
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.calibration.collect import collect_stats
from resnet8_quant.quantizer.calibration.images import CalibrationImages

TENSORS = ("dense", "image", "nchw", "relu", "stack2.conv2", "stack3.relu2")


@pytest.mark.parametrize("bins", [None, 2048])
def test_batches_and_threads_have_no_effect(model, images, assert_same, monkeypatch, bins):
    expected = collect_stats(model, TENSORS, images, bins, 1)
    assert all((seen.histogram is None) == (bins is None) for seen in expected.values())
    for batch_bytes in (1, 1_500_000):  # one image; a few, and a short last batch
        monkeypatch.setattr(collect, "BATCH_BYTES", batch_bytes)
        for threads in (1, 2, 3):
            assert_same(collect_stats(model, TENSORS, images, bins, threads), expected)


@pytest.mark.parametrize("bins", [None, 2048])
def test_extremes_are_those_of_the_graph_as_written(model, images, bins):
    found = collect_stats(model, TENSORS, images, bins, 2)
    proto = model.proto()
    names = [name for name in TENSORS if name != "image"]
    proto.graph.output.extend(helper.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = model.input_spec.prepare(images.batch(0, len(images)))
    values = {**dict(zip(names, session.run(names, {"image": feed}), strict=True)), "image": feed}
    for name in TENSORS:
        assert (found[name].low, found[name].high) == (values[name].min(), values[name].max()), name
        flat = values[name].reshape(len(images), -1)
        np.testing.assert_allclose(found[name].image_lows, flat.min(axis=1), atol=1e-4 * np.abs(flat).max())
        np.testing.assert_allclose(found[name].image_highs, flat.max(axis=1), atol=1e-4 * np.abs(flat).max())
        if bins is not None:
            assert found[name].histogram.total == flat.size


def test_a_chosen_subset_is_what_is_observed(conv, small_images, assert_same):
    chosen = np.array([17, 3, 11])
    subset = CalibrationImages.of(small_images.images, chosen)
    copied = CalibrationImages.of(small_images.images[chosen])
    found = collect_stats(conv(), ("image", "scores"), subset, 256, 1)
    assert_same(found, collect_stats(conv(), ("image", "scores"), copied, 256, 1))
    np.testing.assert_array_equal(found["image"].image_highs, small_images.images[chosen].max(axis=(1, 2, 3)))


@pytest.mark.parametrize("batch", [1, 8, 20, 32])
def test_a_fixed_batch_is_filled_up_and_the_filling_is_not_counted(conv, small_images, assert_same, batch):
    tensors = ("hidden", "image", "scores")
    found = collect_stats(conv(batch), tensors, small_images, 256, 2)
    assert_same(found, collect_stats(conv(), tensors, small_images, 256, 2))
    sizes = {"hidden": 2 * 4 * 4, "image": 2 * 6 * 6, "scores": 2 * 4 * 4}
    assert {name: seen.histogram.total for name, seen in found.items()} == {
        name: len(small_images) * size for name, size in sizes.items()
    }


def test_only_the_input(conv, small_images):
    found = collect_stats(conv(), ("image",), small_images, 256, 1)["image"]
    np.testing.assert_array_equal(found.histogram.zeros, np.count_nonzero(small_images.images == 0))


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1)])
def test_a_tensor_that_is_not_of_an_image(tiny, small_images, monkeypatch, shape):
    nodes = [
        helper.make_node("Sigmoid", ["c"], ["constant"]),
        helper.make_node("Mul", ["image", "constant"], ["scores"]),
    ]
    model = tiny(nodes, {"c": np.zeros(shape)})
    for batch_bytes in (1, 8 << 20):
        monkeypatch.setattr(collect, "BATCH_BYTES", batch_bytes)
        found = collect_stats(model, ("constant", "scores"), small_images, 256, 1)
        assert (found["constant"].low, found["constant"].high) == (0.5, 0.5)
        np.testing.assert_array_equal(found["constant"].image_lows, np.full(len(small_images), 0.5))
        assert found["scores"].histogram.total == small_images.images.size


@pytest.mark.parametrize("bins", [None, 256])
@pytest.mark.parametrize(("weight", "bias"), [(np.nan, 0.0), (3e38, 0.0), (0.0, -np.inf)])
def test_not_finite_names_the_tensor(conv, small_images, bins, weight, bias):
    model = conv(weight=np.full((2, 2, 3, 3), weight), bias=(bias, bias))
    with pytest.raises(ExperimentError, match=r"activation 'hidden' is NaN or infinite") as caught:
        collect_stats(model, ("image", "hidden"), small_images, bins, 2)
    assert "model.mean" in caught.value.remedy


def test_one_image_is_enough_for_every_method(model, images, configs):
    one = CalibrationImages.of(images.images, np.array([5]))
    for method, config in configs.items():
        found = calibrate(model, one, Config(calibration=config))
        minmax = found.stats
        for name, (low, high) in found.ranges.items():
            assert np.isfinite([low, high]).all(), (method, name)
            assert found.params[name].scale > 0, (method, name)
            if name in minmax:
                assert minmax[name].low <= low <= high <= minmax[name].high, (method, name)
