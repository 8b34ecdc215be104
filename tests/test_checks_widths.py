"""Widths, refinements and allocations that no run can do are refused by field, value, choices and remedy."""

import pytest

from resnet8_quant.checks import check
from resnet8_quant.config import (
    AllocateConfig,
    Config,
    DType,
    Format,
    QuantConfig,
    RefineConfig,
    Rounding,
    Target,
    WeightScale,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.low_bit import refine_word

FLOAT = {"activation_type": DType.float32, "weight_type": DType.float32}
QOPERATOR = {"format": Format.QOperator}


def refused(words, remedy, quant=None, refine=None, allocate=None):
    """Check that a config is refused with these words."""
    config = Config(
        quant=QuantConfig(**(quant or {})),
        refine=RefineConfig(**(refine or {})),
        allocate=AllocateConfig(**(allocate or {})),
    )
    with pytest.raises(ExperimentError) as caught:
        check(config)
    for word in words:
        assert word in caught.value.problem
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("field", ["weight_bits", "activation_bits", "keep_first_last"])
@pytest.mark.parametrize("value", [-1, 0, 1, 9, 16])
def test_a_width_out_of_range(field, value):
    refused((f"`quant.{field}` is {value}", "valid are 2 to 8"), f"quant.{field}=8", {field: value})


@pytest.mark.parametrize("value", [0, 1, 9])
def test_residual_bits_belong_to_activation_bits(value):
    words = (f"`quant.residual_bits` is {value}", "valid are 2 to 8 with int8")
    refused(words, "quant.residual_bits=8", {"residual_bits": value, "activation_bits": 4})
    refused(
        (f"`quant.residual_bits` is {value}", "nothing reads it"), "quant.residual_bits=8", {"residual_bits": value}
    )


@pytest.mark.parametrize("kind", [DType.int4, DType.uint4])
def test_a_weight_is_no_wider_than_its_type(kind):
    quant = {"activation_type": DType.uint8, "weight_type": kind}
    words = ("`quant.weight_bits` is 5", f"valid are 2 to 4 with {kind.name}")
    refused(words, "quant.weight_bits=4", quant | {"weight_bits": 5})
    words = ("`quant.layers.dense.weight_bits` is 8", f"valid are 2 to 4 with {kind.name}")
    refused(words, "quant.layers", quant | {"layers": {"dense": {"weight_bits": 8}}})
    check(Config(quant=QuantConfig(**quant, weight_bits=4)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_all_widths_from_2_to_8_pass(bits):
    for kind in (DType.uint8, DType.int8):
        layers = {"dense": {"weight_bits": bits, "activation_bits": bits}}
        quant = QuantConfig("w", kind, weight_bits=bits, activation_bits=bits, residual_bits=bits, layers=layers)
        check(Config(quant=quant))


@pytest.mark.parametrize(
    ("field", "value"), [("weight_bits", 4), ("activation_bits", 4), ("keep_first_last", 8)], ids=lambda v: str(v)
)
def test_a_float_model_has_no_widths(field, value):
    words = (f"`quant.{field}` is {value}", "quant=float does not read it")
    refused(words, f"quant.{field}=4", FLOAT | {field: value})


def test_a_float_model_has_no_layers_to_narrow():
    words = ("`quant.layers.dense.weight_bits` is 4", "quant=float does not read it")
    refused(words, "quant=u8s8", FLOAT | {"layers": {"dense": {"weight_bits": 4}}})


@pytest.mark.parametrize("name", ["bits", "weight_bit", "weight_type", ""])
def test_an_unknown_field_of_a_layer(name):
    words = (f"`quant.layers.dense.{name}`", "valid are weight_bits, activation_bits")
    refused(words, "'quant.layers={dense: {weight_bits: 8}}'", {"layers": {"dense": {name: 4}}})


@pytest.mark.parametrize("layer", ["dense", "stack1.conv1", "stack1.*"])
@pytest.mark.parametrize("value", [1, 9])
def test_a_width_of_a_layer_out_of_range(layer, value):
    words = (f"`quant.layers.{layer}.activation_bits` is {value}", "valid are 2 to 8 with int8")
    refused(words, "8", {"layers": {layer: {"activation_bits": value}}})


def test_the_remedy_names_the_whole_layer():
    words = ("`quant.layers.stack1.conv1.bits`",)
    refused(words, "'quant.layers={stack1.conv1: {weight_bits: 8}}'", {"layers": {"stack1.conv1": {"bits": 4}}})
    words = ("`quant.layers.stack1.*.activation_bits` is 9",)
    layers = {"layers": {"stack1.*": {"activation_bits": 9}}}
    refused(words, "'quant.layers={stack1.*: {activation_bits: 8}}'", layers)
    refused(words, "quant=u8s8 'quant.layers={stack1.*: {activation_bits: 4}}'", FLOAT | layers)


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
def test_integer_operators_have_no_narrow_grids(name):
    quant = QOPERATOR | {name: 4}
    refused(("`quant.format` is QOperator", "what quant.weight_bits", "QDQ"), "quant.format=QDQ", quant)


REFINING = {
    "rounding": Rounding.gptq,
    "weight_scale": WeightScale.mse,
    "target": Target.outputs,
    "bias": True,
    "equalize": True,
    "activation_ranges": True,
}


@pytest.mark.parametrize("name", REFINING)
def test_what_refines_needs_qdq_and_something_to_refine(name):
    refine = {"name": "mine", name: REFINING[name]}
    refused(("`quant.format` is QOperator", "refine=mine"), "quant.format=QDQ", QOPERATOR, refine)
    refused(("`refine` is mine", "quant=float has no weights"), "leave refine out", FLOAT, refine)
    check(Config(refine=RefineConfig(**refine)))


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_damping_out_of_range(value):
    refine = {"rounding": Rounding.gptq, "damping": value}
    refused((f"`refine.damping` is {value}", "above 0 to 1"), "refine.damping=0.01", None, refine)


@pytest.mark.parametrize("value", [0, -1])
def test_no_images_to_refine_on(value):
    refine = {"bias": True, "images": value}
    refused((f"`refine.images` is {value}", "1 or more"), "refine.images=1000", None, refine)


BYTES = {"name": "bytes", "budget_bytes": 48_000}
ALLOCATIONS = {
    "of a float model": (("`allocate",), FLOAT, BYTES),
    "of integer operators": (("QOperator",), QOPERATOR, BYTES),
    "no choices": (("`allocate.choices`",), None, BYTES | {"choices": []}),
    "too narrow a choice": (("`allocate.choices`",), None, BYTES | {"choices": [1, 8]}),
    "too wide a choice": (("`allocate.choices`",), None, BYTES | {"choices": [4, 16]}),
    "a negative budget": (("`allocate.budget_bytes`",), None, BYTES | {"budget_bytes": -1}),
    "a budget of nothing": (("`allocate.budget_bytes`",), None, BYTES | {"budget_bytes": 0}),
}


@pytest.mark.parametrize("why", ALLOCATIONS)
def test_an_allocation_that_cannot_be(why):
    words, quant, allocate = ALLOCATIONS[why]
    refused(words, "", quant, None, allocate)


@pytest.mark.parametrize("field", ["activation_bits", "layers"])
def test_16_bit_activations_have_no_narrow_grids(field):
    value = {"dense": {"activation_bits": 4}} if field == "layers" else 4
    quant = {"activation_type": DType.uint16, field: value}
    refused(("activation_bits` is 4", "uint16", "int8, uint8"), "quant.activation_type=uint8", quant)


def test_a_reduced_range_is_a_width():
    refused(("`quant.reduce_range` is true",), "quant.weight_bits=7", {"reduce_range": True, "weight_bits": 8})


def test_an_allocation_needs_a_limit():
    refused(("`allocate` is bytes", "neither"), "allocate.budget_bytes", {}, allocate={"name": "bytes"})


def test_the_word_of_the_row():
    assert refine_word(RefineConfig()) == "none"
    assert refine_word(RefineConfig(bias=True)) == "custom"
    assert refine_word(RefineConfig("gptq", bias=True)) == "gptq"


def test_residual_bits_without_activation_bits_are_not_ignored():
    refused(("`quant.residual_bits` is 4", "quant.activation_bits"), "quant.residual_bits=8", {"residual_bits": 4})


def test_a_float_model_is_not_compacted():
    refused(("`quant.compact` is true", "quant=float"), "quant.compact=false", FLOAT | {"compact": True})
