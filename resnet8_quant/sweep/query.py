"""Choose and order the rows of a table: what ``--where`` and ``--sort`` mean.

In: an expression such as ``accuracy > 0.87 and quant_type in ['int8', 'u8s8']``, a list of columns, and rows as dicts.
Out: the rows that it is true for, or the rows in order. The expression is parsed, never run: it can only compare.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from resnet8_quant.errors import ExperimentError

Row = Mapping[str, Any]
Test = Callable[[Row], bool | None]  # None: not known, because a cell is empty

LONGEST = 2000  # characters
EXAMPLE = "--where \"accuracy > 0.87 and quant_type in ['int8', 'u8s8']\""
ALLOWED = "comparisons (== != < <= > >= in, not in, is None), and, or, not, names of columns, numbers and 'text'"
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, choices: value in choices,
    ast.NotIn: lambda value, choices: value not in choices,
    ast.Is: lambda value, other: value is other,
    ast.IsNot: lambda value, other: value is not other,
}


def where(expression: str, columns: Collection[str]) -> Callable[[Row], bool]:
    """The test that ``expression`` stands for.

    A comparison with an empty cell is neither true nor false, nor is its ``not``: such a row is left out, except by
    ``column is None``. A column alone asks whether it is true, e.g. ``per_channel``. Small and capital letters are the
    same, in names of columns as in text.

    Args:
        expression: comparisons, ``and``, ``or``, ``not``, parentheses.
        columns: the names that it may use.

    Raises:
        ExperimentError: it cannot be parsed, names an unknown column, or holds anything but the above.
    """
    if len(expression) > LONGEST:
        raise ExperimentError(f"`--where` has {len(expression):,} characters, more than {LONGEST:,}", EXAMPLE)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        test = _test(tree.body, columns)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExperimentError(f"`--where` cannot be read: {expression!r} ({error})", EXAMPLE) from error

    def chosen(row: Row) -> bool:
        try:
            return test(row) is True
        except TypeError as error:
            raise ExperimentError(
                f"`--where` compares what cannot be compared: {error}", f"text needs quotes, numbers none: {EXAMPLE}"
            ) from error

    return chosen


def ordered(rows: Sequence[Row], keys: str, columns: Collection[str]) -> list[Row]:
    """``rows`` by the columns of ``keys``, separated by commas, a leading - for descending; empty cells come last.

    Rows that are equal in all of them keep their order.

    Raises:
        ExperimentError: an unknown column.
    """
    result = list(rows)
    for key in reversed(keys.split(",")):
        name = check_column(key.strip().removeprefix("-"), columns, "--sort")
        known = [row for row in result if row[name] is not None]
        known.sort(key=lambda row: row[name], reverse=key.strip().startswith("-"))
        result = known + [row for row in result if row[name] is None]
    return result


def check_column(name: str, columns: Collection[str], option: str) -> str:
    """The one of ``columns`` that ``name`` is, whether in small or in capital letters.

    Raises:
        ExperimentError: it is none; the remedy is the name that is most like it.
    """
    if name in columns:
        return name
    for column in columns:
        if column.casefold() == name.casefold():
            return column
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    raise ExperimentError(
        f"`{option}` names the column {name!r}, which there is not; columns are {', '.join(columns)}",
        f"{option} with {close[0]}" if close else EXAMPLE if option == "--where" else f"{option} {next(iter(columns))}",
    )


def _test(node: ast.expr, columns: Collection[str]) -> Test:
    match node:
        case ast.BoolOp(op=ast.And() | ast.Or() as op, values=values):
            return _both([_test(value, columns) for value in values], isinstance(op, ast.Or))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _test(operand, columns)
            return lambda row: None if (value := inner(row)) is None else not value
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [(_value(side, columns), side) for side in (left, *others)]
            return _both([_comparison(*pair) for pair in zip(ops, sides[:-1], sides[1:], strict=True)], False)
        case ast.Name():
            value = _value(node, columns)
            return lambda row: None if (found := value(row)) is None else bool(found)
    raise _refused(node)


def _both(tests: list[Test], either: bool) -> Test:
    """``or`` if ``either``, else ``and``: decided as soon as one is, unknown where none is and one is unknown."""

    def combined(row: Row) -> bool | None:
        unknown = False
        for test in tests:
            value = test(row)
            if value is either:
                return either
            unknown = unknown or value is None
        return None if unknown else not either

    return combined


def _comparison(op: ast.cmpop, left: tuple[Any, ast.expr], right: tuple[Any, ast.expr]) -> Test:
    compare, about_none = COMPARE[type(op)], any(_is_none(node) for _, node in (left, right))
    if isinstance(op, ast.Is | ast.IsNot) and not about_none:
        raise _refused(left[1])
    if isinstance(op, ast.In | ast.NotIn) and not isinstance(right[1], ast.List | ast.Tuple):
        raise _refused(right[1])

    def test(row: Row) -> bool | None:
        a, b = left[0](row), right[0](row)
        return None if not about_none and (a is None or b is None) else compare(a, b)

    return test


def _value(node: ast.expr, columns: Collection[str]) -> Callable[[Row], Any]:
    match node:
        case ast.Name(id=name):
            column = check_column(name, columns, "--where")
            return lambda row: _folded(row[column])
        case ast.Constant(value=str() | bool() | int() | float() | None as constant):
            return lambda row: _folded(constant)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda row: -number
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            if not any(isinstance(element, ast.Name | ast.List | ast.Tuple) for element in elements):
                values = [_value(element, ())({}) for element in elements]
                return lambda row: values
    raise _refused(node)


def _folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _refused(node: ast.expr) -> ExperimentError:
    return ExperimentError(f"`--where` holds {ast.unparse(node)!r}; allowed are {ALLOWED}", EXAMPLE)
