"""How a command ends: every error that a user can fix as a sentence, an interrupted sweep with its summary.

In: the function that Hydra made of run.py's job. Out: an exit code, and on the terminal why it is not 0.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from resnet8_quant.sweep import callback
from resnet8_quant.sweep.compose import explain
from resnet8_quant.terminal import show, show_error, shown

RESTARTS = 3  # of a sweep one of whose workers was killed
LOST_WORKERS = (concurrent.futures.BrokenExecutor,)  # joblib's TerminatedWorkerError is one

log = logging.getLogger(__name__)


def run_to_the_end(job: Callable[[], None]) -> int:
    """Call ``job`` and see to it that a sweep leaves its summary, however it ends.

    Returns:
        0; 1 after an error; 128 plus the signal's number where one interrupted it.

    Raises:
        Exception: what no user can fix; also everything where $HYDRA_FULL_ERROR is 1.
    """
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions over instead of printing them
    signal.signal(signal.SIGTERM, _interrupt)
    for left in reversed(range(RESTARTS + 1)):
        try:
            job()
        except KeyboardInterrupt as interruption:
            return _interrupted(interruption)
        except LOST_WORKERS as error:
            if left and callback.release():
                log.warning("a worker was killed; the sweep goes on with what is left")
                continue
            if callback.finish() is None:
                raise
            log.error("workers were killed again and again: %s", str(error).splitlines()[0])
            return 1
        except Exception as error:
            callback.finish()
            known = explain(error)
            if known is None or asked_for_traceback:
                raise
            show_error(known)
            return 1
        return 0
    raise AssertionError("the last round returns or raises")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _interrupted(interruption: KeyboardInterrupt) -> int:
    """Say what is finished; a second Ctrl-C ends this, too."""
    number = int(interruption.args[0]) if interruption.args else int(signal.SIGINT)
    sweep = callback.running_folder()
    callback.finish(interrupted=True)
    if sweep is not None:
        show(f"interrupted; the rest: the same command with resume={shown(sweep)}", error=True)
    return 128 + number
