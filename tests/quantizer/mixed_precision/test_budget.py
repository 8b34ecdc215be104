"""The integer program finds what trying everything finds."""

from itertools import product

import numpy as np
import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.mixed_precision.budget import Choice, allocate, smallest


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


def brute_force(choices, payload):
    """The smallest sum of errors among all combinations that fit; None if none does."""
    sums = [
        sum(choice.error for choice in chosen)
        for chosen in product(*choices.values())
        if sum(choice.payload for choice in chosen) <= payload
    ]
    return min(sums, default=None)


def cost(choices, widths, field):
    return sum(
        next(getattr(choice, field) for choice in options if choice.bits == widths[layer])
        for layer, options in choices.items()
    )


@pytest.mark.parametrize("seed", range(40))
def test_as_good_as_trying_everything(seed):
    choices = instance(seed)
    least = smallest(choices)
    most = sum(max(choice.payload for choice in options) for options in choices.values())
    assert least == sum(min(choice.payload for choice in options) for options in choices.values())
    for payload in {least, least + 1, *np.linspace(least, most, 5).astype(int), most, 2 * most}:
        widths = allocate(choices, int(payload))
        assert widths.keys() == choices.keys()
        assert cost(choices, widths, "payload") <= payload
        best = brute_force(choices, payload)
        worst = max(choice.error for options in choices.values() for choice in options)
        assert cost(choices, widths, "error") <= best + 2e-6 * worst  # the solver's absolute tolerance


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_that_is_too_small_names_the_smallest(seed):
    choices = instance(seed)
    least = smallest(choices)
    with pytest.raises(ExperimentError) as caught:
        allocate(choices, least - 1)
    assert "`allocate.budget_bytes`" in caught.value.problem
    assert f"leaves {least - 1} bytes" in caught.value.problem
    assert f"the smallest possible are {least}" in caught.value.problem
    assert f"allocate.budget_bytes={least}" in caught.value.remedy


def test_errors_of_zero_are_no_trouble():
    choices = {"a": [Choice(2, 0.0, 10), Choice(4, 0.0, 20)], "b": [Choice(2, 0.0, 10)]}
    assert cost(choices, allocate(choices, 20), "payload") == 20
