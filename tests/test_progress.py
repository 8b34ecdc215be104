"""What takes long is said beforehand, from what was measured, once."""

from __future__ import annotations

import logging

import pytest

from resnet8_quant import progress as module
from resnet8_quant.evaluator import latency
from resnet8_quant.progress import MEASURED, Unit, duration, progress
from resnet8_quant.quantizer.mixed_precision.allocation import shrink
from resnet8_quant.quantizer.mixed_precision.sensitivity import Choice


class Clock:
    """Stands in for time.monotonic."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO)
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def work(clock: Clock, steps: int, seconds: float, total: int | None, unit: Unit = "steps", **options: float) -> None:
    """``steps`` steps of a loop, each of so many seconds, after a first one that prepares a minute long."""
    with progress("distilling, loss 1.0", total, unit, **options) as advance:
        clock.now += 60
        advance(0)
        for _ in range(steps):
            clock.now += seconds
            advance(1)


def test_a_long_loop_says_once_how_long_it_will_take(clock, caplog):
    work(clock, 100, 0.5, 100_000)
    after = round(MEASURED / 0.5)
    expected = f"distilling: the other {100_000 - after:,} of 100,000 steps will take about 13 h 53 min"
    assert caplog.messages == [expected]


@pytest.mark.parametrize(("total", "longest"), [(1000, None), (None, None), (100_000, 600.0)])
def test_a_shorter_one_and_one_of_unknown_length_say_nothing(clock, caplog, total, longest):
    work(clock, 100, 0.5, total, longest=longest)
    assert caplog.messages == []


def test_a_limit_of_time_is_the_most_that_it_takes(clock, caplog):
    work(clock, 30, 0.5, 100_000, longest=1800.0)
    assert [message.rpartition(" about ")[2] for message in caplog.messages] == ["30 min"]


def test_what_was_done_in_an_earlier_run_counts_as_done_and_not_as_speed(clock, caplog):
    with progress("distilling", 10_000, "steps") as advance:
        advance(9_000)
        for _ in range(10):
            clock.now += 1.0
            advance(1)
    assert caplog.messages == ["distilling: the other 995 of 10,000 steps will take about 17 min"]


def test_durations_read_as_people_say_them():
    assert [duration(seconds) for seconds in (754, 7900, 900_000)] == ["13 min", "2 h 12 min", "10 days"]


def test_trials_of_an_allocation_are_told(clock, caplog):
    choices = {f"conv{i}": [Choice(2, 1.0 / (i + 1), 100 + i), Choice(8, 0.0, 400 + i)] for i in range(8)}

    def drop(model: object) -> float:
        clock.now += 300
        return 0.0

    shrink(lambda widths: widths, drop, choices, 0.01)
    told = [message for message in caplog.messages if message.startswith("allocation:")]
    assert told == ["allocation: the other 5 of 6 models will take about 25 min"]


def test_calls_of_a_slow_model_are_told(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(latency, "_timed", lambda call, count: [30_000_000] * count)
    latency.measure_calls({"float": lambda: None, "model": lambda: None}, runs=100_000, warmup=2, batch=1)
    assert caplog.messages == ["latency: 100,000 calls of each of 2 models will take about 100 min"]


def test_a_bar_is_off_the_screen_while_the_line_is_written(clock, monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.log, "info", lambda text, *words: print(text % words))
    work(clock, 20, 0.5, 100_000)
    assert "13 h 53 min" in capsys.readouterr().out
