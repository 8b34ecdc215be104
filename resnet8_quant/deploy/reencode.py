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
from resnet8_quant.deploy.graph import Graph, attributes
from resnet8_quant.errors import ExperimentError

INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")
BYTES: dict[int, type[np.int8] | type[np.uint8]] = {TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8}
NARROW = {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}
SHIFT = 128
# Operator -> (position of the weight, its axis of output channels; None: the last)
CHANNEL_AXIS: dict[str, tuple[int, int | None]] = {"Conv": (1, 0), "ConvTranspose": (1, 1), "MatMul": (1, None)}


def reencode(model: onnx.ModelProto, activations: DType) -> onnx.ModelProto:
    """Move activations to ``activations`` and weights to int8; ``model`` is not changed.

    Args:
        model: every operator between DequantizeLinear and QuantizeLinear.
        activations: uint8 or int8.

    Raises:
        ExperimentError: no Q/DQ in the model, integer operators already, activations that are not 8 bit, or weights
            with scales along an axis that no integer kernel takes.
    """
    draft = _Draft(model, TensorProto.DataType.Value(activations.name.upper()))
    _check_quantized(draft.nodes)
    for node in draft.nodes:
        if node.op_type == "QuantizeLinear":
            draft.activation(node)
    for node in list(draft.nodes):
        if node.op_type == "DequantizeLinear" and draft.stored(node.input[0]):
            draft.weight(node)
    draft.check_axes()
    return draft.finish()


def _check_quantized(nodes: list[NodeProto]) -> None:
    done = sorted({node.op_type for node in nodes if node.op_type.startswith(INTEGER_OPERATORS)})
    if done:
        raise ExperimentError(
            f"`deploy`: the model has integer operators already ({', '.join(done)}); it takes Q/DQ pairs around float "
            "operators",
            "deploy=none, or start from the Q/DQ model: quant.format=QDQ",
        )
    if not any(node.op_type == "QuantizeLinear" for node in nodes):
        raise ExperimentError(
            "`deploy`: the model has no QuantizeLinear, so there are no integers to deploy",
            "python run.py quant=int8 deploy=x86, or deploy=none for a float model",
        )


class _Draft(Graph):
    """A model whose activations move to one type."""

    def __init__(self, model: onnx.ModelProto, activations: int) -> None:
        super().__init__(model)
        self.activations = activations
        self.moved: dict[str, int] = {}  # weight, which several nodes may read -> by how much
        self.casts: dict[str, str] = {}  # weight -> what its Cast makes

    def activation(self, quantize: NodeProto) -> None:
        """Move what a QuantizeLinear makes, up to every DequantizeLinear that reads it."""
        kind = self._quantized_type(quantize)
        if kind not in BYTES:
            raise ExperimentError(
                f"`deploy`: the activation {quantize.input[0]!r} is {_name(kind)}; the integer kernels of ONNX Runtime "
                "take 8-bit activations, others it computes in float",
                "python run.py quant=u8s8 deploy=x86, or deploy=none",
            )
        shift = 0
        if kind != self.activations:
            shift = SHIFT if self.activations == TensorProto.UINT8 else -SHIFT
        for attribute in quantize.attribute:
            if attribute.name == "output_dtype":
                attribute.i = self.activations
        self._shift_zero_point(quantize, kind, self.activations, shift)
        for reader in self._carried(quantize.output[0], shift != 0):
            if reader.op_type == "DequantizeLinear":
                self._shift_zero_point(reader, kind, self.activations, shift)
            elif shift:  # the limits of a Clip
                for position in range(1, len(reader.input)):
                    if reader.input[position]:
                        limit = self.array(reader.input[position]).astype(np.int16) + shift
                        reader.input[position] = self._as(self.activations, reader.input[position], limit)

    def _carried(self, name: str, moves: bool) -> Iterator[NodeProto]:
        """All readers of an integer tensor, through a Clip to its own readers; others matter if the integers move."""
        for reader in self.readers(name):
            if reader.op_type not in ("DequantizeLinear", "Clip"):
                if not moves:
                    continue
                raise ExperimentError(
                    f"`deploy`: {reader.op_type} reads the integers {name!r} between QuantizeLinear and "
                    "DequantizeLinear; only a Clip may",
                    "deploy=none",
                )
            yield reader
            if reader.op_type == "Clip":
                yield from self._carried(reader.output[0], moves)

    def weight(self, dequantize: NodeProto) -> None:
        """Move the constant that a DequantizeLinear reads to int8."""
        name = self.stored(dequantize.input[0])
        kind = TensorProto.UINT8 if name in self.moved else self.tensors[name].data_type
        zero_point = self.array(dequantize.input[2]) if len(dequantize.input) > 2 else None
        if kind == TensorProto.UINT8:
            if name not in self.moved:
                codes = self.array(name).astype(np.int16)
                self.moved[name] = _shift_to_int8(codes, self._zero_points(name))
                self.tensors[name].CopyFrom(numpy_helper.from_array((codes + self.moved[name]).astype(np.int8), name))
            self._shift_zero_point(dequantize, kind, TensorProto.INT8, self.moved[name])
        elif kind == TensorProto.INT8 and zero_point is None:
            self._shift_zero_point(dequantize, kind, kind, 0)
        elif kind in NARROW:  # all their values are int8's too, which an integer kernel takes
            dequantize.input[0] = self._cast(name, dequantize.input[0])
            if zero_point is not None:
                dequantize.input[2] = self._as(TensorProto.INT8, dequantize.input[2], zero_point)

    def _zero_points(self, name: str) -> set[int]:
        """Of all that dequantizes a weight."""
        readers = [n for n in self.nodes if n.op_type == "DequantizeLinear" and self.stored(n.input[0]) == name]
        arrays = [self.array(n.input[2]) if len(n.input) > 2 and n.input[2] else np.zeros(1, np.uint8) for n in readers]
        return {int(value) for array in arrays for value in array.ravel()}

    def _cast(self, name: str, read: str) -> str:
        """``name`` as int8: the Cast that already makes ``read`` of it, or a new one."""
        if read != name:
            node = self.source(read)
            assert node is not None
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = TensorProto.INT8
            return read
        if name not in self.casts:
            cast = helper.make_node("Cast", [name], [self.fresh(f"{name}_int8")], to=TensorProto.INT8)
            self.nodes.insert(0, cast)
            self.casts[name] = str(cast.output[0])
        return self.casts[name]

    def check_axes(self) -> None:
        """Refuse scales of a weight along another axis than its output channels."""
        for node in self.nodes:
            if node.op_type == "Gemm":
                position, axis = 1, 0 if attributes(node).get("transB") else 1
            elif node.op_type in CHANNEL_AXIS:
                position, wanted = CHANNEL_AXIS[node.op_type]
                axis = -1 if wanted is None else wanted
            else:
                continue
            source = self.source(node.input[position])
            if source is None or source.op_type != "DequantizeLinear" or not self.stored(source.input[0]):
                continue
            shape, scale = self.tensors[self.stored(source.input[0])].dims, self.array(source.input[1])
            if scale.size == 1:
                continue
            found = int(attributes(source).get("axis", 1))
            if found % len(shape) != axis % len(shape) or scale.shape != (shape[axis],):
                raise ExperimentError(
                    f"`deploy`: the weight of {node.op_type} {node.output[0]!r} has {list(scale.shape)} scales along "
                    f"axis {found} of {list(shape)}; its integer kernel takes one, or one for each output channel, "
                    f"along axis {axis % len(shape)}",
                    "python run.py quant.per_channel=false, or deploy=none",
                )

    def _quantized_type(self, quantize: NodeProto) -> int:
        if len(quantize.input) > 2 and quantize.input[2]:
            return int(self.tensors[quantize.input[2]].data_type)
        return int(attributes(quantize).get("output_dtype", 0)) or int(TensorProto.UINT8)

    def _shift_zero_point(self, node: NodeProto, kind: int, target: int, shift: int) -> None:
        """Give a Q or DQ of the 8-bit type ``kind`` a zero point of the type ``target``; one that it lacks is 0.

        Without one ONNX Runtime finds no integer kernel for some operators.
        """
        if len(node.input) > 2 and node.input[2]:
            if target == kind:
                return
            name, old = node.input[2], self.array(node.input[2])
        else:
            name = f"{node.output[0]}_zero_point"
            old = np.zeros(self.array(node.input[1]).shape, BYTES[kind])
            del node.input[2:]
            node.input.append(name)
        node.input[2] = self._as(target, name, old.astype(np.int16) + shift)

    def _as(self, kind: int, name: str, values: np.ndarray) -> str:
        """A new initializer after ``name``; nodes that share the old one share the new one."""
        return self.put(f"{name}_{_name(kind)}", values.astype(BYTES[kind]))


def _shift_to_int8(codes: np.ndarray, zero_points: set[int]) -> int:
    """What makes int8 of the uint8 ``codes`` of a weight.

    A zero point that becomes 0 is best: ONNX Runtime's direct convolution takes no other, and weights around it are too
    small to saturate if they have 7 bits.
    """
    centre = min(zero_points)
    fits = codes.size == 0 or (codes.min() - centre >= -SHIFT and codes.max() - centre < SHIFT)
    return -centre if len(zero_points) == 1 and fits else -SHIFT


def _name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
