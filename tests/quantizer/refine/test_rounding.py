"""Rounding against oracles: GPTQ by re-solving least squares, descent by trying every change and every code."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PROPERTY, SEEDS

from resnet8_quant.config import DType, RefineConfig, Rounding
from resnet8_quant.quantizer.quant_params import QuantScheme
from resnet8_quant.quantizer.refine import rounding as module
from resnet8_quant.quantizer.refine.rounding import RIDGE, descend, gptq, nearest, output_error
from resnet8_quant.quantizer.refine.scales import quantize_rows


def problem(seed, rows=5, size=8, bits=3, rank=None, zero_point=0):
    """Correlated inputs, one in which a few directions dominate; scales that clip now and then."""
    rng = np.random.default_rng(seed)
    rank = rank or 3 * size
    x = rng.normal(size=(rank, size)) * np.exp(rng.normal(size=size)) @ rng.normal(size=(size, size))
    weights = rng.normal(size=(rows, size)) * np.exp(rng.normal(size=(rows, 1)))
    half = 2 ** (bits - 1)
    scale = np.abs(weights).max(1) / half * rng.uniform(0.5, 1.2, rows)
    qmin = np.full(rows, -half - zero_point)
    return weights, scale, qmin, qmin + 2**bits - 1, x.T @ x / rank


def textbook(weights, scale, qmin, qmax, H, damping, activation_order):
    """Round a column, then choose all columns still free anew: the minimum of e H e^T with the errors so far."""
    mean = np.diag(H).mean() or 1.0
    H = H + np.eye(len(H)) * (damping + RIDGE) * mean
    order = sorted(range(len(H)), key=lambda k: (-H[k, k] if activation_order else 0, k))
    codes, free, fixed = np.zeros_like(weights), list(order), []
    for k in order:
        optimum = weights[:, free].copy()
        if fixed:
            errors = weights[:, fixed] - codes[:, fixed] * scale[:, None]
            optimum += errors @ H[np.ix_(fixed, free)] @ np.linalg.inv(H[np.ix_(free, free)])
        codes[:, k] = np.clip(np.round(optimum[:, 0] / scale), qmin, qmax)
        free.remove(k)
        fixed.append(k)
    return codes


def errors_of(codes, weights, scale, H):
    """e H e^T, written out."""
    rest = weights - codes * scale[:, None]
    return np.array([row @ H @ row for row in rest])


def assert_codes(codes, qmin, qmax):
    assert np.isfinite(codes).all()
    assert ((codes >= qmin[:, None]) & (codes <= qmax[:, None]) & (codes == np.round(codes))).all()


def test_output_error_is_the_quadratic_form():
    weights, scale, qmin, qmax, H = problem(0)
    codes = nearest(weights, scale, qmin, qmax)
    expected = errors_of(codes, weights, scale, H)
    stacked = output_error(np.stack([weights] * 2), np.stack([codes] * 2), np.stack([scale] * 2), H)
    np.testing.assert_allclose(stacked, np.tile(expected, (2, 1)))


@PROPERTY
@given(
    SEEDS, st.integers(1, 9), st.integers(2, 5), st.integers(0, 2), st.sampled_from([1e-4, 0.01, 1.0]), st.booleans()
)
def test_gptq_is_the_textbook(seed, size, bits, zero_point, damping, activation_order):
    arguments = problem(seed, size=size, bits=bits, zero_point=zero_point)
    codes = gptq(*arguments, damping=damping, activation_order=activation_order)
    np.testing.assert_array_equal(codes, textbook(*arguments, damping, activation_order))


def test_gptq_as_it_is_used_is_never_worse_than_nearest():
    """Alone it may be, where bounds or damping are in its way; altogether it is far better."""
    ratios = []
    for seed in range(100):
        weights, _, _, _, H = problem(seed, size=3 + seed % 14, rank=2 + seed % 30)
        scheme = QuantScheme.of_weight(DType.int8, False, 2 + seed % 3)
        plain, better = (
            quantize_rows(weights, [H], scheme, True, RefineConfig(rounding=rounding, activation_order=seed % 2 == 0))
            for rounding in (Rounding.nearest, Rounding.gptq)
        )
        before, after = (errors_of(rows.codes, weights, rows.scale, H) for rows in (plain, better))
        assert (after <= before * (1 + 1e-9) + 1e-12).all(), seed
        ratios.append(np.log(after.sum() / before.sum()))
    assert np.mean(ratios) < np.log(0.5)


@pytest.mark.parametrize("dead", [[0], [3, 5], range(8)], ids=["one", "two", "all"])
def test_dead_inputs_are_rounded_to_nearest(dead):
    weights, scale, qmin, qmax, H = problem(4)
    dead = list(dead)
    H[dead] = H[:, dead] = 0
    codes = gptq(weights, scale, qmin, qmax, H, damping=0.01, activation_order=True)
    lowered = descend(weights, codes, scale, qmin, qmax, H)
    for result in (codes, lowered):
        assert_codes(result, qmin, qmax)
        np.testing.assert_array_equal(result[:, dead], nearest(weights, scale, qmin, qmax)[:, dead])


def test_a_singular_hessian_needs_no_damping():
    """One image's worth of inputs: rank 1; the ridge alone keeps the inverse finite."""
    weights, scale, qmin, qmax, H = problem(5, size=10, rank=1)
    codes = gptq(weights, scale, qmin, qmax, H, damping=0.0, activation_order=True)
    before = errors_of(nearest(weights, scale, qmin, qmax), weights, scale, H)
    assert errors_of(codes, weights, scale, H).sum() < before.sum()


@PROPERTY
@given(SEEDS, st.sampled_from([2, 3, 4, 8]), st.integers(0, 1))
def test_descent_ends_where_no_single_change_helps(seed, bits, zero_point):
    weights, scale, qmin, qmax, H = problem(seed, size=10, bits=bits, zero_point=zero_point)
    start = nearest(weights, scale, qmin, qmax)
    kept = start.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SWEEPS", 2000)  # 20 are enough for few bits
        codes = descend(weights, start, scale, qmin, qmax, H)
        np.testing.assert_array_equal(descend(weights, codes, scale, qmin, qmax, H), codes)
    np.testing.assert_array_equal(start, kept)
    assert_codes(codes, qmin, qmax)
    error = errors_of(codes, weights, scale, H)
    assert (error <= errors_of(start, weights, scale, H) + 1e-12).all()
    for k, change in product(range(10), (-3, -2, -1, 1, 2, 3)):
        moved = codes.copy()
        moved[:, k] = np.clip(moved[:, k] + change, qmin, qmax)
        # the ridge in its denominator lets a change go that gains less than this
        slack = 2 * RIDGE * np.diag(H).mean() * (moved[:, k] - codes[:, k]) ** 2 * scale**2 + 1e-12 * (1 + error)
        assert (errors_of(moved, weights, scale, H) >= error - slack).all(), (k, change)


def test_nearest_is_half_to_even_and_clipped():
    codes = nearest(np.array([[0.5, 1.5, -0.5, 9.0, -9.0]]), np.array([1.0]), np.array([-4]), np.array([3]))
    assert codes.tolist() == [[0, 2, 0, 3, -4]]
