"""Outputs that classifiers have, brought to one row of scores for each image, [N, classes].

In: a ModelProto that somebody else made, its outputs with shapes. Out: a ModelProto with the same classes for the same
images. Whatever comes later (argmax, quantization, distillation, deployment) knows one kind of output.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import Graph, attributes, static_shapes

log = logging.getLogger(__name__)

SHAPES = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # these change no score
POOLS = ("AveragePool", "GlobalAveragePool")  # these compute each channel by itself


def plain_output(model: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    """Return ``model`` with scores [N, classes]; the same object where it has them, or has something else.

    A Flatten is appended to an output [N,C,1,1]. A binary model with one output, a logit z or its sigmoid, gets the
    logits 0 and z, or their softmax: 1 - sigmoid(z) and sigmoid(z). So it says class 1 where z is above 0, as before.

    Args:
        model: its outputs have shapes.
        classes: of the data.

    Raises:
        ExperimentError: the data has two classes, and the model's one output is not that of a Gemm, MatMul or Conv with
            constant weights, nor its sigmoid.
    """
    if len(model.graph.output) != 1:
        return model
    axes = model.graph.output[0].type.tensor_type.shape.dim
    sizes = [axis.dim_value for axis in axes][1:]
    if len(axes) and classes <= 2 and all(size == 1 for size in sizes):
        return _two_logits(model)
    wide = [size for size in sizes if size != 1]
    if len(sizes) < 2 or len(wide) != 1 or wide[0] < 1:
        return model
    graph = Graph(model)
    name = graph.output.name
    before = graph.unique_name(f"{name}_unflattened")
    graph.rename({name: before})
    graph.nodes.append(helper.make_node("Flatten", [before], [name], name=graph.unique_name(f"{name}_flat"), axis=1))
    _set_classes(graph, wide[0])
    return graph.finish()


def _set_classes(graph: Graph, classes: int) -> None:
    """Describe the output as [N, classes]; the batch stays what it is."""
    axes = graph.output.type.tensor_type.shape.dim
    del axes[1:]
    axes.add().dim_value = classes


def _two_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the last layer of a binary model with one output a first output of 0; see `plain_output`."""
    graph = Graph(model)
    name, behind = graph.output.name, list[NodeProto]()
    node = graph.producer(name)
    while node is not None and node.op_type in (*SHAPES, *POOLS, "Sigmoid"):
        behind.append(node)
        node = graph.producer(node.input[0])
    kinds = [each.op_type for each in behind[::-1]]
    sigmoids, tensors = kinds.count("Sigmoid"), [each.input[0] for each in behind]
    # A mean of sigmoids is not the sigmoid of a mean, and another reader of the logit would get two.
    in_order = "Sigmoid" not in kinds or not set(POOLS) & set(kinds[kinds.index("Sigmoid") :])
    alone = all(len(graph.consumers(tensor)) == 1 and tensor not in graph.ends() for tensor in tensors)
    if node is None or sigmoids > 1 or not (in_order and alone and _widen(graph, node)):
        last = node.op_type if node is not None else "the image"
        raise ExperimentError(
            f"`model`: its only output {name!r} comes from {', '.join([last, *kinds])}; two classes can be made of a "
            "Gemm, MatMul or Conv with one output and constant weights, and a Sigmoid or none behind it",
            "export it with that end, or with two outputs",
        )
    new = [each for each in behind[::-1] if each.op_type in POOLS]
    if len(static_shapes(model).get(node.output[0], ())) != 2:
        new.append(helper.make_node("Flatten", [""], [""], name=graph.unique_name(f"{name}_flat"), axis=1))
    if sigmoids:
        new.append(helper.make_node("Softmax", [""], [""], name=graph.unique_name(f"{name}_softmax"), axis=1))
    graph.nodes = [each for each in graph.nodes if not any(each is old for old in behind)]
    for each, following in zip([node, *new], [*new, None], strict=True):
        each.output[0] = name if following is None else graph.unique_name(f"{each.output[0] or each.name}_two")
        if following is not None:
            following.input[0] = each.output[0]
    graph.nodes += new
    _set_classes(graph, 2)
    log.info("the model's one output became two, for class 0 and class 1; a Sigmoid became a Softmax of these")
    return graph.finish()


def _widen(graph: Graph, node: NodeProto) -> bool:
    """Give a layer of one output a first output that is always 0; False where it is no such layer."""
    if node.op_type == "Add":
        before = [graph.producer(name) for name in node.input]
        for position in (0, 1):
            bias, layer = _constant(graph, node.input[position]), before[1 - position]
            if bias is None or layer is None or bias.size != 1 or layer.op_type == "Add":
                continue
            if len(graph.consumers(layer.output[0])) > 1 or not _widen(graph, layer):
                continue
            shape = (2, 1, 1) if layer.op_type == "Conv" else (2,)
            node.input[position] = _with_zero(graph, node.input[position], bias.reshape(-1), 0, shape)
            return True
        return False
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    axis = 0 if node.op_type == "Conv" or attributes(node).get("transB", 0) else -1
    weight = _constant(graph, node.input[1])
    if weight is None or weight.ndim < 2 or weight.shape[axis] != 1:
        return False
    if len(node.input) > 2 and node.input[2]:
        bias = _constant(graph, node.input[2])
        if bias is None or bias.size != 1:
            return False
        node.input[2] = _with_zero(graph, node.input[2], bias.reshape(-1), 0, (2,))
    node.input[1] = _with_zero(graph, node.input[1], weight, axis)
    return True


def _constant(graph: Graph, name: str) -> NDArray[np.generic] | None:
    """The values of an initializer or a Constant; None of anything else."""
    if name in graph.initializers:
        return graph.array(name)
    node = graph.producer(name)
    value = attributes(node).get("value") if node is not None and node.op_type == "Constant" else None
    return None if value is None else np.asarray(numpy_helper.to_array(value))


def _with_zero(
    graph: Graph, name: str, values: NDArray[np.generic], axis: int, shape: tuple[int, ...] | None = None
) -> str:
    """The name of an initializer of zeros and ``values`` along ``axis``, perhaps in another shape."""
    both = np.concatenate([np.zeros_like(values), values], axis)
    return graph.add_initializer(f"{name}_two", both if shape is None else both.reshape(shape))
