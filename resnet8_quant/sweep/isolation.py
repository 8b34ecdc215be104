"""A process for the jobs of a parallel worker: if one crashes the interpreter, its row says so and the worker goes on.

In: a `Task`. Out: its results in its folder, whatever happens. The process starts with the worker's first job and takes
the following ones, so that each worker imports the numeric libraries once; after a crash a new one starts. What a job
prints, and what a native library says when it crashes, goes to the job's own run.log.
"""

from __future__ import annotations

import faulthandler
import logging.config
import os
import queue
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import refuse_pipe
from resnet8_quant.sweep.folders import Task

HINTS = {
    "SIGKILL": "killed, perhaps for want of memory",
    "SIGSEGV": "a crash in native code",
    "SIGTERM": "cancelled, or over its time limit",
}

_started: tuple[subprocess.Popen[bytes], Connection] | None = None


def run_isolated(task: Task) -> None:
    """Run the task in this worker's process for jobs; the end of that process is a failed row."""
    global _started
    _started = process, pipe = _started or _start(task.plan.threads)
    try:
        pipe.send(task)
        pipe.recv()
    except (EOFError, OSError):
        _started = None
        code = process.wait()
        ending = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        from resnet8_quant.sweep.job import write_failure

        write_failure(task, ExperimentError(f"its process {ending}", "run it again: resume=true"))


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} ({HINTS[name]})" if name in HINTS else name


def _start(threads: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """The process and a pipe to it; libraries that read their number of threads when they are loaded get it here."""
    paths = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads}
    environment = {**variables, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ours, theirs = Pipe()
    with theirs:  # multiprocessing.Process would not do: joblib's workers have a start method that only joblib knows
        command = [sys.executable, "-m", "resnet8_quant.sweep.isolation", str(theirs.fileno())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno()]), ours


def main(pipe: Connection) -> None:
    """Run the tasks that come through the pipe."""
    from resnet8_quant.sweep.job import run_in_sweep

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the worker, and its end ends this process
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        _log_into(task)
        run_in_sweep(task)
        logging.shutdown()
        pipe.send(None)


def _receive(pipe: Connection, tasks: queue.SimpleQueue[Task]) -> None:
    """Pass tasks on; when the worker is gone, end at once, also in the middle of a job: nobody wants its result."""
    while True:
        try:
            tasks.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)


def _log_into(task: Task) -> None:
    """Lead stdout, stderr and the log to the job's run.log: Hydra's logging of a job, without the console."""
    refuse_pipe(task.folder / "run.log")
    log_file = os.open(task.folder / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log_file, stream)
    os.close(log_file)
    faulthandler.enable()
    configured = dict(task.job_logging)
    handlers = {name: value for name, value in configured.get("handlers", {}).items() if name != "console"}
    root = dict(configured.get("root") or {})
    root["handlers"] = [name for name in root.get("handlers", ()) if name != "console"]
    logging.config.dictConfig({**configured, "handlers": handlers, "root": root})


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
