"""Intervals against the exact bootstrap, and against the truth in measurements whose times are made up."""

import numpy as np
import pytest

from resnet8_quant.evaluator.latency import BLOCK, MIN_BLOCKS, Latency, Ratio, measure, speedup

WARMUP = 2


def calls_of(values: np.ndarray, uncounted: float = 777.0) -> list[float]:
    """[blocks, calls] microseconds -> times of all calls, with those of the warm-up and the untimed one of a block."""
    return [uncounted] * WARMUP + [time for block in values for time in (uncounted, *block)]


def latency_of(blocks: np.ndarray, batch: int = 1) -> Latency:
    """A measurement of which only the blocks matter."""
    median = float(np.median(blocks))
    return Latency(median, median, median, median, 0.0, len(blocks), batch, 1, np.asarray(blocks, np.float64))


def test_the_numbers_by_hand(images, simulate):
    times = np.arange(MIN_BLOCKS * 3, dtype=float).reshape(MIN_BLOCKS, 3) + 100
    times[:, 2] += 40  # one disturbed call in each block
    times[-1] += 500  # one disturbed block
    simulation = simulate(a=calls_of(times))
    measured = measure(simulation.models, images, runs=times.size, warmup=WARMUP, threads=1)["a"]
    assert measured.blocks_us.tolist() == [*range(101, 156, 3), 658]
    assert measured.blocks_us.dtype == np.float64
    assert measured.median_us == 129.5
    assert measured.p95_us == pytest.approx(np.percentile(times, 95))
    assert measured.spread == pytest.approx((np.percentile(times, 75) - np.percentile(times, 25)) / 129.5)
    assert measured.low_us < measured.median_us < measured.high_us
    assert measured.images_per_second == pytest.approx(1e6 / 129.5)


@pytest.mark.parametrize("count", [21, 45, 101])
def test_the_interval_is_that_of_the_exact_bootstrap(images, simulate, count):
    """The median of an odd resample is at most the k-th value with the probability of a binomial (Efron 1979).

    The tail of 2000 resamples is known to 0.0035 (standard error): 0.012 is beyond chance.
    """
    from scipy.stats import binom

    values = np.sort(np.random.default_rng(count).lognormal(5, 0.2, count)).round(3)
    half_among_first = binom.sf(count // 2, count, np.arange(1, count + 1) / count)
    blocks = np.repeat(values[np.random.default_rng(0).permutation(count)][:, None], BLOCK, axis=1)
    simulation = simulate(a=calls_of(blocks))
    measured = measure(simulation.models, images, runs=blocks.size, warmup=WARMUP, threads=1)["a"]
    assert measured.median_us == pytest.approx(values[count // 2])
    for end, level in ((measured.low_us, 0.025), (measured.high_us, 0.975)):
        least, most = values[np.searchsorted(half_among_first, [level - 0.012, level + 0.012])]
        assert least <= end <= most


def test_the_interval_holds_the_truth_in_95_of_100_measurements(images, simulate):
    """Calls of a block share its mood, which is ten times what tells them apart; the true median is 100."""
    rng = np.random.default_rng(5)
    trials, blocks = 300, 24
    moods = rng.lognormal(np.log(100), 0.10, (trials, blocks, 1))
    times = moods * rng.lognormal(0, 0.01, (trials, blocks, BLOCK))
    simulation = simulate(**{f"model {trial}": calls_of(times[trial]) for trial in range(trials)})
    result = measure(simulation.models, images, runs=blocks * BLOCK, warmup=WARMUP, threads=1)
    held = np.mean([measured.low_us <= 100 <= measured.high_us for measured in result.values()])
    assert 0.91 <= held <= 0.98

    # The same from single calls, as if they told something new each: most intervals are too narrow.
    calls = times[:100].reshape(100, -1)
    error = np.std(np.median(calls[:, rng.integers(0, blocks * BLOCK, (30, blocks * BLOCK))], axis=2), axis=1)
    assert np.mean(np.abs(np.median(calls, axis=1) - 100) <= 1.96 * error) < 0.75


def test_the_interval_of_a_speedup_holds_the_truth():
    """Both models in the same, drifting mood, which is far more than what tells them apart; truly 2.5 times."""
    rng = np.random.default_rng(6)
    trials, blocks = 300, 24
    held = width = 0
    for trial in range(trials):
        mood = 100 * np.exp(np.cumsum(rng.normal(0, 0.1, blocks)))
        base, other = (mood * rng.lognormal(np.log(truth), 0.02, blocks) for truth in (2.5, 1.0))
        ratio = speedup(latency_of(base), latency_of(other), trial)
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 2.5 <= ratio.high
        width += (ratio.high - ratio.low) / ratio.value
    assert 0.91 <= held / trials <= 0.98
    assert width / trials < 0.05  # not the mood's 30 %


def test_against_itself_at_half_the_speed():
    blocks = np.random.default_rng(0).lognormal(5, 0.3, 37)
    assert speedup(latency_of(2 * blocks), latency_of(blocks)) == Ratio(2.0, 2.0, 2.0)
    assert speedup(latency_of(blocks), latency_of(blocks)) == Ratio(1.0, 1.0, 1.0)


def test_speedup_turned_round_is_its_inverse():
    base, other = np.random.default_rng(0).lognormal(5, 0.3, (2, 31))
    forth, back = (speedup(latency_of(a), latency_of(b), 3) for a, b in ((base, other), (other, base)))
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(
        (forth.value, forth.low, forth.high), rel=0.02
    )


def test_speedup_needs_one_measurement():
    with pytest.raises(ValueError, match=r"3 blocks of batch 1, 4 of batch 1$"):
        speedup(latency_of(np.ones(3)), latency_of(np.ones(4)))
    with pytest.raises(ValueError, match=r"3 blocks of batch 1, 3 of batch 500$"):
        speedup(latency_of(np.ones(3)), latency_of(np.ones(3), batch=500))


def test_one_disturbed_block_hardly_matters(images, simulate):
    times = np.random.default_rng(2).normal(100, 1, (31, BLOCK))
    disturbed = times.copy()
    disturbed[11] *= 50
    results = []
    for values in (times, disturbed):
        simulation = simulate(a=calls_of(values), b=calls_of(times / 2))
        results.append(measure(simulation.models, images, runs=values.size, warmup=WARMUP, threads=1))
    calm, rough = results
    assert rough["a"].blocks_us[11] > 4000
    assert rough["a"].median_us == pytest.approx(calm["a"].median_us, rel=0.002)
    assert rough["a"].high_us == pytest.approx(calm["a"].high_us, rel=0.01)
    assert speedup(rough["a"], rough["b"]).value == pytest.approx(speedup(calm["a"], calm["b"]).value, rel=0.002)


def test_a_seed_gives_the_same_interval_again(images, simulate):
    times = np.random.default_rng(4).lognormal(5, 0.2, (20, 3))

    def interval(seed: int) -> tuple[float, float]:
        simulation = simulate(a=calls_of(times))
        measured = measure(simulation.models, images, runs=times.size, warmup=WARMUP, threads=1, seed=seed)["a"]
        return measured.low_us, measured.high_us

    assert interval(7) == interval(7)
    assert len({interval(seed) for seed in range(8)}) > 1
    ratios = [speedup(latency_of(times[:, 0]), latency_of(times[:, 1]), seed) for seed in (7, 7, *range(8))]
    assert ratios[0] == ratios[1]
    assert len({ratio.low for ratio in ratios}) > 1


def test_one_block_has_no_interval(images, simulate):
    simulation = simulate(a=[100.0])
    measured = measure(simulation.models, images, runs=1, warmup=0, threads=1)["a"]
    assert (measured.low_us, measured.median_us, measured.high_us, measured.spread) == (100.0, 100.0, 100.0, 0.0)
