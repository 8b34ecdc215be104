"""What a search may choose: YAML and words become parameters, and values become words again."""

from __future__ import annotations

import math
import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from resnet8_quant.errors import ExperimentError

optuna = pytest.importorskip("optuna", reason="needs the extra [search]")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from resnet8_quant.sweep.search_space import NUMERIC, Space, read_options, read_space  # noqa: E402

FIELDS = {"n_trials": 4, "n_jobs": 1, "seed": 0, "maximize": "accuracy", "minimize": "model_bytes", "params": {}}


def test_words_with_several_values_are_parameters_and_the_others_are_fixed() -> None:
    space = read_space({}, ["quant=int8,uint8", "seed=range(1,4)", "data=sample", "hydra.sweep.dir=x"])
    assert space.parameters == {
        "quant": CategoricalDistribution(("int8", "uint8")),
        "seed": CategoricalDistribution(("1", "2", "3")),
    }
    assert space.fixed == ("data=sample", "hydra.sweep.dir=x")
    assert space.size == 6


@pytest.mark.parametrize(
    ("mapping", "distribution", "size"),
    [
        ({"choices": ["int8", "u8s8"]}, CategoricalDistribution(("int8", "u8s8")), 2),
        ({"choices": [True, None]}, CategoricalDistribution(("true", "null")), 2),
        ({"low": 10, "high": 100, "step": 30}, IntDistribution(10, 100, step=30), 4),
        ({"low": 1, "high": 8}, IntDistribution(1, 8), 8),
        ({"low": 99.0, "high": 100}, FloatDistribution(99.0, 100.0), math.inf),
        ({"low": 0.001, "high": 1.0, "log": True}, FloatDistribution(0.001, 1.0, log=True), math.inf),
        ("tag(log,interval(0.001,1.0))", FloatDistribution(0.001, 1.0, log=True), math.inf),
        ("int(interval(1,9))", IntDistribution(1, 9), 9),
    ],
)
def test_ranges_of_yaml_and_of_words(mapping: object, distribution: object, size: float) -> None:
    space = read_space({"a": mapping}, [])
    assert (space.parameters, space.size) == ({"a": distribution}, size)


def test_a_word_goes_before_yaml() -> None:
    params = {"quant": {"choices": ["int8", "u8s8"]}, "refine": "none,bias", "seed": 3}
    space = read_space(params, ["quant=float", "refine=none,gptq", "seed=7"])
    assert space.parameters == {"refine": CategoricalDistribution(("none", "gptq"))}
    assert space.fixed == ("quant=float", "seed=7")


def test_values_become_words_that_hydra_reads_and_layers_become_one() -> None:
    params = {
        "quant": {"choices": ["u8s8"]},
        "quant.layers.stack1.*.weight_bits": {"choices": [2, 4]},
        "refine.damping": {"low": 0.1, "high": 0.5, "step": 0.1},
        "quant.layers.stack1.*.activation_bits": {"choices": [6]},
        "quant.layers.dense.weight_bits": {"low": 2, "high": 8},
    }
    space = read_space(params, ["data=sample"])
    assert space.layer_patterns == ["stack1.*", "stack1.*", "dense"]
    words = space.overrides(dict(zip(space.parameters, ("u8s8", "4", 0.1 + 0.2, "6", 8), strict=True)))
    assert words == [
        "data=sample",
        "quant=u8s8",
        "refine.damping=0.3",
        "quant.layers={stack1.*:{weight_bits:4,activation_bits:6},dense:{weight_bits:8}}",
    ]
    (layers,) = OverridesParser.create().parse_overrides(words[-1:])
    assert layers.value() == {"stack1.*": {"weight_bits": 4, "activation_bits": 6}, "dense": {"weight_bits": 8}}


def test_draws_stay_in_the_range_and_on_its_steps() -> None:
    space = Space(
        {
            "list": CategoricalDistribution(("a", "b")),
            "steps": IntDistribution(10, 100, step=30),
            "log_steps": IntDistribution(1, 8, log=True),
            "fractions": FloatDistribution(0.5, 2.0, step=0.5),
            "log": FloatDistribution(0.001, 1.0, log=True),
        },
        (),
    )
    chance = random.Random(0)
    draws = [space.draw({}, 1.0, chance) for _ in range(300)]
    drawn = {name: {values[name] for values in draws} for name in space.parameters}
    assert drawn["list"] == {"a", "b"}
    assert drawn["steps"] == {10, 40, 70, 100}
    assert drawn["log_steps"] == set(range(1, 9))
    assert drawn["fractions"] == {0.5, 1.0, 1.5, 2.0}
    assert 0.001 <= min(drawn["log"]) < 0.01
    assert 0.1 < max(drawn["log"]) <= 1.0
    assert 0.4 < sum(values["log"] < 0.03 for values in draws) / 300 < 0.6


def test_a_draw_keeps_what_it_does_not_change() -> None:
    space = read_space({}, ["quant=int8,u8s8", "seed=range(1,100)"])
    near = {"quant": "int8", "seed": "5"}
    assert space.draw(near, 0.0, random.Random(0)) == near
    draws = [space.draw(near, 0.5, random.Random(number)) for number in range(100)]
    assert 20 < sum(values["seed"] == "5" for values in draws) < 80


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"choices": []}, "has no choices"),
        ({"choices": "int8"}, "not a list"),
        ({"choices": [1], "low": 2}, "choices alone"),
        ({"low": 1, "hihg": 2}, "hihg"),
        ({}, "choices alone"),
        ({"low": 1}, "None is not a number"),
        ({"low": 1, "high": "many"}, "'many' is not a number"),
        ({"low": True, "high": 2}, "True is not a number"),
        ({"low": 1, "high": math.inf}, "inf is not a number"),
        ({"low": 2, "high": 1}, "goes from 2 to 1: "),
        ({"low": 0, "high": 2, "log": True}, "log"),
        ({"low": 1, "high": 2, "log": "yes"}, "'yes'"),
        ({"low": 0.1, "high": 2, "log": True, "step": 1}, "step"),
        ({"low": 1, "high": 10, "step": 2}, "step"),
        ({"low": 1, "high": 10, "step": 0}, "step"),
        ({"low": 1.0, "high": 10, "step": 2}, "step"),
    ],
)
def test_refused_range_names_the_parameter_and_the_value(mapping: dict[str, object], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        read_space({"seed": mapping}, [])
    assert caught.value.problem.startswith("`hydra.sweeper.params` seed ")
    assert words in caught.value.problem


def test_nothing_to_search_is_refused() -> None:
    with pytest.raises(ExperimentError, match="nothing to search") as caught:
        read_space({"seed": 3}, ["quant=int8"])
    assert "experiment=search" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_trials", 0),
        ("n_trials", "ten"),
        ("n_jobs", True),
        ("seed", -1),
        ("maximize", "akku"),
        ("minimize", "kernels"),
    ],
)
def test_refused_option_names_the_field_and_the_value(name: str, value: object) -> None:
    with pytest.raises(ExperimentError) as caught:
        read_options({**FIELDS, name: value})
    assert f"`hydra.sweeper.{name}` is {value}" in caught.value.problem


def test_options_name_the_objectives() -> None:
    assert read_options({**FIELDS, "_target_": "x"}).objectives == ("accuracy", "model_bytes")
    assert {"latency_us_median", "weight_payload_bytes"} <= set(NUMERIC)
    assert not {"seed", "status", "per_channel"} & set(NUMERIC)
