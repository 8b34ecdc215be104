"""Who is called how often and in which order; never how long it takes."""

import gc

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator import latency
from resnet8_quant.evaluator.latency import BLOCK, measure


@pytest.fixture
def calls(monkeypatch):
    """The names of the models in the order of their calls, with the batch that each was given."""
    record = []
    opened = iter("ab")

    class Session:
        def __init__(self):
            self.name = next(opened)

        def get_outputs(self):
            return [self]

        def run(self, outputs, feed):
            assert outputs == [self.name] or not gc.isenabled()  # in the timed part nothing is collected
            record.append((self.name, feed["image"].shape))
            return [feed["image"]]

    monkeypatch.setattr(latency, "open_session", lambda model, threads: Session())
    return record


def test_real_models_are_measured(classifier, images, weights):
    model, contract = classifier(weights)
    result = measure({"float": model, "int8": model}, contract, images, runs=12, warmup=2, threads=1)
    assert list(result) == ["float", "int8"]
    for measured in result.values():
        assert 0 < measured.median_us <= measured.p95_us
        assert (measured.runs, measured.batch) == (12, 1)


def test_zero_runs_measure_nothing(classifier, images, weights, calls):
    model, contract = classifier(weights)
    assert measure({"a": model}, contract, images, runs=0, warmup=5, threads=1) == {}
    assert calls == []


def test_models_alternate_in_blocks_with_one_uncounted_call_each(classifier, images, weights, calls):
    model, contract = classifier(weights)
    result = measure({"a": model, "b": model}, contract, images, runs=2 * BLOCK + 3, warmup=4, threads=1)
    order = "".join(name for name, _ in calls)
    full, rest = BLOCK + 1, 3 + 1
    assert order == "a" * 4 + "b" * 4 + "a" * full + "b" * full * 2 + "a" * full + "a" * rest + "b" * rest
    assert {measured.runs for measured in result.values()} == {2 * BLOCK + 3}


@pytest.mark.parametrize(("batch", "expected"), [(None, 1), (1, 1), (3, 3), (50, 50)])
def test_batch_is_one_or_the_fixed_one(classifier, images, weights, calls, batch, expected):
    model, contract = classifier(weights, batch)
    assert measure({"a": model}, contract, images, runs=2, warmup=0, threads=1)["a"].batch == expected
    assert {shape for _, shape in calls} == {(expected, 2, 2, 3)}


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(classifier, images, weights, enabled):
    model, contract = classifier(weights)
    try:
        (gc.enable if enabled else gc.disable)()
        measure({"a": model}, contract, images, runs=1, warmup=0, threads=1)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_model_that_cannot_run_is_a_user_error(classifier, images, weights):
    model, _ = classifier(weights, batch=2)
    _, contract = classifier(weights)
    with pytest.raises(ExperimentError, match="cannot run the model"):
        measure({"a": model}, contract, images, runs=1, warmup=0, threads=1)
