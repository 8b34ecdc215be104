"""Bit widths under a limit: the integer program against trying everything, files of known size, the bundled model."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PROPERTY, SEEDS

from resnet8_quant.config import AllocateConfig, Config, DType, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.mixed_precision import allocation as module
from resnet8_quant.quantizer.mixed_precision.allocation import (
    Choice,
    allocate,
    allowed_widths,
    check_budget,
    check_drop,
    fit,
    shrink,
    smallest_payload,
)
from resnet8_quant.quantizer.plan import LayerBits
from resnet8_quant.quantizer.quantize import quantize

WIDTHS = (2, 4, 8)
SIZES = {"a": 800, "b": 400, "c": 4000}
ERRORS = {"a": 1.0, "b": 20.0, "c": 0.1}
CHOICES = {
    name: [Choice(bits, ERRORS[name] * 4.0**-bits, size * bits // 8) for bits in WIDTHS] for name, size in SIZES.items()
}
NARROWEST, WIDEST = dict.fromkeys(SIZES, 2), dict.fromkeys(SIZES, 8)


def total(choices, widths, field):
    return sum(
        next(getattr(choice, field) for choice in options if choice.bits == widths[layer])
        for layer, options in choices.items()
    )


def instance(seed):
    """2 to 6 layers with up to 3 widths; errors over many orders of magnitude, not always falling."""
    rng = np.random.default_rng(seed)
    choices = {}
    for number in range(rng.integers(2, 7)):
        widths = rng.choice([2, 3, 4, 8], rng.integers(1, 4), replace=False)
        size = int(rng.integers(10, 5000))
        choices[f"layer{number}"] = [
            Choice(int(bits), float(10 ** rng.uniform(-6, 1) * 4.0 ** -int(bits)), -(-size * int(bits) // 8))
            for bits in widths
        ]
    return choices


@PROPERTY
@given(SEEDS, st.floats(0, 1.1))
def test_an_allocation_is_as_good_as_trying_everything(seed, share):
    choices = instance(seed)
    smallest = smallest_payload(choices)
    largest = sum(max(choice.payload for choice in options) for options in choices.values())
    payload = smallest + int(share * (largest - smallest))
    widths = allocate(choices, payload)
    assert widths.keys() == choices.keys()
    assert total(choices, widths, "payload") <= payload
    combinations = itertools.product(*choices.values())
    best = min(sum(c.error for c in chosen) for chosen in combinations if sum(c.payload for c in chosen) <= payload)
    worst = max(choice.error for options in choices.values() for choice in options)
    assert total(choices, widths, "error") <= best + 2e-6 * worst  # the solver's absolute tolerance
    with pytest.raises(ValueError, match=f"the smallest possible are {smallest}"):
        allocate(choices, smallest - 1)


@PROPERTY
@given(st.sampled_from([0, 37, 200]), st.integers(0, 4000))
def test_the_file_is_never_larger_than_the_budget(per_width, above):
    """A file has 1000 bytes more than its codes, and some for each different width."""
    made, measured = [], []

    def file_size(widths):
        measured.append(widths)
        return 1000 + total(CHOICES, widths, "payload") + per_width * len(set(widths.values()))

    budget = file_size(NARROWEST) + above
    fit(made.append, file_size, CHOICES, budget)
    (widths,) = made  # what takes long is done once
    assert file_size(widths) <= budget
    assert len(measured) <= 3 + module.ATTEMPTS
    if budget >= file_size(WIDEST):
        assert widths == WIDEST


def refused(check, *arguments):
    with pytest.raises(ExperimentError) as caught:
        check(*arguments)
    return caught.value.problem, caught.value.remedy


def test_what_cannot_be_reached_falls_back_to_the_narrowest(monkeypatch):
    """Widths that never fit but for the narrowest: after some attempts these are taken."""
    monkeypatch.setattr(module, "ATTEMPTS", 2)

    def file_size(widths):
        return 2000 if widths == NARROWEST else 2000 + sum(widths.values()) * 1000

    assert fit(dict, file_size, CHOICES, 5000) == NARROWEST


@PROPERTY
@given(st.floats(total(CHOICES, WIDEST, "error"), 2.0))
def test_shrunk_within_the_drop_and_nearly_the_smallest(limit):
    def drop(widths):
        return total(CHOICES, widths, "error")

    widths = shrink(dict, drop, CHOICES, limit)
    assert drop(widths) <= limit
    every = (dict(zip(SIZES, bits, strict=True)) for bits in itertools.product(WIDTHS, repeat=3))
    smallest = min(total(CHOICES, candidate, "payload") for candidate in every if drop(candidate) <= limit)
    assert total(CHOICES, widths, "payload") <= smallest + 0.06 * total(CHOICES, WIDEST, "payload")


QUANT = QuantConfig(activation_type=DType.uint8, per_channel=True, keep_first_last=8)
BITS = {"first": LayerBits(8, 8), "middle": LayerBits(3, 8), "last": LayerBits(8, 8)}


def config_of(choices=WIDTHS, budget=None, drop=None, refine="none", **options):
    return Config(
        replace(QUANT, **options),
        refine=RefineConfig(refine),
        allocate=AllocateConfig("bytes", budget, max_accuracy_drop=drop, choices=list(choices)),
    )


@pytest.mark.parametrize(
    ("layer", "options", "widths"),
    [
        ("middle", {}, [2, 4, 8]),
        ("first", {}, [8]),
        ("last", {"keep_first_last": 4}, [4, 8]),
        ("first", {"keep_first_last": None}, [2, 4, 8]),
        ("first", {"layers": {"*": {"weight_bits": 8}, "middle": {"weight_bits": 8}}}, [8]),
        ("middle", {"layers": {"m*": {"activation_bits": 4}}}, [2, 4, 8]),
        ("last", {"layers": {"l?st": {"weight_bits": 8}}, "keep_first_last": 4}, [8]),
    ],
)
def test_what_the_config_leaves_open(layer, options, widths):
    bits = BITS | {"middle": LayerBits(8, 8)}
    assert allowed_widths(config_of(**options), bits)[layer] == widths


def test_the_remedy_has_all_widths_that_are_missing():
    """One command that works, not a second refusal."""
    problem, remedy = refused(allowed_widths, config_of((2, 4), layers={"middle": {"weight_bits": 3}}), BITS)
    assert "has none of the widths from 8 to 8 that layer first is held to" in problem
    assert "middle, last" in problem
    assert remedy == "allocate.choices=[2,3,4,8]"
    assert allowed_widths(config_of((2, 3, 4, 8), layers={"middle": {"weight_bits": 3}}), BITS)["middle"] == [3]


def test_a_budget_below_the_smallest_file_says_what_helps():
    check_budget(5000, config_of(budget=5000))
    problem, remedy = refused(check_budget, 5000, config_of((4, 8), budget=4999))
    assert problem == "`allocate.budget_bytes` is 4999; the smallest possible file has 5000 bytes"
    assert remedy == "allocate.budget_bytes=5000, or narrower allocate.choices, or quant.compact=true"
    _, remedy = refused(check_budget, 5000, config_of(budget=4999, compact=True))  # nothing that is set already
    assert remedy == "allocate.budget_bytes=5000"


def test_a_drop_that_no_width_keeps_says_what_helps():
    check_drop(0.01, config_of(drop=0.01))
    problem, remedy = refused(check_drop, 0.0234, config_of((2, 4), drop=0.01))
    assert "`allocate.max_accuracy_drop` is 0.01; with the widest" in problem
    assert "lose 0.0234" in problem
    assert remedy == "allocate.max_accuracy_drop=0.024, or wider allocate.choices, or refine=best"
    _, remedy = refused(check_drop, 0.0234, config_of(drop=0.01, refine="best"))  # nothing that is set already
    assert remedy == "allocate.max_accuracy_drop=0.024"


def test_the_bundled_model_fits_and_uses_what_it_may(model, images):
    """The smallest file is possible; a larger budget is used up, by layers of several widths."""
    problem, _ = refused(quantize, model, images, config_of(budget=9_000, compact=True))
    smallest = int(problem.split()[-2])
    assert 9_000 < smallest < 40_000
    for budget in (smallest, 60_000):
        result = quantize(model, images, config_of(budget=budget, compact=True))
        assert 0.9 * budget < len(result.serialized) <= budget
        types = [layer.weight_type for layer in result.summary.layers]
        assert len(types) == 10
        assert types[0] == types[-1] == "int8"  # the first and the last are kept
        assert len(set(types)) > 1


def test_limits_that_cannot_be_kept_are_refused_before_the_work(model, images, monkeypatch):
    monkeypatch.setattr("resnet8_quant.quantizer.quantize.sensitivities", None)  # takes minutes
    with pytest.raises(ExperimentError, match="the smallest possible file has "):
        quantize(model, images, config_of(budget=9_000, compact=True))
    with pytest.raises(ExperimentError, match=r"the validation images lose 0\.5000"):
        quantize(model, images, config_of(drop=0.01), accuracy_drop=lambda _: 0.5)


def test_a_drop_is_kept_with_the_smallest_file(model, images):
    """The drop is taken to be what a file of so many bytes loses."""
    config = config_of((2, 8), drop=0.05)
    sizes = []

    def drop(serialized):
        sizes.append(len(serialized))
        return max(0.0, (80_000 - len(serialized)) / 1e6)

    result = quantize(model, images, config, accuracy_drop=drop)
    assert len(result.serialized) == min(size for size in sizes if size >= 30_000)
    assert sizes[0] == max(sizes)  # the widest choices come first


def test_layers_that_are_named_keep_their_width(model, images):
    config = config_of(budget=60_000, layers={"stack3.conv?": {"weight_bits": 4}})
    layers = [layer for layer in quantize(model, images, config).summary.layers if layer.weight_type == "int4"]
    assert len(layers) >= 2
