"""Which model is recommended, and the tests behind it, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import recommendation
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.recommendation import RULES, Model, choose, holm, models_of, recommend, shortfalls


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
    answer = recommend(models_of(evidence), limits)
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
    small, tiny = answer.tests.values()
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
    assert [model.job.folder for model in answer.tests] == ["other"]


def test_without_labels_the_interval_decides_and_the_rule_says_so() -> None:
    evidence = _evidence({"best": list(range(30)), "small": list(range(19)), "near": list(range(20))})
    evidence.labels = None
    answer = _answer(evidence)
    assert (answer.qualified, answer.compared, answer.tests) == (2, 3, {})
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
    assert recommend(models_of(Evidence([])), {}) is None


def test_flash_and_ram_are_the_targets_where_it_was_measured() -> None:
    row = RunResult(weights_bytes=1, peak_activation_bytes=2, accuracy_delta=-0.015)
    needs = [
        Model(Job(0, "x", each), (), None).needs
        for each in (row, dataclasses.replace(row, tflite_bytes=3, arena_bytes=4), RunResult())
    ]
    assert [*map(list, map(dict.values, needs))] == [[1, 2, 1.5], [3, 4, 1.5], [None, None, None]]


RUNS = st.lists(
    st.tuples(st.sets(st.integers(0, 39), min_size=20), *[st.integers(1, 4)] * 3, st.booleans()), min_size=1, max_size=7
)


@given(RUNS, st.booleans(), st.dictionaries(st.sampled_from(("flash", "ram")), st.integers(0, 4)))
def test_limits_choose_as_if_there_were_no_other_models(
    runs: list[tuple[set[int], int, int, int, bool]], labels: bool, limits: dict[str, float]
) -> None:
    right = {str(place): sorted(images) for place, (images, *_) in enumerate(runs)}
    rows = {
        str(place): {"model_bytes": size, "weights_bytes": flash, "peak_activation_bytes": ram, "portable": portable}
        for place, (_, size, flash, ram, portable) in enumerate(runs)
    }
    within = [
        name
        for name, row in rows.items()
        if row["weights_bytes"] <= limits.get("flash", 9) and row["peak_activation_bytes"] <= limits.get("ram", 9)
    ]
    every = _evidence(right, **rows)
    alone = _evidence({name: right[name] for name in within}, **rows)
    if not labels:
        every.labels = alone.labels = None
    answer, expected = recommend(models_of(every), limits), recommend(models_of(alone), {})
    assert (answer is None) == (expected is None) == (not within)
    if answer is not None and expected is not None:
        values = ("basis", "fitting", "compared", "qualified", "portable")
        assert [getattr(answer, value) for value in values] == [getattr(expected, value) for value in values]
        assert [answer.job.folder, answer.best.job.folder] == [expected.job.folder, expected.best.job.folder]
        assert [(test.p, test.holm) for test in answer.tests.values()] == [
            (test.p, test.holm) for test in expected.tests.values()
        ]


def test_points_lost_take_the_place_of_the_test() -> None:
    right = {"best": list(range(40)), "small": list(range(30)), "tiny": list(range(20))}
    rows: dict[str, dict[str, object]] = {
        name: {"model_bytes": len(images), "accuracy_delta": len(images) / 40 - 1} for name, images in right.items()
    }
    evidence = _evidence(right, **rows)
    assert _answer(evidence).job.folder == "best"
    for lost, chosen in ((0, "best"), (24.9, "best"), (25, "small"), (50, "tiny")):
        answer = _answer(evidence, lost=lost)
        assert (answer.job.folder, answer.basis) == (chosen, "loss")


def _needs(flash: int, ram: int, lost: float = 0) -> Model:
    return Model(
        Job(0, "x", RunResult(weights_bytes=flash, peak_activation_bytes=ram, accuracy_delta=-lost / 100)), (), None
    )


@pytest.mark.parametrize(
    ("needs", "limits", "expected"),
    [
        ([(50, 5), (60, 4)], {"flash": 40}, ({"flash": 50}, True)),
        ([(50, 5), (60, 4)], {"flash": 50, "ram": 4}, ({"flash": 60, "ram": 5}, True)),
        ([(50, 5), (60, 4)], {"flash": 40, "ram": 5}, ({"flash": 50}, True)),
        ([(50, 5), (60, 4)], {"flash": 40, "ram": 3}, ({"flash": 50, "ram": 4}, False)),
        ([(1, 9, 9), (9, 1, 9), (9, 9, 1)], {"flash": 1, "ram": 1, "lost": 1}, ({}, False)),
    ],
)
def test_what_a_limit_would_have_to_be(
    needs: list[tuple[int, ...]], limits: dict[str, float], expected: tuple[dict[str, float], bool]
) -> None:
    models = [_needs(*need) for need in needs]
    assert not any(model.fits(limits) for model in models)
    assert shortfalls(models, limits) == expected
    assert shortfalls([Model(Job(0, "x", RunResult()), (), None)], limits)[0] == dict.fromkeys(limits)
