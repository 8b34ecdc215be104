"""The YAML files of conf/ and the dataclasses of config.py are in step."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from resnet8_quant.config import Config, DType, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.options import CONF, GROUPS, derive_name, options, overrides_of, presets, quant_name
from resnet8_quant.sweep.compose import compose_config
from resnet8_quant.validation import validate

EXTRA = {"model=onnx": ["model.path=x"], "data=folder": ["data.path=x"], "data=arrays": ["data.path=x"]}
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


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


@pytest.mark.parametrize(
    "words",
    [
        "",
        *(f"{group}={option}" for group, option in OPTIONS if group == "experiment"),
        "seed=3 data.root='/a folder' quant=w2a8 quant.compact=true evaluation.threads=7 refine=distill refine.shift=0",
        "allocate.choices=[2,float] allocate.max_accuracy_drop=0.5 calibration=lp calibration.norm=3 analyze=layers",
        """data=folder data.path=/x 'data.classes=["New York","\u00e9 \u00fc",c,"true","a\\b"]'""",
        "'quant.layers={stack1.*: {float: true}, c: {float: true}}' 'model.path=\"a=(b), {c}\\\"\\${d}\"' model=keras",
    ],
)
def test_a_config_as_overrides_composes_the_same_config(words: str) -> None:
    config = compose_config(shlex.split(words))
    overrides = overrides_of(config)
    again = compose_config(overrides)
    assert again == config
    assert len(overrides) <= len(shlex.split(words)) or "experiment" in words


def test_an_option_holds_only_what_differs_and_its_first_line_says_what_it_is() -> None:
    for group, group_type in GROUPS.items():
        for option, settings in presets(group).items():
            (path,) = (CONF / group).rglob(f"{option}.yaml")
            lines = path.read_text(encoding="utf-8").splitlines()
            assert lines[0].startswith("# ")
            assert not [line for line in lines[1:] if "#" in line], path  # the fields are documented in config.py
            defaults = group_type()
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
    assert quant_name(QuantConfig(activation_type="uint8", per_channel=True)) == "u8s8"
    assert quant_name(QuantConfig(name="a label of mine", weight_bits=4)) == "a label of mine"
    config = compose_config(["quant=int8", "quant.weight_bits=4"])
    config.quant.weight_bits = 5
    assert quant_name(config.quant) == "int8+weight_bits=5"
    assert derive_name("refine", RefineConfig(bias=True)) == "bias"
    assert derive_name("refine", RefineConfig(equalize=True)) == "none+equalize=true"


def test_a_string_is_taken_for_the_member_it_names() -> None:
    assert QuantConfig(activation_type="uint8").activation_type is DType.uint8
    with pytest.raises(ExperimentError, match=r"`quant\.activation_type` is uint9; valid are float32, int8") as caught:
        QuantConfig(activation_type="uint9")
    assert caught.value.remedy == "python run.py quant.activation_type=uint8"


def test_repr_of_a_config_is_what_differs_from_the_defaults() -> None:
    assert repr(Config()) == "Config()"
    assert repr(compose_config(["quant=int8", "seed=7", "data=sample"])) == "Config(data.kind=sample, seed=7)"


def test_defaults_of_code_and_command_line_are_equal() -> None:
    assert Config() == compose_config([])


def test_bits_of_a_data_type() -> None:
    bits = {"float32": 32} | {f"{sign}int{width}": width for sign in ("", "u") for width in (2, 4, 8, 16)}
    assert {dtype.name: dtype.bits for dtype in DType} == bits


LAYER = "a layer takes weight_bits and activation_bits"
# {what is typed: (what the problem says, what the remedy says)}
WRONG = {
    "experiment=serach": ("`experiment` is serach; valid are ablation, ", "experiment=search"),
    "hydra/launcher=basc": ("`hydra/launcher` is basc", "python run.py -m hydra/launcher=basic"),
    "hydra/sweeper=optun": ("`hydra/sweeper` is optun", "python run.py -m hydra/sweeper=optuna"),
    "quant=null": ("`quant` is null; valid are float", "--help"),
    "seed=3 u8s": ("`u8s` is no setting", "python run.py seed=3 quant=u8s8"),
    "quant.per_channel=ture": ("`quant.per_channel`: value 'ture'", "python run.py quant.per_channel=true"),
    "hydra/luncher=joblib": ("`hydra/luncher` is not a field", "python run.py hydra/launcher=joblib"),
    "hydra.luncher.n_jobs=2": ("`hydra.luncher` is not a field", "hydra.launcher.n_jobs=2"),
    "quant=uint9": ("`quant` is uint9", "python run.py quant=uint8"),
    "quant=int8,uint8 seed=7": ("quant=int8,uint8 lists several values", "python run.py -m quant=int8,uint8 seed=7"),
    "deploy.output=labels": ("`deploy.output` is labels; valid are same, ", "python run.py deploy.output=label"),
    "deploy=cortex_m": ("`deploy` is cortex_m; valid are arm, none, tflite, x86", "python run.py --help"),
    "deploy.output=foo": ("`deploy.output` is foo; valid are same, ", "python run.py --help"),
    "latency.throughput_batch=a": ("`latency.throughput_batch`: value 'a'", "latency.throughput_batch=100"),
    "quant.layers=8": (f"`quant.layers` is 8; {LAYER}", "'quant.layers={LAYER: {weight_bits: 8}}'"),
    "quant.layers.stack=8": (f"`quant.layers.stack` is 8; {LAYER}", "'quant.layers={stack: {weight_bits: 8}}'"),
    "+quant.layers.a.weight_bits=b": (f"`quant.layers.a.weight_bits` is b; {LAYER}", "{a: {weight_bits: 8}}'"),
    "'quant.layers={a.b: 8}'": (f"`quant.layers` is {{a.b: 8}}; {LAYER}", "'quant.layers={a.b: {weight_bits: 8}}'"),
    "quant.layers.a.b.weight_bits=8": (
        f"{LAYER}, 2 to 8 each, or float: true, in braces",
        "'quant.layers={a.b: {weight_bits: 8}}'",
    ),
    "quant.layers.a.*.weight_bits=8": (
        f"{LAYER}, 2 to 8 each, or float: true, in braces",
        "'quant.layers={a.*: {weight_bits: 8}}'",
    ),
}


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_word_is_a_sentence_with_a_remedy(typed: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        compose_config(shlex.split(typed))
    problem, remedy = WRONG[typed]
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("group", "text", "problem", "remedy"),
    [
        ("quant", "weight_bits: [4", "mine.yaml line 1 is not YAML", "correct it"),
        ("quant", "weight_bit: 4", "mine.yaml: `quant.weight_bit` is not a field of", "write weight_bits instead"),
        ("quant", "weight_type: int9", "mine.yaml: `quant.weight_type` is int9; valid are float32", "quant/mine.yaml"),
        ("quant", "[4]", "quant/mine.yaml holds no settings", "write SETTING: VALUE lines"),
        ("experiment", "defaults:\n  - override /quant: u8s8", "lacks the line `# @package _global_`", "write it as"),
        ("experiment", "# Mine.\nseed: 7", "lacks the line `# @package _global_`", "write it as the first line"),
        ("experiment", "# @package _global_\nsed: 7", "`sed` is not a field of the config", "write seed instead"),
    ],
)
def test_a_likely_fault_names_the_file(group: str, text: str, problem: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    with pytest.raises(ExperimentError) as caught:
        compose_config([f"{group}=mine"], tmp_path)
    assert str(tmp_path / group / "mine.yaml") in str(caught.value)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
