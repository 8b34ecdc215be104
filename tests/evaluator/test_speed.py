"""The columns about speed: which are there, what they come from, and when a machine is called busy."""

import re

import pytest

from resnet8_quant.config import Config, LatencyConfig
from resnet8_quant.evaluator import speed
from resnet8_quant.evaluator.profiler import NodeTime, Profile
from resnet8_quant.evaluator.speed import measure_speed
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.results import COLUMNS

SPEED = {"non_integer_time_share"} | {
    name for name in COLUMNS if re.search("latency|speedup|machine|processes|threads|throughput|per_second", name)
}
SPEED -= {"default_session_latency_us_median"}  # where a default session saturates
TIMES = {"integer": 5.0, "float": 2.0, "quantize": 1.0, "layout": 2.0}  # of a profile, microseconds


@pytest.fixture
def quiet(monkeypatch):
    """A machine on which nothing else runs; the argument is the share of the cores' time that others take."""

    def others(share):
        monkeypatch.setattr(speed, "watch_other_processes", lambda: lambda: share)

    monkeypatch.setattr(speed, "load_per_core", lambda: 0.123456)
    monkeypatch.setattr(speed, "usable_cores", lambda: 6)
    profile = Profile(tuple(NodeTime("", "", kind, us, (), ()) for kind, us in TIMES.items()), 10.0, 1, ())
    monkeypatch.setattr(speed, "profile_model", lambda model, **_: profile)
    monkeypatch.setattr(speed, "differs_by_default", lambda model: model == b"s")
    others(0.0)
    return others


def measured(simulation, images, config, model="q", seed=7):
    models = simulation.models
    return measure_speed(models["f"], models[model] if model else None, images, Config(latency=config, seed=seed))


@pytest.mark.parametrize("batch", [4, 0])
@pytest.mark.parametrize("model", ["q", None])
def test_which_columns_there_are(simulate, quiet, images, batch, model):
    config = LatencyConfig(runs=40, warmup=2, throughput_batch=batch)
    absent = ([] if model else ["speedup"]) + ([] if batch else ["throughput", "per_second"])
    columns = measured(simulate(f=[200], q=[80]), images, config, model)
    assert set(columns) == {name for name in SPEED if not any(part in name for part in absent)}


def test_without_runs_no_session_is_opened(simulate, quiet, images):
    simulation = simulate(f=[200], q=[80])
    assert measured(simulation, images, LatencyConfig(runs=0)) == {}
    assert simulation.opened == []


def test_what_the_columns_hold(simulate, quiet, images):
    simulation = simulate(f=[200], q=[80])
    columns = measured(simulation, images, LatencyConfig(runs=100, warmup=2, threads=3, throughput_batch=4))
    assert (columns["float_latency_us_median"], columns["latency_us_median"]) == (200, 80)
    assert (columns["latency_us_ci_low"], columns["latency_us_ci_high"], columns["latency_us_p95"]) == (80, 80, 80)
    assert [value for name, value in columns.items() if "speedup" in name] == [2.5] * 9
    assert (columns["latency_runs"], columns["latency_batch"], columns["latency_threads"]) == (100, 1, 3)
    assert (columns["threads_available"], columns["all_threads_latency_us_median"]) == (6, 80)
    assert columns["throughput_batch"] == 4
    assert columns["non_integer_time_share"] == 0.5
    assert (columns["images_per_second"], columns["float_images_per_second"]) == (50_000, 20_000)
    assert (columns["machine_load"], columns["machine_busy"]) == (0.1235, False)
    # single images on the threads that were asked for, then on all; many images on all
    assert [threads for threads, _ in simulation.opened] == [3, 3, 0, 0, 0, 0]
    assert {len(feed) for _, feed in simulation.record} == {1, 4}
    assert {providers for _, providers in simulation.opened} == {CPU}


def test_many_images_are_called_fewer_times(simulate, quiet, images):
    simulation = simulate(f=[200], q=[80])
    measured(simulation, images, LatencyConfig(runs=500, warmup=2, throughput_batch=4))
    many = [feed for model, feed in simulation.record if model == b"q" and len(feed) == 4]
    assert 10 <= len(many) <= 30  # 10 are counted


def test_a_float_run_is_its_own_model(simulate, quiet, images):
    simulation = simulate(f=[200])
    columns = measured(simulation, images, LatencyConfig(runs=40, warmup=2, throughput_batch=4), None)
    assert columns["latency_us_median"] == columns["float_latency_us_median"] == 200
    assert columns["images_per_second"] == columns["float_images_per_second"] == 20_000
    assert {model for model, _ in simulation.record} == {b"f"}


@pytest.mark.parametrize(
    ("others", "times", "busy"),
    [
        (0.0, [100], False),
        (None, [100], None),  # the system does not tell
        (0.09, [100], False),
        (0.11, [100], True),
        (0.0, [100, 100, 200] * 400, True),  # spread
    ],
)
def test_a_machine_is_called_busy(simulate, quiet, images, others, times, busy):
    quiet(others)
    columns = measured(simulate(f=[100], q=times), images, LatencyConfig(runs=60, warmup=2, throughput_batch=0))
    assert columns["machine_busy"] is busy
    assert columns["other_processes_share"] == others


def test_the_seed_is_the_bootstraps(simulate, quiet, images):
    def interval(seed):
        config = LatencyConfig(runs=60, warmup=2, throughput_batch=0)
        columns = measured(simulate(f=[100], q=range(100, 400)), images, config, seed=seed)
        return columns["latency_us_ci_low"], columns["latency_us_median"], columns["latency_us_ci_high"]

    low, median, high = interval(1)
    assert interval(1) == (low, median, high)
    assert low < median < high


def test_a_default_session_that_saturates_is_timed_beside_the_exact_one(simulate, quiet, images):
    columns = measured(simulate(f=[100], s=[50]), images, LatencyConfig(runs=40, warmup=2, throughput_batch=0), "s")
    assert columns["default_session_latency_us_median"] == columns["latency_us_median"] == 50
