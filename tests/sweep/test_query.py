"""Filters that only compare, and orders with empty cells last."""

from __future__ import annotations

from typing import Any

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.query import ordered, where

COLUMNS = ("accuracy", "quant_type", "per_channel", "error", "model_bytes")
ROWS: list[dict[str, Any]] = [
    {"accuracy": 0.9, "quant_type": "int8", "per_channel": False, "error": None, "model_bytes": 100},
    {"accuracy": 0.8, "quant_type": "u8s8", "per_channel": True, "error": None, "model_bytes": 50},
    {"accuracy": None, "quant_type": "uint8", "per_channel": None, "error": "no luck", "model_bytes": None},
]


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("accuracy > 0.85", [0]),
        ("accuracy <= 0.9", [0, 1]),
        ("0.8 < accuracy <= 0.9", [0]),
        ("not accuracy > 0.85", [1]),  # what is not known is neither
        ("quant_type == 'u8s8' or accuracy > 0.85", [0, 1]),
        ("accuracy > 0.5 and quant_type != 'int8'", [1]),
        ("quant_type in ['int8', 'uint8']", [0, 2]),
        ("quant_type not in ('int8',)", [1, 2]),
        ("per_channel", [1]),
        ("not per_channel", [0]),
        ("per_channel == False", [0]),
        ("error is None", [0, 1]),
        ("error is not None", [2]),
        ("error == None", [0, 1]),
        ("accuracy > -1", [0, 1]),
        ("accuracy > 0.5 or error is not None", [0, 1, 2]),
        ("model_bytes > accuracy", [0, 1]),
        ("not (accuracy > 0.85 or per_channel)", []),
        ("Quant_Type == 'INT8'", [0]),
        ("quant_type in ['INT8', 'Uint8']", [0, 2]),
        ("quant_type != 'INT8' and ACCURACY > 0", [1]),
    ],
)
def test_where_keeps(expression: str, rows: list[int]) -> None:
    fits = where(expression, COLUMNS)
    assert [index for index, row in enumerate(ROWS) if fits(row)] == rows


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "accuracy >",
        "accuracy = 1",
        "open('x')",
        "__import__('os').system('true')",
        "accuracy.__class__ == 1",
        "quant_type.upper() == 'INT8'",
        "accuracy > @limit",
        "`accuracy` > 1",
        "accuracy + 1 > 1",
        "[row for row in [1]]",
        "(lambda: 1)()",
        "accuracy if per_channel else 1",
        "(accuracy := 1) > 0",
        "quant_type[0] == 'i'",
        "f'{accuracy}' == ''",
        "quant_type in 'int8'",
        "quant_type in quant_type",
        "quant_type in [quant_type]",
        "quant_type is 'int8'",
        "1",
        "accuracy; per_channel",
        "not " * 500 + "per_channel",
        "(" * 300 + "accuracy" + ")" * 300,
        "accuracy > 0 or " * 200 + "accuracy > 0",
        "accuracy > ...",
        "accuracy > 1j",
        "accuracy > b'1'",
    ],
)
def test_where_refuses(expression: str) -> None:
    with pytest.raises(ExperimentError, match="--where"):
        where(expression, COLUMNS)


def test_unknown_column_is_refused_with_the_closest() -> None:
    with pytest.raises(ExperimentError, match="'acuracy'") as caught:
        where("acuracy > 1", COLUMNS)
    assert "accuracy" in caught.value.remedy
    with pytest.raises(ExperimentError, match="'__name__'"):
        where("__name__ == '__main__'", COLUMNS)
    with pytest.raises(ExperimentError, match="--sort") as caught:
        ordered(ROWS, "-model_byte", COLUMNS)
    assert "model_bytes" in caught.value.remedy


def test_text_against_a_number_is_refused() -> None:
    fits = where("accuracy > '0.5'", COLUMNS)
    with pytest.raises(ExperimentError, match="cannot be compared"):
        fits(ROWS[0])


def test_order_is_stable_and_empty_cells_come_last() -> None:
    def names(keys: str) -> list[str]:
        return [row["quant_type"] for row in ordered(ROWS, keys, COLUMNS)]

    assert names("accuracy") == ["u8s8", "int8", "uint8"]
    assert names("-accuracy") == ["int8", "u8s8", "uint8"]
    assert names("Accuracy") == names("accuracy")
    assert names("error, -model_bytes") == ["uint8", "int8", "u8s8"]
    same = [{"accuracy": 1, "place": place} for place in range(3)]
    assert [row["place"] for row in ordered(same, "-accuracy", ("accuracy",))] == [0, 1, 2]
