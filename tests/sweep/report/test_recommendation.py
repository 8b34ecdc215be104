"""Which model is recommended, and the tests behind it, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import recommendation
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.recommendation import RULES, Model, candidates_of, choose, holm, recommend


def _evidence(right: dict[str, list[int]], **rows: dict[str, object]) -> Evidence:
    """Runs by name with the images that each gets right out of 40."""
    labels = np.zeros(40, np.int64)
    jobs, predictions = [], []
    for number, (name, images) in enumerate(right.items()):
        predicted = np.ones(40, np.int16)
        predicted[images] = 0
        values: dict[str, object] = {"model_bytes": 100, "latency_us_median": 10.0, **rows.get(name, {})}
        row = RunResult(quant_type=name, accuracy=len(images) / 40, accuracy_ci_low=0.5, **values)  # type: ignore[arg-type]
        jobs.append(Job(number, name, row))
        predictions.append(predicted)
    return Evidence(jobs, list(predictions), labels)


def _answer(evidence: Evidence, **limits: float) -> recommendation.Recommendation:
    answer = recommend(candidates_of(evidence), limits)
    assert answer is not None
    return answer


def test_holm_against_a_worked_example() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, each at least the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_smaller_run_that_is_not_worse_wins() -> None:
    evidence = _evidence(
        {"best": list(range(30)), "small": list(range(1, 30)), "tiny": list(range(10))},
        small={"model_bytes": 50},
        tiny={"model_bytes": 10},
    )
    answer = _answer(evidence)
    assert (answer.job.folder, answer.best.job.folder) == ("small", "best")
    assert (answer.qualified, answer.compared) == (2, 3)
    small, tiny = answer.tests
    assert (small.to_wrong, small.to_right, small.p, small.holm) == (1, 0, 1.0, 1.0)
    assert (tiny.to_wrong, tiny.to_right) == (20, 0)
    assert tiny.p == mcnemar_p(20, 0)
    assert tiny.holm == pytest.approx(2 * tiny.p)
    assert answer.basis == "test"


def test_portable_runs_come_first() -> None:
    right = {"best": list(range(30)), "small": list(range(1, 30)), "middle": list(range(1, 30)), "bad": [0]}
    rows: dict[str, dict[str, object]] = {
        "best": {"portable": False},
        "small": {"model_bytes": 10, "portable": False},
        "middle": {"model_bytes": 50, "portable": True},
        "bad": {"model_bytes": 5, "portable": True},  # does not qualify
    }
    for portable in (True, None):  # a row that does not say, as a float model's, counts as portable
        rows["middle"]["portable"] = portable
        answer = _answer(_evidence(right, **rows))
        assert (answer.job.folder, answer.best.job.folder) == ("middle", "best")
        assert (answer.qualified, answer.portable, answer.compared) == (3, 1, 4)
        assert "only the portable ones" in RULES[answer.basis]
    rows["middle"]["portable"] = False
    answer = _answer(_evidence(right, **rows))
    assert (answer.job.folder, answer.qualified, answer.portable) == ("small", 3, 0)
    evidence = _evidence(right, **rows | {"middle": {"model_bytes": 50}})
    evidence.labels = None
    answer = _answer(evidence)
    assert (answer.job.folder, answer.portable) == ("middle", 1)


def test_correction_decides() -> None:
    """Eight to one, p = 0.039, is significant alone and not among many."""
    best = list(range(30))
    other = [*range(8, 30), 35]
    alone = _answer(_evidence({"best": best, "other": other}, other={"model_bytes": 10}))
    assert alone.job.folder == "best"
    many = {f"same{i}": best[1:] for i in range(5)}
    among = _answer(_evidence({"best": best, "other": other, **many}, other={"model_bytes": 10}))
    assert among.job.folder == "other"


def _model(name: str, size: int | None, latency: float | None, accuracy: float) -> Model:
    job = Job(0, name, RunResult(model_bytes=size, latency_us_median=latency, accuracy=accuracy))
    return Model(job, (job,), None)


@pytest.mark.parametrize(
    ("others", "chosen", "timed"),
    [
        ([_model("small", 1000, 300, 0.8), _model("fast", 1099, 100, 0.8)], "fast", 2),
        ([_model("small", 1000, 300, 0.8), _model("large", 1101, 100, 0.8)], "small", 0),
        ([_model("fastest", 1000, 100, 0.8), _model("good", 1000, 104, 0.9)], "good", 0),
        ([_model("fastest", 1000, 100, 0.8), _model("slow", 1000, 106, 0.9)], "fastest", 2),
        ([_model("timed", 1000, 100, 0.8), _model("untimed", 1000, None, 0.9)], "timed", 2),
        ([_model("a", 1000, None, 0.8), _model("b", 1000, None, 0.9)], "b", 0),
        ([_model("a", None, None, 0.8)], "a", 0),
        ([_model("larger", 1001, 100, 0.8), _model("smaller", 1000, 100, 0.8)], "smaller", 0),
    ],
)
def test_smallest_then_fastest_then_best(others: list[Model], chosen: str, timed: int) -> None:
    for order in (others, others[::-1]):
        model, between = choose(order)
        assert (model.job.folder, len(between)) == (chosen, timed)


def test_runs_of_one_model_are_one_candidate_with_the_median_of_their_latencies() -> None:
    """Three runs of one model differ by timing noise alone: the luckiest one must not win for it."""
    right = {name: list(range(30)) for name in ("lucky", "usual", "slow", "other")}
    latencies = {"lucky": 80.0, "usual": 120.0, "slow": 125.0, "other": 100.0}
    rows = {name: {"latency_us_median": us, "model_sha256": "same"} for name, us in latencies.items()}
    rows["other"]["model_sha256"] = "other"
    answer = _answer(_evidence(right, **rows))
    assert (answer.job.folder, answer.qualified, answer.compared, len(answer.tests)) == ("other", 2, 2, 1)
    assert [model.latency for model in answer.timed] == [100.0, 120.0]
    evidence = _evidence(right, **rows | {"other": {"latency_us_median": 130.0, "model_sha256": "other"}})
    evidence.predictions[0] = None  # another run of the model still has them
    answer = _answer(evidence)
    assert (answer.job.folder, [run.folder for run in answer.model.runs]) == ("usual", ["lucky", "usual", "slow"])
    assert answer.test_of(evidence.jobs[3]) is answer.tests[0]


def test_without_labels_the_interval_decides_and_the_rule_says_so() -> None:
    evidence = _evidence({"best": list(range(30)), "small": list(range(19)), "near": list(range(20))})
    evidence.labels = None
    answer = _answer(evidence)
    assert (answer.qualified, answer.compared, answer.tests) == (2, 3, ())
    assert answer.basis == "interval"


def test_a_run_without_predictions_is_not_recommended() -> None:
    images = {"best": list(range(31)), "small": list(range(30)), "middle": list(range(30))}
    evidence = _evidence(images, best={"model_bytes": 200}, small={"model_bytes": 10})
    assert _answer(evidence).job.folder == "small"
    evidence.predictions[1] = None
    answer = _answer(evidence)
    assert (answer.job.folder, answer.compared, len(answer.tests)) == ("middle", 2, 1)
    evidence.predictions[0] = None
    answer = _answer(evidence)
    assert answer.basis == "interval"


def test_nothing_finished_nothing_recommended() -> None:
    assert recommend(candidates_of(Evidence([])), {}) is None
