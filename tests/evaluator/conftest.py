"""Tiny classifiers whose predictions NumPy can compute, and sessions that take the time they are told."""

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model

from resnet8_quant.config import Layout
from resnet8_quant.evaluator import latency
from resnet8_quant.evaluator.latency import BenchmarkModel
from resnet8_quant.inputs.input_spec import InputSpec

Classifier = Callable[..., tuple[bytes, InputSpec]]
INPUT_SPEC = InputSpec("image", Layout.NHWC, (2, 2, 3), batch=None, classes=4)


@pytest.fixture
def classifier() -> Classifier:
    """weights [H*W*C, classes] -> a model that multiplies the flattened image with them, and its input_spec."""

    def make(
        weights: np.ndarray, batch: int | None = None, layout: Layout = Layout.NHWC, **input_spec: object
    ) -> tuple[bytes, InputSpec]:
        shape, count, classes = "2, 2, 3" if layout is Layout.NHWC else "3, 2, 2", batch or "batch", weights.shape[1]
        model = parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
            classifier (float[{count}, {shape}] image) => (float[{count}, {classes}] scores) {{
                flat = Flatten (image)
                scores = Gemm (flat, w)
            }}""")
        model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "w"))
        settings = {"name": "image", "layout": layout, "shape": (2, 2, 3), "batch": batch, "classes": classes}
        return model.SerializeToString(), InputSpec(**(settings | input_spec))

    return make


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [23, 2, 2, 3]: a prime number, so that no batch size divides it."""
    return np.random.default_rng(0).integers(0, 256, (23, 2, 2, 3), dtype=np.uint8)


@pytest.fixture
def weights() -> np.ndarray:
    """Small integers, so that float32 sums are exact in any order: [12, 4]."""
    return np.random.default_rng(1).integers(-8, 9, (12, 4)).astype(np.float32)


class Simulation:
    """ONNX Runtime sessions whose calls advance a clock.

    Attributes:
        durations: model -> microseconds of its calls.
        record: (model, feed) of each call, in order.
        opened: (threads, providers) of each session.
        collecting: whether garbage could be collected during each call.
        models: name -> model, with an input spec for [N, 2, 2, 3] images.
    """

    def __init__(self, durations: dict[bytes, Iterator[float]]) -> None:
        self.durations, self.now = durations, 0
        self.record, self.opened, self.collecting = [], [], []
        self.models = {model.decode(): BenchmarkModel(model, INPUT_SPEC) for model in durations}

    def open_session(self, model, threads, *, exact=True, providers):
        def run(outputs, feed):
            self.collecting.append(gc.isenabled())
            self.record.append((model, feed["image"]))
            self.now += round(1000 * next(self.durations[model]))

        self.opened.append((threads, tuple(providers)))
        return SimpleNamespace(run=run)

    @property
    def order(self) -> str:
        return b"".join(model for model, _ in self.record).decode()


@pytest.fixture
def simulate(monkeypatch) -> Callable[..., Simulation]:
    """a=(microseconds of each call, ...), b=...: models "a", "b"; the last time is repeated for ever."""

    def start(**times: Sequence[float]) -> Simulation:
        calls = {name.encode(): chain(values, repeat(values[-1])) for name, values in times.items()}
        simulation = Simulation(calls)
        monkeypatch.setattr(latency, "open_session", simulation.open_session)
        monkeypatch.setattr(latency, "perf_counter_ns", lambda: simulation.now)
        return simulation

    return start
