"""Models at later opsets."""

import numpy as np
from onnx.parser import parse_model

from resnet8_quant.graphs.opset import at_least_opset
from resnet8_quant.graphs.runtime import new_session


def test_the_model_means_the_same_at_a_later_opset():
    """Softmax changed its meaning with opset 13: the graph is rewritten; MatMul did not: only the number is raised."""

    def one(node, opset):
        return parse_model(f"""<ir_version: 7, opset_import: ["": {opset}]>
            one (float[2, 2] x, float[2, 2] y) => (float[2, 2] z) {{ z = {node} }}""")

    feed = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "y": np.eye(2, dtype=np.float32)}
    for node in ("Softmax <axis = 0> (x)", "Softmax (x)", "MatMul (x, y)", "ReduceMean <axes = [1]> (x)"):
        old = one(node, 12)
        new = at_least_opset(old, 25)
        assert (new.opset_import[0].version, new.ir_version) == (25, 13)
        assert old.opset_import[0].version == 12
        np.testing.assert_allclose(
            *(new_session(m.SerializeToString()).run(None, feed)[0] for m in (new, old)), rtol=1e-6
        )
    assert at_least_opset(one("MatMul (x, y)", 25), 21).opset_import[0].version == 25
