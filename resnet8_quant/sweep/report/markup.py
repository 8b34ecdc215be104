"""Text that came from a run, made safe for the page: HTML, JSON inside a script, labels of a plot.

In: any text, numbers or rows. Out: markup in which nothing of it is read as a tag or a script.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNSAFE_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
LONGEST_CELL = 400  # characters


def escape(text: object) -> str:
    """``text`` as it stands between tags or within quotes."""
    return html.escape(str(text), quote=True)


def script_json(value: object) -> str:
    """``value`` as JSON that can stand in a script element: no character of it can end the element."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, code in UNSAFE_IN_SCRIPT.items():
        text = text.replace(character, code)
    return text


def label(text: str) -> str:
    """``text`` as a label of Plotly, which reads some tags: escaped, a line feed as a new line."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def shortened(text: str, longest: int = LONGEST_CELL) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, its name for filters, whether it holds numbers, a class for the page's style."""

    title: str
    key: str = ""
    number: bool = False
    style: str = ""


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that it is sorted by, if it is one; ``markup`` is put in as it is.

    A filter also finds the cell by ``alias``, the CSV's word where another is shown.
    """

    text: str
    value: float | None = None
    markup: str | None = None
    alias: str = ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, attributes: str = "") -> str:
    """An HTML table that scrolls sideways where the screen is narrow; numbers on the right."""
    classes = [" ".join(filter(None, ("n" if column.number else "", column.style))) for column in columns]
    opened = [f' class="{name}"' if name else "" for name in classes]
    head = "".join(
        f'<th{kind} scope="col" data-key="{escape(column.key)}">{_breakable(column.title)}</th>'
        for kind, column in zip(opened, columns, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(kind, cell) for kind, cell in zip(opened, row, strict=True)) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table{attributes}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _breakable(title: str) -> str:
    """A heading that may be broken after a point and an underscore."""
    return escape(title).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cell(kind: str, cell: Cell) -> str:
    value = "" if cell.value is None or not math.isfinite(cell.value) else f' data-v="{cell.value!r}"'
    value += f' data-alias="{escape(cell.alias)}"' if cell.alias else ""
    return f"<td{kind}{value}>{escape(shortened(cell.text)) if cell.markup is None else cell.markup}</td>"


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
