"""The ONNX graph that a Keras model is converted to: one input, "image", and one output, "probabilities"."""

from __future__ import annotations

from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from resnet8_quant.graphs.graph import PRODUCER, Graph

INPUT, OUTPUT = "image", "probabilities"
OPSET, IR_VERSION = 21, 10


class Tensor(NamedTuple):
    """A tensor of the graph.

    Attributes:
        name: its name.
        shape: without the batch: (channels, height, width), or (features,).
    """

    name: str
    shape: tuple[int, ...]


def new_graph() -> Graph:
    """A graph without nodes; `finish` gives its input and output their shapes."""
    ends = [onnx.ValueInfoProto(name=name) for name in (INPUT, OUTPUT)]
    model = helper.make_model(
        helper.make_graph([], "classifier", ends[:1], ends[1:]),
        producer_name=PRODUCER,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return Graph(model)


def finish(graph: Graph, image: tuple[int, int, int], output: Tensor) -> onnx.ModelProto:
    """The checked model.

    Args:
        graph: from ``new_graph``, with its nodes.
        image: (height, width, channels) of the input "image", float32 ["batch",H,W,C].
        output: what becomes "probabilities", float32 ["batch", *shape].
    """
    graph.rename({output.name: OUTPUT})
    for value, shape in ((graph.input, image), (graph.output, output.shape)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["batch", *shape]))
    model = graph.finish()
    onnx.checker.check_model(model, full_check=True)
    return model
