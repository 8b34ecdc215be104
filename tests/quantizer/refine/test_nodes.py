"""Single nodes give what the whole model gives, in any chunks."""

import numpy as np
import onnx
import pytest
from nets import NETS, PICTURES
from onnx import helper, numpy_helper
from small_net import OFF, run

from resnet8_quant.quantizer.refine import reconstruct as module
from resnet8_quant.quantizer.refine.reconstruct import NodeRunner


def walked(model, feed, batch=None):
    """Every tensor of a model, node by node."""
    proto = model.proto()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    runner, values = NodeRunner(proto, batch, 1), {"image": feed}
    for node in proto.graph.node:
        inputs = {name: values[name] for name in node.input if name in values}
        known = {name: constants[name] for name in node.input if name in constants}
        values.update(zip(node.output, runner.run(node, inputs, known), strict=True))
    return values, runner


@pytest.mark.parametrize("case", NETS)
def test_nodes_give_what_the_model_gives(monkeypatch, case):
    model = NETS[case]()
    feed = model.input_spec.prepare(PICTURES[:12])
    whole = onnx.ModelProto()
    whole.CopyFrom(model.proto())
    names = [name for node in whole.graph.node for name in node.output]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "scores")
    batch = model.input_spec.batch or 12
    parts = [run(whole, {"image": feed[i : i + batch]}, OFF, names) for i in range(0, 12, batch)]
    for chunk in (5, 250):
        monkeypatch.setattr(module, "CHUNK", chunk)
        found, _ = walked(model, feed, model.input_spec.batch)
        for name, expected in zip(names, zip(*parts, strict=True), strict=True):
            np.testing.assert_allclose(found[name], np.concatenate(expected), rtol=1e-4, atol=1e-3, err_msg=name)


def test_a_node_is_compiled_once_for_each_shape(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)
    model = NETS["two convolutions"]()
    values, runner = walked(model, model.input_spec.prepare(PICTURES[:12]))  # chunks of 5, 5 and 2
    assert len(runner.sessions) == 2  # those of the node before are let go
    first = model.proto().graph.node[0]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer}
    known = {name: constants[name] for name in first.input[1:]}
    again = runner.run(first, {"image": values["image"]}, known)[0]
    assert len(runner.sessions) == 2
    np.testing.assert_array_equal(again, values["c1"])


def test_new_constants_need_no_new_session():
    model = helper.make_model(helper.make_graph([], "none", [], []), opset_imports=[helper.make_opsetid("", 21)])
    runner = NodeRunner(model, None, 1)
    node = helper.make_node("Add", ["x", "y"], ["z"])
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    for addend in (1, 2):
        found = runner.run(node, {"x": x}, {"y": np.full(2, addend, np.float32)})[0]
        np.testing.assert_array_equal(found, x + addend)
    assert len(runner.sessions) == 1
    np.testing.assert_array_equal(runner.run(node, {"x": x, "y": x}, {})[0], 2 * x)


def test_a_node_without_inputs_and_one_with_several_outputs():
    model = helper.make_model(helper.make_graph([], "none", [], []), opset_imports=[helper.make_opsetid("", 21)])
    runner = NodeRunner(model, 2, 1)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1, 2])))
    np.testing.assert_array_equal(runner.run(constant, {}, {})[0], [1, 2])
    split = helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    first, second = runner.run(split, {"x": x}, {})
    np.testing.assert_array_equal(np.hstack([first, second]), x)
