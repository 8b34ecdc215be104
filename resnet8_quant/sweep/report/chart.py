"""What a plot of the report shows, before anything draws it.

In: plain numbers and labels. Out: `Chart` and `Heat`, which the page (plotly_figures.py) and the files beside it
(static_figures.py) draw alike. Labels are plain text; whoever draws them makes them safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

# Okabe and Ito's colours, told apart by colour-blind readers, and on white as well as on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
GREY = "#8A8F98"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star")
MOST_SERIES = len(PALETTE)
FEW = 8  # ticks
WINDOW = 10.0  # percentage points below the best where an axis of accuracy ends at first


@dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
        name: in the legend.
        x: numbers, or words for an axis of categories.
        y: numbers.
        hover: for each point the lines of its label, separated by line feeds; empty: none.
        mark: "points", "line" (with points on it), "front" (steps) or "ring" (around one point).
        low, high: ends of a band around a line; empty: none.
        colour: of PALETTE; None: grey.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    hover: Sequence[str] = ()
    mark: str = "points"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int | None = 0

    @property
    def hex(self) -> str:
        return GREY if self.colour is None else PALETTE[self.colour % MOST_SERIES]


@dataclass(frozen=True)
class Chart:
    """Points and lines over two axes.

    Attributes:
        key: name of its files and its place on the page.
        title: what it shows.
        note: sentence below it.
        y_range: of the axis at first; None: all.
        level: name and height of a dashed line.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    note: str = ""
    log_x: bool = False
    y_range: tuple[float, float] | None = None
    level: tuple[str, float] | None = None


@dataclass(frozen=True)
class Heat:
    """A grid of coloured cells; ``z[row][column]``, None where there was no run.

    ``diverging`` puts the middle of the colours at zero. ``cells`` are the words in the cells, ``hover`` their labels.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    x: Sequence[str]
    y: Sequence[str]
    z: Sequence[Sequence[float | None]]
    cells: Sequence[Sequence[str]]
    hover: Sequence[Sequence[str]]
    unit: str
    note: str = ""
    diverging: bool = False


def log_ticks(chart: Chart) -> list[float]:
    """Where a logarithmic axis has labels: at the points themselves if they are few, else at 1, 2 and 5."""
    values = sorted({x for series in chart.series for x in series.x if isinstance(x, int | float) and x > 0})
    if len(values) <= FEW:
        return values
    powers = range(floor(log10(values[0])), ceil(log10(values[-1])) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if values[0] / 2 <= tick <= values[-1] * 2]


def window(values: Sequence[float]) -> tuple[tuple[float, float] | None, str]:
    """Where an axis of accuracies in percent ends at first, and the sentence that says what lies below it."""
    best, worst = max(values), min(values)
    if worst >= best - WINDOW:
        return None, ""
    low = best - WINDOW
    below = sum(value < low for value in values)
    return (low, best + 0.06 * WINDOW), (
        f"{below} {'run lies' if below == 1 else 'runs lie'} below {low:.1f} %: a double click on the plot shows "
        "everything."
    )
