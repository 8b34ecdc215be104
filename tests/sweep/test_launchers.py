"""What each launcher leaves to a job."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep import launchers
from resnet8_quant.sweep.compose import explain
from resnet8_quant.sweep.launchers import Share, batch_size, check_numbers, parallel, share

BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


def _fields(name: str, **fields: Any) -> dict[str, Any]:
    return {"_target_": f"hydra_plugins.some_plugin.module.{name}", **fields}


@pytest.mark.parametrize(
    ("fields", "jobs", "expected"),
    [
        (BASIC, 24, Share(1, 0)),
        (_fields("JoblibLauncher", n_jobs=-1), 2, Share(2, 4)),
        (_fields("JoblibLauncher", n_jobs=-2), 24, Share(7, 1)),
        (_fields("JoblibLauncher", n_jobs=100), None, Share(100, 1)),
        (_fields("LocalLauncher", cpus_per_task=4), 24, Share(2, 4)),
        (_fields("SlurmLauncher", cpus_per_task=None), 24, Share(None, 1)),
        (_fields("RayLauncher", ray={"init": {}, "remote": {"num_cpus": 2}}), 24, Share(None, 2)),
    ],
)
def test_share_of_the_cores(
    fields: dict[str, Any], jobs: int | None, expected: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "usable_cores", lambda: 8)
    assert share(fields, jobs) == expected
    assert parallel(fields) == (fields is not BASIC)
    limited = fields["_target_"].endswith("LocalLauncher")
    assert batch_size(fields, jobs) == (expected.at_once if limited else None)


def test_share_in_plain_words() -> None:
    assert Share(None, 1).description == "the cluster decides how many jobs run at once, 1 thread each"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        (_fields("JoblibLauncher", n_jobs=0), "launcher.n_jobs` is 0; valid are 1 or more, -1 for all cores"),
        (_fields("JoblibLauncher", n_jobs=2, batch_size="0"), "launcher.batch_size` is 0"),
        (_fields("LocalLauncher", timeout_min=0), "launcher.timeout_min` is 0; valid are 1 or more"),
        (_fields("SlurmLauncher", cpus_per_task=-1), "launcher.cpus_per_task` is -1"),
        (_fields("RayLauncher", ray={"init": {"num_cpus": 0}}), "launcher.ray.init.num_cpus` is 0"),
        (_fields("BasicSweeper", max_batch_size=-1), "sweeper.max_batch_size` is -1"),
        (BASIC, None),
        (_fields("JoblibLauncher", n_jobs=-2, batch_size="auto", pre_dispatch="2*n_jobs", timeout=None), None),
        (_fields("JoblibLauncher", n_jobs=1, batch_size="1", timeout=1.5), None),
        (_fields("LocalLauncher", cpus_per_task=None, timeout_min=1), None),
        (_fields("SlurmLauncher", timeout_min=0), None),
        (_fields("RayLauncher", ray={"init": {"num_cpus": None}, "remote": {}}), None),
        (_fields("UnknownLauncher", n_jobs=0), None),
        (_fields("BasicSweeper", max_batch_size=1), None),
    ],
)
def test_numbers_that_run_nothing_are_refused_and_others_pass(fields: dict[str, Any], refused: str | None) -> None:
    part = "sweeper" if fields["_target_"].endswith("Sweeper") else "launcher"
    node = {"launcher": BASIC, "sweeper": _fields("BasicSweeper", max_batch_size=None)} | {part: fields}
    if refused is None:
        check_numbers(node)
        return
    with pytest.raises(ExperimentError) as caught:
        check_numbers(node)
    assert caught.value.problem.startswith(f"`hydra.{refused}")
    assert caught.value.remedy == f"hydra.{refused.partition('`')[0]}=1"


class FailedJobError(Exception):
    """As submitit names what sbatch says."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Could not find any running Ray instance. Set RAY_ADDRESS."), "no Ray cluster.*RAY_ADDRESS"),
        (RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?'), "Slurm takes no job.*srun"),
        (FailedJobError("sbatch: error: first\nsbatch: fatal: no controller"), "Slurm takes no job.*no controller"),
        (ConnectionError("refused"), None),
        (RuntimeError("no"), None),
        (ValueError("slurm"), None),
    ],
)
def test_a_cluster_that_does_not_answer_is_a_sentence_and_no_other_error(error: Exception, words: str | None) -> None:
    explained = explain(error)
    if explained is None or words is None:
        assert explained is words
        return
    assert re.match(f"`hydra/launcher`: .*{words}", explained.problem)
    assert "first" not in explained.problem
    assert "hydra/launcher=" in explained.remedy


def test_ctrl_c_reaches_local_jobs_of_submitit_by_us_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    submitit = pytest.importorskip("submitit", reason="needs the extra [slurm]")
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    with launchers.steady_submitit(_fields("LocalLauncher"), tmp_path) as cancel:
        process = executor.map_array(time.sleep, [60])[0].job._process
        assert os.getsid(process.pid) == process.pid != os.getsid(0)  # a terminal's signals stay in its session
        while process.poll() is None and not list((tmp_path / "jobs").glob("*_log.err")):  # else it cannot say why
            time.sleep(0.01)
        cancel()
        process.wait(timeout=30)
    assert capfd.readouterr().err == ""
    assert "KeyboardInterrupt" in (tmp_path / ".submitit.log").read_text()
