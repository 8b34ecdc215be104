"""What ONNX Runtime's optimizer leaves is written down under the model's own names, for any processor."""

import numpy as np
import onnx
import pytest
from deployed import NETS, PAD, TARGETS, assert_same_integers, build, operators, pictures, plain, predictions, rewritten
from onnx.parser import parse_model

from resnet8_quant.deploy.fuse import fuse


def test_no_blocked_layout_is_stored():
    """What stays float would get one of this processor; a float model has nothing else."""
    model = build(**NETS["residual"])
    fused = fuse(model.proto())[0].finish()
    assert {node.domain for node in fused.graph.node} <= {"", "com.microsoft"}
    assert {entry.domain for entry in fused.opset_import} <= {"", "com.microsoft"}
    fused_outputs, expected = (
        predictions(proto, model.input_spec, pictures(model)) for proto in (fused, model.serialized)
    )
    np.testing.assert_allclose(fused_outputs, expected, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_an_operator_that_stays_float(target):
    """Elu has no integer kernel: it runs between a DequantizeLinear and a QuantizeLinear, as in the plain model."""
    model = build(((16, 3, PAD), (8, 3, PAD)), activation="Elu")
    _, models = assert_same_integers(plain(model, "int8"), model.input_spec, pictures(model), [target])
    assert operators(models[target]).count("Elu") == 2
    assert operators(models[target]).count("QLinearConv") == 2


def test_names_that_look_like_marks_stay_apart():
    """Two tensors whose names differ in an optimizer's mark only."""
    model = parse_model("""<ir_version: 10, opset_import: ["": 21]>
        net (float[batch, 3] image) => (float[batch, 3] scores_token_3) <float[3] w = {1, 2, 3}> {
            [a_token_1] x_token_1 = Sigmoid (image)
            [a_token_2] x_token_2 = Tanh (x_token_1)
            [a] sum = Add (x_token_1, x_token_2)
            [last] scores_token_3 = Mul (sum, w)
        }""")
    graph, low_bit = fuse(model)
    assert low_bit == {}
    fused = graph.finish()
    assert [node.name for node in fused.graph.node] == ["a", "a_2", "a_3", "last"]
    assert [node.output[0] for node in fused.graph.node] == ["x", "x_2", "sum", "scores_token_3"]
    onnx.checker.check_model(fused, full_check=True)


@pytest.mark.parametrize("name", ["rows move", "rows move, transposed", "no pool", "MatMul, no pool"])
def test_rows_are_moved_instead_of_pixels(name):
    """Where there is a QGemm, not a MatMul. That the integers stay the same is shown in test_deploy."""
    model = build(**NETS[name])
    deployed, _ = rewritten(plain(model, "int8"), "x86", model.input_spec)
    assert ("Transpose" in operators(deployed)) == ("MatMul" in name)
