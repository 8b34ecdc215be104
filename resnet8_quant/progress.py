"""Progress bars on stderr, drawn only where a person watches.

In: a description and a total. Out: a function that advances the bar; nothing at all in a pipe or a log file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol


class Advance(Protocol):
    """Advances a bar."""

    def __call__(self, done: int, description: str | None = None) -> None:
        """Count ``done`` more; a ``description`` replaces that of the bar."""


@contextmanager
def progress(
    description: str, total: int | None, unit: Literal["images", "bytes", "layers", "runs", "steps"]
) -> Iterator[Advance]:
    """Yield ``advance(n)``; the bar shows the count, the rate and the time left, and is erased when done."""
    if not sys.stderr.isatty() or hasattr(sys.stderr, "rich_proxied_file"):  # a sweep has a live line of its own
        yield lambda done, description=None: None
        return
    from rich import progress as rich
    from rich.console import Console

    count: list[rich.ProgressColumn] = [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
    if unit == "bytes":
        count = [rich.DownloadColumn(), rich.TransferSpeedColumn()]
    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=20), *count]
    columns.append(rich.TimeRemainingColumn(compact=True))
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(done: int, description: str | None = None) -> None:
            bar.update(task, advance=done, description=description)

        yield advance
