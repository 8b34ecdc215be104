"""What a model will take on a target that stores activations in one byte: multiply-accumulates, flash for weights, RAM.

In: an ONNX model, float or Q/DQ. Out: figures by layer and in all. RAM is that of activations only, in the order of
execution that needs least; what a runtime adds (buffers, its own structures) only the runtime can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from resnet8_quant.graphs.graph import input_name, static_shapes

# Computed in place, or not at all on a target: the output shares the memory of the first input.
IN_PLACE = frozenset(
    (
        "Cast",
        "Clip",
        "DequantizeLinear",
        "Dropout",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Relu",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)
# Operator -> places of its weights and of its bias among its inputs.
WEIGHTS = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1, 2), "QLinearConv": (3, 8), "QLinearMatMul": (3, 8)}
MOST_STATES = 100_000  # of the search for the best order; beyond it, the order of the file

FLOAT_BITS = 32  # of a weight that is no integer


@dataclass(frozen=True)
class Layer:
    """One operator that computes.

    Attributes:
        name: of its output.
        operator: of ONNX.
        macs: multiply-accumulates for one image.
        weights: how many; biases are not among them.
        weight_bits: that one of them takes in the file; 0: there are none.
        biases: how many.
        inputs: memory that it reads, by the name of what wrote it.
        output: memory that it writes.
    """

    name: str
    operator: str
    macs: int
    weights: int
    weight_bits: int
    biases: int
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Memory:
    """Figures of a model.

    Attributes:
        layers: in the order of the file.
        sizes: bytes of each activation for one image, one byte a value.
        live_bytes: of all activations while each layer runs, in the order of the file.
        macs: of one image.
        peak_activation_bytes: of the best order of execution.
    """

    layers: tuple[Layer, ...]
    sizes: dict[str, int]
    live_bytes: tuple[int, ...]
    macs: int
    peak_activation_bytes: int


def measure(model: onnx.ModelProto) -> Memory | None:
    """Figures of a model; None where a shape is not known before it runs.

    Args:
        model: one input, any layout; the figures are those of one image.
    """
    graph, shapes = model.graph, static_shapes(model)
    constants = {tensor.name: (tuple(tensor.dims), _bits(tensor.data_type)) for tensor in graph.initializer}
    source = next(value.name for value in graph.input if value.name not in constants)
    memory = {source: source}
    layers = []
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        if not inputs:  # computed once from constants
            bits = constants[node.input[0]][1] if node.input else 0  # a Cast or DequantizeLinear reads what is stored
            constants |= {name: (tuple(shapes.get(name, ())), bits) for name in node.output}
            continue
        if any(name not in memory for name in inputs) or not all(shapes.get(node.output[0], [0])):
            return None
        if node.op_type in IN_PLACE:
            memory[node.output[0]] = memory[inputs[0]]
            continue
        memory[node.output[0]] = node.output[0]
        work = _work(node, constants, shapes[node.output[0]])
        layers.append(
            Layer(node.output[0], node.op_type, *work, tuple(memory[name] for name in inputs), node.output[0])
        )
    sizes = {name: int(np.prod(shapes[name], dtype=np.int64)) for name in set(memory.values())}
    live, peak = peak_bytes(layers, sizes, source, memory[graph.output[0].name])
    return Memory(tuple(layers), sizes, live, sum(layer.macs for layer in layers), peak)


def _bits(data_type: int) -> int:
    """Of one value of an ONNX type."""
    name = onnx.TensorProto.DataType.Name(data_type)
    return int(digits) if (digits := "".join(filter(str.isdigit, name))) else 32


def _work(
    node: onnx.NodeProto, constants: dict[str, tuple[tuple[int, ...], int]], output: Sequence[int]
) -> tuple[int, int, int, int]:
    """Multiply-accumulates, weights, their bits, and biases of a layer, from its constants and its output's shape.

    Args:
        constants: name -> shape and bits.
        output: shape.
    """
    first, last = WEIGHTS.get(node.op_type, (0, 0))
    shape, bits = constants.get(input_name(node, first), ((), 0))
    if not first or len(shape) < 2:
        return 0, 0, 0, 0
    weights = int(np.prod(shape, dtype=np.int64))
    repeated = output[2:] if "Conv" in node.op_type else output[1:-1]  # pixels; rows beside the batch
    positions = int(np.prod(repeated, dtype=np.int64))
    biases = int(np.prod(constants.get(input_name(node, last), ((0,), 0))[0], dtype=np.int64))
    return weights * positions, weights, bits, biases


def peak_bytes(layers: Sequence[Layer], sizes: dict[str, int], source: str, result: str) -> tuple[tuple[int, ...], int]:
    """Bytes that live at once: inputs and output of the running layer, and what later ones still read.

    Returns:
        While each layer runs, in the given order; and the most in the order of execution that needs least, by dynamic
        programming over the sets of layers that have run.
    """
    readers: dict[str, set[int]] = {}
    for i, layer in enumerate(layers):
        for name in layer.inputs:
            readers.setdefault(name, set()).add(i)
    count = len(layers)
    writer = {layer.output: i for i, layer in enumerate(layers)}

    def live(done: frozenset[int]) -> set[str]:
        written = {source} | {layers[i].output for i in done}
        return {name for name in written if name == result or readers.get(name, set()) - done}

    def cost(done: frozenset[int], i: int) -> int:
        return sum(sizes[name] for name in live(done) | {layers[i].output} | set(layers[i].inputs))

    in_order = tuple(cost(frozenset(range(i)), i) for i in range(count))
    highest = max(in_order, default=0)

    best: dict[frozenset[int], int] = {frozenset(): 0}
    for _ in range(count):
        following: dict[frozenset[int], int] = {}
        for done, peak in best.items():
            for i in range(count):
                if i in done or any(name in writer and writer[name] not in done for name in layers[i].inputs):
                    continue
                value = max(peak, cost(done, i))
                if value <= highest:
                    after = done | {i}
                    following[after] = min(value, following.get(after, value))
        best = following
        if len(best) > MOST_STATES:
            return in_order, highest
    return in_order, min(best.values(), default=highest)


def flash_bytes(layers: Sequence[Layer], bits: Sequence[int] | None, per_channel: bool) -> int:
    """Bytes of weights, biases (32 bits) and scales as a target stores them; 4-bit weights are packed in pairs.

    Args:
        layers: of ``measure``.
        bits: of the weights of each layer that has some, in order, 32 in float32; None: all in float32.
        per_channel: a float32 scale for each output, else one for each layer.
    """
    weighted = [layer for layer in layers if layer.weights]
    if bits is None:
        return sum(4 * (layer.weights + layer.biases) for layer in weighted)
    total = 0
    for layer, width in zip(weighted, bits, strict=True):
        if width == FLOAT_BITS:
            total += 4 * (layer.weights + layer.biases)
            continue
        weights = (layer.weights + 1) // 2 if width <= 4 else layer.weights * (2 if width > 8 else 1)
        total += weights + 4 * layer.biases + 4 * (max(layer.biases, 1) if per_channel else 1)
    return total
