"""Signals end a run in whatever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_NATIVE_CODE = """
import numpy as np
from endless import endless
from resnet8_quant.graphs import runtime
from resnet8_quant.sweep.ending import run_to_the_end

def job():
    session = endless()
    print("ready", flush=True)
    runtime.run(session, None, {"x": np.zeros((1, 2), np.float32)})
"""
# Tidies up for ever after the first signal.
STUBBORN = """
import time
from resnet8_quant.sweep.ending import run_to_the_end

def job():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("again", flush=True)
        time.sleep(60)
"""


def started(job: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    command = [sys.executable, "-c", f"{job}\nraise SystemExit(run_to_the_end(job))"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_inside_native_code(number: signal.Signals) -> None:
    with started(IN_NATIVE_CODE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=25)  # below the time limit of the call
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err


def test_a_second_signal_ends_a_run_at_once() -> None:
    with started(STUBBORN) as process:
        assert process.stdout is not None
        for line in ("ready\n", "again\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=25)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err
