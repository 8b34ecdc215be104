"""Q/DQ pairs and float operators fused into integer operators, by ONNX Runtime's own optimizer, and written down.

In: a Q/DQ ModelProto whose types suit the target. Out: the ModelProto that ONNX Runtime would run: QLinearConv on NHWC
tensors, QLinearAdd, QGemm, ... A model that is stored so needs no such work when it is loaded, and can be made leaner.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from resnet8_quant.deploy.graph import Graph
from resnet8_quant.graphs.session import new_session

DERIVED = re.compile("(_rows|_nhwc)_*$")  # how names of rearranged weights end
PRODUCER = "resnet8-quant"


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Optimise ``model``.

    The layout of AVX blocks (domain com.microsoft.nchwc), which layers that stayed float would get, is left out: such a
    file would run on no other processor.

    Args:
        model: Q/DQ; signed activations are fused too, which ONNX Runtime does by itself on Arm only.

    Returns:
        The optimised model; and of the weights that it holds as bytes but ``model`` in fewer bits, name -> that type.
    """
    narrow = _narrow_weights(model)
    with tempfile.TemporaryDirectory(prefix="resnet8_quant.") as folder:
        path = Path(folder, "fused.onnx")
        new_session(
            model.SerializeToString(),
            entries={"session.qdqisint8allowed": "1"},
            optimized_model=path,
            disabled_optimizers=["NchwcTransformer"],
        )
        fused = onnx.load(path)
    fused.producer_name = PRODUCER
    fused.ClearField("producer_version")
    names = _rename(fused.graph)
    return Graph(fused).finish(), {names[name]: kind for name, kind in narrow.items() if name in names}


def _narrow_weights(model: onnx.ModelProto) -> dict[str, int]:
    """Weights that a Cast makes of integers of fewer bits: the Cast's output -> the type they are stored in."""
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.output[0]: tensors[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Cast" and node.input[0] in tensors
    }


def pack(graph: Graph, narrow: dict[str, int]) -> None:
    """Store weights in fewer bits again, with a Cast that is folded when the model is loaded.

    Args:
        graph: changed.
        narrow: as ``fuse`` returns it; of what was made of such weights in between, what still fits.
    """
    casts = []
    for name in list(graph.tensors):
        origin = name
        while origin not in narrow and DERIVED.search(origin):
            origin = DERIVED.sub("", origin)
        values = graph.array(name)
        if origin not in narrow or values.dtype != np.int8:
            continue
        kind = narrow[origin]
        stored = values.astype(helper.tensor_dtype_to_np_dtype(kind))
        if np.array_equal(stored.astype(np.int8), values):
            del graph.tensors[name]
            packed = graph.put(f"{name}_stored", stored)
            casts.append(helper.make_node("Cast", [packed], [name], to=onnx.TensorProto.INT8))
    graph.nodes[:0] = casts


def _rename(graph: onnx.GraphProto) -> dict[str, str]:
    """Take the optimizer's marks off names, stack1.conv2_token_7 -> stack1.conv2; returns {old: new} of tensors."""
    tensors = [*(name for node in graph.node for name in node.output), *(tensor.name for tensor in graph.initializer)]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    new = _without_marks([name for name in tensors if name not in fixed], fixed)
    nodes = _without_marks([node.name for node in graph.node], set())
    for node in graph.node:
        node.name = nodes.get(node.name, "")
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    return new


def _without_marks(names: list[str], taken: set[str]) -> dict[str, str]:
    """{name: the name without mark, with a number where that is taken}."""
    new: dict[str, str] = {}
    taken = set(taken)
    for name in filter(None, dict.fromkeys(names)):  # an empty name means none
        plain = re.sub(r"(_token_\d+|_q_to_dq|/duplicated|_QuantizeLinear_Output)+$", "", name) or "unnamed"
        candidate, count = plain, 1
        while candidate in taken:
            count += 1
            candidate = f"{plain}_{count}"
        taken.add(candidate)
        new[name] = candidate
    return new


def shapes_of(model: onnx.ModelProto, names: list[str], batch: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of ``model`` for an input ``batch``, found by running it.

    Args:
        model: as ``fuse`` makes it.
        names: of tensors; the input's own may be among them.
        batch: for the model's only input.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    made = {name for node in probe.graph.node for name in node.output}
    wanted = [name for name in names if name in made]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = new_session(probe.SerializeToString(), level="none")
    name = session.get_inputs()[0].name
    found = session.run(wanted, {name: batch})
    return {name: batch.shape} | {name: tuple(array.shape) for name, array in zip(wanted, found, strict=True)}
