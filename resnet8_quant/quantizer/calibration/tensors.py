"""Which tensors of a graph need a range, and which take it from another one.

In: a float ModelProto. Out: names. The rules are those of onnxruntime.quantization, which wants a range for every float
tensor at an operator that it quantizes, and then overrules some of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx


@dataclass(frozen=True)
class CalibratedTensors:
    """The float tensors of a graph that are quantized.

    Attributes:
        observed: those whose values decide.
        followers: {input of a Relu or Clip: its output}: the activation is folded into the operator before it.
        fixed: {output of a Softmax: (0, 1)}.
    """

    observed: tuple[str, ...]
    followers: dict[str, str]
    fixed: dict[str, tuple[np.float32, np.float32]]


def calibrated_tensors(model: onnx.ModelProto, operators: list[str]) -> CalibratedTensors:
    """The float32 tensors that touch one of ``operators``."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    touched = {name for node in graph.node if node.op_type in operators for name in (*node.input, *node.output)}
    floats = {
        name
        for name in touched - weights
        if name in typed and typed[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    uses = Counter(name for node in graph.node for name in node.input)
    followers, fixed = {}, {}
    for node in graph.node:
        if node.op_type not in operators:
            continue
        if node.op_type in ("Relu", "Clip") and uses[node.input[0]] == 1 and {node.input[0], node.output[0]} <= floats:
            followers[node.input[0]] = node.output[0]
        elif node.op_type == "Softmax" and node.output[0] in floats:
            fixed[node.output[0]] = (np.float32(0), np.float32(1))
    return CalibratedTensors(tuple(sorted(floats - followers.keys() - fixed.keys())), followers, fixed)
