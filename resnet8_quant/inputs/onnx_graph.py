"""An ONNX graph of a classifier under construction.

In:  nodes and constants, one by one. Out: a checked model with one input and one output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

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


class Graph:
    """Nodes and initializers as they are emitted, each under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._names = {INPUT, OUTPUT}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add ``value`` as an initializer; its name, or one like it if that is taken."""
        name = self._unique(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node of one output and the same name; the name, or one like it if that is taken."""
        name = self._unique(name)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def finish(self, image: tuple[int, int, int], output: Tensor) -> onnx.ModelProto:
        """The checked model, opset 21.

        Args:
            image: (height, width, channels) of the input "image", float32 ["batch",H,W,C].
            output: what becomes "probabilities", float32 ["batch", *shape].
        """
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == output.name else name for name in names]
        model = helper.make_model(
            helper.make_graph(
                self.nodes,
                "classifier",
                [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *image])],
                [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *output.shape])],
                self.initializers,
            ),
            producer_name="resnet8-quant",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _unique(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
