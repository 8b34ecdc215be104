"""Who is called how often, in which order, with what; intervals against the exact bootstrap and made-up times."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from resnet8_quant.config import Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.latency import (
    BLOCK,
    LONG_CALL_NS,
    MIN_BLOCKS,
    BenchmarkModel,
    Latency,
    Ratio,
    measure,
    speedup,
)

WARMUP = 2


def calls_of(values: np.ndarray, uncounted: float = 777.0) -> list[float]:
    """[blocks, calls] microseconds -> times of all calls, with those of the warm-up and the untimed one of a block."""
    return [uncounted] * WARMUP + [time for block in values for time in (uncounted, *block)]


def latency_of(blocks: np.ndarray, batch: int = 1) -> Latency:
    """A measurement of which only the blocks matter."""
    median = float(np.median(blocks))
    return Latency(median, median, median, median, 0.0, len(blocks), batch, np.asarray(blocks, np.float64))


def run(simulation, images, times=None, *, runs=1, warmup=WARMUP, threads=1, **options) -> dict[str, Latency]:
    """``measure`` all models of a simulation; ``times``: of a run that has as many calls."""
    runs = runs if times is None else times.size
    models = options.pop("models", simulation.models)
    return measure(models, images, runs=runs, warmup=warmup, threads=threads, **options)


def fed(model: BenchmarkModel, **input_spec: object) -> BenchmarkModel:
    """The model with another input_spec."""
    return replace(model, input_spec=replace(model.input_spec, **input_spec))


def test_zero_runs_or_no_models_measure_nothing(images, simulate):
    simulation = simulate(a=[1])
    assert run(simulation, images, runs=0) == run(simulation, images, models={}) == {}
    assert simulation.order == ""


def test_models_alternate_in_blocks_with_one_untimed_call_each(images, simulate):
    simulation = simulate(a=[100], b=[200])
    runs = BLOCK * (MIN_BLOCKS + 2)
    result = run(simulation, images, runs=runs, warmup=4)
    turns = ("a", "b", "b", "a") * (MIN_BLOCKS // 2 + 1)
    assert simulation.order == "aaaabbbb" + "".join(turn * (BLOCK + 1) for turn in turns)
    assert simulation.collecting == [True] * 8 + [False] * (len(simulation.order) - 8)
    assert [(measured.runs, len(measured.blocks_us)) for measured in result.values()] == [(runs, MIN_BLOCKS + 2)] * 2


@pytest.mark.parametrize(
    ("runs", "call_us", "blocks"),
    [
        (1, 100, 1),
        (MIN_BLOCKS - 3, 100, MIN_BLOCKS - 3),
        (2 * MIN_BLOCKS + 3, 100, MIN_BLOCKS),  # the rest is spread over the blocks
        (BLOCK * MIN_BLOCKS + 1, 100, MIN_BLOCKS + 1),
        (5, LONG_CALL_NS / 1000, 5),
        (300, LONG_CALL_NS / 1000, 300),
    ],
)
def test_blocks_are_equally_long(images, simulate, runs, call_us, blocks):
    simulation = simulate(a=[call_us])
    measured = run(simulation, images, runs=runs)["a"]
    assert (measured.runs, len(measured.blocks_us)) == (runs, blocks)
    uncounted = blocks if call_us < 1000 else 0  # a long call needs none
    assert len(simulation.record) == 2 + runs + uncounted


def test_the_slowest_model_decides_on_the_length_of_all_blocks(images, simulate):
    simulation = simulate(a=[LONG_CALL_NS / 1000], b=[100])
    result = run(simulation, images, runs=40, warmup=0)
    assert simulation.order == "aabb" + "abbbba" * 20  # b is short: one more call before each block
    assert speedup(result["a"], result["b"]) == Ratio(*[LONG_CALL_NS / 1000 / 100] * 3)


def test_a_slow_first_call_does_not_count_as_a_long_one(images, simulate):
    measured = run(simulate(a=[LONG_CALL_NS, 100]), images, runs=BLOCK * MIN_BLOCKS * 2, warmup=0)["a"]
    assert len(measured.blocks_us) == MIN_BLOCKS * 2


@pytest.mark.parametrize(("fixed", "batch", "expected"), [(None, 1, 1), (None, 50, 50), (1, 50, 1), (3, 1, 3)])
@pytest.mark.parametrize("raw", [False, True])
def test_a_fixed_batch_overrules_and_images_are_repeated(images, simulate, fixed, batch, expected, raw):
    simulation = simulate(a=[100])
    models = {"a": fed(simulation.models["a"], batch=fixed, raw=raw)}
    measured = run(simulation, images, models=models, runs=2, batch=batch)["a"]
    assert measured.batch == expected
    assert measured.images_per_second == pytest.approx(expected / 100e-6)
    for _, feed in simulation.record:
        assert feed.dtype == (np.uint8 if raw else np.float32)
        np.testing.assert_array_equal(feed, np.concatenate([images] * 3)[:expected])


def test_each_model_is_fed_by_its_own_input_spec(images, simulate):
    simulation = simulate(a=[100], b=[100])
    a, b = simulation.models.values()
    models = {"a": fed(a, mean=(1.0, 2.0, 3.0)), "b": fed(b, raw=True, layout=Layout.NCHW)}
    run(simulation, images, models=models)
    feeds = dict(simulation.record)
    np.testing.assert_array_equal(feeds[b"a"], images[:1].astype(np.float32) - np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(feeds[b"b"], images[:1].transpose(0, 3, 1, 2))


def test_sessions_are_opened_as_asked(images, simulate):
    simulation = simulate(a=[100])
    run(simulation, images, threads=0)
    run(simulation, images, threads=3, providers=["X", "Y"])
    assert simulation.opened == [(0, ("CPUExecutionProvider",)), (3, ("X", "Y"))]


def test_ten_thousand_times_the_work_takes_longer(classifier, images, weights):
    widths = {"light": 1, "heavy": 10_000}
    models = {name: BenchmarkModel(*classifier(np.tile(weights, width))) for name, width in widths.items()}
    result = measure(models, images, runs=40, warmup=2, threads=1)
    for measured in result.values():
        assert 0 < measured.low_us <= measured.median_us <= min(measured.high_us, measured.p95_us)
    assert speedup(result["heavy"], result["light"]).value > 1


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(simulate, images, enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        run(simulate(a=[1]), images)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_model_that_cannot_run_is_a_user_error(classifier, images, weights):
    model, input_spec = classifier(weights, batch=2)
    for serialized, spec, problem in (
        (model, replace(input_spec, batch=None), "run"),
        (model, replace(input_spec, raw=True), "run"),  # fed with bytes
        (b"no model", input_spec, "load"),
    ):
        with pytest.raises(ExperimentError, match=f"cannot {problem} the model"):
            measure({"a": BenchmarkModel(serialized, spec)}, images, runs=1, warmup=0, threads=1)


def test_the_numbers_by_hand(images, simulate):
    times = np.arange(MIN_BLOCKS * 3, dtype=float).reshape(MIN_BLOCKS, 3) + 100
    times[:, 2] += 40  # one disturbed call in each block
    times[-1] += 500  # one disturbed block
    measured = run(simulate(a=calls_of(times)), images, times)["a"]
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
    measured = run(simulate(a=calls_of(blocks)), images, blocks)["a"]
    assert measured.median_us == pytest.approx(values[count // 2])
    for end, level in ((measured.low_us, 0.025), (measured.high_us, 0.975)):
        least, most = values[np.searchsorted(half_among_first, [level - 0.012, level + 0.012])]
        assert least <= end <= most


def test_the_interval_holds_the_truth_in_95_of_100_measurements(images, simulate):
    """Calls of a block share a disturbance ten times as large as what tells them apart; the true median is 100."""
    rng = np.random.default_rng(5)
    trials, blocks = 300, 24
    disturbances = rng.lognormal(np.log(100), 0.10, (trials, blocks, 1))
    times = disturbances * rng.lognormal(0, 0.01, (trials, blocks, BLOCK))
    simulation = simulate(**{f"model {trial}": calls_of(times[trial]) for trial in range(trials)})
    result = run(simulation, images, times[0])
    held = np.mean([measured.low_us <= 100 <= measured.high_us for measured in result.values()])
    assert 0.91 <= held <= 0.98


def test_the_interval_of_a_speedup_holds_the_truth():
    """Both models share a drift far larger than what tells them apart; the true speedup is 2.5."""
    rng = np.random.default_rng(6)
    trials, blocks = 300, 24
    held = width = 0
    for trial in range(trials):
        drift = 100 * np.exp(np.cumsum(rng.normal(0, 0.1, blocks)))
        base, other = (drift * rng.lognormal(np.log(truth), 0.02, blocks) for truth in (2.5, 1.0))
        ratio = speedup(latency_of(base), latency_of(other), trial)
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 2.5 <= ratio.high
        width += (ratio.high - ratio.low) / ratio.value
    assert 0.91 <= held / trials <= 0.98
    assert width / trials < 0.05  # not the drift's 30 %


def test_against_itself_at_half_the_speed():
    blocks = np.random.default_rng(0).lognormal(5, 0.3, 37)
    for factor in (2.0, 1.0):
        assert speedup(latency_of(factor * blocks), latency_of(blocks)) == Ratio(factor, factor, factor)


def test_speedup_needs_one_measurement():
    with pytest.raises(ValueError, match=r"3 blocks of batch 1, 4 of batch 1$"):
        speedup(latency_of(np.ones(3)), latency_of(np.ones(4)))
    with pytest.raises(ValueError, match=r"3 blocks of batch 1, 3 of batch 500$"):
        speedup(latency_of(np.ones(3)), latency_of(np.ones(3), batch=500))


def test_one_disturbed_block_hardly_matters(images, simulate):
    times = np.random.default_rng(2).normal(100, 1, (31, BLOCK))
    disturbed = times.copy()
    disturbed[11] *= 50
    calm, rough = (
        run(simulate(a=calls_of(values), b=calls_of(times / 2)), images, values) for values in (times, disturbed)
    )
    assert rough["a"].blocks_us[11] > 4000
    assert rough["a"].high_us == pytest.approx(calm["a"].high_us, rel=0.01)
    assert speedup(rough["a"], rough["b"]).value == pytest.approx(speedup(calm["a"], calm["b"]).value, rel=0.002)


def test_a_seed_gives_the_same_interval_again(images, simulate):
    times = np.random.default_rng(4).lognormal(5, 0.2, (20, 3))
    intervals = [run(simulate(a=calls_of(times)), images, times, seed=seed)["a"] for seed in (7, 7, *range(8))]
    ratios = [speedup(latency_of(times[:, 0]), latency_of(times[:, 1]), seed).low for seed in (7, 7, *range(8))]
    for values in ([(one.low_us, one.high_us) for one in intervals], ratios):
        assert values[0] == values[1]
        assert len(set(values)) > 1


def test_one_block_has_no_interval(images, simulate):
    measured = run(simulate(a=[100.0]), images)["a"]
    assert (measured.low_us, measured.median_us, measured.high_us, measured.spread) == (100.0, 100.0, 100.0, 0.0)
