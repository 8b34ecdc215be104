"""Progress bars on stderr, drawn only where a person watches.

In: a description and a total. Out: a function that advances the bar; nothing at all in a pipe or a log file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Advance = Callable[[int], None]


@contextmanager
def progress(
    description: str, total: int | None, unit: Literal["images", "bytes", "layers", "runs"]
) -> Iterator[Advance]:
    """Yield ``advance(n)``; the bar shows the count, the rate and the time left, and is erased when done.

    Args:
        description: what is being done, a few words.
        total: in ``unit``; None where it is not known.
        unit: "bytes" are shown with sizes and bytes per second.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=20),
    ]
    if unit == "bytes":
        columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    else:
        columns += [rich_progress.MofNCompleteColumn(), rich_progress.TextColumn(unit)]
    columns.append(rich_progress.TimeRemainingColumn(compact=True))
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
