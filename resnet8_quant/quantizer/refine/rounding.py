"""Rounding a layer's weights to codes: to the nearest, by GPTQ, by coordinate descent.

GPTQ and descent minimize the squared error of the layer's output, sum over the rows w of (w - s q) H (w - s q)^T with
H = E[x x^T], the Hessian of the layer-wise problem up to a factor 2. Nearest rounding minimizes it for uncorrelated
inputs only. Codes are relative to the zero point throughout.
"""

from __future__ import annotations

import numpy as np

SWEEPS = 20  # of the descent at most; it stops when no code moves
RIDGE = 1e-6  # of the mean diagonal: keeps inputs that are always zero from dividing by zero


def output_error(weights: np.ndarray, codes: np.ndarray, scale: np.ndarray, H: np.ndarray) -> np.ndarray:
    """float64 [...]: (w - s q) H (w - s q)^T of each row.

    Args:
        weights, codes: [..., K].
        scale: [...].
        H: [K, K].
    """
    rest = weights - codes * scale[..., None]
    return np.asarray(((rest @ H) * rest).sum(axis=-1))


def nearest(weights: np.ndarray, scale: np.ndarray, qmin: np.ndarray, qmax: np.ndarray) -> np.ndarray:
    """[..., K] codes: ``weights / scale`` rounded half to even and clipped.

    Args:
        weights: [..., K].
        scale, qmin, qmax: [...]; the bounds are relative to the zero point.
    """
    return np.asarray(np.clip(np.rint(weights / scale[..., None]), qmin[..., None], qmax[..., None]))


def gptq(
    weights: np.ndarray,
    scale: np.ndarray,
    qmin: np.ndarray,
    qmax: np.ndarray,
    H: np.ndarray,
    *,
    damping: float,
    activation_order: bool,
) -> np.ndarray:
    """GPTQ: round one column after another, and let the columns still free compensate each rounding error.

    Frantar et al., arXiv 2210.17323, algorithm 1; the names are the paper's.

    Args:
        weights: float64 [R, K].
        scale, qmin, qmax: [R]; the bounds are relative to the zero point.
        H: float64 [K, K], symmetric.
        damping: share of the mean diagonal that is added to the diagonal.
        activation_order: round the columns with the largest second moment first ("act-order").

    Returns:
        float64 [R, K], codes.
    """
    # Dampening: H of few or dependent inputs is singular, and its inverse would compensate with huge weights.
    columns = len(H)
    H = H + np.eye(columns) * (damping * _mean_diagonal(H) + RIDGE * _mean_diagonal(H))

    # Columns that move the output most are rounded while there are still many others to compensate for them.
    order = np.argsort(-np.diag(H), kind="stable") if activation_order else np.arange(columns)

    # The optimal update of the free columns after fixing column k needs the inverse of H restricted to them. All
    # these inverses are contained in the upper Cholesky factor of H^-1: its row k, divided by its diagonal, says how
    # the columns after k compensate for an error at k.
    Hinv = np.linalg.cholesky(np.linalg.inv(H[np.ix_(order, order)])).T

    W = weights[:, order].copy()  # the columns still free, with all compensation so far
    Q = np.empty_like(W)
    for k in range(columns):
        Q[:, k] = np.clip(np.rint(W[:, k] / scale), qmin, qmax)
        err = (W[:, k] - Q[:, k] * scale) / Hinv[k, k]
        W[:, k + 1 :] -= np.outer(err, Hinv[k, k + 1 :])

    codes = np.empty_like(Q)
    codes[:, order] = Q
    return codes


def descend(
    weights: np.ndarray, codes: np.ndarray, scale: np.ndarray, qmin: np.ndarray, qmax: np.ndarray, H: np.ndarray
) -> np.ndarray:
    """Coordinate descent: move one code of each row at a time to its best value, until none moves.

    The error never rises. Behdin et al., "QuantEase", arXiv 2309.01885.

    Args:
        codes: [R, K], where the descent starts; not changed.
        others: as `gptq`.

    Returns:
        float64 [R, K], codes.
    """
    # With all other codes fixed, the error is a parabola in code k. Its minimum lies at
    # q_k + ((w - s q) H)_k / (s H_kk); the best integer is that value rounded and clipped.
    codes = codes.copy()
    diagonal = np.diag(H) + RIDGE * _mean_diagonal(H)
    gradient = (weights - codes * scale[:, None]) @ H
    for _ in range(SWEEPS):
        moved = False
        for k in range(len(H)):
            best = np.clip(np.rint(codes[:, k] + gradient[:, k] / (diagonal[k] * scale)), qmin, qmax)
            change = best - codes[:, k]
            if change.any():
                moved = True
                codes[:, k] = best
                gradient -= np.outer(change * scale, H[k])  # kept up to date instead of computed anew
        if not moved:
            break
    return codes


def _mean_diagonal(H: np.ndarray) -> float:
    """Mean of the diagonal; 1 where H is zero."""
    return float(np.diag(H).mean()) or 1.0
