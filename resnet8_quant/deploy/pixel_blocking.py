"""Pixel blocking: convolutions that compute several neighbouring pixels at once, with the same integers.

In: a fused graph (QLinearConv on NHWC tensors). Out: the same graph with some of its convolutions rewritten.

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
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from resnet8_quant.graphs.graph import Graph, attributes, input_name
from resnet8_quant.graphs.saturation import pair_saturates

STEP = 64  # output channels of one step of the kernels with 512-bit registers
GRANULE = 4  # input channels that one instruction multiplies and adds
WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT, BIAS = 3, 4, 5, 8  # inputs of QLinearConv
GEMM_PIXELS = 4  # columns at once with which a Gemm was measured to be faster, for 16 and 32 output channels
INT4_MIN, INT4_MAX = -8, 7


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
    """The QLinearConv nodes that can be blocked: NHWC, two axes, no groups, no dilation, constant weights."""
    nodes = []
    for node in graph.nodes:
        values = attributes(node)
        if (
            node.op_type == "QLinearConv"
            and values.get("channels_last")
            and node.input[WEIGHT] in graph.initializers
            and len(graph.initializers[node.input[WEIGHT]].dims) == 4
            and values.get("group", 1) == 1
            and set(values.get("dilations", [1])) == {1}
            and values.get("auto_pad", b"NOTSET") == b"NOTSET"
        ):
            nodes.append(node)
    return nodes


def block_input(graph: Graph, node: NodeProto, height: int, width: int) -> bool:
    """Block the pixels of a convolution whose input channels the direct kernel does not take.

    The fewest pixels are taken whose input is a multiple of 4 channels and whose output fills a step of the kernel.

    Returns:
        False where the kernel takes the channels as they are, or no number of pixels fits the row.
    """
    outputs, channels = graph.initializers[node.input[WEIGHT]].dims[:2]
    if channels % GRANULE == 0:
        return False
    window = window_of(graph, node, width)
    for pixels in range(1, window.outputs + 1):
        group = window.stride * pixels * channels
        fits = window.outputs % pixels == 0 and group % GRANULE == 0 and width * channels % group == 0
        if fits and pixels * outputs >= STEP:
            block_pixels(graph, node, height, window, pixels, group)
            return True
    return False


def gemm_convolution(graph: Graph, node: NodeProto, height: int, width: int) -> bool:
    """Have a convolution computed by im2col and Gemm, which ONNX Runtime gives to AMX tiles where there are.

    It takes its direct convolution for weights whose zero point is 0, and im2col with Gemm for all others. So the zero
    point becomes -1, with weights 1 less: q - 0 is as well (q - 1) - (-1). Weights that have another zero point are
    multiplied that way anyway, and only get more columns.

    Returns:
        False where the shifted weights do not fit into int8, or where it does not pay: kernels of one pixel, and
        strides.
    """
    weight, zero_point = graph.array(node.input[WEIGHT]), graph.array(node.input[WEIGHT_ZERO_POINT])
    outputs, channels, _, kernel = weight.shape
    window = window_of(graph, node, width)
    is_direct, pixels = not zero_point.any(), 1 if outputs >= STEP else GEMM_PIXELS
    if weight.dtype != np.int8 or kernel == 1 or channels % GRANULE or window.outputs % pixels:
        return False
    if is_direct and (window.stride > 1 or weight.min() == -128):
        return False
    if not is_direct and pixels == 1:
        return False
    shift = _gemm_zero_point(weight) if is_direct else 0
    block_pixels(graph, node, height, window, pixels, channels, zero_point=shift)
    return True


def _gemm_zero_point(weight: np.ndarray) -> int:
    """-1, or 1 where -1 would let weights saturate on CPUs without VNNI that do not as they are."""
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    saturates = [pair_saturates(rows.astype(np.int16) + shift) for shift in (-1, 0, 1)]
    return 1 if saturates == [True, False, False] and rows.max() < 127 else -1


def window_of(graph: Graph, node: NodeProto, width: int) -> Window:
    """Where ``node`` looks along a row of ``width`` columns."""
    values = attributes(node)
    _, left, _, right = values.get("pads", [0, 0, 0, 0])
    kernel = graph.initializers[node.input[WEIGHT]].dims[3]
    return Window(kernel, values.get("strides", [1, 1])[1], left, right, width)


def block_pixels(
    graph: Graph, node: NodeProto, height: int, window: Window, pixels: int, group: int, *, zero_point: int = 0
) -> None:
    """Let ``node`` yield ``pixels`` columns at once.

    Args:
        height: rows of its input.
        pixels: columns of output at once; divides ``window.outputs``.
        group: input channels, of neighbouring columns, that are read as one column's; divides what ``pixels`` columns
            of output advance by.
        zero_point: of the new weights, if their old one is 0; 0: they keep their own.
    """
    weight = graph.array(node.input[WEIGHT])
    outputs, channels, rows, kernel = weight.shape
    advance = window.stride * pixels * channels  # from one step to the next, in channels of the row
    assert window.outputs % pixels == 0
    assert advance % group == 0
    assert window.width * channels % group == 0

    # A step reads the groups from ``first`` to ``end``, counted from the step's own first column. They begin at or
    # before the first channel that its leftmost pixel sees, and end at or behind the last that its rightmost one sees.
    first = math.floor(-window.left * channels / group)
    end = math.ceil((window.stride * (pixels - 1) + kernel - window.left) * channels / group)

    # Each pixel has the old weights, laid out along a row as columns x channels, where it looks within those groups.
    # Elsewhere it has the zero point, which counts as 0.
    flat = weight.transpose(0, 2, 3, 1).reshape(outputs, rows, kernel * channels)
    starts = [(window.stride * pixel - window.left) * channels - first * group for pixel in range(pixels)]
    inputs, output = list(node.input), node.output[0]
    inputs[WEIGHT], arranging = _blocked_weight(graph, node, flat, zero_point, starts, (end - first, group))

    # Scales, zero points and biases of the output channels repeat for each pixel.
    if zero_point:
        shifted = np.full(graph.array(inputs[WEIGHT_ZERO_POINT]).shape, zero_point, np.int8)
        inputs[WEIGHT_ZERO_POINT] = graph.add_initializer(f"{inputs[WEIGHT_ZERO_POINT]}_shifted", shifted)
    for position in (WEIGHT_SCALE, WEIGHT_ZERO_POINT, BIAS):
        if input_name(node, position):
            inputs[position] = _repeated(graph, inputs[position], pixels)

    # Pads and strides along the row are counted in groups; the right pad is what the last step reads beyond the row.
    columns, steps = window.width * channels // group, window.outputs // pixels
    right = max(0, (steps - 1) * (advance // group) + (end - first) + first - columns)
    values = attributes(node)
    top, _, bottom, _ = values.get("pads", [0, 0, 0, 0])
    down = values.get("strides", [1, 1])[0]
    new_attributes: dict[str, Any] = {
        "channels_last": 1,
        "group": 1,
        "kernel_shape": [rows, end - first],
        "pads": [top, -first, bottom, right],
        "strides": [down, advance // group],
    }

    # [columns, channels] -> [groups, channels of a group] before, [steps, pixels x outputs] -> [columns, outputs] after
    lines = (height + top + bottom - rows) // down + 1
    before, after = [], []
    if group != channels:
        inputs[0] = graph.unique_name(f"{node.output[0]}_groups")
        before = [_reshape(graph, node.input[0], inputs[0], (height, columns, group))]
    if pixels != 1:
        output = graph.unique_name(f"{node.output[0]}_steps")
        after = [_reshape(graph, output, node.output[0], (lines, window.outputs, outputs))]
    new = helper.make_node(
        "QLinearConv", inputs, [output], node.name, node.doc_string, domain=node.domain, **new_attributes
    )
    graph.replace(node, *before, new, *after)
    graph.nodes[:0] = arranging


def _blocked_weight(
    graph: Graph,
    node: NodeProto,
    flat: np.ndarray,
    zero_point: int,
    starts: list[int],
    groups: tuple[int, int],
) -> tuple[str, list[NodeProto]]:
    """Weights for each of the pixels that a step yields: the old ones, further right each time.

    The nodes are run when the model is loaded; the file holds the old weights once.

    Args:
        node: the convolution, another name for each that shares its weights.
        flat: int8 or uint8 [outputs, rows, kernel x channels], the old weights.
        zero_point: is added to them, when the file is loaded if they fit into 4 bits as they are. It fills the rest,
            or, where it is 0, the old zero point does.
        starts: where they lie in the window of a step, for each pixel.
        groups: columns and channels of the window.

    Returns:
        The name of [pixels x outputs, channels of a group, rows, groups], and the nodes that make it.
    """
    # Weights of few bits are stored as they are: shifted they may need one more, and `pack` could not pack them.
    few_bits = int(flat.min()) >= INT4_MIN and int(flat.max()) <= INT4_MAX
    shifts_when_loaded = bool(zero_point) and few_bits
    label, shift = node.output[0], flat.dtype.type(zero_point)
    stored = graph.add_initializer(f"{node.input[WEIGHT]}_rows", flat if shifts_when_loaded else flat + shift)
    filler = graph.array(node.input[WEIGHT_ZERO_POINT]).ravel()[0] + shift
    empty = graph.add_initializer(f"{filler.dtype}_{filler}", filler)
    nodes = []
    if shifts_when_loaded:  # by way of int32, for which every version of ONNX Runtime has an Add
        offset = graph.add_initializer(f"int32_{zero_point}", np.array(zero_point, np.int32))
        number, total, moved = (graph.unique_name(f"{label}_{what}") for what in ("int32", "sum", "moved"))
        nodes = [
            helper.make_node("Cast", [stored], [number], to=TensorProto.INT32),
            helper.make_node("Add", [number, offset], [total]),
            helper.make_node("Cast", [total], [moved], to=TensorProto.INT8),
        ]
        stored = moved

    # One copy for each pixel, padded on both sides to the length of the window.
    length, copies = groups[0] * groups[1], []
    for index, start in enumerate(starts):
        pads = _int64s(graph, "pads", [0, 0, start, 0, 0, length - start - flat.shape[2]])
        copies.append(graph.unique_name(f"{label}_column{index}"))
        nodes.append(helper.make_node("Pad", [stored, pads, empty], [copies[-1]]))

    # Their rows, split into groups, become the kernel: [pixels x outputs, rows, groups, channels], channels first.
    shape = _int64s(graph, "shape", [len(starts) * flat.shape[0], flat.shape[1], *groups])
    joined, windows, wide = (graph.unique_name(f"{label}_{what}") for what in ("columns", "windows", "wide"))
    nodes += [
        helper.make_node("Concat", copies, [joined], axis=0),
        helper.make_node("Reshape", [joined, shape], [windows]),
        helper.make_node("Transpose", [windows], [wide], perm=[0, 3, 1, 2]),
    ]
    return wide, nodes


def _repeated(graph: Graph, name: str, times: int) -> str:
    """A vector for each output channel, ``times`` over; a scalar for all is left alone."""
    values = graph.array(name)
    return name if values.size == 1 or times == 1 else graph.add_initializer(f"{name}_wide", np.tile(values, times))


def _reshape(graph: Graph, old: str, new: str, shape: tuple[int, int, int]) -> NodeProto:
    return helper.make_node("Reshape", [old, _int64s(graph, "shape", [-1, *shape])], [new], name=f"{new}_reshape")


def _int64s(graph: Graph, label: str, values: list[int]) -> str:
    """A constant that is named for what it holds, so that layers of one form share it."""
    return graph.add_initializer(f"{label}_{'_'.join(map(str, values))}", np.array(values, np.int64))
