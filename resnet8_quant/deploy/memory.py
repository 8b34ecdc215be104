"""What a model will take on a target that stores activations in one byte: multiply-accumulates, flash for weights, RAM.

In: a float ONNX model and its bit widths. Out: figures by layer and in all. RAM is that of activations only, in the
order of execution that needs least; what a runtime adds (buffers, its own structures) only the runtime can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from resnet8_quant.graphs.graph import static_shapes

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
MOST_STATES = 100_000  # of the search for the best order; beyond it, the order of the file


@dataclass(frozen=True)
class Layer:
    """One operator that computes.

    Attributes:
        name: of its output.
        operator: of ONNX.
        macs: multiply-accumulates for one image.
        weights: how many; biases are not among them.
        biases: how many.
        inputs: memory that it reads, by the name of what wrote it.
        output: memory that it writes.
    """

    name: str
    operator: str
    macs: int
    weights: int
    biases: int
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Memory:
    """Figures of a model.

    Attributes:
        layers: in the order of the file.
        sizes: bytes of each activation for one image, one byte a value.
        macs: of one image.
        peak_activation_bytes: of the best order of execution.
    """

    layers: tuple[Layer, ...]
    sizes: dict[str, int]
    macs: int
    peak_activation_bytes: int


def measure(model: onnx.ModelProto) -> Memory | None:
    """Figures of a float model; None where a shape is not known before it runs.

    Args:
        model: one input, any layout; the figures are those of one image.
    """
    graph, shapes = model.graph, static_shapes(model)
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    memory = {graph.input[0].name: graph.input[0].name}
    layers = []
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        if not inputs:  # computed once from constants
            constants |= {name: tuple(shapes.get(name, ())) for name in node.output}
            continue
        if any(name not in memory for name in inputs) or not all(shapes.get(node.output[0], [0])):
            return None
        if node.op_type in IN_PLACE:
            memory[node.output[0]] = memory[inputs[0]]
            continue
        memory[node.output[0]] = node.output[0]
        fixed = [constants[name] for name in node.input if name in constants]
        macs, weights, biases = _work(node.op_type, fixed, shapes[node.output[0]])
        layers.append(
            Layer(
                node.output[0],
                node.op_type,
                macs,
                weights,
                biases,
                tuple(memory[name] for name in inputs),
                node.output[0],
            )
        )
    sizes = {name: int(np.prod(shapes[name], dtype=np.int64)) for name in set(memory.values())}
    peak = peak_bytes(layers, sizes, graph.input[0].name, memory[graph.output[0].name])
    return Memory(tuple(layers), sizes, sum(layer.macs for layer in layers), peak)


def _work(operator: str, constants: Sequence[tuple[int, ...]], output: Sequence[int]) -> tuple[int, int, int]:
    """Multiply-accumulates, weights and biases of a layer, from the shapes of its constants and of its output."""
    if operator not in ("Conv", "Gemm", "MatMul") or not constants or len(constants[0]) < 2:
        return 0, 0, 0
    weights = int(np.prod(constants[0], dtype=np.int64))
    positions = int(np.prod(output[2:], dtype=np.int64)) if operator == "Conv" else 1
    biases = int(np.prod(constants[1], dtype=np.int64)) if len(constants) > 1 else 0
    return weights * positions, weights, biases


def peak_bytes(layers: Sequence[Layer], sizes: dict[str, int], source: str, result: str) -> int:
    """Most bytes that live at once: inputs and output of the running layer, and what later ones still read.

    The least over all orders of execution, by dynamic programming over the sets of layers that have run.
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

    in_order = 0
    done: frozenset[int] = frozenset()
    for i in range(count):
        in_order = max(in_order, cost(done, i))
        done |= {i}

    best: dict[frozenset[int], int] = {frozenset(): 0}
    for _ in range(count):
        following: dict[frozenset[int], int] = {}
        for done, peak in best.items():
            for i in range(count):
                if i in done or any(name in writer and writer[name] not in done for name in layers[i].inputs):
                    continue
                value = max(peak, cost(done, i))
                if value <= in_order:
                    after = done | {i}
                    following[after] = min(value, following.get(after, value))
        best = following
        if len(best) > MOST_STATES:
            return in_order
    return min(best.values(), default=in_order)


def flash_bytes(layers: Sequence[Layer], bits: Sequence[int] | None, per_channel: bool) -> int:
    """Bytes of weights, biases (32 bits) and scales as a target stores them; 4-bit weights are packed in pairs.

    Args:
        layers: of ``measure``.
        bits: of the weights of each layer that has some, in order; None: all in float32.
        per_channel: a float32 scale for each output, else one for each layer.
    """
    weighted = [layer for layer in layers if layer.weights]
    if bits is None:
        return sum(4 * (layer.weights + layer.biases) for layer in weighted)
    total = 0
    for layer, width in zip(weighted, bits, strict=True):
        weights = (layer.weights + 1) // 2 if width <= 4 else layer.weights * (2 if width > 8 else 1)
        total += weights + 4 * layer.biases + 4 * (max(layer.biases, 1) if per_channel else 1)
    return total
