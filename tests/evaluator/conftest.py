"""Tiny classifiers whose answers NumPy can compute."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Layout
from resnet8_quant.inputs.contract import InputContract

Classifier = Callable[..., tuple[bytes, InputContract]]


@pytest.fixture
def classifier() -> Classifier:
    """weights [H*W*C, classes] -> a model that multiplies the flattened image with them, and its contract."""

    def make(
        weights: np.ndarray, batch: int | None = None, layout: Layout = Layout.NHWC, **contract: object
    ) -> tuple[bytes, InputContract]:
        height, width, channels = 2, 2, 3
        shape = (height, width, channels) if layout is Layout.NHWC else (channels, height, width)
        graph = helper.make_graph(
            [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["scores"])],
            "classifier",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch or "batch", *shape])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch or "batch", weights.shape[1]])],
            [numpy_helper.from_array(weights.astype(np.float32), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        defaults = {"name": "image", "classes": weights.shape[1]}
        return model.SerializeToString(), InputContract(
            layout=layout, shape=(height, width, channels), batch=batch, **(defaults | contract)
        )

    return make


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [23, 2, 2, 3]: a prime number, so that no batch size divides it."""
    return np.random.default_rng(0).integers(0, 256, (23, 2, 2, 3), dtype=np.uint8)


@pytest.fixture
def weights() -> np.ndarray:
    """Small integers, so that float32 sums are exact in any order: [12, 4]."""
    return np.random.default_rng(1).integers(-8, 9, (12, 4)).astype(np.float32)
