"""sweep.json, and the folder that a command means: a new one, one to resume, or none that it may touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.plan import (
    Plan,
    asked_to_resume,
    check_kind,
    command_overrides,
    folder_to_resume,
    new_folder,
    read_plan,
    write_plan,
)


def test_plan_is_read_back_and_damage_is_no_plan(tmp_path: Path) -> None:
    plan = Plan(("a=1,2",), 2, 1, pid=7)
    assert read_plan(tmp_path) is None
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    for text in ("", "[]", '{"overrides": 3}', '{"overrides": [], "unknown": 1}'):
        (tmp_path / "sweep.json").write_text(text)
        assert read_plan(tmp_path) is None


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["a=1"], None),
        (["resume=true"], "true"),
        (["++resume=True"], "true"),
        (["resume=false"], None),
        (["resume=null"], None),
        (["resume='a folder'"], "a folder"),
    ],
)
def test_what_resume_asks_for(words: list[str], value: str | None) -> None:
    assert asked_to_resume(words) == value
    assert not any("resume" in word for word in command_overrides(words))


def test_launcher_and_folder_do_not_make_another_command() -> None:
    words = ["a=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+hydra.sweep.dir=x", "hydra.mode=MULTIRUN"]
    assert command_overrides(words) == ("a=1", "hydra.mode=MULTIRUN")


def test_resume_given_twice_or_swept_is_refused() -> None:
    with pytest.raises(ExperimentError, match="twice"):
        asked_to_resume(["resume=true", "resume=a"])
    with pytest.raises(ExperimentError, match="one folder"):
        asked_to_resume(["resume=a,b"])


def test_the_newest_sweep_of_the_same_words_is_resumed(tmp_path: Path) -> None:
    for name, words in (("2026-01-01", ("a=1",)), ("2026-01-02", ("a=1",)), ("2026-01-03", ("a=2",))):
        write_plan(Plan(words, 1, 0), new_folder(tmp_path / name, explicit=False))
    (tmp_path / "file").write_text("")
    found = folder_to_resume("true", ("a=1",), tmp_path / "2026-01-04", explicit=False)
    assert found == tmp_path / "2026-01-02"
    with pytest.raises(ExperimentError, match="no sweep in"):
        folder_to_resume("true", ("a=3",), tmp_path / "2026-01-04", explicit=False)
    assert folder_to_resume("true", ("a=3",), tmp_path / "mine", explicit=True) == tmp_path / "mine"
    assert folder_to_resume(str(tmp_path / "2026-01-03"), ("b=1",), tmp_path, explicit=False).name == "2026-01-03"
    for value in (str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(ExperimentError, match=r"is not a folder|is no sweep's folder"):
            folder_to_resume(value, ("a=1",), tmp_path, explicit=False)
    with pytest.raises(ExperimentError, match=r"but `hydra\.sweep\.dir` is"):
        folder_to_resume(str(tmp_path / "2026-01-03"), ("b=1",), tmp_path / "2026-01-02", explicit=True)


@pytest.mark.parametrize(("jobs", "kind", "other"), [(None, "a search", "a grid"), (2, "a grid", "a search")])
def test_a_grid_and_a_search_have_folders_of_their_own(jobs: int | None, kind: str, other: str, tmp_path: Path) -> None:
    write_plan(Plan(("quant=int8,u8s8", "hydra.mode=MULTIRUN"), jobs, 0), tmp_path)
    check_kind(tmp_path, search=jobs is None)
    with pytest.raises(ExperimentError, match=f"holds {kind}, this is {other}") as refused:
        check_kind(tmp_path, search=jobs is not None)
    assert "hydra.sweep.dir=FOLDER" in refused.value.remedy
    assert f"python run.py -m quant=int8,u8s8 resume={tmp_path}" in refused.value.remedy


def test_the_memory_of_a_search_alone_tells_its_folder(tmp_path: Path) -> None:
    for search in (True, False):  # an empty folder and one that is not there are anyone's
        check_kind(tmp_path, search)
        check_kind(tmp_path / "absent", search)
    (tmp_path / "search.db").touch()
    check_kind(tmp_path, search=True)
    with pytest.raises(ExperimentError, match="holds a search"):
        check_kind(tmp_path, search=False)
    write_plan(Plan((), 2, 0), tmp_path)  # as a grid left it that an earlier version did not refuse
    check_kind(tmp_path, search=True)


def test_sweeps_of_one_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    wanted = tmp_path / "2026-01-01_00-00-00.000000"  # also when the clock is set back and shows a time again
    folders = [new_folder(wanted, explicit=False) for _ in range(3)]
    assert len({*folders}) == 3
    assert all(folder.is_dir() for folder in folders)
