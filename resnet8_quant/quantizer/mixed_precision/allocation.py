"""Bit widths of all layers under a limit: bytes of the file, or loss of accuracy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np

from resnet8_quant.config import Config, SizeOf
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.plan import LayerBits

log = logging.getLogger(__name__)

ATTEMPTS = 5
BISECTION_END = 0.02  # of the bytes
WIDEST_CHOICE = 8  # bits
BitWidths = dict[str, int]
Choices = dict[str, list["Choice"]]
Model = TypeVar("Model")


@dataclass(frozen=True)
class Choice:
    """A bit width that a layer may have.

    Attributes:
        bits: of its weight.
        error: what it adds to the error of the logits.
        payload: bytes of the layer's codes.
    """

    bits: int
    error: float
    payload: int


def allowed_widths(
    config: Config, bits: dict[str, LayerBits], ends: tuple[str, str] | None = None
) -> dict[str, list[int]]:
    """The bit widths of allocate.choices that each layer may have, ascending.

    A layer that quant.layers names keeps its width; the first and the last have at least quant.keep_first_last.

    Args:
        bits: of the layers that are quantized.
        ends: names of the model's first and last layer; None: those of ``bits``.

    Raises:
        ExperimentError: some layers have none; the remedy has all that are missing.
    """
    choices, quant = sorted(set(config.allocate.choices)), config.quant
    first, last = ends or (next(iter(bits)), list(bits)[-1])
    allowed, missing = {}, {}
    for layer, layer_bits in bits.items():
        low, high = 0, choices[-1]
        if any("weight_bits" in override and fnmatchcase(layer, name) for name, override in quant.layers.items()):
            low = high = layer_bits.weight
        elif layer in (first, last):
            low = min(quant.keep_first_last or 0, quant.weight_type.bits)
        allowed[layer] = [width for width in choices if low <= width <= high]
        if not allowed[layer]:
            missing[layer] = (low, max(low, high))
    if missing:
        layer, (low, high) = next(iter(missing.items()))
        others = f", nor of those of {', '.join(list(missing)[1:])}" if len(missing) > 1 else ""
        complete = sorted({*choices, *(low for low, _ in missing.values())})
        raise ExperimentError(
            f"`allocate.choices` has none of the widths from {low} to {high} that layer {layer} is held to{others}",
            f"allocate.choices=[{','.join(map(str, complete))}]",
        )
    return allowed


def check_budget(smallest_file: int, config: Config) -> None:
    """Refuse a budget below the smallest possible file.

    Raises:
        ExperimentError: with what would help and is not set yet.
    """
    budget = config.allocate.budget_bytes
    if budget is None or smallest_file <= budget:
        return
    remedies = [f"allocate.budget_bytes={smallest_file}"]
    if min(config.allocate.choices) > 2:
        remedies.append("narrower allocate.choices")
    if not config.quant.compact and config.allocate.count is SizeOf.file:
        remedies.append("quant.compact=true")
    raise ExperimentError(
        f"`allocate.budget_bytes` is {budget}; the smallest possible file has {smallest_file} bytes",
        ", or ".join(remedies),
    )


def check_drop(drop: float, config: Config) -> None:
    """Refuse a limit of the accuracy drop that even the widest choices exceed.

    Args:
        drop: of the model with the widest choices on the validation images, a ratio.

    Raises:
        ExperimentError: with what would help and is not set yet.
    """
    limit = config.allocate.max_accuracy_drop
    if limit is None or drop <= limit:
        return
    remedies = [f"allocate.max_accuracy_drop={drop + 0.001:.3f}"]
    if max(config.allocate.choices) < min(WIDEST_CHOICE, config.quant.weight_type.bits):
        remedies.append("wider allocate.choices")
    if config.refine.name != "best":
        remedies.append("refine=best")
    raise ExperimentError(
        f"`allocate.max_accuracy_drop` is {limit:g}; with the widest of allocate.choices the validation images lose "
        f"{drop:.4f}",
        ", or ".join(remedies),
    )


def with_measured_bytes(choices: Choices, file_size: Callable[[BitWidths], int]) -> Choices:
    """Payloads as a target stores the codes: what its file shrinks by when one layer alone gets fewer bits.

    A target may have no type for a bit width, or none in some operator.
    """
    widest = {layer: max(options, key=lambda choice: choice.bits) for layer, options in choices.items()}
    widths = {layer: choice.bits for layer, choice in widest.items()}
    largest = file_size(widths)
    return {
        layer: [
            dataclasses.replace(
                choice, payload=widest[layer].payload + file_size(widths | {layer: choice.bits}) - largest
            )
            for choice in options
        ]
        for layer, options in choices.items()
    }


def smallest_payload(choices: Choices) -> int:
    """Bytes of the codes where every layer is as narrow as it can be."""
    return sum(min(choice.payload for choice in options) for options in choices.values())


def allocate(choices: Choices, payload: int) -> BitWidths:
    """The bit widths with the smallest sum of errors whose codes take at most ``payload`` bytes.

    Args:
        payload: bytes for the codes of all layers, at least `smallest_payload`.

    Raises:
        ValueError: no allocation is so small.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if smallest_payload(choices) > payload:
        raise ValueError(f"{payload} bytes, the smallest possible are {smallest_payload(choices)}")

    # One binary variable x_ij for each layer i and option j: minimize sum e_ij x_ij, subject to one option for each
    # layer, sum_j x_ij = 1, and to the budget, sum b_ij x_ij <= payload. Errors are scaled since the solver's
    # tolerances are absolute.
    options = [(layer, choice) for layer, of_layer in choices.items() for choice in of_layer]
    errors = np.array([choice.error for _, choice in options])
    one_each = np.array([[float(layer == name) for layer, _ in options] for name in choices])
    sizes = np.array([[float(choice.payload) for _, choice in options]])
    solution = milp(
        errors / max(errors.max(), np.finfo(float).tiny),
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes, -np.inf, payload)],
        options={"mip_rel_gap": 0.0},
    )
    assert solution.x is not None, solution.message  # a smallest allocation exists
    return {layer: choice.bits for (layer, choice), taken in zip(options, solution.x, strict=True) if taken > 0.5}


def fit(
    make: Callable[[BitWidths], Model], file_size: Callable[[BitWidths], int], choices: Choices, budget: int
) -> Model:
    """The model with the smallest predicted error whose file has at most ``budget`` bytes.

    Args:
        make: from bit widths to a model; takes long.
        file_size: bytes of the file with these bit widths, in no time.
        budget: of the whole file; at least that of the narrowest choices.
    """
    # The rest of the file, beside the codes, grows a little with the bit widths in use (types, Casts). So the budget
    # for the codes starts from the rest of the smallest file, and is lowered by what the file turns out too large.
    narrowest = {layer: min(options, key=lambda choice: choice.payload).bits for layer, options in choices.items()}
    smallest = smallest_payload(choices)
    payload = budget - (file_size(narrowest) - smallest)
    for _ in range(ATTEMPTS):
        widths = allocate(choices, max(payload, smallest))
        excess = file_size(widths) - budget
        if excess <= 0:
            break
        payload -= excess
    else:
        widths = narrowest
    _log(widths)
    return make(widths)


def shrink(make: Callable[[BitWidths], Model], drop: Callable[[Model], float], choices: Choices, limit: float) -> Model:
    """The smallest model whose accuracy drop is at most ``limit``; that of the widest choices is taken to be.

    Bisects the bytes of the codes, taking the drop to fall as they grow; every narrower model that is returned was
    measured.

    Args:
        drop: a model's accuracy drop on validation images, a ratio.
    """
    low = smallest_payload(choices)
    high = sum(max(choice.payload for choice in options) for options in choices.values())
    widths = allocate(choices, high)
    best = make(widths)
    tried = [widths]
    while high - low > BISECTION_END * high:
        middle = (low + high) // 2
        narrower = allocate(choices, middle)
        if narrower in tried:
            break
        tried.append(narrower)
        model = make(narrower)
        lost = drop(model)
        log.info("weights of at most %d bytes lose %.2f points on the validation images", middle, 100 * lost)
        if lost <= limit:
            best, widths, high = model, narrower, middle
        else:
            low = middle
    _log(widths)
    return best


def _log(widths: BitWidths) -> None:
    log.info("allocated bits: %s", ", ".join(f"{layer} {bits}" for layer, bits in widths.items()))
