"""Which run is recommended, and the tests behind it, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.answer import PAIRED, PORTABLE, UNPAIRED, choose, holm, recommend
from resnet8_quant.sweep.report.evidence import Evidence, gather

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]


def _evidence(right: dict[str, list[int]], **rows: dict[str, object]) -> Evidence:
    """Runs by name with the images that each gets right out of 40."""
    labels = np.zeros(40, np.int64)
    jobs, answers = [], []
    for number, (name, images) in enumerate(right.items()):
        given = np.ones(40, np.int16)
        given[images] = 0
        values: dict[str, object] = {"model_bytes": 100, "latency_us_median": 10.0, **rows.get(name, {})}
        row = RunResult(quant_type=name, accuracy=len(images) / 40, accuracy_ci_low=0.5, **values)  # type: ignore[arg-type]
        jobs.append(Job(number, name, row))
        answers.append(given)
    return Evidence(jobs, list(answers), labels)


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
    answer = recommend(evidence)
    assert answer is not None
    assert (answer.job.folder, answer.best.folder) == ("small", "best")
    assert (answer.qualified, answer.compared) == (2, 3)
    small, tiny = answer.tests
    assert (small.to_wrong, small.to_right, small.p, small.holm) == (1, 0, 1.0, 1.0)
    assert (tiny.to_wrong, tiny.to_right) == (20, 0)
    assert tiny.p == mcnemar_p(20, 0)
    assert tiny.holm == pytest.approx(2 * tiny.p)
    assert answer.rule.startswith(PAIRED)


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
        answer = recommend(_evidence(right, **rows))
        assert answer is not None
        assert (answer.job.folder, answer.best.folder) == ("middle", "best")
        assert (answer.qualified, answer.portable, answer.compared) == (3, 1, 4)
        assert PORTABLE in answer.rule
    rows["middle"]["portable"] = False
    answer = recommend(_evidence(right, **rows))
    assert answer is not None
    assert (answer.job.folder, answer.qualified, answer.portable) == ("small", 3, 0)
    evidence = _evidence(right, **rows | {"middle": {"model_bytes": 50}})
    evidence.labels = None
    answer = recommend(evidence)
    assert answer is not None
    assert (answer.job.folder, answer.portable) == ("middle", 1)


def test_correction_decides() -> None:
    """Eight to one, p = 0.039, is significant alone and not among many."""
    best = list(range(30))
    other = [*range(8, 30), 35]
    alone = recommend(_evidence({"best": best, "other": other}, other={"model_bytes": 10}))
    assert alone is not None
    assert alone.job.folder == "best"
    many = {f"same{i}": best[1:] for i in range(5)}
    among = recommend(_evidence({"best": best, "other": other, **many}, other={"model_bytes": 10}))
    assert among is not None
    assert among.job.folder == "other"


def _job(name: str, size: int | None, latency: float | None, accuracy: float) -> Job:
    return Job(0, name, RunResult(model_bytes=size, latency_us_median=latency, accuracy=accuracy))


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([_job("small", 1000, 300, 0.8), _job("fast", 1099, 100, 0.8)], "fast"),
        ([_job("small", 1000, 300, 0.8), _job("large", 1101, 100, 0.8)], "small"),
        ([_job("fastest", 1000, 100, 0.8), _job("good", 1000, 104, 0.9)], "good"),
        ([_job("fastest", 1000, 100, 0.8), _job("slow", 1000, 106, 0.9)], "fastest"),
        ([_job("timed", 1000, 100, 0.8), _job("untimed", 1000, None, 0.9)], "timed"),
        ([_job("a", 1000, None, 0.8), _job("b", 1000, None, 0.9)], "b"),
        ([_job("a", None, None, 0.8)], "a"),
        ([_job("larger", 1001, 100, 0.8), _job("smaller", 1000, 100, 0.8)], "smaller"),
    ],
)
def test_smallest_then_fastest_then_best(others: list[Job], chosen: str) -> None:
    assert choose(others).folder == chosen
    assert choose(others[::-1]).folder == chosen


def test_without_labels_the_interval_decides_and_the_rule_says_so() -> None:
    evidence = _evidence({"best": list(range(30)), "small": list(range(19)), "near": list(range(20))})
    evidence.labels = None
    answer = recommend(evidence)
    assert answer is not None
    assert (answer.qualified, answer.compared, answer.tests) == (2, 3, ())
    assert answer.rule.startswith(UNPAIRED)


def test_a_run_without_predictions_is_not_recommended() -> None:
    images = {"best": list(range(31)), "small": list(range(30)), "middle": list(range(30))}
    evidence = _evidence(images, best={"model_bytes": 200}, small={"model_bytes": 10})
    assert recommend(evidence).job.folder == "small"  # type: ignore[union-attr]
    evidence.answers[1] = None
    answer = recommend(evidence)
    assert answer is not None
    assert (answer.job.folder, answer.compared, len(answer.tests)) == ("middle", 2, 1)
    evidence.answers[0] = None
    answer = recommend(evidence)
    assert answer is not None
    assert answer.rule.startswith(UNPAIRED)


def test_nothing_finished_nothing_recommended() -> None:
    assert recommend(Evidence([])) is None


def test_evidence_of_a_grid(grid: list[Job]) -> None:
    evidence = gather(grid)
    assert len(evidence.jobs) == 13
    assert all(answers is not None for answers in evidence.answers)
    assert evidence.labels is not None
    assert evidence.classes[3] == "cat"
    assert (evidence.missing, evidence.notes) == ({}, [])


def test_predictions_that_do_not_fit_the_row_are_not_used(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3)
    np.save(make_run(1, "quant=uint8", 3) / "predictions.npy", np.zeros(1000, np.int64))
    (make_run(2, "quant=u8s8", 3) / "predictions.npy").write_bytes(b"\x93NUMPY broken")
    np.save(make_run(3, "quant=w4a8", 3) / "predictions.npy", np.zeros(999, np.int64))
    np.save(make_run(4, "quant=w4a4", 3) / "predictions.npy", np.array([{}] * 1000), allow_pickle=True)
    (make_run(5, "quant=w3a8", 3) / "predictions.npy").unlink()
    evidence = gather(jobs_of())
    assert [answers is None for answers in evidence.answers] == [False, True, True, True, True, True]
    assert "5 of 6 runs have no predictions.npy" in evidence.notes[0]


def test_other_images_are_not_compared(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3)
    make_run(1, "quant=uint8", 3)
    make_run(2, "quant=u8s8", 3, data_sha256="other")
    evidence = gather(jobs_of())
    assert [job.number for job in evidence.jobs] == [0, 1]
    assert "1 of 3 finished runs are in the table only" in evidence.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"data_sha256": "other"}, "digest"), ({"calibration_overlap": 7}, "not known"), ({"eval_images": 5}, "number")],
)
def test_labels_of_other_images_are_not_used(
    changes: dict[str, object], said: str, make_run: MakeRun, jobs_of: Read
) -> None:
    make_run(0, "quant=int8", 3, **changes)
    evidence = gather(jobs_of())
    assert evidence.labels is None
    assert said in evidence.missing["labels"]


def test_cifar10_is_never_fetched(
    make_run: MakeRun, jobs_of: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet8_quant.inputs import download

    def fetch(*_: object) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setenv("RESNET8_QUANT_CACHE", str(tmp_path / "cache"))
    folder = make_run(0, "quant=int8", 3)
    for content in ('{"config": {"data": {"kind": "cifar10"}, "cache_dir": "/nowhere"}}', '{"config": 3}', "{", "[]"):
        (folder / "run.json").write_text(content)
        loaded = gather(jobs_of())
        assert (loaded.labels is None) == ("cifar10" in content)
    (folder / "run.json").write_text('{"config": {"data": {"kind": "cifar10"}}}')
    assert "not in the cache" in gather(jobs_of()).missing["labels"]


def test_float_answers_of_the_folder_or_of_the_float_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=float", 0)
    (make_run(1, "quant=int8", 3) / "float_predictions.npy").unlink()
    other = make_run(2, "quant=int8 model=other", 3, float_model_sha256="0" * 64)
    (other / "float_predictions.npy").unlink()
    evidence = gather(jobs_of())
    by_number = {job.number: evidence.float_answers(job) for job in evidence.jobs}
    assert np.array_equal(by_number[1], by_number[0])  # type: ignore[arg-type]
    assert by_number[2] is None


def test_twins_do_not_count_as_comparisons(make_run: MakeRun, jobs_of: Read, tmp_path: Path) -> None:
    make_run(0, "quant=float", 0)
    (tmp_path / "sweep" / "1_y").mkdir()
    (tmp_path / "sweep" / "1_y" / "same_as.json").write_text('{"folder": "0_x", "overrides": ["quant=float"]}')
    jobs = jobs_of()
    assert (len(jobs), len(gather(jobs).jobs)) == (2, 1)
