"""How far a sweep is: one live line on a terminal, now and then a plain line elsewhere.

In: the sweep's folder, where jobs leave their rows. Out: lines on stderr. Rows are counted in the files because jobs
run in other processes or on other machines; time is measured by a clock that never goes back.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from resnet8_quant.sweep.folders import NUMBERED, finished, read_jobs
from resnet8_quant.terminal import show

if TYPE_CHECKING:
    from rich.live import Live

WIDTH = 79
_LOOK, _LINE = 0.5, 10.0  # seconds between looks into the folder, and between lines that are not on a terminal


class Tally:
    """What the folder of a sweep holds so far.

    Attributes:
        done: jobs that have a row and need not run again, failed ones and duplicates included.
        failed: of these, how many failed.
        best: whether its model is quantized, its accuracy, and its folder's name; empty before the first.
    """

    def __init__(self, folder: Path, session: str | None) -> None:
        """Count from nothing; ``session`` is the start of a grid, None for a search, which runs no failure again."""
        self.folder, self.session = folder, session
        self.done = self.failed = 0
        self.best = (False, -1.0, "")
        self._seen: set[str] = set()

    def look(self) -> None:
        """Count what has come since the last look."""
        try:
            names = {name for name in os.listdir(self.folder) if NUMBERED.match(name)}
        except OSError:
            return
        for name in names - self._seen:
            row = finished(self.folder / name, self.session)
            if row is None:
                continue
            self._seen.add(name)
            if row.status != "ok" or row.accuracy is None:
                self.failed += 1
            else:
                self.best = max(self.best, (row.activation_type != "float32", row.accuracy, name))
        # Several jobs of a grid may share a folder; those of a search do only when they are run again.
        begun = Counter(read_jobs(self.folder).values() if self.session else ())
        self.done = len(self._seen) + sum(begun[name] - 1 for name in self._seen & begun.keys())


def describe(tally: Tally, jobs: int | None, seconds: float, before: int) -> str:
    """One line of at most 79 characters.

    Args:
        tally: what is done.
        jobs: in all, of a search at most; None where that is not known.
        seconds: since the sweep started.
        before: jobs that were done then.
    """
    if jobs is not None:
        jobs = max(jobs, tally.done)  # the folder may hold more from before
    text = f"{tally.done}/{'?' if jobs is None else jobs} done, {tally.failed} failed"
    ran = tally.done - before
    if jobs is not None and ran > 0 and tally.done < jobs:
        minutes, second = divmod(round(seconds / ran * (jobs - tally.done)), 60)
        text += f", {minutes // 60}:{minutes % 60:02d}:{second:02d} left"
    _, accuracy, name = tally.best
    if name:
        text += f", best {100 * accuracy:.2f} % ({name}"
        text = text[: WIDTH - 1] + ")"
    return text


class Watch:
    """Looks into a sweep's folder until it is stopped, and says what it sees."""

    def __init__(self, tally: Tally, jobs: int | None) -> None:
        """Start to look; ``jobs`` is how many there will be at most, None where that is not known."""
        self.tally, self.jobs = tally, jobs
        self.tally.look()
        self._before, self._started = self.tally.done, time.monotonic()
        self._said: tuple[int, int] | None = None
        self._live: Live | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()  # what is written to stderr goes above its line
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; the last state stays as a plain line."""
        self._end.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
        self.tally.look()
        if self._said != (self.tally.done, self.tally.failed):
            self._say()

    def _say(self) -> None:
        self._said = (self.tally.done, self.tally.failed)
        show(self._text(), error=True)

    def _text(self) -> str:
        return describe(self.tally, self.jobs, time.monotonic() - self._started, self._before)

    def _run(self) -> None:
        said, said_at, pause = self.tally.done, time.monotonic(), _LOOK
        while not self._end.wait(pause):
            clock = time.monotonic()
            self.tally.look()
            if self._live is not None:
                self._live.update(self._text(), refresh=True)
            elif self.tally.done != said and clock - said_at >= _LINE:
                self._say()
                said, said_at = self.tally.done, clock
            pause = max(_LOOK, 20 * (time.monotonic() - clock))  # large sweeps: at most a twentieth of the time
