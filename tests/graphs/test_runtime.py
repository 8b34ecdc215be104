"""Calls of models end, whatever the model is."""

import threading
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs import runtime


def endless():
    """A session of a model that adds 1 to its input for as long as it may."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "one"], ["next"]), helper.make_node("Identity", ["c"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)],
        "net",
        [value("x", TensorProto.FLOAT, ["N", 2])],
        [value("y", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array(array), name)
            for name, array in (("trips", 2**62), ("true", True), ("one", np.float32(1)))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return runtime.new_session(model.SerializeToString())


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
