"""Runs found below any folder: what is damaged becomes a failed row that says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import irregular
import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, collect, collect_all, settings, varied
from resnet8_quant.sweep.folders import is_whole
from resnet8_quant.sweep.plan import read_plan


def _run(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True)
    results.write(RunResult(**{"quant_type": "int8", "accuracy": 0.8, **values}), folder)
    return folder


def _only(folder: Path, file: str, content: str | bytes) -> Job:
    """The job of a sweep whose one job has one file."""
    (folder / "3_x").mkdir()
    (folder / "3_x" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (job,) = collect(folder, None)
    assert (job.number, job.row.status) == (3, "failed")
    return job


def _states(jobs: list[Job]) -> list[tuple[int | None, str]]:
    return [(job.number, job.row.status) for job in jobs]


def test_jobs_of_a_sweep_by_number(tmp_path: Path) -> None:
    _run(tmp_path / "10_z")
    _run(tmp_path / "2_y")
    (tmp_path / "0_x").mkdir()
    (tmp_path / "notes").mkdir()
    assert _states(collect(tmp_path, None)) == [(0, "failed"), (2, "ok"), (10, "ok")]
    jobs = collect(tmp_path, 4)
    assert _states(jobs) == [(0, "failed"), (1, "failed"), (2, "ok"), (3, "failed"), (10, "ok")]
    assert "killed" in (jobs[0].row.error or "")
    assert "never started" in (jobs[1].row.error or "")


def test_killed_job_has_the_overrides_of_its_plan(tmp_path: Path) -> None:
    plan = {"digest": "abc", "overrides": ["quant=int8", "data.path=a b"], "number": 7}
    assert settings(_only(tmp_path, "job.json", json.dumps(plan)).row) == {"quant": "int8", "data.path": "a b"}


@pytest.mark.parametrize("plan", ["", "[1]", '{"overrides": 3, "number": true}', '{"number": "x"}'])
def test_damaged_plan_is_no_plan(plan: str, tmp_path: Path) -> None:
    assert _only(tmp_path, "job.json", plan).row.overrides is None


def test_jobs_of_an_earlier_start_stay_if_they_are_good(tmp_path: Path) -> None:
    _run(tmp_path / "00_a")
    _run(tmp_path / "01_b", status="failed")
    _run(tmp_path / "02_c", status="failed")
    assert [job.folder for job in collect(tmp_path, None)] == ["00_a", "01_b", "02_c"]
    (tmp_path / "jobs.csv").write_text("0,02_c,seed=1\n2,02_c,seed=1\n")  # job 1 of 0 to 3 never started, nor did 3
    jobs = collect(tmp_path, 4)
    assert [(job.number, job.folder) for job in jobs] == [(0, "00_a"), (1, "1_"), (2, "02_c"), (3, "3_")]
    assert ["never started" in (job.row.error or "") for job in jobs] == [False, True, False, True]


def test_older_schema_is_named_with_a_remedy(tmp_path: Path) -> None:
    columns = [name for name in results.COLUMNS if name not in ("quant_ties", "float_ties")]
    values = ["1" if name == "schema_version" else "" for name in columns]
    error = _only(tmp_path, "results.csv", f"{','.join(columns)}\n{','.join(values)}\n").row.error or ""
    assert f"schema version 1, this resnet8-quant reads {results.SCHEMA_VERSION}" in error
    assert "run that job again" in error


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"a,b\n1,2\n", b"schema_version\n\x00\n", b"x" * 200_000],
    ids=["empty", "binary", "foreign", "null", "one long field"],
)
def test_damaged_row_is_failed_without_the_path(content: bytes, tmp_path: Path) -> None:
    error = _only(tmp_path, "results.csv", content).row.error or ""
    assert "results.csv" in error
    assert str(tmp_path) not in error
    assert "run that job again" in error
    _run(tmp_path / "4_good")
    assert _states(collect(tmp_path, None)) == [(3, "failed"), (4, "ok")]


IMPOSSIBLE = [("accuracy", math.nan), ("accuracy", 1.5), ("accuracy", -0.1), ("mcnemar_p", math.inf)]


@pytest.mark.parametrize(("column", "value"), [*IMPOSSIBLE, ("model_bytes", 0), ("latency_us_median", -1.0)])
def test_impossible_number_fails_its_run(column: str, value: float, tmp_path: Path) -> None:
    _run(tmp_path / "0_x", **{column: value})
    (job,) = collect(tmp_path, 1)
    assert job.row.status == "failed"
    assert f"column `{column}` holds {value}" in (job.row.error or "")


def test_smallest_possible_numbers_pass(tmp_path: Path) -> None:
    row = RunResult(accuracy=0.0, float_accuracy=1.0, model_bytes=1, latency_us_median=0.1, accuracy_delta=-1.0)
    _run(tmp_path / "0_x", **vars(row))
    assert collect(tmp_path, 1)[0].row == row


def test_all_runs_below_folders_once_each_in_order(tmp_path: Path) -> None:
    for name in ("sweeps/b/10_x", "sweeps/b/2_x", "sweeps/a/0_x", "runs/2026-01-01_00-00-00"):
        _run(tmp_path / name)
    (tmp_path / "sweeps" / "a" / "1_x" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweeps" / "a" / "plots").mkdir()
    (tmp_path / "sweeps" / "a" / ".cache" / "0_hidden").mkdir(parents=True)
    jobs = collect_all([tmp_path / "sweeps", tmp_path, tmp_path / "sweeps" / "a"])
    shown = [str(Path(job.folder).relative_to(tmp_path)) for job in jobs]
    names = ["sweeps/a/0_x", "sweeps/a/1_x", "sweeps/b/2_x", "sweeps/b/10_x", "runs/2026-01-01_00-00-00"]
    assert shown == names
    assert [job.number for job in jobs] == [0, 1, 2, 10, None]
    assert [job.label for job in jobs[:3]] == ["Job 0 of a", "Job 1 of a", "Job 2 of b"]
    assert jobs[1].row.status == "failed"


def test_labels_name_the_sweep_where_there_are_several(tmp_path: Path) -> None:
    _run(tmp_path / "here/s/0_x")
    _run(tmp_path / "here/s/1_x")
    assert [job.label for job in collect_all([tmp_path])] == ["Job 0", "Job 1"]
    _run(tmp_path / "there" / "s" / "0_x")
    assert len({job.label for job in collect_all([tmp_path])}) == 3  # though the sweeps have one name


def test_a_link_that_leads_in_a_circle_ends(tmp_path: Path) -> None:
    _run(tmp_path / "sweep" / "0_x")
    (tmp_path / "sweep" / "again").symlink_to(tmp_path)
    assert len(collect_all([tmp_path])) == 1


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    _run(tmp_path / "out2" / "0_x")
    _run(tmp_path / "out" / "1_y")
    (tmp_path / "out2" / "more").mkdir()
    (tmp_path / "out2" / "more" / "link").symlink_to(tmp_path / "out")  # whose name begins like its own
    assert [job.number for job in collect_all([tmp_path / "out2"])] == [0, 1]


def test_a_run_folder_itself(tmp_path: Path) -> None:
    folder = _run(tmp_path / "out")
    assert _states(collect_all([folder])) == [(None, "ok")]


def test_nothing_to_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no run below"):
        collect_all([tmp_path])
    with pytest.raises(ExperimentError, match="is not a folder"):
        collect_all([tmp_path / "absent"])


def test_overrides_that_cannot_be_read_are_none() -> None:
    assert settings(RunResult(overrides="a='b")) == {}


def test_varied_keys_in_the_order_of_appearance() -> None:
    jobs = [Job(0, "", RunResult(overrides="b=1 a=1 c=1")), Job(1, "", RunResult(overrides="b=2 a=1 c=2 d=1"))]
    assert varied(jobs) == ["b", "c", "d"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["results.csv", "run.json", "job.json", "jobs.csv", "sweep.json"])
def test_a_record_that_was_replaced_is_not_read(tmp_path: Path, kind: str, name: str) -> None:
    _run(tmp_path / "0_x")
    path = tmp_path / name if name in ("jobs.csv", "sweep.json") else tmp_path / "0_x" / name
    path.unlink(missing_ok=True)
    irregular.put(path, kind)
    (job,) = collect(tmp_path, 1)
    assert job.ok is (name != "results.csv")
    assert read_plan(tmp_path) is None
    assert not is_whole(tmp_path / "0_x", job.row)


def test_deeply_nested_records_are_no_records(tmp_path: Path) -> None:
    _run(tmp_path / "0_x")
    for path in (tmp_path / "sweep.json", tmp_path / "0_x" / "run.json", tmp_path / "0_x" / "job.json"):
        path.write_text("[" * 200_000)
    assert [job.ok for job in collect(tmp_path, 1)] == [True]
    assert read_plan(tmp_path) is None


@pytest.mark.parametrize("wrong", [{"jobs": "many"}, {"jobs": -1}, {"threads": None}, {"pid": "x"}, {"session": 3}])
def test_a_plan_of_wrong_types_is_none(tmp_path: Path, wrong: dict[str, Any]) -> None:
    plan = {"overrides": ["quant=int8"], "jobs": 2, "threads": 1, "pid": 7, "session": "abc"}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    assert read_plan(tmp_path) is not None
    (tmp_path / "sweep.json").write_text(json.dumps(plan | wrong))
    assert read_plan(tmp_path) is None
