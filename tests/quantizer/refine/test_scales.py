"""Scales: the formula of the widest range, and that a search beats it by its own measure."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import PROPERTY, SEEDS, WEIGHT_SCHEMES

from resnet8_quant.config import DType, RefineConfig, Rounding, WeightScale
from resnet8_quant.quantizer.quant_params import QuantScheme
from resnet8_quant.quantizer.refine.scales import CANDIDATES, QuantizedRows, quantize_rows


def weights_of(seed, rows=6, size=18, groups=1):
    """Rows of different sizes with a few outliers, and the Hessian of correlated inputs for each group."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, size)) * np.exp(rng.normal(size=(rows, 1)))
    weights[rng.random(weights.shape) < 0.05] *= 4
    hessians = []
    for _ in range(groups):
        x = rng.normal(size=(60, size)) @ rng.normal(size=(size, size))
        hessians.append(x.T @ x / 60)
    return weights, hessians


def values(rows: QuantizedRows):
    return rows.codes * rows.scale[:, None]


def errors(weights, rows, hessians):
    """Of each row, under the Hessian of its group."""
    rest = weights - values(rows)
    size = len(weights) // len(hessians)
    return np.array([row @ hessians[i // size] @ row for i, row in enumerate(rest)])


def assert_in_scheme(rows, scheme):
    """Integers between qmin and qmax; zero too; scales that float32 represents."""
    stored = rows.codes + rows.zero_point[:, None]
    assert (stored == np.round(stored)).all()
    assert scheme.qmin <= stored.min()
    assert stored.max() <= scheme.qmax
    assert rows.zero_point.dtype == np.int64
    assert ((rows.zero_point >= scheme.qmin) & (rows.zero_point <= scheme.qmax)).all()
    assert (rows.scale > 0).all()
    assert np.isfinite(rows.scale).all()
    np.testing.assert_array_equal(rows.scale.astype(np.float32).astype(np.float64), rows.scale)


@PROPERTY
@given(WEIGHT_SCHEMES, st.booleans(), SEEDS)
def test_the_widest_range_is_rounded_to_nearest(scheme, per_channel, seed):
    weights, hessians = weights_of(seed)
    rows = quantize_rows(weights, hessians, scheme, per_channel, RefineConfig())
    assert_in_scheme(rows, scheme)
    for row in range(len(weights)):
        shared = weights[row] if per_channel else weights
        low, high = min(shared.min(), 0), max(shared.max(), 0)
        if scheme.symmetric:
            scale, zero = max(-low, high) / (2 ** (scheme.bit_width - 1) - 1), 0
        else:
            scale = (high - low) / (scheme.levels - 1)
            zero = np.round(scheme.qmin - low / np.float32(scale))
        assert rows.scale[row] == np.float32(scale)
        assert rows.zero_point[row] == zero
        expected = np.clip(np.round(weights[row] / np.float32(scale)) + zero, scheme.qmin, scheme.qmax) - zero
        np.testing.assert_array_equal(rows.codes[row], expected)


@PROPERTY
@given(
    st.sampled_from([WeightScale.mse, WeightScale.hessian, WeightScale.rounded]),
    WEIGHT_SCHEMES,
    st.booleans(),
    st.sampled_from(list(Rounding)),
    SEEDS,
)
def test_a_search_beats_the_widest_range_by_its_own_measure(scale, scheme, per_channel, rounding, seed):
    """mse and hessian measure the nearest codes, rounded those that are taken in the end."""
    weights, hessians = weights_of(seed, groups=2)
    compensated = scale is WeightScale.rounded and rounding is not Rounding.nearest
    criterion = Rounding.gptq if compensated else Rounding.nearest
    widest, searched, final = (
        quantize_rows(weights, hessians, scheme, per_channel, RefineConfig(rounding=how, weight_scale=which))
        for which, how in ((WeightScale.max, criterion), (scale, criterion), (scale, rounding))
    )
    metric = [np.eye(18)] * 2 if scale is WeightScale.mse else hessians
    before, after = errors(weights, widest, metric), errors(weights, searched, metric)
    if per_channel:
        assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() <= before.sum() * (0.95 if scheme.bit_width == 2 else 1 + 1e-9)  # with 2 bits it is worth a lot
    assert per_channel or len(set(searched.scale)) == len(set(searched.zero_point)) == 1
    shares = searched.scale / widest.scale
    assert ((shares > 0.15) & (shares < 1.06)).all()
    np.testing.assert_array_equal(final.scale, searched.scale)  # the last step moves codes only
    for rows in (searched, final):
        assert_in_scheme(rows, scheme)
    assert (errors(weights, final, hessians) <= errors(weights, searched, hessians) * (1 + 1e-9)).all()


@PROPERTY
@given(WEIGHT_SCHEMES, st.booleans(), st.sampled_from(list(WeightScale)))
def test_rows_of_zeros_and_tiny_values_stay_finite(scheme, per_channel, scale):
    weights, hessians = weights_of(0, rows=4)
    weights[1] = 0
    weights[2] = 1e-42  # below float32's normal numbers
    config = RefineConfig(rounding=Rounding.descent, weight_scale=scale)
    for matrix in (weights, np.zeros_like(weights)):
        rows = quantize_rows(matrix, hessians, scheme, per_channel, config)
        assert_in_scheme(rows, scheme)
        if per_channel or not matrix.any():
            np.testing.assert_array_equal(values(rows)[1], 0)


def test_groups_take_their_own_hessian():
    weights, hessians = weights_of(1, groups=2)
    scheme = QuantScheme.of_weight(DType.int8, True, 3)
    config = RefineConfig(rounding=Rounding.descent, weight_scale=WeightScale.rounded)
    both = quantize_rows(weights, hessians, scheme, True, config)
    for half, part in enumerate((slice(0, 3), slice(3, 6))):
        alone = quantize_rows(weights[part], [hessians[half]], scheme, True, config)
        for name in ("codes", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(both, name)[part], getattr(alone, name))


def test_one_scale_is_chosen_for_all_groups_together():
    weights, hessians = weights_of(2, groups=3)
    scheme = QuantScheme.of_weight(DType.int8, False, 2)
    rows = quantize_rows(weights, hessians, scheme, False, RefineConfig(weight_scale=WeightScale.hessian))
    low, high = weights.min(), weights.max()
    best = np.inf
    for share in [*np.linspace(0.2, 1.0, CANDIDATES), 1.05]:
        scale = np.float64(np.float32(share * (high - low) / 3))
        zero = np.clip(np.round(scheme.qmin - share * low / scale), scheme.qmin, scheme.qmax)
        codes = np.clip(np.round(weights / scale), scheme.qmin - zero, scheme.qmax - zero)
        candidate = QuantizedRows(codes, np.full(6, scale), np.full(6, int(zero)))
        best = min(best, errors(weights, candidate, hessians).sum())
    np.testing.assert_allclose(errors(weights, rows, hessians).sum(), best)
