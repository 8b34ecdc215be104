"""What a deployed model takes and what it returns.

In: a fused `Graph`. Out: the same graph with another input or output; every integer in between stays as it is.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from onnx import NodeProto, TensorProto, helper

from resnet8_quant.config import DeployOutput, Layout
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import Graph
from resnet8_quant.inputs.input_spec import InputSpec

OUTPUT_SCALE = 7  # input of QGemm, which without it and what follows returns its 32-bit sums as floats
SOFTMAX = ("QLinearSoftmax", "Softmax")
# Ends of a model that are not its logits, and what may stand behind them.
BEYOND_LOGITS = (*SOFTMAX, "LogSoftmax", "Sigmoid", "QLinearSigmoid", "HardSigmoid", "Tanh", "Relu", "Clip", "Hardmax")
SHAPES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Identity", "QuantizeLinear", "DequantizeLinear")


def uint8_input(graph: Graph, input_spec: InputSpec) -> bool:
    """Let the graph take uint8 images; it subtracts the mean and divides by the standard deviation where they are set.

    Where the first QuantizeLinear would make of every pixel the integer that the pixel is, mean and standard deviation
    are in its scale and zero point already: all of them go.

    Returns:
        Whether nothing is left between the pixels and the first integers.
    """
    value = graph.input
    name = value.name
    value.type.tensor_type.elem_type = TensorProto.UINT8
    fixed_width = value.type.tensor_type.shape.dim[2].dim_value == input_spec.shape[1]  # of channels last
    kept = []
    for node in graph.consumers(name):
        if node.op_type == "QuantizeLinear" and _returns_pixels(graph, node, input_spec):
            graph.reroute(node.output[0], name)
        else:
            kept.append(node)
    if not kept:
        return True

    # All other consumers read what InputSpec.prepare would have fed: float32, normalized.
    floats = graph.unique_name(f"{name}_float")
    nodes = [helper.make_node("Cast", [name], [floats], name=floats, to=TensorProto.FLOAT)]
    for op_type, numbers in (("Sub", input_spec.mean), ("Div", input_spec.std)):
        if numbers is not None:
            output = graph.unique_name(f"{name}_{op_type.lower()}")
            operand = graph.add_initializer(f"{name}_{op_type.lower()}_by", _operand(numbers, input_spec, fixed_width))
            nodes.append(helper.make_node(op_type, [nodes[-1].output[0], operand], [output], name=output))
    for node in kept:
        node.input[:] = [nodes[-1].output[0] if read == name else read for read in node.input]
    graph.nodes[:0] = nodes
    return False


def _operand(numbers: tuple[float, ...], input_spec: InputSpec, fixed_width: bool) -> np.ndarray:
    """A number for each channel in the shape that ONNX Runtime broadcasts fastest.

    With channels last it would work on three numbers at a time: a row of the image holds them many times over.
    """
    values = np.asarray(numbers, np.float32)
    if len(set(numbers)) == 1:
        return values[:1].reshape(())
    if input_spec.layout is Layout.NCHW:
        return values.reshape(-1, 1, 1)
    return np.tile(values, (input_spec.shape[1], 1)) if fixed_width else values


def _returns_pixels(graph: Graph, quantize: NodeProto, input_spec: InputSpec) -> bool:
    """Whether the integers of a QuantizeLinear of normalized images are their pixels; all 256 of them are looked at."""
    scale, zero_point = (graph.array(read) for read in quantize.input[1:3])
    if scale.size != 1 or zero_point.dtype != np.uint8:
        return False
    pixels = np.arange(256, dtype=np.uint8)
    prepared = input_spec.prepare(np.broadcast_to(pixels[:, None, None, None], (256, 1, 1, input_spec.shape[2])))
    integers = np.clip(np.rint(prepared / scale.reshape(())) + zero_point.item(), 0, 255)
    return bool((integers == pixels[:, None, None, None]).all())


def set_output(graph: Graph, output: DeployOutput) -> None:
    """Let the graph return ``output``, from the 32-bit sums of the last matrix product where that is a QGemm.

    The plain model rounds its outputs to 8 bits, so that classes tie. Rounded to 8 bits, these are its outputs.

    Raises:
        ExperimentError: the model ends in something else than logits or their softmax.
    """
    if output is DeployOutput.same:
        return
    value = graph.output
    name = value.name

    # Walk back over the softmax to what makes the logits.
    last = graph.producer(name)
    assert last is not None
    while last.op_type in ("DequantizeLinear", *SOFTMAX):
        before = graph.producer(last.input[0])
        if before is None:
            break
        last = before
    _check_logits(graph, last, output)
    logits = _float_logits(graph, last)

    # The old output gives its name away; its producer goes unless it makes the logits.
    old = graph.unique_name(f"{name}_logits" if name == logits else f"{name}_old")
    graph.rename({name: old})
    logits = old if name == logits else logits
    if output is DeployOutput.logits:
        graph.rename({logits: name})
    elif output is DeployOutput.probabilities:
        graph.nodes.append(helper.make_node("Softmax", [logits], [name], name=f"{name}_softmax", axis=-1))
    else:
        graph.nodes.append(helper.make_node("ArgMax", [logits], [name], name=f"{name}_argmax", axis=-1, keepdims=0))
        value.type.tensor_type.elem_type = TensorProto.INT64
        del value.type.tensor_type.shape.dim[1:]


def _check_logits(graph: Graph, last: NodeProto, output: DeployOutput) -> None:
    node: NodeProto | None = last
    while node is not None and node.op_type in SHAPES:
        node = graph.producer(node.input[0])
    if node is not None and node.op_type in BEYOND_LOGITS:
        raise ExperimentError(
            f"`deploy.output` is {output.name}, but the model ends in {node.op_type}: no logits can be taken from it",
            "deploy.output=same",
        )


def _float_logits(graph: Graph, last: NodeProto) -> str:
    """The name of the float32 tensor that holds what ``last`` computes."""
    result = str(last.output[0])
    if last.op_type == "QGemm":
        gemm = deepcopy(last)
        del gemm.input[OUTPUT_SCALE:]
        gemm.name = gemm.output[0] = graph.unique_name(f"{result}_sums")
        graph.nodes.append(gemm)
        return str(gemm.output[0])
    consumers = {node.op_type: node for node in reversed(graph.consumers(result))}
    if "DequantizeLinear" in consumers:
        return str(consumers["DequantizeLinear"].output[0])
    if "QLinearSoftmax" in consumers:  # reads scale and zero point of the logits too
        floats = graph.unique_name(f"{result}_float")
        inputs = list(consumers["QLinearSoftmax"].input[:3])
        graph.nodes.append(helper.make_node("DequantizeLinear", inputs, [floats]))
        return floats
    return result
