"""Before a sweep starts: sweep.json, and the folder that a command means, a new one, one to resume, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.grid import varied_keys
from resnet8_quant.sweep.plan import Plan, asked_to_resume, choose_folder, command_overrides, read_plan, write_plan


def test_plan_is_read_back_and_damage_is_no_plan(tmp_path: Path) -> None:
    plan = Plan(("a=1,2",), 2, 1, pid=7)
    assert read_plan(tmp_path) is None
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    for text in ("", "[]", '{"overrides": 3}', '{"overrides": [], "unknown": 1}'):
        (tmp_path / "sweep.json").write_text(text)
        assert read_plan(tmp_path) is None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=1", None),
        ("resume=true", "true"),
        ("++resume=True", "true"),
        ("resume=false", None),
        ("resume=null", None),
        ("resume='a folder'", "a folder"),
    ],
)
def test_what_resume_asks_for(word: str, value: str | None) -> None:
    assert asked_to_resume([word]) == value
    assert command_overrides([word]) == (("a=1",) if word == "a=1" else ())


def test_launcher_and_folder_do_not_make_another_command() -> None:
    words = ["a=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+hydra.sweep.dir=x", "hydra.mode=MULTIRUN"]
    assert command_overrides(words) == ("a=1", "hydra.mode=MULTIRUN")


@pytest.mark.parametrize(("words", "problem"), [("resume=true resume=a", "twice"), ("resume=a,b", "one folder")])
def test_resume_given_twice_or_swept_is_refused(words: str, problem: str) -> None:
    with pytest.raises(ExperimentError, match=problem):
        asked_to_resume(words.split())


def test_keys_that_vary() -> None:
    jobs = [["a=1", "+b=1", "c=2"], ["a=1", "+b=2", "c=2"], ["a=1", "+b=2", "c=2", "d=1"]]
    assert varied_keys(jobs) == ("b",)


def test_the_newest_sweep_of_the_same_words_is_resumed(tmp_path: Path) -> None:
    for name, words in (("2026-01-01", ("a=1",)), ("2026-01-02", ("a=1",)), ("2026-01-03", ("a=2",))):
        plan = Plan(words, 1, 0)
        write_plan(plan, choose_folder(plan, None, tmp_path / name, explicit=False))
    (tmp_path / "file").write_text("")
    new, third, plan = tmp_path / "2026-01-04", tmp_path / "2026-01-03", Plan(("a=3",), 1, 0)
    assert choose_folder(Plan(("a=1",), 1, 0), "true", new, explicit=False) == tmp_path / "2026-01-02"
    assert choose_folder(plan, "true", new, explicit=True) == new
    assert choose_folder(plan, str(third), new, explicit=False) == third
    for value, place, explicit, problem in (
        ("true", new, False, "no sweep in"),
        (str(tmp_path / "absent"), new, False, "is not a folder"),
        (str(tmp_path), new, False, "is no sweep's folder"),
        (str(third), new, True, r"but `hydra\.sweep\.dir` is"),
        (None, third, True, "holds a sweep already"),
    ):
        with pytest.raises(ExperimentError, match=problem):
            choose_folder(plan, value, place, explicit)


@pytest.mark.parametrize(("jobs", "held", "asked"), [(None, "a search", "a grid"), (2, "a grid", "a search")])
def test_a_grid_and_a_search_have_folders_of_their_own(jobs: int | None, held: str, asked: str, tmp_path: Path) -> None:
    plan, other = (Plan(("quant=int8,u8s8", "hydra.mode=MULTIRUN"), count, 0) for count in (jobs, None if jobs else 2))
    write_plan(plan, tmp_path)
    assert choose_folder(plan, "true", tmp_path, explicit=True) == tmp_path
    with pytest.raises(ExperimentError, match=f"holds {held}, this is {asked}") as refused:
        choose_folder(other, None, tmp_path, explicit=True)
    assert "hydra.sweep.dir=FOLDER" in refused.value.remedy
    assert f"python run.py -m quant=int8,u8s8 resume={tmp_path}" in refused.value.remedy


def test_the_memory_of_a_search_alone_tells_its_folder(tmp_path: Path) -> None:
    search, grid = Plan((), None, 0), Plan((), 2, 0)
    for plan in (search, grid):  # an empty folder and one that is not there are anyone's
        for folder in (tmp_path, tmp_path / "absent"):
            assert choose_folder(plan, None, folder, explicit=True) == folder
    (tmp_path / "search.db").touch()
    assert choose_folder(search, None, tmp_path, explicit=True) == tmp_path
    with pytest.raises(ExperimentError, match="holds a search"):
        choose_folder(grid, None, tmp_path, explicit=True)
    write_plan(grid, tmp_path)  # as a grid left it that an earlier version did not refuse
    assert choose_folder(search, None, tmp_path, explicit=True) == tmp_path


def test_sweeps_of_one_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    default = tmp_path / "2026-01-01_00-00-00.000000"  # also when the clock is set back and shows a time again
    folders = [choose_folder(Plan((), 1, 0), None, default, explicit=False) for _ in range(3)]
    assert len({*folders}) == 3
    assert all(folder.is_dir() for folder in folders)


def test_help_imports_nothing_heavy() -> None:
    """Start-up is part of every command; these alone take longer than the rest."""
    heavy = ("filelock", "matplotlib", "numpy", "onnx", "onnxruntime", "optuna", "pandas", "rich", "scipy")
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("heavy:", [name for name in {heavy!r} if name in sys.modules]))
sys.argv = ["run.py", "--help"]
runpy.run_path("run.py", run_name="__main__")
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert "samples_per_class" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_job_of_a_grid_is_composed_once(tmp_path: Path) -> None:
    """Composing is a good part of the time of a short job; Hydra by itself does it twice."""
    words = ["-m", "quant=int8,uint8,u8s8", "data=sample", "latency.runs=0", "calibration.samples_per_class=1"]
    code = f"""
import atexit, runpy, sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
compose, count = ConfigLoaderImpl.load_sweep_config, []
ConfigLoaderImpl.load_sweep_config = lambda *arguments: count.append(1) or compose(*arguments)
atexit.register(lambda: print("composed:", len(count)))
sys.argv = ["run.py", *{words!r}, "cache_dir={tmp_path}/cache", "hydra.sweep.dir={tmp_path}/sweep"]
runpy.run_path("run.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "composed: 3", done.stderr
