"""A model that never ends."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.graphs import runtime


def endless():
    """A session of a model that adds 1 to its input for as long as it may."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "one"], ["next"]), helper.make_node("Identity", ["c"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)],
        "net",
        [value("x", TensorProto.FLOAT, ["N", 2])],
        [value("y", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array(array), name)
            for name, array in (("trips", 2**62), ("true", True), ("one", np.float32(1)))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return runtime.new_session(model.SerializeToString())
