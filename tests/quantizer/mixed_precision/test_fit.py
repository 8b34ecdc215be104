"""A model within its bytes: against a file of known overheads, and on the bundled model."""

from dataclasses import replace

import pytest

from resnet8_quant.config import AllocateConfig, CalibrationConfig, DType, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.mixed_precision import fit as module
from resnet8_quant.quantizer.mixed_precision.budget import Choice
from resnet8_quant.quantizer.mixed_precision.fit import fit
from resnet8_quant.quantizer.quantize import quantize

CHOICES = {
    name: [Choice(bits, error * 4.0**-bits, size * bits // 8) for bits in (2, 4, 8)]
    for name, error, size in (("a", 1.0, 800), ("b", 20.0, 400), ("c", 0.1, 4000))
}


def make_file(per_width=0, calls=None):
    """Widths -> as many bytes as the integers, 1000 more, and some for each different width."""

    def make(widths):
        if calls is not None:
            calls.append(dict(widths))
        payload = sum(next(c.payload for c in CHOICES[layer] if c.bits == bits) for layer, bits in widths.items())
        return bytes(1000 + payload + per_width * len(set(widths.values())))

    return make


@pytest.mark.parametrize("per_width", [0, 37, 200])
def test_the_file_is_never_larger_than_the_budget(per_width):
    least = len(make_file(per_width)(dict.fromkeys(CHOICES, 2)))
    most = len(make_file(per_width)(dict.fromkeys(CHOICES, 8)))
    errors = []
    for budget in range(least, most + 100, 61):
        made, drafts = [], []
        serialized, widths = fit(make_file(per_width, made), make_file(per_width, drafts), CHOICES, budget)
        assert len(serialized) <= budget
        assert made == [widths]  # what takes long is done once
        assert len(drafts) <= 1 + module.ATTEMPTS
        errors.append(sum(next(c.error for c in CHOICES[k] if c.bits == v) for k, v in widths.items()))
    assert errors[-1] == min(errors)
    assert widths == dict.fromkeys(CHOICES, 8)
    if not per_width:
        assert errors == sorted(errors, reverse=True)


def test_what_cannot_be_reached_falls_back_to_the_narrowest(monkeypatch):
    """Widths that never fit but for the narrowest: after some attempts these are taken."""
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    narrowest = dict.fromkeys(CHOICES, 2)

    def make(widths):
        return bytes(2000 if widths == narrowest else 2000 + sum(widths.values()) * 1000)

    serialized, widths = fit(make, make, CHOICES, 5000)
    assert (len(serialized), widths) == (2000, narrowest)


def test_a_budget_below_the_smallest_file_names_it():
    least = len(make_file()(dict.fromkeys(CHOICES, 2)))
    assert fit(make_file(), make_file(), CHOICES, least)[1] == dict.fromkeys(CHOICES, 2)
    with pytest.raises(ExperimentError) as caught:
        fit(make_file(), make_file(), CHOICES, least - 1)
    problem = f"`allocate.budget_bytes` is {least - 1}; the smallest possible file has {least} bytes"
    assert caught.value.problem == problem
    assert f"allocate.budget_bytes={least}" in caught.value.remedy
    assert "quant.compact=true" in caught.value.remedy


QUANT = QuantConfig(activation_type=DType.uint8, per_channel=True, keep_first_last=8, compact=True)


def bundled(model, images, budget, quant=QUANT, choices=(2, 4, 8)):
    allocation = AllocateConfig("bytes", budget, choices=list(choices))
    return quantize(model, images, quant, CalibrationConfig(), RefineConfig(), allocation, threads=1)


@pytest.mark.parametrize("budget", [40_000, 60_000])
def test_the_bundled_model_fits_and_uses_what_it_may(model, images, budget):
    done = bundled(model, images, budget)
    assert 0.9 * budget < len(done.serialized) <= budget
    layers = {layer.output: layer for layer in done.contents.layers}
    assert len(layers) == 10
    kinds = [layer.weight_type for layer in layers.values()]
    assert kinds[0] == kinds[-1] == "int8"  # the first and the last are kept
    assert len(set(kinds)) > 1


def test_an_impossible_budget_says_the_smallest_file(model, images):
    with pytest.raises(ExperimentError) as caught:
        bundled(model, images, 9_000)
    assert "`allocate.budget_bytes` is 9000; the smallest possible file has " in caught.value.problem
    least = int(caught.value.problem.split()[-2])
    assert 9_000 < least < 40_000
    assert len(bundled(model, images, least).serialized) == least


def test_layers_that_are_named_keep_their_width(model, images):
    quant = replace(QUANT, compact=False, layers={"stack3.conv?": {"weight_bits": 4}})
    done = bundled(model, images, 60_000, quant)
    layers = [layer for layer in done.contents.layers if layer.weight_type == "int4"]
    assert len(layers) >= 2
    with pytest.raises(ExperimentError, match="none of the widths from 4 to 4 that layer stack3"):
        bundled(model, images, 60_000, quant, choices=(2, 8))
