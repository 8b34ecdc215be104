"""The best widths for a number of bytes, exactly: an integer program with one choice for each layer.

In: for each layer the widths it may have, with their cost in error and in bytes. Out: a width for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.errors import ExperimentError


@dataclass(frozen=True)
class Choice:
    """A width that a layer may have.

    Attributes:
        bits: of its weight.
        error: what it adds to the error of the logits.
        payload: bytes of the layer's integers.
    """

    bits: int
    error: float
    payload: int


def smallest(choices: dict[str, list[Choice]]) -> int:
    """Bytes of the integers where every layer is as narrow as it can be."""
    return sum(min(choice.payload for choice in options) for options in choices.values())


def allocate(choices: dict[str, list[Choice]], payload: int) -> dict[str, int]:
    """The widths with the smallest sum of errors whose integers take at most ``payload`` bytes.

    Args:
        choices: {layer: its options}.
        payload: bytes for the integers of all layers.

    Returns:
        {layer: bits}.

    Raises:
        ExperimentError: no allocation is so small.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if smallest(choices) > payload:
        raise ExperimentError(
            f"`allocate.budget_bytes` leaves {payload} bytes for the weights; the smallest possible are "
            f"{smallest(choices)}",
            f"allocate.budget_bytes={smallest(choices)} plus the rest of the file, or narrower allocate.choices",
        )
    options = [(layer, choice) for layer, found in choices.items() for choice in found]
    errors = np.array([choice.error for _, choice in options])
    one_each = np.array([[float(layer == name) for layer, _ in options] for name in choices])
    sizes = np.array([[float(choice.payload) for _, choice in options]])
    found = milp(
        errors / max(errors.max(), np.finfo(float).tiny),  # the solver's tolerances are absolute
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes, -np.inf, payload)],
        options={"mip_rel_gap": 0.0},
    )
    assert found.x is not None, found.message  # a smallest allocation exists
    return {layer: choice.bits for (layer, choice), taken in zip(options, found.x, strict=True) if taken > 0.5}
