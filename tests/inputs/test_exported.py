"""What exporters write otherwise is written in one way, and computes the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.model import load_model

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 3, 4, 4)).astype(np.float32)
DENSE = RNG.normal(size=(5, 48)).astype(np.float32) / 100


def save(path, nodes, weights):
    ends = [helper.make_tensor_value_info(*end) for end in (("x", 1, ["N", 3, 4, 4]), ("y", 1, ["N", 5]))]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), *nodes],
        "net",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


def load(path):
    return load_model(ModelConfig(kind=ModelKind.onnx, path=str(path)), (4, 4, 3), 5, path.parent)


def outputs(model):
    return new_session(model).run(None, {"x": IMAGES})[0]


def gemm(**attributes):
    return helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1, **attributes)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 5), (5,)])
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": 3.0}])
def test_gemms_are_plain(tmp_path, shape, factors):
    weights = {"w": DENSE, "b": RNG.normal(size=shape).astype(np.float32)}
    original = save(tmp_path / "net.onnx", [gemm(**factors)], weights)
    model = load(tmp_path / "net.onnx").proto()
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert dims == {node.input[1]: [5, 48], node.input[2]: [5]}
    assert {attribute.name for attribute in node.attribute} == {"transB"}
    expected = outputs(original.SerializeToString())
    np.testing.assert_allclose(outputs(model.SerializeToString()), expected, rtol=1e-5, atol=1e-5)


def test_a_bias_that_two_gemms_read_stays_for_the_other(tmp_path):
    second = helper.make_node("Gemm", ["y1", "w2", "b"], ["y"], beta=2.0)
    first = gemm()
    first.output[0] = "y1"
    weights = {"w": DENSE, "w2": np.eye(5, dtype=np.float32), "b": np.arange(5, dtype=np.float32)}
    original = save(tmp_path / "net.onnx", [first, second], weights)
    expected = outputs(original.SerializeToString())
    np.testing.assert_allclose(outputs(load(tmp_path / "net.onnx").serialized), expected, rtol=1e-5)


def test_a_gemm_that_ignores_its_input_is_refused(tmp_path):
    save(tmp_path / "net.onnx", [gemm(alpha=0.0)], {"w": DENSE, "b": np.zeros(5, np.float32)})
    with pytest.raises(ExperimentError, match="Gemm 'y' has alpha 0"):
        load(tmp_path / "net.onnx")


def test_float16_becomes_float32(tmp_path):
    """Weights, constants and casts; what is left has the outputs of the same weights in float32."""
    nodes = [
        helper.make_node("Cast", ["flat"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float16(0.5))),
        helper.make_node("Mul", ["half", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w", "b"], ["y16"], transB=1),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {"w": DENSE.astype(np.float16), "b": np.arange(5, dtype=np.float16)}
    save(tmp_path / "net.onnx", nodes, weights)
    model = load(tmp_path / "net.onnx")
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in model.proto().graph.initializer}
    assert "Cast" not in {node.op_type for node in model.proto().graph.node}
    flat = IMAGES.reshape(3, 48) * np.float32(0.5)
    expected = flat @ weights["w"].astype(np.float32).T + weights["b"].astype(np.float32)
    np.testing.assert_allclose(outputs(model.serialized), expected, rtol=1e-5)


def test_text_leaves_the_file(tmp_path):
    weights = {"w": DENSE, "b": np.zeros(5, np.float32)}
    plain = save(tmp_path / "net.onnx", [gemm()], weights)
    expected = load(tmp_path / "net.onnx").serialized
    for part in (plain, plain.graph, *plain.graph.node, *plain.graph.initializer, *plain.graph.input):
        part.doc_string = "where it came from " * 100
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File ... line 1" * 100)
    onnx.save(plain, tmp_path / "talkative.onnx")
    assert load(tmp_path / "talkative.onnx").serialized == expected
