"""Progress bars on stderr, drawn only where a person watches, and what takes long said beforehand in the log.

In: a description and a total. Out: a function that advances the bar; no bar in a pipe or a log file. Where a loop will
take more than ``LONG`` seconds, one log line says for how long, once ``MEASURED`` seconds of it have been timed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

log = logging.getLogger(__name__)

LONG = 600.0  # seconds, from which on the time is worth a line
MEASURED = 5.0  # seconds of the loop that an estimate needs

Unit = Literal["images", "bytes", "layers", "runs", "steps", "models"]


class Advance(Protocol):
    """Advances a bar."""

    def __call__(self, done: int, description: str | None = None) -> None:
        """Count ``done`` more; a ``description`` replaces that of the bar."""


class Estimate:
    """Says in the log, once, how long a loop will still take, where that is long.

    The clock starts with the first count, so that what a loop does once, before its first unit is done, is left out.
    """

    def __init__(self, description: str, total: int | None, unit: Unit, longest: float | None = None) -> None:
        """Prepare for a loop of ``total`` units (None: unknown), which ends after ``longest`` seconds at the latest."""
        self.description, self.total, self.unit, self.longest = description, total, unit, longest
        self._done = self._counted = 0
        self._start: float | None = None

    def count(self, done: int) -> str | None:
        """Count ``done`` more; returns the sentence when it is due."""
        self._done += done
        if self.total is None:
            return None
        if self._start is None:
            self._start = time.monotonic()
            return None
        self._counted += done
        elapsed = time.monotonic() - self._start
        if elapsed < MEASURED or self._counted <= 0:
            return None
        seconds = elapsed / self._counted * (self.total - self._done)
        seconds = seconds if self.longest is None else min(seconds, self.longest)
        text = f"{self.description}: the other {self.total - self._done:,} of {self.total:,} {self.unit} will take "
        self.total = None
        return f"{text}about {duration(seconds)}" if seconds > LONG else None


def duration(seconds: float) -> str:
    """754 -> "13 min", 7900 -> "2 h 12 min", 900000 -> "10 days"."""
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:,.0f} days"


@contextmanager
def progress(description: str, total: int | None, unit: Unit, longest: float | None = None) -> Iterator[Advance]:
    """Yield ``advance(n)``; the bar shows the count, the rate and the time left, and is erased when done.

    Args:
        description: shown beside the bar; what is before a comma names the work in the log.
        total: units; None: unknown.
        unit: of the total.
        longest: seconds after which the loop ends in any case; None: it does not.
    """
    estimate = Estimate(description.partition(",")[0], total, unit, longest)
    with _bar(description, total, unit) as (move, paused):

        def advance(done: int, description: str | None = None) -> None:
            move(done, description)
            sentence = estimate.count(done)
            if sentence is not None:
                with paused():
                    log.info("%s", sentence)

        yield advance


@contextmanager
def _bar(
    description: str, total: int | None, unit: Unit
) -> Iterator[tuple[Callable[[int, str | None], None], Callable[[], AbstractContextManager[None]]]]:
    """Yield a function that moves the bar, and a context in which it is not on the screen."""
    if not sys.stderr.isatty() or hasattr(sys.stderr, "rich_proxied_file"):  # a sweep has a live line of its own
        yield lambda done, description: None, nullcontext
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

        @contextmanager
        def paused() -> Iterator[None]:
            bar.stop()
            yield
            bar.start()

        yield lambda done, description: bar.update(task, advance=done, description=description), paused
