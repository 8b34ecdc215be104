"""The integers of a Q/DQ graph in the types that a processor's kernels take: the same real numbers, shifted by 128.

In: a Q/DQ ModelProto. Out: another one whose activations are all uint8 (or all int8) and whose weights are int8.

An integer q with zero point z stands for scale * (q - z): q + 128 with z + 128 stands for the same. ONNX Runtime has
fast kernels on x86 for uint8 activations with int8 weights, the operands of the instruction VPDPBUSD, and on Arm for
int8 with int8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from resnet8_quant.config import DType
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import Graph, attributes, input_name, type_name

INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")  # how they begin
NUMPY_TYPES: dict[int, type[np.int8] | type[np.uint8]] = {TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8}
LOW_BIT = {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}
SHIFT = 128  # from int8 to uint8
# Operator -> (position of the weight, its axis of output channels); a Gemm's axis depends on transB
CHANNEL_AXIS = {"Conv": (1, 0), "ConvTranspose": (1, 1), "MatMul": (1, -1), "Gemm": (1, 1)}


def convert_activations(model: onnx.ModelProto, dtype: DType) -> onnx.ModelProto:
    """Convert activations to ``dtype`` and weights to int8; ``model`` is not changed.

    Args:
        model: every operator between DequantizeLinear and QuantizeLinear.
        dtype: uint8 or int8.

    Raises:
        ExperimentError: no Q/DQ in the model, integer operators already, activations that are not 8 bit, or weights
            with scales along an axis that no integer kernel takes.
    """
    graph = Graph(model)
    integer = sorted({node.op_type for node in graph.nodes if node.op_type.startswith(INTEGER_OPERATORS)})
    if integer:
        raise ExperimentError(
            f"`deploy`: the model has integer operators already ({', '.join(integer)}); it takes Q/DQ pairs around "
            "float operators",
            "deploy=none, or start from the Q/DQ model: quant.format=QDQ",
        )
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    if not quantizers:
        raise ExperimentError(
            "`deploy`: the model has no QuantizeLinear, so there are no integers to deploy",
            "python run.py quant=int8 deploy=x86, or deploy=none for a float model",
        )
    for node in quantizers:
        _convert_activation(graph, node, TensorProto.DataType.Value(dtype.name.upper()))
    _convert_weights(graph)
    _check_axes(graph)
    return graph.finish()


def _convert_activation(graph: Graph, quantize: NodeProto, target: int) -> None:
    """Convert what a QuantizeLinear makes to the type ``target``, up to every DequantizeLinear that reads it."""
    dtype = graph.quantized_dtype(quantize)
    if dtype not in NUMPY_TYPES:
        raise ExperimentError(
            f"`deploy`: the activation {quantize.input[0]!r} is {type_name(dtype)}; the integer kernels of ONNX "
            "Runtime take 8-bit activations, others it computes in float",
            "python run.py quant=u8s8 deploy=x86, or deploy=none",
        )
    # q stands for the same number as q + 128 with z + 128: integers, zero points and limits between them all move.
    shift = 0
    if dtype != target:
        shift = SHIFT if target == TensorProto.UINT8 else -SHIFT
    for attribute in quantize.attribute:
        if attribute.name == "output_dtype":
            attribute.i = target
    _shift_zero_point(graph, quantize, dtype, target, shift)
    for consumer in _integer_consumers(graph, quantize.output[0], shift != 0):
        if consumer.op_type == "DequantizeLinear":
            _shift_zero_point(graph, consumer, dtype, target, shift)
        elif shift:  # the limits of a Clip move with the integers between them
            for position, name in enumerate(consumer.input):
                if position > 0 and name:
                    limit = graph.array(name).astype(np.int16) + shift
                    consumer.input[position] = _add_integers(graph, name, limit, target)


def _integer_consumers(graph: Graph, name: str, shifts: bool) -> Iterator[NodeProto]:
    """All consumers of an integer tensor, through a Clip to its own consumers.

    Another operator may read the integers as long as they do not shift.
    """
    for consumer in graph.consumers(name):
        if consumer.op_type not in ("DequantizeLinear", "Clip"):
            if not shifts:
                continue
            raise ExperimentError(
                f"`deploy`: {consumer.op_type} reads the integers {name!r} between QuantizeLinear and "
                "DequantizeLinear; only a Clip may",
                "deploy=none",
            )
        yield consumer
        if consumer.op_type == "Clip":
            yield from _integer_consumers(graph, consumer.output[0], shifts)


def _convert_weights(graph: Graph) -> None:
    """Convert all constants that a DequantizeLinear reads to int8; int32 biases stay."""
    # uint8 weight, which several nodes may read -> the zero points that they read it with; one not written is 0
    zero_points: dict[str, set[int]] = {}
    dequantizers = [node for node in graph.nodes if node.op_type == "DequantizeLinear"]
    for node in dequantizers:
        if name := graph.stored(node.input[0]):
            values = graph.array(node.input[2]) if input_name(node, 2) else np.zeros(1)
            zero_points.setdefault(name, set()).update(values.astype(int).ravel().tolist())
    shifts: dict[str, int] = {}  # uint8 weight -> what was added to it
    casts: dict[str, str] = {}  # low-bit weight -> the output of its Cast
    for dequantize in dequantizers:
        name = graph.stored(dequantize.input[0])
        if not name:
            continue
        dtype = TensorProto.UINT8 if name in shifts else graph.initializers[name].data_type
        zero_point = graph.array(dequantize.input[2]) if len(dequantize.input) > 2 else None
        if dtype == TensorProto.UINT8:
            if name not in shifts:
                codes = graph.array(name).astype(np.int16)
                shifts[name] = _shift_to_int8(codes, zero_points[name])
                shifted = (codes + shifts[name]).astype(np.int8)
                graph.initializers[name].CopyFrom(numpy_helper.from_array(shifted, name))
            _shift_zero_point(graph, dequantize, dtype, TensorProto.INT8, shifts[name])
        elif dtype == TensorProto.INT8 and zero_point is None:
            _shift_zero_point(graph, dequantize, dtype, dtype, 0)
        elif dtype in LOW_BIT:  # all their values are int8's too, which an integer kernel takes
            dequantize.input[0] = _cast_to_int8(graph, name, dequantize.input[0], casts)
            if zero_point is not None:
                dequantize.input[2] = _add_integers(graph, dequantize.input[2], zero_point, TensorProto.INT8)


def _shift_to_int8(codes: np.ndarray, zero_points: set[int]) -> int:
    """What makes int8 of the uint8 ``codes`` of a weight.

    A zero point that becomes 0 is best: ONNX Runtime's direct convolution takes no other, and weights around it are too
    small to saturate if they have 7 bits.
    """
    centre = min(zero_points)
    fits = codes.size == 0 or (codes.min() - centre >= -SHIFT and codes.max() - centre < SHIFT)
    return -centre if len(zero_points) == 1 and fits else -SHIFT


def _cast_to_int8(graph: Graph, name: str, read: str, casts: dict[str, str]) -> str:
    """The low-bit weight ``name`` as int8: from the Cast that already makes ``read`` of it, or from a new one."""
    if read != name:
        cast = graph.producer(read)
        assert cast is not None
        for attribute in cast.attribute:
            if attribute.name == "to":
                attribute.i = TensorProto.INT8
        return read
    if name not in casts:
        casts[name] = graph.unique_name(f"{name}_int8")
        graph.nodes.insert(0, helper.make_node("Cast", [name], [casts[name]], to=TensorProto.INT8))
    return casts[name]


def _check_axes(graph: Graph) -> None:
    """Refuse scales of a weight along another axis than its output channels."""
    for node in graph.nodes:
        if node.op_type not in CHANNEL_AXIS:
            continue
        position, axis = CHANNEL_AXIS[node.op_type]
        if attributes(node).get("transB"):
            axis = 0
        dequantize = graph.producer(node.input[position])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or not graph.stored(dequantize.input[0]):
            continue
        shape = graph.initializers[graph.stored(dequantize.input[0])].dims
        scale = graph.array(dequantize.input[1])
        if scale.size == 1:  # along no axis
            continue
        scale_axis = int(attributes(dequantize).get("axis", 1))
        if scale_axis % len(shape) != axis % len(shape) or scale.shape != (shape[axis],):
            raise ExperimentError(
                f"`deploy`: the weight of {node.op_type} {node.output[0]!r} has {list(scale.shape)} scales along "
                f"axis {scale_axis} of {list(shape)}; its integer kernel takes one, or one for each output channel, "
                f"along axis {axis % len(shape)}",
                "python run.py quant.per_channel=false, or deploy=none",
            )


def _shift_zero_point(graph: Graph, node: NodeProto, dtype: int, target: int, shift: int) -> None:
    """Give a Q or DQ of the 8-bit type ``dtype`` a zero point of the type ``target``; one that it lacks is 0.

    Without one ONNX Runtime finds no integer kernel for some operators.
    """
    if name := input_name(node, 2):
        if target == dtype:
            return
        old = graph.array(name)
    else:
        name = f"{node.output[0]}_zero_point"
        old = np.zeros(graph.array(node.input[1]).shape, NUMPY_TYPES[dtype])
        del node.input[2:]
        node.input.append(name)
    node.input[2] = _add_integers(graph, name, old.astype(np.int16) + shift, target)


def _add_integers(graph: Graph, name: str, values: np.ndarray, dtype: int) -> str:
    """A new initializer named after ``name``; nodes that share the old one share the new one."""
    return graph.add_initializer(f"{name}_{type_name(dtype)}", values.astype(NUMPY_TYPES[dtype]))
