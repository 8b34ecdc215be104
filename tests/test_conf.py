"""The YAML files of conf/ and the dataclasses of config.py are in step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from resnet8_quant.checks import check
from resnet8_quant.config import (
    AllocateConfig,
    CalibrationConfig,
    Config,
    DataConfig,
    DeployConfig,
    DType,
    ModelConfig,
    QuantConfig,
    RefineConfig,
    TrackingConfig,
)
from resnet8_quant.low_bit import narrowed, refines
from resnet8_quant.sweep.compose import explain, register, to_config

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = {
    "quant": QuantConfig,
    "calibration": CalibrationConfig,
    "refine": RefineConfig,
    "allocate": AllocateConfig,
    "deploy": DeployConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "tracking": TrackingConfig,
}
NAMED = ("quant", "refine", "allocate", "deploy")  # have a field for the word that chose them
EXTRA = {"model=onnx": ["model.path=x"], "data=arrays": ["data.path=x"]}
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
FIELD_OPTIONS = [(group, option) for group, option in OPTIONS if group in GROUPS]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_groups_are_the_known_ones() -> None:
    assert {group for group, _ in OPTIONS} == {*GROUPS, "experiment"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_passes_the_check(group: str, option: str) -> None:
    word = f"{group}={option}"
    words = [word, *EXTRA.get(word, [])]
    config = to_config(compose("config", words), words)
    check(config)
    if group in NAMED:
        assert getattr(config, group).name == option
    elif group == "calibration":
        assert config.calibration.method.name == option
    elif group in GROUPS:
        assert getattr(config, group).kind.name == option


@pytest.mark.parametrize(("group", "option"), FIELD_OPTIONS)
def test_keys_of_an_option_are_the_fields_of_its_dataclass(group: str, option: str) -> None:
    keys = list(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert keys == [field.name for field in dataclasses.fields(GROUPS[group])]


def test_config_yaml_sets_every_other_field() -> None:
    loaded = OmegaConf.load(CONF / "config.yaml")
    assert set(loaded) - {"defaults", "hydra"} == {f.name for f in dataclasses.fields(Config)} - set(GROUPS)
    for name in ("evaluation", "latency"):
        assert list(loaded[name]) == [f.name for f in dataclasses.fields(getattr(Config(), name))]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_file_begins_with_a_comment(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")


def test_defaults_of_code_and_command_line_are_equal() -> None:
    assert Config() == to_config(compose("config"), [])


@pytest.mark.parametrize(
    ("member", "bits"),
    [("float32", 32), *((f"{sign}int{bits}", bits) for sign in ("", "u") for bits in (2, 4, 8, 16))],
)
def test_bits_of_a_number_type(member: str, bits: int) -> None:
    assert DType[member].bits == bits
    assert len(DType) == 9


def test_the_plain_option_of_a_group_changes_nothing() -> None:
    assert not refines(RefineConfig())
    assert not narrowed(QuantConfig())
    config = to_config(compose("config", ["quant=w4a4", "refine=best"]), [])
    assert refines(config.refine)
    assert narrowed(config.quant)


LAYER = "a layer takes weight_bits and activation_bits"
WRONG = {
    "experiment=serach": (("`experiment` is serach", "valid are ablation", "seed_table"), "experiment=search"),
    "hydra/launcher=basc": (("`hydra/launcher` is basc",), "python run.py -m hydra/launcher=basic"),
    "hydra/sweeper=optun": (("`hydra/sweeper` is optun",), "python run.py -m hydra/sweeper=optuna"),
    "quant=null": (("a config group is null",), "--help"),
    "quant=uint9": (("`quant` is uint9",), "python run.py quant=uint8"),
    "deploy.output=labels": (("`deploy.output`", "'labels'", "logits"), "python run.py deploy.output=label"),
    "deploy.output=foo": (("`deploy.output`", "'foo'", "logits"), "python run.py deploy.output="),
    "latency.throughput_batch=a": (("`latency.throughput_batch`", "'a'"), "--help"),
    "quant.layers=8": (("`quant.layers` is 8", LAYER), "'quant.layers={LAYER: {weight_bits: 8}}'"),
    "quant.layers.stack=8": (("`quant.layers.stack` is 8", LAYER), "'quant.layers={stack: {weight_bits: 8}}'"),
    "+quant.layers.a.weight_bits=b": (("`quant.layers.a.weight_bits` is b", LAYER), "{a: {weight_bits: 8}}'"),
    "quant.layers={a.b: 8}": (("`quant.layers` is {a.b: 8}", LAYER), "'quant.layers={a.b: {weight_bits: 8}}'"),
    "quant.layers.a.b.weight_bits=8": ((LAYER, "in braces"), "'quant.layers={a.b: {weight_bits: 8}}'"),
    "quant.layers.a.*.weight_bits=8": ((LAYER, "in braces"), "'quant.layers={a.*: {weight_bits: 8}}'"),
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_a_sentence_with_a_remedy(word: str) -> None:
    with pytest.raises((HydraException, ValueError)) as caught:
        compose("config", [word])
    explained = explain(caught.value)
    assert explained is not None
    words, remedy = WRONG[word]
    assert all(part in explained.problem for part in words), explained.problem
    assert remedy in explained.remedy
