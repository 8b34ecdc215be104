"""The process that runs a parallel worker's jobs: `python -m resnet8_quant.sweep.worker`, started by isolation.py.

In: pickled `Task`s on stdin. Out: results in the jobs' folders and a line on stdout for each. What a job prints, and
what the interpreter or a native library says when it crashes, goes to the job's own run.log.
"""

from __future__ import annotations

import faulthandler
import logging.config
import os
import pickle
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from resnet8_quant.sweep.isolation import Task


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
        _say_into(task.place.folder)
        _configure(task)
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


def _say_into(folder: Path) -> None:
    log_file = os.open(folder / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log_file, stream)
    os.close(log_file)
    faulthandler.enable(sys.__stderr__ or 2)


def _configure(task: Task) -> None:
    """Hydra's logging of a job, without the console: what comes to stderr is in run.log already."""
    configured = dict(task.job_logging)
    handlers = {name: value for name, value in configured.get("handlers", {}).items() if name != "console"}
    root = dict(configured.get("root") or {})
    root["handlers"] = [name for name in root.get("handlers", ()) if name != "console"]
    logging.config.dictConfig({**configured, "handlers": handlers, "root": root})


if __name__ == "__main__":
    main()
