"""Compact models: ONNX Runtime's answers and kernels before and after are the same, and the file is smaller."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from resnet8_quant.config import Config, DType, Format, QuantConfig
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.graphs.compact import MICROSOFT_DEFAULTS, compact
from resnet8_quant.graphs.quantization_summary import summarize
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.quantize import quantize

A = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
UNSIGNED = {"activation_type": DType.uint8, "per_channel": True}
BUNDLED = {  # the bundled ResNet8 so quantized, and the bytes of its compact file at most
    "int8": ({}, 85_100),
    "int8 symmetric": ({"activation_symmetric": True}, 82_700),
    "QOperator": (UNSIGNED | {"format": Format.QOperator}, 84_000),
    "w4": (UNSIGNED | {"weight_bits": 4}, 46_700),
    "w2": (UNSIGNED | {"weight_bits": 2}, 27_400),
    "w4a4": (UNSIGNED | {"weight_bits": 4, "activation_bits": 4}, 47_200),
}


def outputs(model, feed=A):
    """Every output at both ends of optimization."""
    sessions = [new_session(model.SerializeToString(), level=level) for level in ("none", "all")]
    return [session.run(None, {model.graph.input[0].name: feed}) for session in sessions]


@pytest.mark.parametrize("what", ["float", *BUNDLED])
def test_the_same_answers_and_kernels_in_fewer_bytes(model, images, what):
    options, at_most = BUNDLED.get(what, (None, 312_000))
    before = model.proto()
    if options is not None:
        before = onnx.load_from_string(quantize(model, images, Config(QuantConfig(**options))).serialized)
    untouched = before.SerializeToString(deterministic=True)
    after = compact(before)
    assert before.SerializeToString(deterministic=True) == untouched
    assert_same_outputs(before, after, model.input_spec.prepare(load_sample().test.images[:50]))
    assert kernel_report(after.SerializeToString(), 1) == kernel_report(untouched, 1)
    assert after.ByteSize() <= at_most
    assert compact(after).SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    onnx.shape_inference.infer_shapes(after, strict_mode=True)

    # What is quantized stays; fewer bytes are shared tensors and zero points of biases.
    summary, expected = summarize(after), summarize(before)
    assert summary.weight_payload_bytes <= expected.weight_payload_bytes
    same = {"weight_payload_bytes": 0, "layers": ()}
    assert dataclasses.replace(summary, **same) == dataclasses.replace(expected, **same)
    for layer, other in zip(summary.layers, expected.layers, strict=True):
        assert layer == dataclasses.replace(other, output=layer.output, weight=layer.weight)

    # Inputs and outputs keep their names, and all else is short.
    ends = [[(value.name, value.type) for value in (*m.graph.input, *m.graph.output)] for m in (before, after)]
    assert ends[0] == ends[1]
    names = {name for node in after.graph.node for name in (*node.input, *node.output)} - {name for name, _ in ends[1]}
    assert max(map(len, names)) <= 2
    assert not any(node.name or node.doc_string for node in after.graph.node)
    assert {tensor.name for tensor in after.graph.initializer} <= names


def one(nodes, *tensors, **arrays):
    """A model from ``a`` [2, 3, 4, 4] to ``out``, from nodes as text."""
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        a_long_name_for_a_graph (float[2, 3, 4, 4] a) => (float[n, c, h, w] out) {{ {nodes} }}""")
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    model.graph.initializer.extend([*tensors, *stored])
    return model


def assert_same_outputs(before, after, feed=A):
    for old, new in zip(outputs(before, feed), outputs(after, feed), strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)


def test_identical_tensors_are_shared_unless_their_type_or_shape_differs():
    ones = np.ones(1, np.float32)
    arrays = {"nobody_reads_it": ones, "first": ones, "shape": ones.reshape(1, 1), "type": ones.view(np.int32)}
    second = helper.make_tensor("second", TensorProto.FLOAT, [1], [1.0])  # stored as a list of floats, not as raw bytes
    nodes = """x = Add (a, first) y = Add (x, second) z = Add (y, shape) cast = Cast <to = 1> (type)
        out = Add (z, cast)"""
    before = one(nodes, second, **arrays)
    after = compact(before)
    assert len(after.graph.initializer) == 3
    assert_same_outputs(before, after)
    assert "a" not in {name for node in after.graph.node for name in node.output}  # the input's name stays its own


PLAIN = "strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0], group = 1, kernel_shape = [3, 3]"


@pytest.mark.parametrize(
    ("node", "kept"),
    [
        (f"Conv <{PLAIN}> (a, w)", set()),
        (f"Conv <{PLAIN.replace('s = [1, 1], d', 's = [2, 2], d')}> (a, w)", {"strides"}),
        (f"Conv <{PLAIN.replace('0', '1')}> (a, w)", {"pads"}),
        ("AveragePool <kernel_shape = [2, 2], ceil_mode = 0> (a)", {"kernel_shape"}),
        ("Softmax <axis = -1> (a)", set()),
        ("Softmax <axis = 1> (a)", {"axis"}),
        ("LeakyRelu <alpha = 0.01> (a)", set()),
        ("Transpose <perm = [0, 1, 2, 3]> (a)", {"perm"}),  # the default reverses
    ],
)
def test_attributes_go_only_where_they_say_the_default(node, kept):
    weight = np.random.default_rng(2).normal(size=(3, 3, 3, 3)).astype(np.float32)
    before = one(f"out = {node}", w=weight)
    after = compact(before)
    assert {attribute.name for attribute in after.graph.node[0].attribute} == kept
    assert_same_outputs(before, after)


def test_the_defaults_of_onnxruntimes_operators_are_its_own():
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known = {schema.name: schema.attributes for schema in get_all_operator_schema() if schema.domain == "com.microsoft"}
    for operator, defaults in MICROSOFT_DEFAULTS.items():
        for name, value in defaults.items():
            default = onnx.AttributeProto.FromString(known[operator][name]._default_value)
            assert helper.get_attribute_value(default) == value, (operator, name)


@pytest.mark.parametrize("computed", [False, True])
def test_a_fused_convolution_needs_no_kernel_shape_unless_its_weights_are_computed(computed):
    w = np.random.default_rng(2).integers(0, 99, (3, 3, 3, 3)).astype(np.int8)
    weight = "v" if computed else "w"
    nodes = f"""q = QuantizeLinear (a, s, z) {"v = Concat <axis = 0> (w)" if computed else ""}
        c = com.microsoft.QLinearConv <{PLAIN}, auto_pad = "NOTSET", channels_last = 0> (q, s, z, {weight}, s, wz, s, z)
        out = DequantizeLinear (c, s, z)"""
    before = one(nodes, w=w, wz=np.int8(0), z=np.uint8(9), s=np.float32(0.1))
    after = compact(before)
    kept = {attribute.name for attribute in after.graph.node[-2].attribute}
    assert kept == ({"channels_last", "kernel_shape"} if computed else {"channels_last"})
    assert_same_outputs(before, after)


@pytest.mark.parametrize(("zero", "dropped"), [([0, 0, 0], True), ([0, 1, 0], False)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_zero_points_of_weights_go_only_where_they_are_zero(zero, dropped, dtype):
    w = np.random.default_rng(2).integers(0, 99, (3, 3, 1, 1)).astype(dtype)
    zeros = {"wz": np.array(zero, dtype), "z": dtype(0)}
    nodes = """q = QuantizeLinear (a, s, z) x = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = 0> (w, ws, wz)
        out = Conv (x, v)"""
    before = one(nodes, w=w, ws=np.float32([0.5, 0.25, 1]), s=np.float32(0.1), **zeros)
    after = compact(before)
    assert [len(node.input) for node in after.graph.node] == [3, 3, 2 if dropped else 3, 2]
    assert_same_outputs(before, after)


def test_text_and_unused_opsets_go():
    before = one("[n] out = Relu (a)")
    before.graph.node[0].doc_string = "d"
    before.producer_name, before.doc_string, before.model_version = "p", "d", 7
    before.metadata_props.add(key="k", value="v")
    after = compact(before)
    assert [entry.domain for entry in after.opset_import] == [""]
    assert not any((after.producer_name, after.doc_string, after.model_version, after.metadata_props))
    assert not after.graph.node[0].doc_string


def test_a_subgraph_keeps_the_names_that_it_refers_to():
    branch = "b () => (float[2, 3, 4, 4] inner) { inner = Add (long, offset) }"
    nodes = f"long = Relu (a) out = If (condition) <then_branch = {branch}, else_branch = {branch}>"
    before = one(nodes, offset=np.float32(2), condition=np.array(True))
    np.testing.assert_array_equal(outputs(compact(before))[0][0], np.maximum(A, 0) + 2)
