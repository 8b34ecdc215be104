"""One command of Hydra, from its start to its end: errors as sentences, an interrupted sweep with its summary.

In: the command line. Out: an exit code, and on the terminal why it is not 0.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from resnet8_quant.errors import COMMAND, ExperimentError, completed
from resnet8_quant.options import CONF
from resnet8_quant.sweep import callback
from resnet8_quant.sweep.compose import explain, register, to_config
from resnet8_quant.sweep.grid import register_sweeps
from resnet8_quant.sweep.job import run_alone, start_job
from resnet8_quant.terminal import parsed, show, show_error, shown

RESTARTS = 3  # of a sweep one of whose workers was killed
LOST_WORKERS = (concurrent.futures.BrokenExecutor,)  # joblib's TerminatedWorkerError is one

_HEEDED = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_received: int | None = None  # the signal that asked this process to end

log = logging.getLogger(__name__)


def run() -> int:
    """Run the command line: one experiment, or a sweep of them."""
    register()
    register_sweeps()
    return run_to_the_end(_call_hydra)


def _call_hydra() -> None:
    """Hydra's command line; its parser takes the overrides in one piece only, so that the flags go first."""
    # A shell expands the ~ of NAME=~/FILE only where NAME has no dot, and Hydra's grammar has no ~ in a value.
    home = str(Path.home())
    words = [
        re.sub("(?<=[=,])~(?=/)", lambda _: home, word) if re.match(r"[\w.]+=~/", word) else word
        for word in sys.argv[1:]
    ]
    overrides = parsed(get_args_parser(), words, COMMAND).overrides
    sys.argv[1:] = [*(word for word in words if word not in overrides), *overrides]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()


def job(composed: DictConfig) -> None:
    """One run: alone, or as a job of a sweep, where a failure becomes a row and the other jobs go on."""
    context = HydraConfig.get()
    if context.mode == RunMode.MULTIRUN:
        start_job(composed, context)
        return
    overrides = list(context.overrides.task)
    try:
        run_alone(to_config(composed, overrides), Path(context.runtime.output_dir), overrides)
    except ExperimentError as error:
        show_error(completed(error, overrides))
        sys.exit(1)


def run_to_the_end(job: Callable[[], None]) -> int:
    """Call ``job`` and see to it that a sweep leaves its summary, however it ends.

    Returns:
        0; 1 after an error; 128 plus the signal's number where one interrupted it.

    Raises:
        Exception: what no user can fix; also everything where $HYDRA_FULL_ERROR is 1.
    """
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions over instead of printing them
    _heed_signals()
    for left in reversed(range(RESTARTS + 1)):
        try:
            job()
        except KeyboardInterrupt as interruption:
            return _interrupted(interruption)
        except LOST_WORKERS as error:
            if left and callback.running is not None:
                callback.running.release()
                log.warning("a worker was killed; the sweep goes on with what is left")
                continue
            if callback.finish() is None:
                raise
            log.error("workers were killed again and again: %s", str(error).splitlines()[0])
            return 1
        except Exception as error:
            if _received is not None:  # a module in native code makes an ImportError of the interruption
                return _interrupted(KeyboardInterrupt(_received))
            callback.finish()
            known = explain(error)
            if known is None or asked_for_traceback:
                raise
            show_error(known)
            return 1
        return 0
    raise AssertionError("the last round returns or raises")


def _heed_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP interrupt this process, also inside native code; a second one ends it at once.

    Python calls a handler between two of its own instructions, and there is none while ONNX Runtime computes. What a
    signal writes into the pipe wakes a thread, which stops the computation.
    """
    for number in _HEEDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        from resnet8_quant.graphs.runtime import stop_all

        while number := os.read(reading, 1):
            if number[0] in _HEEDED:
                stop_all()

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt the command; where that has been done already, end without tidying up."""
    global _received
    if _received is not None:
        os._exit(128 + number)
    _received = number
    raise KeyboardInterrupt(number)


def _interrupted(interruption: KeyboardInterrupt) -> int:
    """Say what is finished; a second Ctrl-C ends this, too."""
    number = int(interruption.args[0]) if interruption.args else int(signal.SIGINT)
    sweep = callback.running
    callback.finish(interrupted=True)
    if sweep is not None:
        show(f"interrupted; the rest: the same command with resume={shown(sweep.folder)}", error=True)
    return 128 + number
