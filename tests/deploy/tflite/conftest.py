"""Test modules of this folder import each other's small nets, and those of tests/deploy."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
