"""Bit widths of all layers under a limit: bytes of the file, or loss of accuracy."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np

from resnet8_quant.config import Config, DType, SizeOf
from resnet8_quant.errors import ExperimentError
from resnet8_quant.progress import Estimate, progress
from resnet8_quant.quantizer.plan import LayerBits
from resnet8_quant.validation import FLOAT

log = logging.getLogger(__name__)

ATTEMPTS = 5
BISECTION_END = 0.02  # of the bytes
WIDEST_CHOICE = 8  # bits
FLOAT_BITS = DType.float32.bits  # of a layer that stays in float
BitWidths = dict[str, int]
Choices = dict[str, list["Choice"]]
Bytes = dict[str, dict[int, int]]
Model = TypeVar("Model")


@dataclass(frozen=True)
class Choice:
    """A bit width that a layer may have.

    Attributes:
        bits: of its weight; 32: it stays in float.
        error: what it adds to the error of the logits.
        payload: bytes of the layer's codes, or of its float32 weight.
    """

    bits: int
    error: float
    payload: int


def allowed_widths(
    config: Config, bits: dict[str, LayerBits], ends: tuple[str, str] | None = None
) -> dict[str, list[int]]:
    """The bit widths of allocate.choices that each layer may have, ascending; 32 is float.

    A layer that quant.layers names keeps its width, or stays quantized with ``float: false``; the first and the last
    have at least quant.keep_first_last.

    Args:
        bits: of the layers that are quantized.
        ends: names of the model's first and last layer; None: those of ``bits``.

    Raises:
        ExperimentError: some layers have none; the remedy has all that are missing.
    """
    choices, quant = _choices(config), config.quant
    first, last = ends or (next(iter(bits)), list(bits)[-1])
    allowed, missing = {}, {}
    for layer, layer_bits in bits.items():
        low, high = 0, choices[-1]
        settings: dict[str, Any] = {}
        for name, override in quant.layers.items():
            settings |= override if fnmatchcase(layer, name) else {}
        if "weight_bits" in settings:
            low = high = layer_bits.weight
        elif layer in (first, last):
            low = min(quant.keep_first_last or 0, quant.weight_type.bits)
        if "float" in settings:  # false: layers that stay in float are not among ``bits``
            low, high = max(2, low), min(high, WIDEST_CHOICE)
        allowed[layer] = [width for width in choices if low <= width <= high]
        if not allowed[layer]:
            missing[layer] = (low, max(low, high))
    if missing:
        layer, (low, high) = next(iter(missing.items()))
        others = f", nor of those of {', '.join(list(missing)[1:])}" if len(missing) > 1 else ""
        complete = sorted({*choices, *(low for low, _ in missing.values())})
        raise ExperimentError(
            f"`allocate.choices` has none of the widths from {low} to {high} that layer {layer} is held to{others}",
            f"allocate.choices=[{','.join(map(_shown, complete))}]",
        )
    return allowed


def _choices(config: Config) -> list[int]:
    """allocate.choices as numbers, ascending, without repetition."""
    return sorted({FLOAT_BITS if choice == FLOAT else int(choice) for choice in config.allocate.choices})


def _shown(bits: int) -> str:
    return FLOAT if bits == FLOAT_BITS else str(bits)


def check_budget(smallest_file: int, config: Config) -> None:
    """Refuse a budget below the smallest possible file.

    Raises:
        ExperimentError: with what would help and is not set yet.
    """
    budget = config.allocate.budget_bytes
    if budget is None or smallest_file <= budget:
        return
    remedies = [f"allocate.budget_bytes={smallest_file}"]
    if _choices(config)[0] > 2:
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
    if _choices(config)[-1] < min(WIDEST_CHOICE, config.quant.weight_type.bits):
        remedies.append("wider allocate.choices")
    if config.refine.name != "best":
        remedies.append("refine=best")
    raise ExperimentError(
        f"`allocate.max_accuracy_drop` is {limit:g}; with the widest of allocate.choices the validation images lose "
        f"{drop:.4f}",
        ", or ".join(remedies),
    )


def measured_bytes(allowed: dict[str, list[int]], file_size: Callable[[BitWidths], int]) -> Bytes:
    """{layer: {bit width: bytes of the file, with this layer alone changed from its widest integers}}.

    A target may have no type for a bit width, or none in some operator; a layer in float has float32 weights, but no
    scales and no DequantizeLinear.
    """
    # All others have integers, since layers in float side by side change what is quantized around them.
    widest = {layer: _widest_integers(widths) for layer, widths in allowed.items()}
    size = file_size(widest)
    measured = {layer: {width: size} for layer, width in widest.items()}
    with progress("measuring files", len(allowed), "layers") as advance:
        for layer, widths in allowed.items():
            for width in widths:
                if width != widest[layer]:
                    measured[layer][width] = file_size(widest | {layer: width})
            advance(1)
    return measured


def _widest_integers(widths: Iterable[int]) -> int:
    return max((width for width in widths if width != FLOAT_BITS), default=FLOAT_BITS)


def smallest_widths(allowed: dict[str, list[int]], measured: Bytes | None) -> BitWidths:
    """The bit widths of the smallest file; a tiny layer may be smallest in float, which needs no scales."""
    if measured is None:
        return {layer: min(widths) for layer, widths in allowed.items()}
    return {layer: min(widths, key=measured[layer].__getitem__) for layer, widths in allowed.items()}


def with_measured_bytes(choices: Choices, measured: Bytes) -> Choices:
    """Choices whose payloads are what the file gains and loses by them, in place of the bytes of packed codes."""
    counted = {}
    for layer, options in choices.items():
        widest = _widest_integers(choice.bits for choice in options)
        payload = next(choice.payload for choice in options if choice.bits == widest)
        counted[layer] = [
            dataclasses.replace(choice, payload=payload + measured[layer][choice.bits] - measured[layer][widest])
            for choice in options
        ]
    return counted


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
    make: Callable[[BitWidths], Model],
    file_size: Callable[[BitWidths], int],
    size_of: Callable[[Model], int],
    choices: Choices,
    budget: int,
) -> Model:
    """The model with the smallest predicted error whose file has at most ``budget`` bytes.

    Args:
        make: from bit widths to a model; takes long.
        file_size: bytes of the file with these bit widths, in no time; those of the model may be a few more.
        size_of: bytes of a model's file.
        budget: of the whole file; at least that of the narrowest choices.

    Returns:
        The model; one of the narrowest choices where nothing is found to fit, which may be larger than the budget.
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
            model = make(widths)
            # The file that is written is the one that counts: its numbers decide what quant.compact can share.
            excess = size_of(model) - budget
            if excess <= 0 or widths == narrowest:
                break
        payload -= excess
    else:
        widths = narrowest
        model = make(narrowest)
    _log(widths)
    return model


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
    estimate = Estimate("allocation", math.ceil(math.log2(1 / BISECTION_END)), "models")
    estimate.count(0)
    while high - low > BISECTION_END * high:
        middle = (low + high) // 2
        narrower = allocate(choices, middle)
        if narrower in tried:
            break
        tried.append(narrower)
        model = make(narrower)
        lost = drop(model)
        log.info("weights of at most %d bytes lose %.2f points on the validation images", middle, 100 * lost)
        if (sentence := estimate.count(1)) is not None:
            log.info("%s", sentence)
        if lost <= limit:
            best, widths, high = model, narrower, middle
        else:
            low = middle
    _log(widths)
    return best


def _log(widths: BitWidths) -> None:
    log.info("allocated bits: %s", ", ".join(f"{layer} {_shown(bits)}" for layer, bits in widths.items()))
