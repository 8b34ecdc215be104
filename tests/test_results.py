"""Rows that survive a round trip with their settings, and files from elsewhere that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet8_quant import results
from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    LatencyConfig,
    Method,
    QuantConfig,
    TrackingConfig,
    WeightScale,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import COLUMNS, SCHEMA_VERSION, RunResult, settings_of

ROW = RunResult(
    **{"quant_type": "int8", "per_channel": False, "eval_images": 1000, "calibration_cached": True},
    **{"accuracy": 0.1 + 0.2, "mcnemar_p": 1e-300, "overrides": "a=[1,2] b='x,y'"},
    settings={"config.calibration.percentile": "99.9", "config.model.path": 'a, "b"\nc.onnx'},
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50)
TYPES = {name: get_args(hint)[0] for name, hint in get_type_hints(RunResult).items() if type(None) in get_args(hint)}
VALUES = {bool: st.booleans(), int: st.integers(), float: st.floats(allow_nan=False), str: TEXTS}
ROWS = st.builds(
    lambda columns, own: RunResult(**columns, settings=own),
    st.lists(st.sampled_from(COLUMNS[2:]), max_size=6, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: VALUES[TYPES[name]] for name in names})
    ),
    st.dictionaries(st.from_regex(r"\Aconfig\.[a-z]{1,8}\.[a-z][a-z0-9_]{0,8}\Z"), TEXTS, max_size=4),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ROWS)
def test_round_trip_keeps_values_and_types(tmp_path: Path, row: RunResult) -> None:
    back = results.read(results.write(row, tmp_path))
    assert back == row
    for name in COLUMNS:
        assert type(getattr(back, name)) is type(getattr(row, name)), name


def test_columns_of_settings_are_sorted_and_come_last(tmp_path: Path) -> None:
    row = dataclasses.replace(ROW, settings=dict(reversed(ROW.settings.items())))
    table = pandas.read_csv(results.write(row, tmp_path))
    assert tuple(table.columns) == (*COLUMNS, "config.calibration.percentile", "config.model.path")
    assert table["config.calibration.percentile"][0] == 99.9
    assert results.read(tmp_path / "results.csv") == ROW


def test_settings_are_those_that_differ_from_their_defaults() -> None:
    assert settings_of(Config()) == {}
    config = Config(
        quant=QuantConfig(per_channel=True, layers={"stack1.*": {"weight_bits": 4}}),
        calibration=CalibrationConfig(Method.percentile, percentile=99.9, bins=None, indices=[3, 5]),
        latency=LatencyConfig(runs=0),
        tracking=TrackingConfig(uri="sqlite:///x.db"),
        seed=7,
        cache_dir="/somewhere",
        resume="true",
    )
    config.refine.weight_scale = WeightScale.mse
    config.model.path = "model.onnx"
    assert list(settings_of(config).items()) == [
        ("config.calibration.bins", "null"),
        ("config.calibration.indices", "[3, 5]"),
        ("config.calibration.method", "percentile"),
        ("config.calibration.percentile", "99.9"),
        ("config.latency.runs", "0"),
        ("config.model.path", "model.onnx"),
        ("config.quant.layers", '{"stack1.*": {"weight_bits": 4}}'),
        ("config.quant.per_channel", "true"),
        ("config.refine.weight_scale", "mse"),
    ]


def test_a_long_setting_is_its_digest() -> None:
    configs = [Config(calibration=CalibrationConfig(indices=list(range(start, 50_000)))) for start in (0, 0, 1)]
    texts = [settings_of(config)["config.calibration.indices"] for config in configs]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("sha256:")


HEADER = ",".join(COLUMNS)


def _line(**values: str) -> str:
    return ",".join({"schema_version": str(SCHEMA_VERSION), "status": "ok", **values}.get(name, "") for name in COLUMNS)


DAMAGED = {
    "absent": None,
    "empty": b"",
    "binary": b"\xff\xfe\x00\x80",
    "foreign": b"a,b\n1,2\n",
    "header only": HEADER,
    "two rows": f"{HEADER}\n{_line()}\n{_line()}\n",
    "cut": f"{HEADER}\n{SCHEMA_VERSION},ok\n",
    "surplus value": f"{HEADER}\n{_line()},surplus\n",
    "surplus column": f"{HEADER},more\n{_line()},1\n",
    "group alone": f"{HEADER},config.quant\n{_line()},1\n",
    "no setting's name": f"{HEADER},config.quant.__class__\n{_line()},1\n",
    "a setting twice": f"{HEADER},config.a.b,config.a.b\n{_line()},1,2\n",
    "setting first": f"config.a.b,{HEADER}\n1,{_line()}\n",
    "too many settings": f"{HEADER},{','.join(f'config.a.b{i}' for i in range(201))}\n{_line()}{',1' * 201}\n",
    "too large": f"{HEADER}\n{_line(overrides='x' * 2**20)}\n",
    "large field": f"{HEADER},config.a.b\n{_line()},{'x' * 200_000}\n",
    "not a float": f"{HEADER}\n{_line(accuracy='high')}\n",
    "not a bool": f"{HEADER}\n{_line(per_channel='yes')}\n",
    "not an int": f"{HEADER}\n{_line(eval_images='1.5')}\n",
    "huge int": f"{HEADER}\n{_line(eval_images='9' * 5000)}\n",
    "other version": f"{HEADER}\n{_line(schema_version='1')}\n",
    "no version": f"{HEADER}\n{_line(schema_version='')}\n",
    "no status": f"{HEADER}\n{_line(status='')}\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path, content = tmp_path / "results.csv", DAMAGED[damage]
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ExperimentError, match=r"results\.csv") as caught:
        results.read(path)
    assert len(str(caught.value)) < 1000
