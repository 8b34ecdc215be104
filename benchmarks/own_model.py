"""How long docs/own_model.md takes: runs the page's commands in order, as written, each in a process of its own.

Out: a Markdown table of seconds, the line with the recommended file, and what using that file says. Exit code 1 where a
command fails. Installing is left out. FILE on the page is the file that the sweep recommended.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant.machine import cpu_description, load_per_core  # noqa: E402

PAGE = ROOT / "docs" / "own_model.md"
RECOMMENDED = re.compile(r"^Recommended: .*: (\S+)$", re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands in the page's bash blocks, without comments and without what installs."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if not line.startswith("pip ")]


def main() -> int:
    shutil.rmtree(ROOT / "outputs" / "own_model", ignore_errors=True)
    file, said, rows, total = "FILE", "", [], 0.0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    load = load_per_core() or 0.0
    for command in commands(PAGE.read_text(encoding="utf-8")):
        words = [{"python": sys.executable, "FILE": file}.get(word, word) for word in shlex.split(command)]
        start = time.perf_counter()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(words, cwd=ROOT, env=environment, **pipes)
        seconds = time.perf_counter() - start
        if done.returncode:
            print(f"{done.stdout}\nexit code {done.returncode}: {command}")
            return 1
        if (recommended := RECOMMENDED.search(done.stdout)) is not None:
            file, said = recommended[1], recommended[0]
        total += seconds
        rows.append(f"| `{' '.join(shlex.split(command)[:4])}` | {seconds:.0f} s |")
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}; load per core before: {load:.2f}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}, torch {version('torch')}\n")
    print("\n".join(["| Command | Time |", "|---|---:|", *rows, f"| all | {total:.0f} s |"]))
    print(f"\n{said}\n{done.stdout.strip()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
