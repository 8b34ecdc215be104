"""A model that fits into a number of bytes: widths are allocated, the model is made, and measured.

In: what makes a model of given widths, the choices of each layer, a budget. Out: the model with the smallest
predicted error that is not larger than the budget.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.mixed_precision.budget import Choice, allocate, smallest

log = logging.getLogger(__name__)

ATTEMPTS = 5
STEP = 0.02  # of the bytes: where the bisection ends
Widths = dict[str, int]
Model = TypeVar("Model")


def check_budget(least: int, budget: int) -> None:
    """Refuse a budget below the smallest possible file."""
    if least > budget:
        raise ExperimentError(
            f"`allocate.budget_bytes` is {budget}; the smallest possible file has {least} bytes",
            f"allocate.budget_bytes={least}, narrower allocate.choices, or quant.compact=true",
        )


def fit(
    make: Callable[[Widths], Model], draft: Callable[[Widths], bytes], choices: dict[str, list[Choice]], budget: int
) -> tuple[Model, Widths]:
    """The best model of at most ``budget`` bytes.

    Args:
        make: from widths to a model; takes long.
        draft: a model of the same size in no time, whatever its accuracy.
        choices: {layer: widths with their errors and bytes}.
        budget: of the whole file.

    Raises:
        ExperimentError: no allocation fits; says the smallest possible file.
    """
    narrowest = {layer: min(options, key=lambda choice: choice.payload).bits for layer, options in choices.items()}
    least = len(draft(narrowest))
    check_budget(least, budget)
    payload = budget - (least - smallest(choices))
    for _ in range(ATTEMPTS):  # what is not integers grows a little with the widths that are in use
        widths = allocate(choices, max(payload, smallest(choices)))
        excess = len(draft(widths)) - budget
        if excess <= 0:
            break
        payload -= excess
    else:
        widths = narrowest
    log.info("allocated bits: %s", ", ".join(f"{layer} {bits}" for layer, bits in widths.items()))
    return make(widths), widths


def shrink(
    make: Callable[[Widths], Model],
    drop: Callable[[Model], float],
    choices: dict[str, list[Choice]],
    most: float,
) -> tuple[Model, Widths]:
    """The smallest model that loses at most ``most`` of its accuracy.

    Bisects the bytes of the integers, taking the loss to fall as they grow; every model that is returned was measured.

    Args:
        make: from widths to a model.
        drop: a model's loss of accuracy on validation images.
        choices: {layer: widths with their errors and bytes}.
        most: the largest loss that is accepted, a ratio.

    Raises:
        ExperimentError: even the widest choices lose more.
    """
    low = smallest(choices)
    high = sum(max(choice.payload for choice in options) for options in choices.values())
    widths = allocate(choices, high)
    best, lost = make(widths), 0.0
    if (lost := drop(best)) > most:
        raise ExperimentError(
            f"`allocate.max_accuracy_drop` is {most:g}; with the widest of allocate.choices the validation images lose "
            f"{lost:.4f}",
            f"allocate.max_accuracy_drop={lost + 0.001:.3f}, wider allocate.choices, or refine=best",
        )
    tried = [widths]
    while high - low > STEP * high:
        middle = (low + high) // 2
        narrower = allocate(choices, middle)
        if narrower in tried:
            break
        tried.append(narrower)
        model = make(narrower)
        lost = drop(model)
        log.info("weights of at most %d bytes lose %.2f points on the validation images", middle, 100 * lost)
        if lost <= most:
            best, widths, high = model, narrower, middle
        else:
            low = middle
    log.info("allocated bits: %s", ", ".join(f"{layer} {bits}" for layer, bits in widths.items()))
    return best, widths
