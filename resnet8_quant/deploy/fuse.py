"""Q/DQ pairs and float operators fused into integer operators, by ONNX Runtime's own optimizer, and written down.

In: a Q/DQ ModelProto whose types suit the target. Out: the ModelProto that ONNX Runtime would run: QLinearConv on NHWC
tensors, QLinearAdd, QGemm, ... A model that is stored so needs no such work when it is loaded, and can be made smaller.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
from onnx import NodeProto, helper

from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs.graph import PRODUCER, Graph, attributes
from resnet8_quant.graphs.runtime import new_session

DERIVED = re.compile("(_rows|_nhwc)_*$")  # how names of rearranged weights end
TO_NCHW = [0, 3, 1, 2]
MATRIX = 3  # input of QGemm


def fuse(model: onnx.ModelProto) -> tuple[Graph, dict[str, int]]:
    """Fuse the Q/DQ pairs of ``model``.

    The layout of AVX blocks (domain com.microsoft.nchwc), which layers that stayed float would get, is left out: such a
    file would run on no other processor.

    Args:
        model: Q/DQ; signed activations are fused too, which ONNX Runtime does by itself on Arm only.

    Returns:
        The fused graph; and of the weights that it holds as bytes but ``model`` in fewer bits, {name: that type}.
    """
    # What a Cast makes of a low-bit weight: {the Cast's output: the type that is stored}.
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    casts = (node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in dtypes)
    low_bit = {node.output[0]: dtypes[node.input[0]] for node in casts}
    with temporary_folder() as folder:
        path = folder / "fused.onnx"
        new_session(
            model.SerializeToString(),
            entries={"session.qdqisint8allowed": "1"},
            optimized_model=path,
            disabled_optimizers=["NchwcTransformer"],
        )
        graph = Graph(onnx.load(path))
    graph.model.producer_name = PRODUCER
    graph.model.ClearField("producer_version")
    names = _remove_marks(graph)
    graph.prune()
    return graph, {names[name]: dtype for name, dtype in low_bit.items() if name in names}


def pack(graph: Graph, low_bit: dict[str, int]) -> None:
    """Store weights in fewer bits again, with a Cast that is folded when the model is loaded.

    Args:
        low_bit: as ``fuse`` returns it; of what was made of such weights in between, what still fits.
    """
    casts = []
    for name in list(graph.initializers):
        # A rearranged weight has the type of the one that it was made of.
        origin = name
        while origin not in low_bit and DERIVED.search(origin):
            origin = DERIVED.sub("", origin)
        values = graph.array(name)
        if origin not in low_bit or values.dtype != np.int8:
            continue
        stored = values.astype(helper.tensor_dtype_to_np_dtype(low_bit[origin]))
        if np.array_equal(stored.astype(np.int8), values):
            del graph.initializers[name]
            packed = graph.add_initializer(f"{name}_stored", stored)
            casts.append(helper.make_node("Cast", [packed], [name], to=onnx.TensorProto.INT8))
    graph.nodes[:0] = casts


def drop_layout(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> None:
    """Flatten in NHWC order what is transposed to NCHW only to be flattened; the rows of the next matrix move along.

    Args:
        shapes: of the tensors that are transposed.
    """
    for transpose in [node for node in graph.nodes if node.op_type == "Transpose"]:
        if attributes(transpose).get("perm") != TO_NCHW or transpose.input[0] not in shapes:
            continue
        _, height, width, channels = shapes[transpose.input[0]]
        flattens = graph.consumers(transpose.output[0])
        if any(node.op_type != "Flatten" or attributes(node).get("axis", 1) != 1 for node in flattens):
            continue
        if height * width > 1:  # with one pixel both orders are the same
            gemms = [consumer for node in flattens for consumer in graph.consumers(node.output[0])]
            if any(node.op_type != "QGemm" or node.input[MATRIX] not in graph.initializers for node in gemms):
                continue
            for gemm in gemms:
                _move_rows(graph, gemm, channels, height, width)
        graph.reroute(transpose.output[0], transpose.input[0])


def _move_rows(graph: Graph, gemm: NodeProto, channels: int, height: int, width: int) -> None:
    """Bring a QGemm's matrix from rows in (channel, row, column) order to (row, column, channel)."""
    name = gemm.input[MATRIX]
    matrix = graph.array(name)
    transposed = bool(attributes(gemm).get("transB"))
    rows = matrix.T if transposed else matrix
    moved = rows.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(rows.shape)
    gemm.input[MATRIX] = graph.add_initializer(f"{name}_nhwc", moved.T if transposed else moved)


def _remove_marks(graph: Graph) -> dict[str, str]:
    """Take the optimizer's marks off names, stack1.conv2_token_7 -> stack1.conv2; returns {old: new} of tensors."""
    tensors = [*(name for node in graph.nodes for name in node.output), *graph.initializers]
    ends = graph.ends()
    new = _without_marks([name for name in tensors if name not in ends], ends)
    nodes = _without_marks([node.name for node in graph.nodes], set())
    for node in graph.nodes:
        node.name = nodes.get(node.name, "")
    graph.rename(new)
    return new


def _without_marks(names: list[str], taken: set[str]) -> dict[str, str]:
    """{name: the name without mark, with a number where that is taken}."""
    new: dict[str, str] = {}
    taken = set(taken)
    for name in filter(None, dict.fromkeys(names)):  # an empty name means none
        plain = re.sub(r"(_token_\d+|_q_to_dq|/duplicated|_QuantizeLinear_Output)+$", "", name) or "unnamed"
        candidates = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(2)))
        new[name] = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(new[name])
    return new
