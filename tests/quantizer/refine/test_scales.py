"""Scales: the formula of the widest range, and that a search beats it by its own measure."""

import numpy as np
import pytest

from resnet8_quant.config import RefineConfig, Rounding, WeightScale
from resnet8_quant.quantizer.refine.scales import CANDIDATES, RoundedRows, WeightLevels, round_rows

BITS = range(2, 9)
GRIDS = {"signed": (True, False), "signed symmetric": (True, True), "unsigned": (False, False)}


def weights(seed, rows=6, size=18, groups=1):
    """Rows of different sizes with a few outliers, and moments of correlated inputs for each group."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(rows, size)) * np.exp(rng.normal(size=(rows, 1)))
    target[rng.random(target.shape) < 0.05] *= 4
    moments = []
    for _ in range(groups):
        x = rng.normal(size=(60, size)) @ rng.normal(size=(size, size))
        moments.append(x.T @ x / 60)
    return target, moments


def values(found: RoundedRows):
    return found.steps * found.scale[:, None]


def errors(target, found, moments):
    """Of each row, under the moments of its group."""
    rest = target - values(found)
    size = len(target) // len(moments)
    return np.array([row @ moments[i // size] @ row for i, row in enumerate(rest)])


def assert_on_grid(found, levels):
    """Whole numbers within the levels; zero too; scales that float32 holds."""
    stored = found.steps + found.zero_point[:, None]
    assert (stored == np.round(stored)).all()
    assert levels.lowest <= stored.min()
    assert stored.max() <= levels.highest
    assert found.zero_point.dtype == np.int64
    assert ((found.zero_point >= levels.lowest) & (found.zero_point <= levels.highest)).all()
    assert (found.scale > 0).all()
    assert np.isfinite(found.scale).all()
    np.testing.assert_array_equal(found.scale.astype(np.float32).astype(np.float64), found.scale)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_widest_range_is_rounded_to_nearest(bits, per_channel, grid):
    signed, symmetric = GRIDS[grid]
    levels = WeightLevels.of(bits, signed, symmetric)
    target, moments = weights(bits)
    found = round_rows(target, moments, levels, per_channel, bits, RefineConfig())
    assert_on_grid(found, levels)
    for row in range(len(target)):
        seen = target[row] if per_channel else target
        low, high = min(seen.min(), 0), max(seen.max(), 0)
        if symmetric:
            scale, zero = max(-low, high) / (2 ** (bits - 1) - 1), 0
        else:
            scale = (high - low) / (2**bits - 1)
            zero = np.round(levels.lowest - low / np.float32(scale))
        assert found.scale[row] == np.float32(scale)
        assert found.zero_point[row] == zero
        expected = np.clip(np.round(target[row] / np.float32(scale)) + zero, levels.lowest, levels.highest) - zero
        np.testing.assert_array_equal(found.steps[row], expected)
        step = 0.5 if symmetric else 1.0  # a rounded zero point may push an end out by half a step
        assert np.abs(target[row] - values(found)[row]).max() <= (step + 1e-6) * found.scale[row]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
def test_levels_are_those_of_the_type(bits, signed):
    for symmetric in (False, True):
        levels = WeightLevels.of(bits, signed, symmetric)
        left_out = signed and symmetric and bits == 8  # -128, as in onnxruntime
        assert levels.highest - levels.lowest + 1 == 2**bits - left_out
        assert levels.lowest == (0 if not signed else -(2 ** (bits - 1)) + left_out)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("scale", [WeightScale.mse, WeightScale.hessian, WeightScale.rounded])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_search_beats_the_widest_range_by_its_own_measure(rounding, scale, per_channel, grid):
    """mse and hessian measure the nearest integers, rounded those that are taken in the end."""
    signed, symmetric = GRIDS[grid]
    compensated = scale is WeightScale.rounded and rounding is not Rounding.nearest
    criterion = Rounding.gptq if compensated else Rounding.nearest
    gains = []
    for bits in (2, 3, 4, 8):
        levels = WeightLevels.of(bits, signed, symmetric)
        target, moments = weights(bits, groups=2)
        measured = [np.eye(18)] * 2 if scale is WeightScale.mse else moments
        plain = round_rows(target, moments, levels, per_channel, bits, RefineConfig(rounding=criterion))
        found = round_rows(
            target, moments, levels, per_channel, bits, RefineConfig(rounding=criterion, weight_scale=scale)
        )
        assert_on_grid(found, levels)
        before, after = errors(target, plain, measured), errors(target, found, measured)
        if per_channel:
            assert (after <= before * (1 + 1e-9)).all()
        else:
            assert after.sum() <= before.sum() * (1 + 1e-9)
            assert len(set(found.scale)) == len(set(found.zero_point)) == 1
        gains.append(after.sum() / before.sum())
        shares = found.scale / plain.scale
        assert ((shares > 0.15) & (shares < 1.06)).all()
        chosen = round_rows(
            target, moments, levels, per_channel, bits, RefineConfig(rounding=rounding, weight_scale=scale)
        )
        np.testing.assert_array_equal(chosen.scale, found.scale)  # the last step moves integers only
        assert_on_grid(chosen, levels)
        assert (errors(target, chosen, moments) <= errors(target, found, moments) * (1 + 1e-9)).all()
    assert gains[0] < 0.9  # at 2 bits it is worth a lot


@pytest.mark.parametrize("scale", WeightScale)
def test_better_roundings_are_better(scale):
    """On the same moments, row by row where the scale is the same, in sum where each has its own."""
    levels = WeightLevels.of(3, True, True)
    for seed in range(10):
        target, moments = weights(seed)
        sums = [
            errors(
                target,
                round_rows(target, moments, levels, True, 3, RefineConfig(rounding=r, weight_scale=scale)),
                moments,
            )
            for r in (Rounding.nearest, Rounding.gptq, Rounding.descent)
        ]
        assert (sums[2] <= sums[1] * (1 + 1e-9)).all()
        assert (sums[1] <= sums[0] * (1 + 1e-9)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scale", WeightScale)
def test_rows_of_zeros_and_tiny_values_stay_finite(bits, per_channel, grid, scale):
    levels = WeightLevels.of(bits, *GRIDS[grid])
    target, moments = weights(0, rows=4)
    target[1] = 0
    target[2] = 1e-42  # below float32's normal numbers
    config = RefineConfig(rounding=Rounding.descent, weight_scale=scale)
    for rows in (target, np.zeros_like(target)):
        found = round_rows(rows, moments, levels, per_channel, bits, config)
        assert_on_grid(found, levels)
        if per_channel or not rows.any():
            np.testing.assert_array_equal(values(found)[1], 0)


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_of_one_sign_still_have_a_zero(grid):
    levels = WeightLevels.of(4, *GRIDS[grid])
    _, moments = weights(0, rows=2)
    target = np.array([np.linspace(3, 5, 18), np.linspace(-5, -3, 18)])
    for scale in WeightScale:
        found = round_rows(target, moments, levels, True, 4, RefineConfig(weight_scale=scale))
        assert_on_grid(found, levels)
        assert np.abs(target - values(found)).max() < 1.5


def test_groups_take_their_own_moments():
    target, moments = weights(1, groups=2)
    levels = WeightLevels.of(3, True, True)
    config = RefineConfig(rounding=Rounding.descent, weight_scale=WeightScale.rounded)
    both = round_rows(target, moments, levels, True, 3, config)
    for half, part in enumerate((slice(0, 3), slice(3, 6))):
        alone = round_rows(target[part], [moments[half]], levels, True, 3, config)
        for name in ("steps", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(both, name)[part], getattr(alone, name))


def test_one_scale_is_chosen_for_all_groups_together():
    target, moments = weights(2, groups=3)
    levels = WeightLevels.of(2, True, False)
    config = RefineConfig(weight_scale=WeightScale.hessian)
    found = round_rows(target, moments, levels, False, 2, config)
    assert len(set(found.scale)) == 1
    widest = round_rows(target, moments, levels, False, 2, RefineConfig()).scale[0]
    shares = [*np.linspace(0.2, 1.0, CANDIDATES), 1.05]
    low, high = target.min(), target.max()
    best = np.inf
    for share in shares:
        scale = np.float64(np.float32(share * (high - low) / 3))
        zero = np.clip(np.round(levels.lowest - share * low / scale), levels.lowest, levels.highest)
        steps = np.clip(np.round(target / scale), levels.lowest - zero, levels.highest - zero)
        tried = RoundedRows(steps, np.full(6, scale), np.full(6, int(zero)))
        best = min(best, errors(target, tried, moments).sum())
    np.testing.assert_allclose(errors(target, found, moments).sum(), best)
    assert found.scale[0] < widest
