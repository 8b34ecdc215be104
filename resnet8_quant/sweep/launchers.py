"""What the launchers of a sweep need to know and what they lack: threads, checks of numbers, extras, and lost jobs.

In: `hydra.launcher` as configured. Out: how many jobs run side by side on a machine and the threads of each; an error
that names the extra of a plugin that is not installed; submitit's jobs such that the end of one is not the end of all.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from resnet8_quant.errors import ExperimentError
from resnet8_quant.machine import usable_cores
from resnet8_quant.sweep.folders import record_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What a job gets of a machine: how many run at once, None where a cluster decides, and the threads of each."""

    at_once: int | None
    threads: int

    @property
    def description(self) -> str:
        """For the log."""
        known = self.at_once is not None
        jobs = f"{self.at_once} jobs at a time" if known else "the cluster decides how many jobs run at once"
        return f"{jobs}, {self.threads} thread{'' if self.threads == 1 else 's'} each"


def _joblib(fields: Mapping[str, Any], jobs: int | None, cores: int) -> Share:
    asked = int(fields.get("n_jobs") or -1)
    workers = asked if asked > 0 else max(1, cores + 1 + asked)  # as joblib reads it: -1 all, -2 all but one
    return _beside(workers, jobs, cores)


def _beside(at_once: int, jobs: int | None, cores: int) -> Share:
    """Share the cores among the jobs that run at once."""
    at_once = max(1, min(at_once, jobs or at_once))
    return Share(at_once, max(1, cores // at_once))


# The class of a launcher -> what a job gets of a machine, by the launcher's fields, the number of jobs and the cores.
# Any other launcher runs its jobs one after the other in this process.
SHARES: dict[str, Callable[[Mapping[str, Any], int | None, int], Share]] = {
    "JoblibLauncher": _joblib,
    "LocalLauncher": lambda fields, jobs, cores: _beside(cores // int(fields.get("cpus_per_task") or 1), jobs, cores),
    "SlurmLauncher": lambda fields, jobs, cores: Share(None, int(fields.get("cpus_per_task") or 1)),
    "RayLauncher": lambda fields, jobs, cores: Share(None, max(1, int(fields["ray"]["remote"].get("num_cpus") or 1))),
}

# The class of a launcher or sweeper -> the smallest values of its fields. What is left out may be anything; null is no
# limit. Slurm reads a time of 0 as no limit.
_SUBMITIT = {"cpus_per_task": 1, "gpus_per_node": 0, "tasks_per_node": 1, "nodes": 1, "mem_gb": 0, "timeout_min": 1}
SMALLEST: dict[str, dict[str, int]] = {
    "BasicSweeper": {"max_batch_size": 1},
    "JoblibLauncher": {"n_jobs": 1, "batch_size": 1, "pre_dispatch": 1, "timeout": 1},
    "LocalLauncher": _SUBMITIT,
    "SlurmLauncher": _SUBMITIT | {"timeout_min": 0, "array_parallelism": 1, "max_num_timeout": 0},
    "RayLauncher": {"ray.init.num_cpus": 1, "ray.remote.num_cpus": 0},
}

# The word for a launcher, as its plugin knows it -> what pip calls the plugin, and our extra.
PLUGINS: dict[str, tuple[str, str]] = {
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "ray": ("hydra-ray-launcher", "ray"),
}


def parallel(fields: Mapping[str, Any]) -> bool:
    """Whether the launcher runs jobs side by side."""
    return _name(fields) in SHARES


def share(fields: Mapping[str, Any], jobs: int | None) -> Share:
    """What each job gets; all cores where jobs run one after the other."""
    of_kind = SHARES.get(_name(fields))
    return Share(1, 0) if of_kind is None else of_kind(fields, jobs, usable_cores())


def batch_size(fields: Mapping[str, Any], jobs: int | None) -> int | None:
    """How many jobs to hand over at a time where the launcher itself would start all at once; None: no limit."""
    return share(fields, jobs).at_once if _name(fields) == "LocalLauncher" else None


def check_numbers(node: Mapping[str, Any]) -> None:
    """Refuse numbers with which a launcher or sweeper runs nothing, or ends with a traceback.

    Args:
        node: Hydra's part of the config, with `launcher` and `sweeper`.
    """
    for part in ("launcher", "sweeper"):
        for name, smallest in SMALLEST.get(_name(node[part]), {}).items():
            value: Any = node[part]
            for key in name.split("."):
                value = (value or {}).get(key)
            if not re.fullmatch(r"-?\d+(\.\d+)?", str(value)):  # null, or a word such as auto
                continue
            backwards = name == "n_jobs"  # below 0 it counts from all cores
            if float(value) >= smallest or (backwards and float(value) < 0):
                continue
            valid = f"{smallest} or more" + (", -1 for all cores, -2 for all but one" if backwards else "")
            field = f"hydra.{part}.{name}"
            raise ExperimentError(f"`{field}` is {value}; valid are {valid}", f"{field}={smallest}")


def missing_plugin(complaint: str) -> tuple[str, str] | None:
    """What pip calls the plugin that Hydra's ``complaint`` misses, and the extra that names it; None: it misses none.

    The word may be the user's own, or one that a preset of conf/hydra/launcher builds on.
    """
    words = re.findall(r"hydra/launcher/(\w+)'", complaint)
    return next((PLUGINS[word] for word in words if word in PLUGINS), None)


def unreachable(error: BaseException) -> ExperimentError | None:
    """A launcher's complaint that its cluster does not answer or takes no job, as a sentence; None: any other."""
    text = str(error).strip()
    last = text.splitlines()[-1] if text else type(error).__name__
    if isinstance(error, ConnectionError) and "Ray" in text:
        return ExperimentError(
            f"`hydra/launcher`: no Ray cluster can be reached: {last}",
            "hydra.launcher.ray.init.address=HOST:6379, or hydra/launcher=ray_local to start one here",
        )
    refused = type(error).__name__ == "FailedJobError"
    if refused or (isinstance(error, RuntimeError) and "slurm" in text.lower()):
        return ExperimentError(
            f"`hydra/launcher`: Slurm takes no job: {last}",
            "sinfo shows partitions and their limits; without Slurm: hydra/launcher=joblib",
        )
    return None


def _name(fields: Mapping[str, Any]) -> str:
    return str(fields.get("_target_", "")).rpartition(".")[2]


class _Waited:
    """A job of submitit whose end without a result is logged and becomes a failed row, instead of ending the sweep."""

    def __init__(self, job: Any, sweep: Path) -> None:
        self.job, self.sweep = job, sweep

    def results(self) -> list[Any]:
        """Wait for the job; what Hydra would get from it, or a return value without content."""
        from hydra.core.utils import JobReturn, JobStatus

        errors: Any = importlib.import_module("submitit.core.utils")
        try:
            return list(self.job.results())
        except (errors.FailedJobError, errors.UncompletedJobError) as error:
            overrides, _, number, *_ = self.job.submission().args
            reason = f"job {self.job.job_id} of the queue ended without a result ({self.job.state})"
            log.error("job %d failed: %s", number, reason)
            log.debug("%s", error)
            with contextlib.suppress(ExperimentError):  # a full disk is reported by the summary
                record_loss(self.sweep, number, overrides, reason)
            return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED)]


@contextlib.contextmanager
def steady_submitit(fields: Mapping[str, Any], sweep: Path) -> Iterator[Callable[[], None]]:
    """While this lasts no job of submitit can end the others; yields a function that cancels what still runs.

    The plugin asks its jobs for their results one after the other and passes on the first failure: the others would
    run on unwatched, and batches that were not yet submitted never would.
    """
    if _name(fields) not in ("LocalLauncher", "SlurmLauncher"):
        yield lambda: None
        return
    executor = importlib.import_module("submitit").AutoExecutor
    started: list[Any] = []
    original = executor.map_array

    def map_array(self: Any, *arguments: Any) -> list[_Waited]:
        jobs = original(self, *arguments)
        started.extend(jobs)
        return [_Waited(job, sweep) for job in jobs]

    def cancel() -> None:
        for job in started:
            if not job.done():
                job.cancel(check=False)

    executor.map_array = map_array
    try:
        with _apart(sweep) if _name(fields) == "LocalLauncher" else contextlib.nullcontext():
            yield cancel
    finally:
        executor.map_array = original


@contextlib.contextmanager
def _apart(sweep: Path) -> Iterator[None]:
    """While this lasts submitit's local controllers, one beside each job, start out of reach of the terminal.

    Else Ctrl-C would reach them twice, by the terminal and by `cancel`, of which the second stops them from ending
    their jobs. What they say, such as the traceback of their end, goes to .submitit.log in the sweep's folder.
    """
    local: Any = importlib.import_module("submitit.local.local")
    with (sweep / ".submitit.log").open("ab") as log_file:
        start = functools.partial(subprocess.Popen, start_new_session=True, stderr=log_file)
        local.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start})
        try:
            yield
        finally:
            local.subprocess = subprocess
