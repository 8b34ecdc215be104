"""The activations of a float model, batch by batch, in memory that does not grow with the images.

In: a float model and a calibration reader. Out: arrays of each tensor that onnxruntime's quantizer wants a range for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime

from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.reader import ImageReader


def calibrated_tensors(model: onnx.ModelProto, operators: list[str]) -> list[str]:
    """Names of the float32 tensors that touch one of ``operators``: the set that quantize_static calibrates."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    touched = {name for node in graph.node if node.op_type in operators for name in (*node.input, *node.output)}
    return sorted(
        name
        for name in touched - weights
        if name in typed and typed[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )


class ActivationStream:
    """Runs the float model over the calibration images, as often as a method needs to see them."""

    def __init__(self, model: FloatModel, tensors: list[str], reader: ImageReader, threads: int) -> None:
        """Args: tensors: what to observe; reader: the images; threads: of ONNX Runtime, 0 for all cores."""
        proto = model.proto()
        outputs = {value.name for value in proto.graph.output}
        inputs = {value.name for value in proto.graph.input}
        self.reader = reader
        self.observed_inputs = [name for name in tensors if name in inputs]
        self.observed = [name for name in tensors if name not in inputs]
        for name in self.observed:
            if name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        # As in onnxruntime's own calibrators: without fusion, so that the ranges are those of the graph as written.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def batches(self, description: str) -> Iterator[dict[str, np.ndarray]]:
        """All calibration images once: {tensor name: float32 [batch, ...]}."""
        self.reader.rewind()
        with progress(description, len(self.reader.images), "images") as advance:
            while (feed := self.reader.get_next()) is not None:
                # an empty list would mean all outputs
                outputs = self.session.run(self.observed, feed) if self.observed else []
                values = dict(zip(self.observed, outputs, strict=True))
                values.update((name, feed[name]) for name in self.observed_inputs)
                yield values
                advance(self.reader.batch)
