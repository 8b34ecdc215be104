"""Convolutions that compute several neighbouring pixels at once: the same integers, in fewer and wider steps.

In: a fused graph (QLinearConv on NHWC tensors). Out: the same graph with some of its convolutions widened.

In an NHWC tensor the channels of neighbouring pixels lie side by side. Read as groups of more channels and fewer
columns, it is the input of a convolution that yields ``pixels`` columns of output as ``pixels`` x as many channels; its
weights are the old ones, shifted for each column, with zeros where a column does not look. No sum changes, two Reshapes
around it move nothing, and the file hardly grows: the weights are shifted when it is loaded. It pays where a layer is
too narrow for the kernels of ONNX Runtime:

- an input of 3 channels, which its direct convolution does not take (it wants a multiple of 4);
- fewer output channels than the 64 of a step with 512-bit registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from resnet8_quant.deploy.graph import Graph, attributes
from resnet8_quant.graphs.saturation import pair_saturates

STEP = 64  # output channels of one step of the kernels with 512-bit registers
GRANULE = 4  # input channels that one instruction multiplies and adds
WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT, BIAS = 3, 4, 5, 8  # inputs of QLinearConv
AT_ONCE = 4  # columns with which products of matrices were measured to be faster, for 16 and 32 output channels


@dataclass(frozen=True)
class Window:
    """Where a convolution looks along a row: its kernel, stride and pads in columns, and the row's width."""

    kernel: int
    stride: int
    left: int
    right: int
    width: int

    @property
    def outputs(self) -> int:
        """Columns of the output."""
        return (self.width + self.left + self.right - self.kernel) // self.stride + 1


def convolutions(graph: Graph) -> list[NodeProto]:
    """The QLinearConv nodes that can be widened: NHWC, two axes, no groups, no dilation, constant weights."""
    found = []
    for node in graph.nodes:
        values = attributes(node)
        if (
            node.op_type == "QLinearConv"
            and values.get("channels_last")
            and node.input[WEIGHT] in graph.tensors
            and len(graph.tensors[node.input[WEIGHT]].dims) == 4
            and values.get("group", 1) == 1
            and set(values.get("dilations", [1])) == {1}
            and values.get("auto_pad", b"NOTSET") == b"NOTSET"
        ):
            found.append(node)
    return found


def widen_input(graph: Graph, node: NodeProto, height: int, width: int) -> bool:
    """Widen a convolution whose input channels no kernel takes; False where it is not one, or no width fits."""
    outputs, channels = graph.tensors[node.input[WEIGHT]].dims[:2]
    if channels % GRANULE == 0:
        return False
    window = window_of(graph, node, width)
    for pixels in _divisors(window.outputs):
        group = window.stride * pixels * channels
        if group % GRANULE == 0 and width * channels % group == 0 and pixels * outputs >= STEP:
            widen(graph, node, height, window, pixels, group)
            return True
    return False


def use_products(graph: Graph, node: NodeProto, height: int, width: int) -> bool:
    """Have a convolution computed as a product of matrices, which ONNX Runtime gives to AMX tiles where there are.

    It takes the direct convolution for weights whose zero point is 0, and the product for all others: q - 0 is as well
    (q - 1) - (-1). False where that does not fit into int8, or does not pay: kernels of one pixel, and strides. Weights
    that have another zero point are multiplied anyway, and only get more columns.
    """
    name, zero_point = node.input[WEIGHT], graph.array(node.input[WEIGHT_ZERO_POINT])
    weight = graph.array(name)
    outputs, channels, _, kernel = weight.shape
    window = window_of(graph, node, width)
    direct, pixels = not zero_point.any(), 1 if outputs >= STEP else AT_ONCE
    if weight.dtype != np.int8 or kernel == 1 or channels % GRANULE or window.outputs % pixels:
        return False
    if (window.stride > 1 or weight.min() == -128) if direct else pixels == 1:
        return False
    widen(graph, node, height, window, pixels, channels, zero_point=_moved_zero_point(weight) if direct else 0)
    return True


def _moved_zero_point(weight: np.ndarray) -> int:
    """-1, or 1 where -1 would let weights saturate on CPUs without VNNI that do not as they are."""
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    saturates = [pair_saturates(rows.astype(np.int16) + shift) for shift in (-1, 0, 1)]
    return 1 if saturates == [True, False, False] and rows.max() < 127 else -1


def window_of(graph: Graph, node: NodeProto, width: int) -> Window:
    """Where ``node`` looks along a row of ``width`` columns."""
    values = attributes(node)
    _, left, _, right = values.get("pads", [0, 0, 0, 0])
    kernel = graph.tensors[node.input[WEIGHT]].dims[3]
    return Window(kernel, values.get("strides", [1, 1])[1], left, right, width)


def widen(
    graph: Graph, node: NodeProto, height: int, window: Window, pixels: int, group: int, *, zero_point: int = 0
) -> None:
    """Let ``node`` yield ``pixels`` columns at once.

    Args:
        graph: changed.
        node: of ``convolutions``.
        height: rows of its input.
        window: where it looks.
        pixels: columns of output at once; divides ``window.outputs``.
        group: input channels, of neighbouring columns, that are read as one column's; divides what ``pixels`` columns
            of output advance by.
        zero_point: of the new weights; the old ones' is 0 unless this is 0.
    """
    weight = graph.array(node.input[WEIGHT])
    outputs, channels, rows, kernel = weight.shape
    advance = window.stride * pixels * channels  # from one step to the next, in channels of the row
    assert window.outputs % pixels == 0
    assert advance % group == 0
    assert window.width * channels % group == 0
    first = math.floor(-window.left * channels / group)  # of the groups that the first step reads
    end = math.ceil((window.stride * (pixels - 1) + kernel - window.left) * channels / group)
    old_zero_point = graph.array(node.input[WEIGHT_ZERO_POINT])
    flat = weight.transpose(0, 2, 3, 1).reshape(outputs, rows, kernel * channels)
    nothing = old_zero_point.ravel()[:1]  # what a column does not look at counts as 0
    if zero_point:
        nothing = nothing + np.int8(zero_point)
    starts = [(window.stride * pixel - window.left) * channels - first * group for pixel in range(pixels)]
    wide, arranging = _shifted(graph, node, flat, zero_point, nothing, starts, (end - first, group))

    columns, steps = window.width * channels // group, window.outputs // pixels
    right = max(0, (steps - 1) * (advance // group) + (end - first) + first - columns)
    values = attributes(node)
    top, _, bottom, _ = values.get("pads", [0, 0, 0, 0])
    strides = values.get("strides", [1, 1])
    new = NodeProto()
    new.CopyFrom(node)
    new.input[WEIGHT] = wide
    new.input[WEIGHT_SCALE] = _repeated(graph, node.input[WEIGHT_SCALE], pixels)
    if zero_point:
        shifted = np.full(old_zero_point.shape, zero_point, np.int8)
        new.input[WEIGHT_ZERO_POINT] = graph.put(f"{node.input[WEIGHT_ZERO_POINT]}_shifted", shifted)
    new.input[WEIGHT_ZERO_POINT] = _repeated(graph, new.input[WEIGHT_ZERO_POINT], pixels)
    if len(node.input) > BIAS and node.input[BIAS]:
        new.input[BIAS] = _repeated(graph, node.input[BIAS], pixels)
    del new.attribute[:]
    new.attribute.extend(
        helper.make_attribute(name, value)
        for name, value in {
            "channels_last": 1,
            "group": 1,
            "kernel_shape": [rows, end - first],
            "pads": [top, -first, bottom, right],
            "strides": [strides[0], advance // group],
        }.items()
    )
    lines = (height + top + bottom - rows) // strides[0] + 1
    nodes = [new]  # and what brings its input and output into shape
    if group != channels:
        groups = graph.fresh(f"{node.output[0]}_groups")
        nodes.insert(0, _reshape(graph, node.input[0], groups, (height, columns, group)))
        new.input[0] = groups
    if pixels != 1:
        new.output[0] = graph.fresh(f"{node.output[0]}_steps")
        nodes.append(_reshape(graph, new.output[0], node.output[0], (lines, window.outputs, outputs)))
    graph.replace(node, *nodes)
    graph.nodes[:0] = arranging


def _shifted(
    graph: Graph,
    node: NodeProto,
    flat: np.ndarray,
    zero_point: int,
    nothing: np.ndarray,
    starts: list[int],
    groups: tuple[int, int],
) -> tuple[str, list[NodeProto]]:
    """Weights for each of the columns that a step yields: the old ones, further right each time.

    The nodes are run when the model is loaded; the file holds the old weights once.

    Args:
        graph: gets the constants.
        node: the convolution, another name for each that shares its weights.
        flat: int8 [outputs, rows, kernel x channels], the old weights.
        zero_point: is added to them, when the file is loaded if they fit into fewer bits as they are.
        nothing: int8 [1], fills the rest.
        starts: where they lie in the window of a step, for each column.
        groups: columns and channels of the window.

    Returns:
        The name of int8 [columns x outputs, channels of a group, rows, groups], and the nodes that make it.
    """
    few_bits = int(flat.min()) >= -8 and int(flat.max()) < 8
    label, rows = node.output[0], flat if few_bits or not zero_point else flat + np.int8(zero_point)
    stored, empty = (
        graph.put(f"{node.input[WEIGHT]}_rows", rows),
        graph.put(f"{nothing.dtype}_{nothing[0]}", nothing.reshape(())),
    )
    length, nodes = groups[0] * groups[1], []
    if zero_point and few_bits:
        offset = graph.put(f"int32_{zero_point}", np.array(zero_point, np.int32))
        number, total, moved = (graph.fresh(f"{label}_{what}") for what in ("int32", "sum", "moved"))
        nodes = [
            helper.make_node("Cast", [stored], [number], to=TensorProto.INT32),
            helper.make_node("Add", [number, offset], [total]),
            helper.make_node("Cast", [total], [moved], to=TensorProto.INT8),
        ]
        stored = moved
    for index, start in enumerate(starts):
        pads = _numbers(graph, "pads", [0, 0, start, 0, 0, length - start - flat.shape[2]])
        nodes.append(helper.make_node("Pad", [stored, pads, empty], [graph.fresh(f"{label}_column{index}")]))
    columns = [node.output[0] for node in nodes if node.op_type == "Pad"]
    shape = _numbers(graph, "shape", [len(starts) * flat.shape[0], flat.shape[1], *groups])
    joined, windows, wide = (graph.fresh(f"{label}_{what}") for what in ("columns", "windows", "wide"))
    nodes += [
        helper.make_node("Concat", columns, [joined], axis=0),
        helper.make_node("Reshape", [joined, shape], [windows]),
        helper.make_node("Transpose", [windows], [wide], perm=[0, 3, 1, 2]),
    ]
    return wide, nodes


def _repeated(graph: Graph, name: str, times: int) -> str:
    """A vector for each output channel, ``times`` over; a scalar for all is left alone."""
    values = graph.array(name)
    return name if values.size == 1 or times == 1 else graph.put(f"{name}_wide", np.tile(values, times))


def _reshape(graph: Graph, old: str, new: str, shape: tuple[int, int, int]) -> NodeProto:
    return helper.make_node("Reshape", [old, _numbers(graph, "shape", [-1, *shape])], [new], name=f"{new}_reshape")


def _numbers(graph: Graph, kind: str, values: list[int]) -> str:
    """A constant that is named for what it holds, so that layers of one form share it."""
    return graph.put(f"{kind}_{'_'.join(map(str, values))}", np.array(values, np.int64))


def _divisors(number: int) -> list[int]:
    return [count for count in range(1, number + 1) if number % count == 0]
