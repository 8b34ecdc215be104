"""The search with a launcher that makes rows up: proposals, batches, failures, and what a second call continues."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from resnet8_quant import results
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.sweep import search as module
from resnet8_quant.sweep.compose import register
from resnet8_quant.sweep.digest import digest_of
from resnet8_quant.sweep.folders import find_or_make
from resnet8_quant.sweep.grid import compose_job
from resnet8_quant.sweep.plan import Plan
from resnet8_quant.sweep.search import Search, check_search

pytest.importorskip("optuna", reason="needs the extra [search]")

CONF = Path(__file__).resolve().parents[2] / "conf"
GRID = ("quant=int8,u8s8", "calibration.samples_per_class=1,2,3,4", "seed=1,2,3")
Rows = Callable[[dict[str, str]], RunResult | None]


def plausible(words: dict[str, str]) -> RunResult:
    """More images: more accurate and larger; u8s8 is better in both."""
    images, better = int(words["calibration.samples_per_class"]), words["quant"] == "u8s8"
    return RunResult(accuracy=0.8 + images / 100 + better / 10, model_bytes=1000 + 10 * images - better)


def constant(words: dict[str, str]) -> RunResult:
    return RunResult(accuracy=0.5, model_bytes=9)


_composed: dict[tuple[str, ...], Config] = {}


def compose_once(config: Any, words: Sequence[str], loader: Any) -> Config:
    """`compose_job`, which takes 80 ms, once for the same words: the searches below share their space."""
    key = (*config.hydra.overrides.task, *words)
    if key not in _composed:
        _composed[key] = compose_job(config, words, loader)
    return deepcopy(_composed[key])


class Launcher:
    """Takes the words of jobs, and leaves the rows that ``rows`` makes of them."""

    def __init__(self, folder: Path, rows: Rows = plausible, stop_after: int | None = None) -> None:
        self.folder, self.rows, self.stop_after = folder, rows, stop_after
        self.search: Search | None = None
        self.jobs: list[tuple[int, ...]] = []
        self.words: list[tuple[str, ...]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        assert self.search is not None
        self.jobs.append(tuple(range(initial_job_idx, initial_job_idx + len(job_overrides))))
        for job, words in enumerate(job_overrides, initial_job_idx):
            digest = digest_of(compose_once(self.search.config, words, self.search.loader))
            place = self.folder / find_or_make(self.folder, Plan((), None, 0), job, words, digest)
            self.words.append(tuple(words))
            if self.stop_after is not None and len(self.words) > self.stop_after:
                raise KeyboardInterrupt
            row = self.rows(dict(word.split("=", 1) for word in words))
            if row is not None:
                results.write(row, place)
        return []


@pytest.fixture(autouse=True)
def _hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "compose_job", compose_once)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def sweep_config(folder: Path, words: Sequence[str], fields: dict[str, Any]) -> tuple[Any, Any]:
    """The config of a search as Hydra composes it, and what composed it."""
    words = ["hydra/sweeper=optuna", "data=sample", *words]
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", words, RunMode.MULTIRUN, validate_sweep_overrides=False)
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.sweeper.update({"n_trials": 6, "seed": 0, **fields})
    return config, loader


def search(launcher: Any, *words: str, **fields: Any) -> Any:
    """Run a search as Hydra would; the launcher is given back."""
    launcher.search = Search(*sweep_config(launcher.folder, words, fields))
    launcher.search.run(launcher)
    return launcher


def front(folder: Path) -> list[dict[str, str]]:
    with (folder / "pareto.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def states(folder: Path) -> list[tuple[str, Any]]:
    """(state, error) of every trial."""
    import optuna

    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search.db'}")
    return [(trial.state.name, trial.user_attrs.get("error")) for trial in study.get_trials(deepcopy=False)]


def test_no_settings_run_twice_and_the_front_is_what_no_other_beats(tmp_path: Path) -> None:
    launcher = search(Launcher(tmp_path), *GRID, n_trials=100)
    assert len(launcher.words) == len(set(launcher.words)) == 2 * 4 * 3
    best = front(tmp_path)
    assert [row["quant"] for row in best] == ["u8s8"] * 12
    assert [int(row["calibration.samples_per_class"]) for row in best] == sorted([*range(1, 5)] * 3)
    assert (best[0]["accuracy"], best[0]["model_bytes"]) == ("0.91", "1009")
    assert {tmp_path / row["folder"] for row in best} <= set(tmp_path.iterdir())


def test_same_seed_proposes_the_same_and_another_does_not(tmp_path: Path) -> None:
    first, same, other = (
        search(Launcher(tmp_path / name), *GRID, n_trials=12, seed=seed).words
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    )
    assert first == same
    assert first != other


def test_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = search(Launcher(tmp_path / "a"), *GRID, n_trials=13)
    words: list[tuple[str, ...]] = []
    for finished in (0, 3, 6):
        launcher = Launcher(tmp_path / "b", stop_after=finished)
        with pytest.raises(KeyboardInterrupt):
            search(launcher, *GRID, n_trials=13)
        words += launcher.words[:finished]
    assert words + search(Launcher(tmp_path / "b"), *GRID, n_trials=13).words == whole.words
    names = [sorted(path.name for path in (tmp_path / name).glob("[0-9]*")) for name in "ab"]
    assert names[0] == names[1]  # what was interrupted ran again in its folder
    keep = ("job", "accuracy", "model_bytes", "overrides")
    fronts = [[[row[key] for key in keep] for row in front(tmp_path / name)] for name in "ab"]
    assert fronts[0] == fronts[1]


def test_a_row_written_before_the_end_is_not_lost(tmp_path: Path) -> None:
    def written_then_killed(words: dict[str, str]) -> RunResult:
        results.write(plausible(words), next(tmp_path.glob("00_*")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Launcher(tmp_path, written_then_killed), *GRID, n_trials=2)
    assert search(Launcher(tmp_path), *GRID, n_trials=2).jobs == [(1,)]
    assert [state for state, _ in states(tmp_path)] == ["COMPLETE", "COMPLETE"]


def test_settings_that_end_the_search_twice_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = []
    for _ in range(2):
        launcher = Launcher(tmp_path, stop_after=0)
        with pytest.raises(KeyboardInterrupt):
            search(launcher, *GRID, n_trials=2)
        ended += launcher.words
    assert ended[0] == ended[1]
    again = search(Launcher(tmp_path), *GRID, n_trials=2)
    assert len(again.words) == 2
    assert ended[0] not in again.words
    assert "died 2 times" in caplog.text
    assert results.read(next(tmp_path.glob("00_*/results.csv"))).status == "failed"


def test_finished_search_runs_nothing_more_and_a_larger_one_the_difference(tmp_path: Path) -> None:
    for jobs, ran in ((3, [(0,), (1,), (2,)]), (3, []), (5, [(3,), (4,)])):
        assert search(Launcher(tmp_path), *GRID, n_trials=jobs).jobs == ran


def test_batches_have_different_jobs_and_no_more_than_asked_for(tmp_path: Path) -> None:
    launcher = search(Launcher(tmp_path), *GRID, n_trials=7, n_jobs=3)
    assert launcher.jobs == [(0, 1, 2), (3, 4, 5), (6,)]
    assert len(set(launcher.words)) == 7


def test_a_failed_job_is_a_failed_trial_and_not_the_end(tmp_path: Path) -> None:
    def rows(words: dict[str, str]) -> RunResult | None:
        failures = {"1": RunResult(status="failed", error="no luck"), "2": None, "3": RunResult(accuracy=0.5)}
        return failures.get(words["seed"], constant(words))

    search(Launcher(tmp_path, rows), "seed=1,2,3,4", n_trials=4)
    trials = states(tmp_path)
    assert [state for state, _ in trials].count("COMPLETE") == 1
    errors = {error for _, error in trials if error and "the same as trial" not in error}
    assert len(errors) == 3
    assert {"no luck", "its column `model_bytes` is empty"} <= errors
    assert [row["seed"] for row in front(tmp_path)] == ["4"]


def test_a_launcher_that_starts_nothing_is_an_error_and_one_that_stops_is_not(tmp_path: Path) -> None:
    def stops(words: dict[str, str]) -> RunResult:
        raise RuntimeError("worker gone")

    search(Launcher(tmp_path / "a", stops), *GRID, n_trials=2)
    assert [state for state, _ in states(tmp_path / "a")] == ["FAIL", "FAIL"]
    broken = SimpleNamespace(folder=tmp_path / "b", launch=lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search(broken, *GRID, n_trials=2)


def test_illegal_combinations_are_failed_trials_without_a_job(tmp_path: Path) -> None:
    types = ("quant.activation_type=int8,uint8", "quant.weight_type=int8,uint8")
    launcher = search(Launcher(tmp_path, constant), *types, n_trials=4)
    assert len(launcher.words) == 3
    assert not any({"quant.activation_type=int8", "quant.weight_type=uint8"} <= set(words) for words in launcher.words)
    assert [error for state, error in states(tmp_path) if state == "FAIL" and "no kernel" in error]


def test_the_preset_has_no_illegal_combination() -> None:
    from resnet8_quant.validation import validate

    config, loader = sweep_config(Path("unused"), ["experiment=search"], {})
    space = Search(config, loader).space
    chance = random.Random(0)
    for _ in range(20):
        words = space.overrides(space.draw({}, 1.0, chance))
        composed = compose_job(config, words, loader)
        validate(composed)
        assert composed.quant.layers.keys() == {"conv", "stack1.*", "stack2.*", "stack3.*", "dense"}


def test_settings_without_effect_run_once(tmp_path: Path) -> None:
    launcher = search(Launcher(tmp_path, constant), "quant=float", "calibration=minmax,entropy,mse", n_trials=3)
    assert len(launcher.words) == 1


@pytest.mark.parametrize(
    ("words", "fields", "problem"),
    [
        ("quant=int8", {}, "nothing to search"),
        ("seed=1,2 data=arrays data.path=absent.npz", {}, "absent.npz"),
        ("seed=1,2 latency.runs=0", {"minimize": "latency_us_median"}, "latency.runs is 0"),
        ("seed=1,2", {"params": {"quant.layers.dens.weight_bits": "2,4"}}, "'dens' in quant.layers"),
        ("seed=1,2", {"n_trials": -1}, "`hydra.sweeper.n_trials` is -1"),
    ],
)
def test_what_no_job_can_do_stops_before_the_first(
    words: str, fields: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    config, _ = sweep_config(tmp_path / "new", words.split(), fields)
    with pytest.raises(ExperimentError, match=re.escape(problem)):
        check_search(config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "most"),
    [(("experiment=search",), 100), (GRID, 24), (("refine.damping=interval(0.1,1)", "seed=1,2"), 100)],
)
def test_a_search_that_can_run_has_no_more_jobs_than_its_space(words: Sequence[str], most: int, tmp_path: Path) -> None:
    assert check_search(sweep_config(tmp_path / "new", words, {"n_trials": 100})[0])[0] == most
    assert not (tmp_path / "new").exists()


def test_a_grid_passes_the_check() -> None:
    loader = GlobalHydra.instance().config_loader()
    assert check_search(loader.load_configuration("config", ["data=arrays"], RunMode.MULTIRUN)) == (None, ())


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    search(Launcher(tmp_path), *GRID, n_trials=1)
    other = {"minimize": "weight_payload_bytes"}
    for words, fields in ((GRID[:1], {}), ((*GRID, "calibration=mse"), {}), (GRID, other)):
        with pytest.raises(ExperimentError, match=r"is a search with other"):
            search(Launcher(tmp_path), *words, n_trials=2, **fields)


def test_damaged_memory_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(ExperimentError, match=r"search\.db cannot be read"):
        search(Launcher(tmp_path), *GRID)
