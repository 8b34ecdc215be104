"""The graph under change: what is found, replaced and dropped; the model that it came from stays as it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.graphs.graph import Graph, attributes


@pytest.fixture
def model():
    """image -> Relu -> Cast-ed weight -> Mul -> scores; a second reader of the Relu that nobody needs."""
    nodes = [
        helper.make_node("Cast", ["w"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["image"], ["hidden"], name="relu"),
        helper.make_node("Neg", ["hidden"], ["unread"]),
        helper.make_node("Mul", ["hidden", "weight"], ["scores"], name="mul"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("w", TensorProto.INT8, [3]),  # old models list their constants
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([1, -2, 3], np.int8), "w"), numpy_helper.from_array(np.zeros(9), "unused")],
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


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


def test_the_model_is_not_changed(model):
    before = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    graph.add_initializer("w", np.ones(3, np.int8))
    graph.reroute("hidden", "image")
    graph.replace(graph.producer("scores"), helper.make_node("Neg", ["image"], ["scores"]))
    graph.finish()
    assert model.SerializeToString(deterministic=True) == before


def test_a_name_is_taken_once(model):
    graph = Graph(model)
    assert graph.add_initializer("w", np.array([1, -2, 3], np.int8)) == "w"
    assert graph.add_initializer("w", np.array([1, -2, 3], np.float32)) == "w_"
    assert graph.add_initializer("w", np.array([[1, -2, 3]], np.int8)) == "w__"
    assert graph.add_initializer("w", np.array([1, -2, 3], np.float32)) == "w_"
    assert [graph.add_initializer(name, np.ones(1)) for name in ("image", "scores", "hidden")] == [
        "image_",
        "scores_",
        "hidden_",
    ]
    assert [
        graph.unique_name("w"),
        graph.unique_name("hidden"),
        graph.unique_name("new"),
        graph.unique_name("new"),
    ] == [*("w___", "hidden__", "new", "new_")]
    assert graph.add_initializer("new", np.ones(1)) == "new__"
    strided = np.arange(6, dtype=np.int8).reshape(2, 3).T
    np.testing.assert_array_equal(graph.array(graph.add_initializer("turned", strided)), strided)


def test_replacing_keeps_the_order(model):
    graph = Graph(model)
    new = [
        helper.make_node("Abs", ["image"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["hidden"]),
    ]
    graph.replace(graph.producer("hidden"), *new)
    assert [node.op_type for node in graph.nodes] == ["Cast", "Abs", "Sqrt", "Neg", "Mul"]
    onnx.checker.check_model(graph.finish(), full_check=True)


def test_rerouting_reaches_every_reader(model):
    graph = Graph(model)
    graph.reroute("hidden", "image")
    assert graph.consumers("hidden") == []
    assert [node.op_type for node in graph.finish().graph.node] == ["Cast", "Mul"]
