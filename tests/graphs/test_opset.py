"""Models at later opsets."""

import numpy as np
from onnx import TensorProto, helper

from resnet8_quant.graphs.opset import at_least_opset
from resnet8_quant.graphs.runtime import new_session


def test_the_model_means_the_same_at_a_later_opset():
    """Softmax changed its meaning with opset 13: the graph is rewritten; MatMul did not: only the number is raised."""

    def one(kind, opset, **attributes):
        graph = helper.make_graph(
            [helper.make_node(kind, ["x", "y"][: 1 + (kind == "MatMul")], ["z"], **attributes)],
            "one",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 2])],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)

    feed = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "y": np.eye(2, dtype=np.float32)}
    for kind, attributes in (("Softmax", {"axis": 0}), ("Softmax", {}), ("MatMul", {}), ("ReduceMean", {"axes": [1]})):
        old = one(kind, 12, **attributes)
        new = at_least_opset(old, 25)
        assert (new.opset_import[0].version, new.ir_version) == (25, 13)
        assert old.opset_import[0].version == 12
        np.testing.assert_allclose(
            *(new_session(m.SerializeToString()).run(None, feed)[0] for m in (new, old)), rtol=1e-6
        )
    assert at_least_opset(one("MatMul", 25), 21).opset_import[0].version == 25
