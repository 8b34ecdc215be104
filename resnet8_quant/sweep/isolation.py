"""A process for the jobs of a parallel worker: if one crashes the interpreter, its row says so and the worker goes on.

In: a `Task`. Out: its results in its folder, whatever happens. The process, `python -m resnet8_quant.sweep.isolation`,
starts with the worker's first job and takes the following ones, so that each worker imports the numeric libraries once;
after a crash a new one starts. It reads pickled tasks from stdin and answers each with a line. What a job prints, and
what a native library says when it crashes, goes to the job's own run.log.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging.config
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.folders import Task

HINTS = {
    "SIGKILL": "killed, perhaps for want of memory",
    "SIGSEGV": "a crash in native code",
    "SIGTERM": "cancelled, or over its time limit",
}

log = logging.getLogger(__name__)

_process: subprocess.Popen[bytes] | None = None


def run_isolated(task: Task) -> None:
    """Run the task in this worker's process for jobs; the end of that process is a failed row."""
    global _process
    if _process is None:
        _process = _start(task.plan.threads)
    assert _process.stdin is not None
    assert _process.stdout is not None
    try:
        pickle.dump(task, _process.stdin)
        _process.stdin.flush()
        answer = _process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if answer:
        return
    code = _process.wait()
    stop()
    ending = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    from resnet8_quant.sweep.job import write_failure

    write_failure(task, ExperimentError(f"its process {ending}", "run it again: resume=true"))


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


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} ({HINTS[name]})" if name in HINTS else name


def _start(threads: int) -> subprocess.Popen[bytes]:
    """The process; libraries that read their number of threads once, when they are loaded, get it from here."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads}
    environment = {**variables, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    atexit.register(stop)
    command = [sys.executable, "-m", "resnet8_quant.sweep.isolation"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def main() -> None:
    """Run tasks until the worker closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the worker, and its end ends this process
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    requests = os.fdopen(os.dup(0), "rb")
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(sink, stream)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        _log_into(task)
        from resnet8_quant.sweep.job import run_in_sweep

        run_in_sweep(task)
        logging.shutdown()
        answers.write(b"done\n")


def _receive(requests: BinaryIO, tasks: queue.SimpleQueue[Task]) -> None:
    """Pass tasks on; when the worker is gone, end at once, also in the middle of a job: nobody wants its result."""
    while True:
        try:
            tasks.put(pickle.load(requests))  # noqa: S301 - from the process that started this one
        except EOFError:
            os._exit(1)


def _log_into(task: Task) -> None:
    """Lead stdout, stderr and the log to the job's run.log: Hydra's logging of a job, without the console."""
    log_file = os.open(task.folder / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log_file, stream)
    os.close(log_file)
    faulthandler.enable(sys.__stderr__ or 2)
    configured = dict(task.job_logging)
    handlers = {name: value for name, value in configured.get("handlers", {}).items() if name != "console"}
    root = dict(configured.get("root") or {})
    root["handlers"] = [name for name in root.get("handlers", ()) if name != "console"]
    logging.config.dictConfig({**configured, "handlers": handlers, "root": root})


if __name__ == "__main__":
    main()
