"""Calls of models end, whatever the model is."""

import threading
import time

import numpy as np
import pytest
from endless import endless

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs import runtime


def test_a_loop_without_end_meets_the_time_limit(monkeypatch):
    monkeypatch.setattr(runtime, "_time_limit", 0.2)
    with pytest.raises(ExperimentError, match=r"`evaluation\.timeout` is 0\.2: .* batch of 3 in") as caught:
        runtime.run(endless(), None, {"x": np.zeros((3, 2), np.float32)})
    assert "evaluation.timeout=2" in caught.value.remedy
    assert not runtime._running


def test_all_calls_can_be_stopped():
    """As Ctrl-C does, which Python itself would deliver after the call."""
    session, ends = endless(), []

    def call():
        try:
            runtime.run(session, None, {"x": np.zeros((3, 2), np.float32)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            ends.append(error)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(runtime._running) < 2:
        time.sleep(0.001)
    runtime.stop_all()
    for thread in threads:
        thread.join(20)
    assert len(ends) == 2
    assert not any(isinstance(error, ExperimentError) for error in ends)
