"""Rounding a layer's weights: to the nearest, by GPTQ, by coordinate descent.

In: rows of weights, their scale and bounds, the second moments of the layer's inputs. Out: whole numbers. The error
that GPTQ and descent make small is that of the layer's output, ``sum((w - s q) H (w - s q)^T)`` over the rows, with
H = E[x x^T]: nearest rounding makes the same error small for uncorrelated inputs only.
"""

from __future__ import annotations

import numpy as np

SWEEPS = 20  # of the descent at most; it stops when no weight moves
RIDGE = 1e-6  # of the mean diagonal: keeps dead inputs from dividing by zero


def output_error(target: np.ndarray, steps: np.ndarray, scale: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """float64 [...]: the quadratic error of each row.

    Args:
        target, steps: [..., K], weights and whole numbers.
        scale: [...].
        moments: [K, K].
    """
    rest = target - steps * scale[..., None]
    return np.asarray(((rest @ moments) * rest).sum(axis=-1))


def nearest(target: np.ndarray, scale: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """[..., K] whole numbers: ``target / scale`` rounded half to even and clipped.

    Args:
        target: [..., K].
        scale, lowest, highest: [...]; the bounds are those of ``q - zero_point``.
    """
    return np.asarray(np.clip(np.rint(target / scale[..., None]), lowest[..., None], highest[..., None]))


def gptq(
    target: np.ndarray,
    scale: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    moments: np.ndarray,
    *,
    damping: float,
    activation_order: bool,
) -> np.ndarray:
    """Round one input after another; each rounding error is made up for by the inputs that are still to come.

    Frantar et al., arXiv 2210.17323.

    Args:
        target: float64 [R, K].
        scale, lowest, highest: [R].
        moments: float64 [K, K], symmetric.
        damping: share of the mean diagonal that is added to the diagonal.
        activation_order: round the inputs with the largest second moment first.

    Returns:
        float64 [R, K], whole numbers.
    """
    size = len(moments)
    damped = moments + np.eye(size) * (damping * _mean_diagonal(moments) + RIDGE * _mean_diagonal(moments))
    order = np.argsort(-np.diag(damped), kind="stable") if activation_order else np.arange(size)
    # upper Cholesky factor of the inverse: row k says how the inputs after k make up for an error at k
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    rest = target[:, order].copy()
    steps = np.empty_like(rest)
    for k in range(size):
        steps[:, k] = np.clip(np.rint(rest[:, k] / scale), lowest, highest)
        error = (rest[:, k] - steps[:, k] * scale) / upper[k, k]
        rest[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    result = np.empty_like(steps)
    result[:, order] = steps
    return result


def descend(
    target: np.ndarray,
    steps: np.ndarray,
    scale: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    moments: np.ndarray,
) -> np.ndarray:
    """Move one whole number of each row at a time to where its error is smallest, until none moves.

    The error never rises. Behdin et al., "QuantEase", arXiv 2309.01885.

    Args, returns: as `gptq`; ``steps`` is where the descent starts.
    """
    steps = steps.copy()
    diagonal = np.diag(moments) + RIDGE * _mean_diagonal(moments)
    gradient = (target - steps * scale[:, None]) @ moments
    for _ in range(SWEEPS):
        moved = False
        for k in range(len(moments)):
            best = np.clip(np.rint(steps[:, k] + gradient[:, k] / (diagonal[k] * scale)), lowest, highest)
            change = best - steps[:, k]
            if change.any():
                moved = True
                steps[:, k] = best
                gradient -= np.outer(change * scale, moments[k])
        if not moved:
            break
    return steps


def _mean_diagonal(moments: np.ndarray) -> float:
    return float(np.diag(moments).mean()) or 1.0
