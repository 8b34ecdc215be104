"""Whether this checkout makes the very files that another commit makes: SHA-256 of the quantized models, side by side.

In:  a commit; words for run.py, which both take. Both run on this machine, with the environment that runs this script.
Out: a Markdown table of experiment=seed_table and of w4a8 refined. Exit code 1 if a file differs.

    python benchmarks/same_models.py be1cd41
    python benchmarks/same_models.py HEAD~20 data=sample
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from resnet8_quant.machine import cpu_description
from resnet8_quant.terminal import markdown

ROOT = Path(__file__).resolve().parent.parent
# Each is a command of run.py, whose models are told apart by their quant type.
COMMANDS = (("experiment=seed_table",), ("quant=w4a8", "refine=best"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT", help="to compare with")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="for run.py, e.g. data=sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", other, options.commit], cwd=ROOT, check=True)
        try:
            before, after = (digests(checkout, Path(temporary), options.overrides) for checkout in (other, ROOT))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    same = [before.get(name) == digest for name, digest in after.items()]
    rows = [
        [name, str(before.get(name, ""))[:16], digest[:16], "yes" if equal else "NO"]
        for (name, digest), equal in zip(after.items(), same, strict=True)
    ]
    print(f"Machine: {cpu_description()}\n")
    print(markdown(["Model", options.commit, "This checkout", "Same bytes"], rows))
    return 0 if all(same) and before.keys() == after.keys() else 1


def digests(checkout: Path, temporary: Path, overrides: list[str]) -> dict[str, str]:
    """Command and quant type -> SHA-256 of the model that the run.py of ``checkout`` makes."""
    models = {}
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    for number, command in enumerate(COMMANDS):
        folder = temporary / f"{checkout.name}_{number}"
        places = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
        words = [*command, *overrides, "latency.runs=0", *places]
        run = [sys.executable, "run.py", *words]
        subprocess.run(run, cwd=checkout, env=environment, check=True, capture_output=True)
        for path in sorted(folder.rglob("results.csv")):
            row = pd.read_csv(path).iloc[0]
            models[f"{' '.join(command)}: {row['quant_type']}"] = str(row["model_sha256"])
    return models


if __name__ == "__main__":
    sys.exit(main())
