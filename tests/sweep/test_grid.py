"""Before a sweep starts: what a grid's jobs are, and how little the start itself imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from resnet8_quant.sweep.grid import varied_keys

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("filelock", "matplotlib", "numpy", "onnx", "onnxruntime", "optuna", "pandas", "rich", "scipy")


def test_keys_that_vary() -> None:
    jobs = [["a=1", "+b=1", "c=2"], ["a=1", "+b=2", "c=2"], ["a=1", "+b=2", "c=2", "d=1"]]
    assert varied_keys(jobs) == ("b",)


def test_help_imports_nothing_heavy() -> None:
    """Start-up is part of every command; these alone take longer than the rest."""
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("heavy:", [name for name in {HEAVY!r} if name in sys.modules]))
sys.argv = ["run.py", "--help"]
runpy.run_path("run.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "samples_per_class" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
