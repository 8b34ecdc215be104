"""The YAML files of conf/ and the dataclasses of config.py are in step."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from resnet8_quant.config import Config, DType, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.options import CONF, GROUPS, derive_name, options, presets, quant_name
from resnet8_quant.sweep.compose import compose_config, explain, register
from resnet8_quant.validation import validate

EXTRA = {"model=onnx": ["model.path=x"], "data=arrays": ["data.path=x"]}
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


@pytest.fixture
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_groups_are_the_known_ones() -> None:
    assert {group for group, _ in OPTIONS} == {*GROUPS, "experiment"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_passes_validation(group: str, option: str) -> None:
    override = f"{group}={option}"
    config = compose_config([override, *EXTRA.get(override, [])])
    validate(config)
    part = getattr(config, group, None)
    if group != "experiment":
        shown = getattr(part, "name", getattr(part, "method", getattr(part, "kind", None)))
        assert getattr(shown, "name", shown) == option


def test_an_option_holds_only_what_differs_and_its_first_line_says_what_it_is() -> None:
    for group, kind in GROUPS.items():
        for option, settings in presets(group).items():
            (path,) = (CONF / group).rglob(f"{option}.yaml")
            lines = path.read_text(encoding="utf-8").splitlines()
            assert lines[0].startswith("# ")
            assert not [line for line in lines[1:] if "#" in line], path  # the fields are documented in config.py
            defaults = kind()
            for name in (line.partition(":")[0] for line in lines[1:]):
                assert name in ("kind", "method") or getattr(settings, name) != getattr(defaults, name), (path, name)
        assert set(options(group)) <= set(presets(group))


@pytest.mark.parametrize(
    "option", ["activation_type: uint8\nweight_bits: 5", "activation_type: uint8\nper_channel: true"]
)
def test_an_option_of_ones_own_and_its_name(option: str, tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "mine.yaml").write_text(option)
    config = compose_config(["quant=mine"], tmp_path)
    assert config.quant.activation_type is DType.uint8
    assert config.quant.name == quant_name(config.quant) == "mine"
    assert compose_config(["quant=mine", "quant.compact=true"], tmp_path).quant.name == "mine"
    changed = compose_config(["quant=mine", "quant.reduce_range=true"], tmp_path)
    assert changed.quant.name == quant_name(changed.quant) == "mine+reduce_range=true"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("quant=int8 quant.weight_bits=4", "int8+weight_bits=4"),
        ("quant=w4a8 quant.weight_bits=3", "w3a8"),
        ("quant=uint8 quant.weight_type=int8 quant.per_channel=true", "u8s8"),
        ("quant=int8 'quant.layers={dense: {weight_bits: 8}}'", "int8+layers"),
        ("quant=u8s8 quant.compact=true", "u8s8"),
        ("quant.reduce_range=true quant.activation_symmetric=true quant.weight_symmetric=false",
         "int8+activation_symmetric=true+weight_symmetric=false+1 more"),
    ],
)  # fmt: skip
def test_the_name_says_what_was_really_set(overrides: str, name: str) -> None:
    assert quant_name(compose_config(shlex.split(overrides)).quant) == name


def test_the_name_of_settings_made_in_python() -> None:
    assert quant_name(QuantConfig()) == "int8"
    assert quant_name(QuantConfig(weight_bits=4)) == "int8+weight_bits=4"
    assert quant_name(QuantConfig(activation_type="uint8", per_channel=True)) == "u8s8"  # type: ignore[arg-type]
    assert quant_name(QuantConfig(name="a label of mine", weight_bits=4)) == "a label of mine"
    config = compose_config(["quant=int8", "quant.weight_bits=4"])
    config.quant.weight_bits = 5
    assert quant_name(config.quant) == "int8+weight_bits=5"
    assert derive_name("refine", RefineConfig(bias=True)) == "bias"
    assert derive_name("refine", RefineConfig(equalize=True)) == "none+equalize=true"


def test_a_string_is_taken_for_the_member_it_names() -> None:
    assert QuantConfig(activation_type="uint8").activation_type is DType.uint8  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match=r"`quant\.activation_type` is uint9; valid are float32, int8") as caught:
        QuantConfig(activation_type="uint9")  # type: ignore[arg-type]
    assert caught.value.remedy == "python run.py quant.activation_type=uint8"


def test_repr_of_a_config_is_what_differs_from_the_defaults() -> None:
    assert repr(Config()) == "Config()"
    assert repr(compose_config(["quant=int8", "seed=7", "data=sample"])) == "Config(data.kind=sample, seed=7)"


def test_defaults_of_code_and_command_line_are_equal() -> None:
    assert Config() == compose_config([])


@pytest.mark.parametrize(
    ("member", "bits"),
    [("float32", 32), *((f"{sign}int{bits}", bits) for sign in ("", "u") for bits in (2, 4, 8, 16))],
)
def test_bits_of_a_number_type(member: str, bits: int) -> None:
    assert DType[member].bits == bits
    assert len(DType) == 9


LAYER = "a layer takes weight_bits and activation_bits"
WRONG = {
    "experiment=serach": (("`experiment` is serach", "valid are ablation", "seed_table"), "experiment=search"),
    "hydra/launcher=basc": (("`hydra/launcher` is basc",), "python run.py -m hydra/launcher=basic"),
    "hydra/sweeper=optun": (("`hydra/sweeper` is optun",), "python run.py -m hydra/sweeper=optuna"),
    "quant=null": (("a config group is null",), "--help"),
    "quant=uint9": (("`quant` is uint9",), "python run.py quant=uint8"),
    "deploy.output=labels": (("`deploy.output` is labels", "logits"), "python run.py deploy.output=label"),
    "deploy=cortex_m": (("`deploy` is cortex_m; valid are arm, none, x86",), "python run.py --help"),
    "deploy.output=foo": (("`deploy.output` is foo", "logits"), "python run.py --help"),
    "latency.throughput_batch=a": (("`latency.throughput_batch`", "'a'"), "--help"),
    "quant.layers=8": (("`quant.layers` is 8", LAYER), "'quant.layers={LAYER: {weight_bits: 8}}'"),
    "quant.layers.stack=8": (("`quant.layers.stack` is 8", LAYER), "'quant.layers={stack: {weight_bits: 8}}'"),
    "+quant.layers.a.weight_bits=b": (("`quant.layers.a.weight_bits` is b", LAYER), "{a: {weight_bits: 8}}'"),
    "quant.layers={a.b: 8}": (("`quant.layers` is {a.b: 8}", LAYER), "'quant.layers={a.b: {weight_bits: 8}}'"),
    "quant.layers.a.b.weight_bits=8": ((LAYER, "in braces"), "'quant.layers={a.b: {weight_bits: 8}}'"),
    "quant.layers.a.*.weight_bits=8": ((LAYER, "in braces"), "'quant.layers={a.*: {weight_bits: 8}}'"),
}


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_a_sentence_with_a_remedy(word: str) -> None:
    with pytest.raises((HydraException, ValueError)) as caught:
        compose("config", [word])
    explained = explain(caught.value)
    assert explained is not None
    words, remedy = WRONG[word]
    assert all(part in explained.problem for part in words), explained.problem
    assert remedy in explained.remedy


FAULTS = {
    "several values without -m": (
        ["quant=int8,uint8", "seed=7"],
        None,
        "quant=int8,uint8 lists several values",
        "python run.py -m quant=int8,uint8 seed=7",
    ),
    "not YAML": (["quant=mine"], ("quant", "weight_bits: [4"), "mine.yaml line 1 is not YAML", "correct it"),
    "a list": (["quant=mine"], ("quant", "[4]"), "quant/mine.yaml holds no settings", "write SETTING: VALUE lines"),
    "an unknown key": (
        ["quant=mine"],
        ("quant", "weight_bit: 4"),
        "quant/mine.yaml: `quant.weight_bit` is not a field of the config",
        "write weight_bits instead",
    ),
    "a wrong value": (
        ["quant=mine"],
        ("quant", "weight_type: int9"),
        "quant/mine.yaml: `quant.weight_type` is int9; valid are float32, int8",
        "quant/mine.yaml",
    ),
    "an experiment without its package": (
        ["experiment=mine"],
        ("experiment", "# Mine.\nseed: 7"),
        "experiment/mine.yaml lacks the line `# @package _global_`",
        "write it as the first line",
    ),
    "an experiment without its package, of other options": (
        ["experiment=mine"],
        ("experiment", "defaults:\n  - override /quant: u8s8"),
        "experiment/mine.yaml lacks the line `# @package _global_`",
        "write it as the first line",
    ),
    "an experiment's unknown key": (
        ["experiment=mine"],
        ("experiment", "# @package _global_\nsed: 7"),
        "experiment/mine.yaml: `sed` is not a field of the config",
        "write seed instead",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_likely_fault_is_a_sentence_that_names_the_file(fault: str, tmp_path: Path) -> None:
    overrides, file, problem, remedy = FAULTS[fault]
    if file is not None:
        (tmp_path / file[0]).mkdir()
        (tmp_path / file[0] / "mine.yaml").write_text(file[1])
    with pytest.raises(ExperimentError) as caught:
        compose_config(overrides, tmp_path)
    assert problem in caught.value.problem
    assert file is None or str(tmp_path / file[0] / "mine.yaml") in caught.value.problem
    assert remedy in caught.value.remedy
