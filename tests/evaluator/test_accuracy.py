"""predict against NumPy, and what the cache does with entries that are not what it wrote."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from resnet8_quant.config import EvaluationConfig, Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator import accuracy
from resnet8_quant.evaluator.accuracy import evaluate, predict
from resnet8_quant.inputs.dataset import Split

RUN = {"batch_size": 5, "threads": 1}


def scores(images, weights):
    return images.reshape(-1, 12).astype(np.float64) @ weights


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 100),
    batch=st.none() | st.integers(1, 40),
    batch_size=st.integers(1, 120),
    threads=st.integers(0, 40),
    layout=st.sampled_from([Layout.NHWC, Layout.NCHW]),
    normalised=st.booleans(),
)
def test_predictions_and_ties_are_numpys(classifier, seed, count, batch, batch_size, threads, layout, normalised):
    """Small integers and powers of two, so that sums are exact in any order; classes 0 and 1 always agree."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    weights = rng.integers(-8, 9, (12, 4)).astype(np.float32)[:, [0, 0, 1, 2]]
    mean, std = ((1.0, 2.0, 4.0), (1.0, 2.0, 0.5)) if normalised else ((0.0,) * 3, (1.0,) * 3)
    model, input_spec = classifier(weights, batch, layout, mean=mean, std=std)
    predictions = predict(model, input_spec, images, batch_size=batch_size, threads=threads)
    pixels = (images - np.array(mean)) / np.array(std)
    expected = scores(pixels.transpose(0, 3, 1, 2) if layout is Layout.NCHW else pixels, weights)
    np.testing.assert_array_equal(predictions.labels, expected.argmax(1))
    assert predictions.labels.dtype == np.int64
    assert predictions.ties == ((expected == expected.max(1, keepdims=True)).sum(1) > 1).sum()


def test_the_first_image_that_fails_is_named_whichever_batch_ends_first(classifier, images, weights):
    many = np.maximum(np.concatenate([images] * 20), 1)
    many[[213, 400]] = 0
    weights[:] = np.inf  # inf * 0 is NaN
    with pytest.raises(ExperimentError, match="NaN for image 213"):
        predict(*classifier(weights), many, batch_size=5, threads=4)


def judge(model_and_spec, images, labels=None, cache=None, class_names=None, **options):
    """``evaluate`` with labels that do not matter, and the options of ``RUN``."""
    model = SimpleNamespace(serialized=model_and_spec[0], input_spec=model_and_spec[1])
    split = Split(images, np.zeros(len(images), np.int64) if labels is None else labels)
    return evaluate(model, split, EvaluationConfig(**(RUN | options)), cache=cache, class_names=class_names)


def test_evaluate_judges_predictions_by_their_labels(classifier, images, weights):
    expected = scores(images, weights).argmax(1)
    labels = expected.copy()
    labels[labels == 2] = 1  # class 2 has no image
    labels[:4] = 1
    evaluation = judge(classifier(weights), images, labels, class_names=["a", "b", "c", "d"])
    np.testing.assert_array_equal(evaluation.predictions, expected)
    assert evaluation.accuracy == np.mean(expected == labels) < 1
    assert list(evaluation.per_class) == ["a", "b", "c", "d"]
    assert evaluation.per_class["b"] == np.mean(expected[labels == 1] == 1)
    assert np.isnan(evaluation.per_class["c"])
    assert judge(classifier(weights), images).class_names == ("0", "1", "2", "3")


def test_infinity_is_a_prediction(classifier, images, weights):
    weights[:, 2] = np.inf
    assert set(predict(*classifier(weights), np.maximum(images, 1), **RUN).labels.tolist()) == {2}


def test_a_model_that_does_not_fit_is_a_user_error(classifier, images, weights, capfd):
    (model, spec), (ten, ten_classes), (one, _) = (
        classifier(weights, **options) for options in ({}, {"classes": 10}, {"batch": 1})
    )
    for serialized, input_spec, message in (
        (b"", spec, r"cannot load the model: [^\n]*ONNXRuntimeError"),
        (b"not a model", spec, r"cannot load the model: [^\n]*ONNXRuntimeError"),
        (ten, ten_classes, r"shape \[5, 4\].*expected \[5, 10\]"),
        (one, spec, r"batch of shape \[5, 2, 2, 3\].*\n.*batch_size=1"),
    ):
        with pytest.raises(ExperimentError, match=message):
            predict(serialized, input_spec, images, **RUN)
    assert capfd.readouterr() == ("", "")
    assert len(predict(model, spec, images, **RUN).labels) == len(images)


def test_what_changes_a_prediction_has_its_own_entry(classifier, images, weights, monkeypatch, tmp_path):
    def is_computed(model_and_spec, some_images=images, **changed):
        return judge(model_and_spec, some_images, cache=tmp_path, **changed).seconds > 0

    for model_and_spec, some_images, changed in (
        (classifier(weights), images, {}),
        (classifier(weights + 1), images, {}),
        (classifier(weights, mean=(1.0, 2.0, 3.0)), images, {}),
        (classifier(weights, std=(1.0, 2.0, 3.0)), images, {}),
        (classifier(weights), images[:22], {}),
        (classifier(weights), images[1:], {}),
        (classifier(weights), images, {"batch_size": 6}),
    ):
        assert is_computed(model_and_spec, some_images, **changed)
        assert not is_computed(model_and_spec, some_images, **changed)
    assert not is_computed(classifier(weights), threads=2)  # it changes none
    monkeypatch.setattr(accuracy, "cpu_description", lambda: "another CPU")
    assert is_computed(classifier(weights))
    assert len(list((tmp_path / "predictions").glob("*.npz"))) == 8


DAMAGE = {
    "no labels": {"labels": None},
    "too short": {"labels": np.zeros(22, np.int64)},
    "a table": {"labels": np.zeros((23, 1), np.int64)},
    "floats": {"labels": np.zeros(23)},
    "class too large": {"labels": np.full(23, 4, np.int64)},
    "class negative": {"labels": np.full(23, -1, np.int64)},
    "ties negative": {"ties": np.array([-1])},
    "too many ties": {"ties": np.array([24])},
    "ties twice": {"ties": np.array([0, 0])},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unusable_entry_is_computed_anew_and_replaced(classifier, images, weights, tmp_path, damage):
    """Another content under the right key."""
    weights = weights[:, [0, 0, 1, 2]]  # with ties
    expected = judge(classifier(weights), images, cache=tmp_path)
    (entry,) = (tmp_path / "predictions").glob("*.npz")
    arrays = {"labels": np.zeros(23, np.int64), "ties": np.array([0])} | DAMAGE[damage]
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(entry, key=np.array(entry.stem), **arrays)
    for is_computed in (True, False):
        evaluation = judge(classifier(weights), images, cache=tmp_path)
        np.testing.assert_array_equal(evaluation.predictions, expected.predictions)
        assert evaluation.ties == expected.ties > 0
        assert (evaluation.seconds > 0) == is_computed


def test_a_failure_leaves_no_entry(classifier, images, weights, tmp_path):
    weights[:] = np.nan
    with pytest.raises(ExperimentError, match="NaN"):
        judge(classifier(weights), images, cache=tmp_path)
    assert not list((tmp_path / "predictions").glob("*.npz"))


def with_output(model_and_spec, node, shape):
    """The classifier with one more node behind it, whose int64 output is the model's."""
    model = onnx.load_from_string(model_and_spec[0])
    model.graph.node.append(node)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT64, shape))
    return model.SerializeToString(), model_and_spec[1]


@pytest.mark.parametrize("batch", [None, 7])
def test_a_label_is_a_prediction_without_ties(classifier, images, weights, batch):
    argmax = helper.make_node("ArgMax", ["scores"], ["label"], axis=-1, keepdims=0)
    predictions = predict(*with_output(classifier(weights, batch), argmax, [batch or "batch"]), images, **RUN)
    np.testing.assert_array_equal(predictions.labels, predict(*classifier(weights, batch), images, **RUN).labels)
    assert predictions.labels.dtype == np.int64
    assert predictions.ties is None


def test_a_label_from_the_cache_is_without_ties_too(classifier, images, weights, tmp_path):
    argmax = helper.make_node("ArgMax", ["scores"], ["label"], axis=-1, keepdims=0)
    labels_only = with_output(classifier(weights), argmax, ["batch"])
    computed, cached = (judge(labels_only, images, cache=tmp_path) for _ in range(2))
    assert computed.ties is cached.ties is None
    assert computed.seconds > cached.seconds == 0


def test_scores_in_int64_are_no_labels(classifier, images, weights):
    """[N, classes] is what it is, whatever its type."""
    cast = helper.make_node("Cast", ["scores"], ["whole"], to=onnx.TensorProto.INT64)
    predictions = predict(*with_output(classifier(weights), cast, ["batch", 4]), images, **RUN)
    np.testing.assert_array_equal(predictions.labels, scores(images, weights).argmax(1))
    assert predictions.ties == 0
