"""Bit widths under a limit: the integer program against trying everything, files of known size, the bundled model."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, branching, pictures
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
    measured_bytes,
    shrink,
    smallest_payload,
    smallest_widths,
    with_measured_bytes,
)
from resnet8_quant.quantizer.plan import LayerBits, layer_nodes
from resnet8_quant.quantizer.quantize import quantize

pytestmark = pytest.mark.any_cpu
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
    fit(made.append, file_size, lambda _: file_size(made[-1]), CHOICES, budget)
    (widths,) = made  # what takes long is done once
    assert file_size(widths) <= budget
    assert len(measured) <= 4 + module.ATTEMPTS
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

    assert fit(dict, file_size, file_size, CHOICES, 5000) == NARROWEST


@PROPERTY
@given(st.integers(0, 300), st.integers(0, 4000))
def test_a_model_that_turns_out_larger_than_its_stand_in_is_made_again(more, above):
    """The file that is written is the one that counts; where not even the narrowest fits, the caller sees it."""

    def file_size(widths):
        return 1000 + total(CHOICES, widths, "payload")

    def size_of(widths):
        return file_size(widths) + more

    budget = file_size(NARROWEST) + above
    widths = fit(dict, file_size, size_of, CHOICES, budget)
    assert size_of(widths) <= budget or widths == NARROWEST
    assert widths == NARROWEST or above >= more
    if budget >= size_of(WIDEST):
        assert widths == WIDEST


def test_the_bytes_of_a_choice_are_what_the_file_gains_and_loses():
    """Float is no bit width among others: all other layers have integers meanwhile."""
    allowed = {"a": [2, 8, 32], "b": [32], "c": [4]}
    sizes = {"a": {2: 130, 8: 400, 32: 90}, "b": {32: 1000}, "c": {4: 10}}

    def file_size(widths):
        assert widths.keys() == allowed.keys()
        assert widths["b"] == 32
        return 5000 + sum(sizes[layer][bits] for layer, bits in widths.items())

    measured = measured_bytes(allowed, file_size)
    choices = {layer: [Choice(bits, 1 / bits, 777) for bits in widths] for layer, widths in allowed.items()}
    counted = with_measured_bytes(choices, measured)
    assert {choice.bits: choice.payload for choice in counted["a"]} == {8: 777, 2: 777 - 270, 32: 777 - 310}
    assert [choice.payload for layer in "bc" for choice in counted[layer]] == [777, 777]
    assert smallest_widths(allowed, measured) == {"a": 32, "b": 32, "c": 4}
    assert smallest_widths(allowed, None) == {"a": 2, "b": 32, "c": 4}


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


FLOAT = (2, "float", 4)


@pytest.mark.parametrize(
    ("choices", "layer", "options", "widths"),
    [
        (FLOAT, "middle", {}, [2, 4, 32]),
        (FLOAT, "first", {}, [32]),  # more than keep_first_last
        (FLOAT, "last", {"keep_first_last": 4}, [4, 32]),
        (FLOAT, "middle", {"layers": {"m*": {"weight_bits": 4}}}, [4]),
        (FLOAT, "middle", {"layers": {"*": {"float": False}}, "keep_first_last": 2}, [2, 4]),
        (FLOAT, "last", {"layers": {"l*": {"float": False}}, "keep_first_last": 4}, [4]),
        (("float",), "middle", {}, [32]),
        (("float", "float", 4, 4), "middle", {}, [4, 32]),
    ],
)
def test_which_layers_may_stay_in_float(choices, layer, options, widths):
    assert allowed_widths(config_of(choices, **options), BITS | {"middle": LayerBits(4, 8)})[layer] == widths


@pytest.mark.parametrize(
    ("layers", "remedy"),
    [({"*": {"float": False}}, "[2,8,float]"), ({"middle": {"weight_bits": 3}}, "[3,float]")],
)
def test_the_remedy_keeps_float(layers, remedy):
    _, command = refused(allowed_widths, config_of(("float",), layers=layers), BITS)
    assert command == f"allocate.choices={remedy}"
    choices = [int(word) if word.isdigit() else word for word in remedy[1:-1].split(",")]
    assert allowed_widths(config_of(choices, layers=layers), BITS)


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
    _, remedy = refused(check_budget, 5000, config_of(("float",), budget=4999, compact=True))
    assert remedy == "allocate.budget_bytes=5000, or narrower allocate.choices"


def test_a_drop_that_no_width_keeps_says_what_helps():
    check_drop(0.01, config_of(drop=0.01))
    problem, remedy = refused(check_drop, 0.0234, config_of((2, 4), drop=0.01))
    assert "`allocate.max_accuracy_drop` is 0.01; with the widest" in problem
    assert "lose 0.0234" in problem
    assert remedy == "allocate.max_accuracy_drop=0.024, or wider allocate.choices, or refine=best"
    _, remedy = refused(check_drop, 0.0234, config_of(drop=0.01, refine="best"))  # nothing that is set already
    assert remedy == "allocate.max_accuracy_drop=0.024"
    assert refused(check_drop, 0.0234, config_of((2, "float"), drop=0.01, refine="best"))[1] == remedy  # none is wider


GPTQ = RefineConfig("gptq", "hessian", "gptq", "outputs", bias=True, activation_ranges=True)
BUDGET_NETS = NETS | {"branching": branching}


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("refine", [RefineConfig(), GPTQ], ids=lambda refine: refine.name)
@pytest.mark.parametrize("case", BUDGET_NETS)
def test_a_budget_is_kept_whatever_refinement_adds(case, refine, compact):
    """Of networks with and without biases, which refine.bias adds; the budget that a refusal names is possible."""
    model, plain = BUDGET_NETS[case](), replace(QUANT, compact=compact, keep_first_last=None)

    def config(budget):
        allocated = AllocateConfig("bytes", budget, choices=[2, 4, 8])
        return Config(plain, refine=refine, allocate=allocated)

    problem, _ = refused(quantize, model, pictures(), config(1))
    smallest = int(problem.split()[-2])
    for budget in (smallest, smallest + 30, smallest + 200):
        result = quantize(model, pictures(), config(budget))
        assert len(result.serialized) <= budget
        assert not result.float_layers
    assert len(quantize(model, pictures(), config(smallest)).serialized) == smallest


def test_a_model_that_is_larger_than_the_smallest_of_its_stand_ins_is_refused(monkeypatch):
    """After the work, but with the size that is possible."""
    monkeypatch.setattr("resnet8_quant.quantizer.quantize.with_bias", lambda node, layer: layer)
    model, plain = NETS["no bias"](), replace(QUANT, compact=True, keep_first_last=None)
    problem, _ = refused(quantize, model, pictures(), Config(plain, refine=GPTQ, allocate=AllocateConfig("bytes", 1)))
    wrong = int(problem.split()[-2])
    config = Config(plain, refine=GPTQ, allocate=AllocateConfig("bytes", wrong))
    problem, remedy = refused(quantize, model, pictures(), config)
    possible = int(problem.split()[-2])
    assert possible > wrong
    assert remedy == f"allocate.budget_bytes={possible}"
    config.allocate.budget_bytes = possible
    assert len(quantize(model, pictures(), config).serialized) == possible


@pytest.mark.parametrize(("refine", "activation_bits"), [(RefineConfig(), None), (GPTQ, 4)], ids=["nearest", "gptq"])
def test_layers_stay_in_float_where_the_budget_allows_it(model, images, refine, activation_bits):
    """As many as fit, written as quant.layers writes them, to the byte."""
    quant = replace(QUANT, compact=True, activation_bits=activation_bits)

    def config(budget, choices=(2, 4, "float"), **options):
        allocated = AllocateConfig("bytes", budget, choices=list(choices))
        return Config(replace(quant, **options), refine=replace(refine, images=50), allocate=allocated)

    counts = []
    for budget in (60_000, 150_000, 1_000_000):
        done = quantize(model, images, config(budget))
        assert len(done.serialized) <= budget
        counts.append(len(done.float_layers))
        assert len(done.summary.layers) == 10 - counts[-1]
        assert {"conv", "dense"} <= set(done.float_layers)  # no other choice is as wide as keep_first_last
    assert 2 < counts[0] < counts[1] < counts[2] == 10
    done = quantize(model, images, config(150_000))
    kept = {name: {"float": True} for name in done.float_layers}
    bits = {layer.output: layer.weight_bits for layer in done.summary.layers}
    narrow = {node.output[0]: None for node in layer_nodes(model.proto().graph) if node.output[0] not in kept}
    widths = {name: {"weight_bits": 2 if width <= 2 else 4} for name, width in zip(narrow, bits.values(), strict=True)}
    named = config(None, layers=kept | widths)
    named.allocate = AllocateConfig()
    assert quantize(model, images, named).serialized == done.serialized


def test_a_drop_is_kept_by_layers_in_float(model, images):
    """Where 2 bits lose too much; the widest choice is float."""
    sizes = []

    def drop(serialized):
        sizes.append(len(serialized))
        return 0.0 if len(serialized) > 100_000 else 0.5

    result = quantize(model, images, config_of((2, "float"), drop=0.05, compact=True), accuracy_drop=drop)
    assert sizes[0] == max(sizes) > 300_000
    assert 100_000 < len(result.serialized) == min(size for size in sizes if size > 100_000)
    assert 0 < len(result.float_layers) < 10


def test_all_in_float_leaves_nothing_of_some_models():
    quant = replace(QUANT, keep_first_last=None, compact=True)
    model = NETS["gemm alone"]()
    config = Config(quant, allocate=AllocateConfig("bytes", 10_000, choices=[2, "float", 8]))
    problem, remedy = refused(quantize, model, pictures(), config)
    assert "within the limit all layers may stay in it" in problem
    assert remedy == "allocate.choices=[2,8]"
    config.allocate.choices = [2, 8]
    assert quantize(model, pictures(), config).summary.quantized_ops


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
