"""Rounding against oracles: GPTQ by re-solving least squares, descent by trying every change and every grid point."""

from itertools import product

import numpy as np
import pytest

from resnet8_quant.config import RefineConfig, Rounding
from resnet8_quant.quantizer.refine import rounding as module
from resnet8_quant.quantizer.refine.rounding import RIDGE, descend, gptq, nearest, output_error
from resnet8_quant.quantizer.refine.scales import _compensated


def problem(seed, rows=5, size=8, bits=3, rank=None, zero_point=0):
    """Correlated inputs, one in which a few directions dominate; scales that clip now and then."""
    rng = np.random.default_rng(seed)
    rank = rank or 3 * size
    x = rng.normal(size=(rank, size)) * np.exp(rng.normal(size=size)) @ rng.normal(size=(size, size))
    target = rng.normal(size=(rows, size)) * np.exp(rng.normal(size=(rows, 1)))
    half = 2 ** (bits - 1)
    scale = np.abs(target).max(1) / half * rng.uniform(0.5, 1.2, rows)
    low = np.full(rows, -half - zero_point)
    return target, scale, low, low + 2**bits - 1, x.T @ x / rank


def textbook(target, scale, lowest, highest, moments, damping, activation_order):
    """Round a column, then choose all columns still free anew: the minimum of e H e^T with the fixed errors given."""
    mean = np.diag(moments).mean() or 1.0
    damped = moments + np.eye(len(moments)) * (damping + RIDGE) * mean
    order = sorted(range(len(moments)), key=lambda k: (-damped[k, k] if activation_order else 0, k))
    steps, free, fixed = np.zeros_like(target), list(order), []
    for k in order:
        wanted = target[:, free].copy()
        if fixed:
            errors = target[:, fixed] - steps[:, fixed] * scale[:, None]
            wanted += errors @ damped[np.ix_(fixed, free)] @ np.linalg.inv(damped[np.ix_(free, free)])
        steps[:, k] = np.clip(np.round(wanted[:, 0] / scale), lowest, highest)
        free.remove(k)
        fixed.append(k)
    return steps


def errors_of(steps, target, scale, moments):
    """e H e^T, written out."""
    rest = target - steps * scale[:, None]
    return np.array([row @ moments @ row for row in rest])


def test_output_error_is_the_quadratic_form():
    target, scale, low, high, moments = problem(0)
    steps = nearest(target, scale, low, high)
    np.testing.assert_allclose(output_error(target, steps, scale, moments), errors_of(steps, target, scale, moments))
    stacked = output_error(np.stack([target, target]), np.stack([steps, steps]), np.stack([scale, scale]), moments)
    np.testing.assert_allclose(stacked, np.tile(errors_of(steps, target, scale, moments), (2, 1)))


def test_nearest_is_half_to_even_and_clipped():
    found = nearest(np.array([[0.5, 1.5, -0.5, 9.0, -9.0]]), np.array([1.0]), np.array([-4]), np.array([3]))
    assert found.tolist() == [[0, 2, 0, 3, -4]]


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_gptq_is_the_textbook(size, damping, activation_order):
    for seed in range(20):
        arguments = problem(seed, size=size, bits=2 + seed % 4, zero_point=seed % 3)
        expected = textbook(*arguments, damping, activation_order)
        found = gptq(*arguments, damping=damping, activation_order=activation_order)
        np.testing.assert_array_equal(found, expected)


def test_gptq_on_uncorrelated_inputs_is_nearest():
    target, scale, low, high, moments = problem(1)
    diagonal = np.diag(np.diag(moments))
    found = gptq(target, scale, low, high, diagonal, damping=0.01, activation_order=True)
    np.testing.assert_array_equal(found, nearest(target, scale, low, high))


def test_activation_order_permutes_back():
    """Inputs given in the order of their moments need none; shuffled, the result is shuffled the same way."""
    target, scale, low, high, moments = problem(2, size=12)
    order = np.argsort(-np.diag(moments))
    target, moments = target[:, order], moments[np.ix_(order, order)]
    plain = gptq(target, scale, low, high, moments, damping=0.01, activation_order=False)
    mixed = np.random.default_rng(3).permutation(12)
    found = gptq(target[:, mixed], scale, low, high, moments[np.ix_(mixed, mixed)], damping=0.01, activation_order=True)
    np.testing.assert_array_equal(found, plain[:, mixed])
    assert (plain != nearest(target, scale, low, high)).any()


@pytest.mark.parametrize("activation_order", [False, True])
def test_gptq_as_it_is_used_is_never_worse_than_nearest(activation_order):
    """Alone it may be, where bounds or damping are in its way; altogether it is far better."""
    config = RefineConfig(rounding=Rounding.gptq, activation_order=activation_order)
    plain, better = [], []
    for seed in range(150):
        target, scale, low, high, moments = problem(seed, size=3 + seed % 14, bits=2 + seed % 3, rank=2 + seed % 30)
        found = _compensated(target, scale, low, high, moments, config)
        before = errors_of(nearest(target, scale, low, high), target, scale, moments)
        after = errors_of(found, target, scale, moments)
        assert (after <= before * (1 + 1e-9) + 1e-12).all(), seed
        assert ((found >= low[:, None]) & (found <= high[:, None]) & (found == np.round(found))).all()
        plain.append(before.sum())
        better.append(after.sum())
    assert np.mean(np.log(np.array(better) / np.array(plain))) < np.log(0.5)


@pytest.mark.parametrize("dead", [[0], [3, 5], range(8)], ids=["one", "two", "all"])
@pytest.mark.parametrize("activation_order", [False, True])
def test_dead_inputs_give_whole_numbers(dead, activation_order):
    target, scale, low, high, moments = problem(4)
    moments[list(dead)] = 0
    moments[:, list(dead)] = 0
    found = gptq(target, scale, low, high, moments, damping=0.01, activation_order=activation_order)
    lowered = descend(target, found, scale, low, high, moments)
    for steps in (found, lowered):
        assert np.isfinite(steps).all()
        assert ((steps >= low[:, None]) & (steps <= high[:, None]) & (steps == np.round(steps))).all()
    np.testing.assert_array_equal(found[:, list(dead)], nearest(target, scale, low, high)[:, list(dead)])
    np.testing.assert_array_equal(lowered[:, list(dead)], found[:, list(dead)])


def test_singular_moments_need_no_damping():
    """One image's worth of inputs: rank 1; the ridge alone keeps the inverse finite."""
    target, scale, low, high, moments = problem(5, size=10, rank=1)
    found = gptq(target, scale, low, high, moments, damping=0.0, activation_order=True)
    assert np.isfinite(found).all()
    before = errors_of(nearest(target, scale, low, high), target, scale, moments)
    assert errors_of(found, target, scale, moments).sum() < before.sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_descent_ends_where_no_single_change_helps(monkeypatch, bits):
    monkeypatch.setattr(module, "SWEEPS", 2000)  # 20 are enough for few bits
    for seed in range(25):
        target, scale, low, high, moments = problem(seed, size=10, bits=bits, zero_point=seed % 2)
        start = nearest(target, scale, low, high)
        kept = start.copy()
        found = descend(target, start, scale, low, high, moments)
        np.testing.assert_array_equal(start, kept)
        error = errors_of(found, target, scale, moments)
        assert (error <= errors_of(start, target, scale, moments) + 1e-12).all()
        assert ((found >= low[:, None]) & (found <= high[:, None]) & (found == np.round(found))).all()
        np.testing.assert_array_equal(descend(target, found, scale, low, high, moments), found)
        for k, change in product(range(10), (-3, -2, -1, 1, 2, 3)):
            moved = found.copy()
            moved[:, k] = np.clip(moved[:, k] + change, low, high)
            # the ridge in its denominator lets a change go that gains less than this
            slack = 2 * RIDGE * np.diag(moments).mean() * (moved[:, k] - found[:, k]) ** 2 * scale**2 + 1e-12
            assert (errors_of(moved, target, scale, moments) >= error - slack).all(), (seed, k, change)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_descent_after_gptq_is_mostly_the_optimum(size):
    """Of 300 rows on 2 bits, against all grid points."""
    best = total = 0
    for seed in range(60):
        target, scale, low, high, moments = problem(seed, size=size, bits=2)
        start = gptq(target, scale, low, high, moments, damping=0.01, activation_order=True)
        found = errors_of(descend(target, start, scale, low, high, moments), target, scale, moments)
        assert (found <= errors_of(start, target, scale, moments) + 1e-12).all()
        points = np.array(list(product(range(int(low[0]), int(high[0]) + 1), repeat=size)), float)
        for row in range(len(target)):
            rest = target[row] - points * scale[row]
            optimum = ((rest @ moments) * rest).sum(1).min()
            assert found[row] >= optimum - 1e-9
            best += found[row] <= optimum * (1 + 1e-9) + 1e-12
            total += 1
    print(f"optimal: {best} of {total}")
    assert best / total > 0.6
