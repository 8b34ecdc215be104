"""PyTorch computes what ONNX Runtime computes: each operator, whole networks, the bundled model."""

import numpy as np
import pytest
from nets import NETS, OFF, branching, net, run, run_nodes
from onnx import helper

pytest.importorskip("torch", reason="needs the extra [distill]")
import torch

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.refine.torch_graph import OPERATORS, TorchGraph

RNG = np.random.default_rng(3)
X = RNG.normal(size=(3, 4, 9, 8)).astype(np.float32)
MATRIX = RNG.normal(size=(3, 6)).astype(np.float32)


def weight(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# operator and what is special -> inputs, attributes
CASES = {
    "Add": ([X, X[:1]], {}),
    "AveragePool": ([X], {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "AveragePool padded": ([X], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1]}),
    "AveragePool SAME_UPPER": ([X], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "AveragePool counted": ([X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "Cast": ([np.arange(6).astype(np.int8)], {"to": 7}),
    "Clip": ([X, np.float32(-0.5), np.float32(1)], {}),
    "Clip above": ([X, None, np.float32(1)], {}),
    "Concat": ([X, X * 2], {"axis": 1}),
    "Constant": ([], {"value_floats": [1.0, 2.0]}),
    "Conv": ([X, weight(5, 4, 3, 3), weight(5)], {"pads": [1, 1, 1, 1]}),
    "Conv uneven": ([X, weight(5, 4, 3, 2)], {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    "Conv SAME_LOWER": ([X, weight(5, 4, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "Conv depthwise": ([X, weight(8, 1, 3, 3)], {"group": 4, "dilations": [2, 2]}),
    "DequantizeLinear": (
        [np.arange(8).reshape(2, 4).astype(np.int8), np.float32([0.5, 2]), np.int8([0, 3])],
        {"axis": 0},
    ),
    "Div": ([X, np.float32(3)], {}),
    "Flatten": ([X], {}),
    "Gemm": ([MATRIX, weight(5, 6), weight(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm turned": ([MATRIX, weight(3, 5)], {"transA": 1}),
    "GlobalAveragePool": ([X], {}),
    "HardSigmoid": ([X], {"alpha": 0.3}),
    "HardSwish": ([X * 3], {}),
    "Identity": ([X], {}),
    "LeakyRelu": ([X], {"alpha": 0.2}),
    "MatMul": ([MATRIX, weight(6, 5)], {}),
    "MaxPool": ([X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "Mul": ([X, weight(4, 1, 1)], {}),
    "ReduceMean": ([X, np.int64([2, 3])], {"keepdims": 0}),
    "Relu": ([X], {}),
    "Reshape": ([X, np.int64([0, -1, 4])], {}),
    "Sigmoid": ([X], {}),
    "Softmax": ([X], {"axis": 1}),
    "Squeeze": ([X[:, :1], np.int64([1])], {}),
    "Sub": ([X, X[:1]], {}),
    "Sum": ([X, X[:1], X * 2], {}),
    "Tanh": ([X], {}),
    "Transpose": ([X], {"perm": [0, 2, 3, 1]}),
    "Transpose all": ([X], {}),
    "Unsqueeze": ([X, np.int64([-1, 1])], {}),
}


def tensor(array):
    return (
        None
        if array is None
        else torch.from_numpy(np.asarray(array, np.float32 if array.dtype.kind == "f" else np.int64))
    )


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_that_of_onnx_runtime(case):
    arrays, attributes = CASES[case]
    op_type = case.partition(" ")[0]
    names = ["" if array is None else f"i{i}" for i, array in enumerate(arrays)]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    opsets = [helper.make_opsetid("", 21)]
    feeds = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True) if name}
    expected = run_nodes([node], feeds, opsets)[0]
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    computed = OPERATORS[op_type]([tensor(array) for array in arrays], values).numpy()
    assert computed.shape == expected.shape
    np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-5)


def test_every_operator_is_tried_above():
    assert {case.partition(" ")[0] for case in CASES} == {*OPERATORS}


@pytest.mark.parametrize("name", [*NETS, "branching"])
def test_whole_networks(name):
    model = NETS[name]() if name in NETS else branching()
    feed = RNG.normal(size=(4, 2, 6, 6)).astype(np.float32)
    expected = run(model.serialized, {"image": feed}, OFF)[0]
    np.testing.assert_allclose(TorchGraph(model.proto()).run(torch.from_numpy(feed)), expected, rtol=1e-4, atol=1e-5)


def test_the_bundled_model_and_its_logits(model):
    graph = TorchGraph(model.proto())
    feed = model.input_spec.prepare(load_sample().test.images[:20])
    expected = run(model.serialized, {graph.input: feed}, OFF)[0]
    np.testing.assert_allclose(graph.run(torch.from_numpy(feed)), expected, atol=1e-5)
    logits = graph.run(torch.from_numpy(feed), graph.logits())
    np.testing.assert_allclose(torch.softmax(logits, 1), expected, atol=1e-5)


def test_a_batch_that_was_fixed_at_export():
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["scores"])]
    graph = TorchGraph(net(nodes, 4, {"scores": (72,)}, shape=np.int64([4, 72])).proto())
    assert graph.run(torch.zeros(10, 2, 6, 6)).shape == (10, 72)


def test_a_missing_operator_is_named():
    nodes = [helper.make_node("Erf", ["image"], ["e"]), helper.make_node("Flatten", ["e"], ["scores"])]
    with pytest.raises(ExperimentError, match=r"no gradient of Erf; known are Add, ") as caught:
        TorchGraph(net(nodes, outputs={"scores": (72,)}).proto())
    assert caught.value.remedy == "refine=best"
