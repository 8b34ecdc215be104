"""The graph under change: what is found, replaced and dropped; the model that it came from stays as it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_graph, parse_model

from resnet8_quant.graphs.graph import Graph, at_least_opset, attributes
from resnet8_quant.graphs.runtime import new_session


@pytest.fixture
def model():
    """A Cast-ed weight, listed as an input as in old models; a second consumer of the Relu that nobody needs."""
    return parse_model("""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        net (int8[3] w, float[batch, 3] image) => (float[batch, 3] scores)
        <int8[3] w = {1, -2, 3}, double[1] unused = {0}, float[batch, 3] hidden> {
            weight = Cast <to = 1> (w)
            [relu] hidden = Relu (image)
            unread = Neg (hidden)
            [mul] scores = Mul (hidden, weight)
        }""")


def test_ends_readers_and_makers(model):
    graph = Graph(model)
    assert (graph.input.name, graph.output.name) == ("image", "scores")
    assert graph.producer("hidden").name == "relu"
    assert graph.producer("image") is None
    assert [node.op_type for node in graph.consumers("hidden")] == ["Neg", "Mul"]
    assert [graph.stored(name) for name in ("w", "weight", "hidden", "image")] == ["w", "w", "", ""]
    assert attributes(graph.producer("weight")) == {"to": TensorProto.FLOAT}


def test_what_nobody_reads_goes(model):
    finished = Graph(model).finish()
    assert [node.op_type for node in finished.graph.node] == ["Cast", "Relu", "Mul"]
    assert [tensor.name for tensor in finished.graph.initializer] == ["w"]
    assert [entry.domain for entry in finished.opset_import] == [""]
    assert not finished.graph.value_info  # shapes and types that may have changed
    onnx.checker.check_model(finished, full_check=True)


def test_a_name_is_taken_once(model):
    graph = Graph(model)
    assert graph.add_initializer("w", np.array([1, -2, 3], np.int8)) == "w"
    assert graph.add_initializer("w", np.array([1, -2, 3], np.float32)) == "w_"
    assert graph.add_initializer("w", np.array([[1, -2, 3]], np.int8)) == "w__"
    assert graph.add_initializer("w", np.array([1, -2, 3], np.float32)) == "w_"
    for name in ("image", "scores", "hidden"):
        assert graph.add_initializer(name, np.ones(1)) == f"{name}_"
    for name, unique in (("w", "w___"), ("hidden", "hidden__"), ("new", "new"), ("new", "new_")):
        assert graph.unique_name(name) == unique
    assert graph.add_initializer("new", np.ones(1)) == "new__"
    strided = np.arange(6, dtype=np.int8).reshape(2, 3).T
    np.testing.assert_array_equal(graph.array(graph.add_initializer("turned", strided)), strided)


def test_nodes_go_where_they_are_put(model):
    before = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    relu = graph.producer("hidden")
    graph.insert_before(relu, helper.make_node("Abs", ["image"], ["positive"]))
    graph.replace(relu, helper.make_node("Sqrt", ["positive"], ["root"]))
    graph.insert_after(graph.producer("root"), helper.make_node("Exp", ["root"], ["hidden"]))
    assert [node.op_type for node in graph.nodes] == ["Cast", "Abs", "Sqrt", "Exp", "Neg", "Mul"]
    onnx.checker.check_model(graph.finish(), full_check=True)
    assert model.SerializeToString(deterministic=True) == before


def test_rerouting_and_renaming_reach_every_consumer(model):
    graph = Graph(model)
    graph.rename({"hidden": "h", "w": "v", "scores": "old"})
    assert [list(node.input) for node in graph.nodes] == [["v"], ["image"], ["h"], ["h", "weight"]]
    assert list(graph.initializers) == ["v", "unused"]
    assert graph.output.name == "scores"
    graph.rename({"old": "scores"})
    graph.reroute("h", "image")
    assert graph.consumers("h") == []
    assert [node.op_type for node in graph.finish().graph.node] == ["Cast", "Mul"]
    graph.reroute("weight", "image")
    assert [value.name for value in graph.finish().graph.input] == ["image"]  # the initializer goes, its input too


def test_pruning_frees_names(model):
    graph = Graph(model)
    graph.prune()
    assert [graph.unique_name(name) for name in ("unread", "unused", "hidden")] == ["unread", "unused", "hidden_"]


def test_constants_and_types_of_integers(model):
    graph = Graph(model)
    assert graph.constants() == {"w", "unused", "weight"}
    quantize = helper.make_node("QuantizeLinear", ["image", "scale"], ["q"])
    assert graph.quantized_dtype(quantize) == TensorProto.UINT8
    quantize.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT16))
    assert graph.quantized_dtype(quantize) == TensorProto.INT16
    quantize.input.append("w")
    assert graph.quantized_dtype(quantize) == TensorProto.INT8


def test_what_a_subgraph_reads_from_around_it_stays(model):
    inner = parse_graph("branch () => (float[batch, 3] negative) { negative = Neg (unread) }")
    graph = Graph(model)
    graph.initializers["condition"] = numpy_helper.from_array(np.array(True), "condition")
    choice = helper.make_node("If", ["condition"], ["scores"], then_branch=inner, else_branch=inner)
    graph.replace(graph.producer("scores"), choice)
    assert [node.op_type for node in graph.finish().graph.node] == ["Relu", "Neg", "If"]


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
