"""Runs single nodes of a graph on stored arrays, so that two versions of a model can be walked side by side.

In: a node and its inputs for all images. Out: its outputs for all images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from resnet8_quant.graphs.runtime import new_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CHUNK = 100  # images in a call, unless the model's batch is fixed


class NodeRunner:
    """A node is compiled once for each shape of its inputs."""

    def __init__(self, model: onnx.ModelProto, batch: int | None, threads: int) -> None:
        """Args: model: for opset and IR version; batch: the model's fixed one; threads: 0 for all cores."""
        self.opset, self.ir = list(model.opset_import), model.ir_version
        self.batch = batch or CHUNK
        self.threads = threads
        self.sessions: dict[tuple[object, ...], InferenceSession] = {}

    def run(
        self, node: onnx.NodeProto, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """The node's outputs.

        Args:
            inputs: {name: array with the images on its first axis}.
            constants: {name: array that is the same for all images}.
        """
        self.sessions.clear()  # their memory is of no use to the next node
        if not inputs:
            return self._call(node, constants)
        count = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, count, self.batch):
            part = {name: array[start : start + self.batch] for name, array in inputs.items()}
            parts.append(self._call(node, part | constants))
        if len(parts) == 1:  # what a Shape returns has no axis for the images
            return parts[0]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _call(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        key = (node.SerializeToString(), *((name, array.shape, array.dtype) for name, array in sorted(values.items())))
        if key not in self.sessions:
            graph = helper.make_graph(
                [node],
                "node",
                [
                    helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                    for name, array in values.items()
                ],
                [helper.make_empty_tensor_value_info(name) for name in node.output if name],
            )
            model = helper.make_model(graph, opset_imports=self.opset, ir_version=self.ir)
            # idle threads would spin and take the cores from NumPy, which works between the calls
            self.sessions[key] = new_session(
                model.SerializeToString(),
                self.threads,
                entries={"session.intra_op.allow_spinning": "0"},
                arena=False,
            )
        return [np.asarray(output) for output in self.sessions[key].run(None, values)]
