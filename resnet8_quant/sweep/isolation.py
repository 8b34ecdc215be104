"""A process for the jobs of a parallel worker: if one crashes the interpreter, the worker writes its row and goes on.

In: a `Task`. Out: its results in its folder, whatever happens. The process is started with the worker's first job and
takes the following ones, so that each worker imports the numeric libraries once; after a crash a new one is started.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.ledger import Place

log = logging.getLogger(__name__)

_process: subprocess.Popen[bytes] | None = None


@dataclass(frozen=True)
class Task:
    """One job of a sweep.

    Attributes:
        config: composed and typed, or why it could not be.
        place: where it belongs.
        job_logging: `hydra.job_logging`, for the process that runs it.
        crash: why an earlier process ended in the middle of it; its row is written and nothing is run.
    """

    config: Config | ExperimentError
    place: Place
    job_logging: dict[str, Any]
    crash: str | None = None


def run_isolated(task: Task) -> None:
    """Run the task in this worker's process for jobs; its end by a signal is a failed row.

    Raises:
        ExperimentError: the process cannot even write the row.
    """
    crash = _ask(task)
    if crash is None:
        return
    log.error("failed: %s", crash)
    again = _ask(replace(task, crash=crash))
    if again is not None:
        raise ExperimentError(f"the job's row cannot be written: {again}", "see run.log in the job's folder")


def stop() -> None:
    """End this worker's process for jobs, if there is one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.wait()
        for stream in (_process.stdin, _process.stdout):
            assert stream is not None
            stream.close()
        _process = None


def _ask(task: Task) -> str | None:
    """Have the process do the task; why it ended before it answered, or None."""
    global _process
    if _process is None:
        _process = _start(task.place.plan.threads)
    assert _process.stdin is not None
    assert _process.stdout is not None
    try:
        pickle.dump(task, _process.stdin)
        _process.stdin.flush()
        answer = _process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if answer:
        return None
    code = _process.wait()
    stop()
    return f"its process was ended by {_signal_name(-code)}" if code < 0 else f"its process ended with exit code {code}"


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    hints = {
        "SIGKILL": "killed, perhaps for want of memory",
        "SIGSEGV": "a crash in native code",
        "SIGTERM": "cancelled, or over its time limit",
    }
    return f"{name} ({hints[name]})" if name in hints else name


def _start(threads: int) -> subprocess.Popen[bytes]:
    """The process; libraries that read their number of threads once, when they are loaded, get it from here."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads}
    environment = {**variables, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    atexit.register(stop)
    return subprocess.Popen(
        [sys.executable, "-m", "resnet8_quant.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
