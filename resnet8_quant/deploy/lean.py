"""The two ends of a fused graph: bytes in, what the caller wants out, and no layout changes on the way.

In: a fused `Graph`. Out: the same graph without nodes that only convert. Each step leaves every integer in between as
it is.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from resnet8_quant.config import DeployOutput, Layout
from resnet8_quant.deploy.graph import Graph, attributes
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.input_spec import InputSpec

TO_NCHW = [0, 3, 1, 2]
MATRIX, MATRIX_OUTPUT_SCALE = 3, 7  # inputs of QGemm
SOFTMAX = ("QLinearSoftmax", "Softmax")
# Ends of a model that are not its logits, and what may stand behind them.
BEYOND_LOGITS = (*SOFTMAX, "LogSoftmax", "Sigmoid", "QLinearSigmoid", "HardSigmoid", "Tanh", "Relu", "Clip", "Hardmax")
SHAPES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Identity", "QuantizeLinear", "DequantizeLinear")


def drop_layout(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> None:
    """Flatten in NHWC order what was turned to NCHW to be flattened; the rows of the next matrix move along.

    Args:
        graph: changed.
        shapes: of the tensors that are turned.
    """
    for turn in [node for node in graph.nodes if node.op_type == "Transpose"]:
        if attributes(turn).get("perm") != TO_NCHW or turn.input[0] not in shapes:
            continue
        _, height, width, channels = shapes[turn.input[0]]
        flattens = graph.readers(turn.output[0])
        if any(node.op_type != "Flatten" or attributes(node).get("axis", 1) != 1 for node in flattens):
            continue
        if height * width > 1:
            products = [reader for node in flattens for reader in graph.readers(node.output[0])]
            if any(node.op_type != "QGemm" or node.input[MATRIX] not in graph.tensors for node in products):
                continue
            for product in products:
                _move_rows(graph, product, channels, height, width)
        graph.reroute(turn.output[0], turn.input[0])


def _move_rows(graph: Graph, product: NodeProto, channels: int, height: int, width: int) -> None:
    """Bring a QGemm's matrix from rows in (channel, row, column) order to (row, column, channel)."""
    name = product.input[MATRIX]
    matrix = graph.array(name)
    transposed = bool(attributes(product).get("transB"))
    rows = matrix.T if transposed else matrix
    moved = rows.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(rows.shape)
    product.input[MATRIX] = graph.put(f"{name}_nhwc", moved.T if transposed else moved)


def take_bytes(graph: Graph, input_spec: InputSpec) -> None:
    """Let the graph's input be the images' bytes; mean and standard deviation become part of it where they are set.

    Where the first QuantizeLinear has scale 1 and zero point 0 it changes nothing and goes.
    """
    value = graph.input
    name = value.name
    value.type.tensor_type.elem_type = TensorProto.UINT8
    readers = graph.readers(name)
    plain = input_spec.mean is None and input_spec.std is None
    kept = []
    for node in readers:
        if plain and node.op_type == "QuantizeLinear" and _is_identity(graph, node):
            graph.reroute(node.output[0], name)
        else:
            kept.append(node)
    if not kept:
        return
    new = graph.fresh(f"{name}_float")
    nodes = [helper.make_node("Cast", [name], [new], name=new, to=TensorProto.FLOAT)]
    for kind, numbers in (("Sub", input_spec.mean), ("Div", input_spec.std)):
        if numbers is not None:
            constant = np.asarray(numbers, np.float32)
            if input_spec.layout is Layout.NCHW:
                constant = constant.reshape(-1, 1, 1)
            new, operand = graph.fresh(f"{name}_{kind.lower()}"), graph.put(f"{name}_{kind.lower()}_by", constant)
            nodes.append(helper.make_node(kind, [nodes[-1].output[0], operand], [new], name=new))
    for node in kept:
        node.input[:] = [nodes[-1].output[0] if read == name else read for read in node.input]
    graph.nodes[:0] = nodes


def _is_identity(graph: Graph, quantize: NodeProto) -> bool:
    scale, zero_point = (graph.array(read) for read in quantize.input[1:3])
    return scale.size == 1 and scale.item() == 1 and zero_point.dtype == np.uint8 and zero_point.item() == 0


def give(graph: Graph, wanted: DeployOutput) -> None:
    """Let the graph's output be ``wanted``, from the 32-bit sums of the last matrix product where that is a QGemm.

    The plain model rounds its outputs to 8 bits, so that classes tie. Rounded to 8 bits, these are its outputs.

    Raises:
        ExperimentError: the model ends in something else than logits or their softmax.
    """
    if wanted is DeployOutput.same:
        return
    value = graph.output
    name = value.name
    last = graph.source(name)
    assert last is not None
    while last.op_type in ("DequantizeLinear", *SOFTMAX):
        before = graph.source(last.input[0])
        if before is None:
            break
        last = before
    _check_logits(graph, last, wanted)
    logits = _float_logits(graph, last)
    new = graph.fresh(f"{name}_logits" if name == logits else f"{name}_old")
    for node in graph.nodes:  # the old output's maker, which goes unless it makes the logits
        node.output[:] = [new if made == name else made for made in node.output]
        node.input[:] = [new if read == name else read for read in node.input]
    logits = new if name == logits else logits
    if wanted is DeployOutput.logits:
        node = graph.source(logits)
        assert node is not None
        node.output[:] = [name if made == logits else made for made in node.output]
    elif wanted is DeployOutput.probabilities:
        graph.nodes.append(helper.make_node("Softmax", [logits], [name], name=f"{name}_softmax", axis=-1))
    else:
        graph.nodes.append(helper.make_node("ArgMax", [logits], [name], name=f"{name}_argmax", axis=-1, keepdims=0))
        value.type.tensor_type.elem_type = TensorProto.INT64
        del value.type.tensor_type.shape.dim[1:]


def _check_logits(graph: Graph, last: NodeProto, wanted: DeployOutput) -> None:
    node: NodeProto | None = last
    while node is not None and node.op_type in SHAPES:
        node = graph.source(node.input[0])
    if node is not None and node.op_type in BEYOND_LOGITS:
        raise ExperimentError(
            f"`deploy.output` is {wanted.name}, but the model ends in {node.op_type}: no logits can be taken from it",
            "deploy.output=same",
        )


def _float_logits(graph: Graph, last: NodeProto) -> str:
    """The name of the float32 tensor that holds what ``last`` makes."""
    made = str(last.output[0])
    if last.op_type == "QGemm":
        product = NodeProto()
        product.CopyFrom(last)
        del product.input[MATRIX_OUTPUT_SCALE:]
        product.name = product.output[0] = graph.fresh(f"{made}_sums")
        graph.nodes.append(product)
        return str(product.output[0])
    dequantize = next((node for node in graph.readers(made) if node.op_type == "DequantizeLinear"), None)
    if dequantize is not None:
        return str(dequantize.output[0])
    reader = next((node for node in graph.readers(made) if node.op_type == "QLinearSoftmax"), None)
    if reader is None:
        return made
    new = graph.fresh(f"{made}_float")
    graph.nodes.append(helper.make_node("DequantizeLinear", list(reader.input[:3]), [new]))
    return new
