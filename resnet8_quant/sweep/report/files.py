"""Small tables in a run's folder, read with care: per_class.csv and ranges.csv.

In: a path and the columns that are needed. Out: rows of text, none where the file is missing or something else.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

LARGEST = 4_000_000  # bytes


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV that has ``columns`` and perhaps more; empty where it cannot be read or lacks one."""
    try:
        if path.stat().st_size > LARGEST:
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    whole = all(isinstance(row.get(name), str) for row in rows for name in columns)
    return rows if whole else []


def number(text: str) -> float | None:
    """The finite number that ``text`` is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
