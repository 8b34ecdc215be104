"""Compact models: ONNX Runtime's answers and kernels before and after are the same, and the file is smaller."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Config, DType, Format, QuantConfig
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.compact import MICROSOFT_DEFAULTS, compact
from resnet8_quant.quantizer.contents import read_contents
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerPlan, Plan, QuantizedWeight
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme
from resnet8_quant.quantizer.quantize import quantize

LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)


def outputs(model, feed):
    """Every output at both ends of optimization."""
    found = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, feed))
    return found


def with_few_bits(float_model, original, grids, bits, activation_bits):
    """Weights rounded to nearest, signed, per channel; all activations on grids of ``activation_bits``."""
    graph = float_model.proto().graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scheme = QuantScheme(DType.uint8, 0, 2**activation_bits - 1, False)
    grids = {
        name: QuantParams.of_range(np.float32(grid.low), np.float32(grid.high), scheme) for name, grid in grids.items()
    }
    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        source, name, bias = node.input
        axis = 0 if node.op_type == "Conv" else 1
        shape = [-1 if i == axis else 1 for i in range(arrays[name].ndim)]
        largest = np.abs(arrays[name]).max(tuple(i for i in range(len(shape)) if i != axis))
        scale = (largest / (2 ** (bits - 1) - 1)).astype(np.float32)
        integers = np.rint(arrays[name] / scale.reshape(shape)).astype(np.int8)
        zero = np.zeros(scale.shape, np.int8)
        weight = QuantizedWeight(name, integers, scale, zero, axis, bits, DType[f"int{bits}"])
        layers.append(LayerPlan(node.output[0], source, grids[source], weight, arrays[bias].astype(np.float64)))
    return emit(original, Plan(tuple(layers), grids, DType.uint8))


@pytest.fixture(scope="module")
def bundled(model, images):
    """{what: the bundled ResNet8 so quantized}."""

    def make(**options):
        return quantize(model, images, Config(QuantConfig(**options)))

    u8s8 = make(activation_type=DType.uint8, per_channel=True)
    original = onnx.load_from_string(u8s8.serialized)
    grids = u8s8.calibration.params
    return {
        "float": model.proto(),
        "int8": original,
        "int8 symmetric": onnx.load_from_string(make(activation_symmetric=True).serialized),
        "QOperator": onnx.load_from_string(
            make(activation_type=DType.uint8, per_channel=True, format=Format.QOperator).serialized
        ),
        "w4": with_few_bits(model, original, grids, 4, 8),
        "w2": with_few_bits(model, original, grids, 2, 8),
        "w4a4": with_few_bits(model, original, grids, 4, 4),
    }


@pytest.fixture(scope="module")
def feed(model):
    return {model.input_spec.name: model.input_spec.prepare(load_sample().test.images[:50])}


@pytest.mark.parametrize(
    ("what", "at_most"),
    [
        ("float", 312_000),
        ("int8", 85_100),
        ("int8 symmetric", 82_700),
        ("QOperator", 84_000),
        ("w4", 46_700),
        ("w2", 27_400),
        ("w4a4", 47_100),
    ],
)
def test_the_same_answers_and_kernels_in_fewer_bytes(bundled, feed, what, at_most):
    before = bundled[what]
    untouched = before.SerializeToString(deterministic=True)
    after = compact(before)
    assert before.SerializeToString(deterministic=True) == untouched
    for old, new in zip(outputs(before, feed), outputs(after, feed), strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)
    assert kernel_report(after.SerializeToString(), 1) == kernel_report(untouched, 1)
    assert after.ByteSize() <= at_most
    assert compact(after).SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    found, expected = read_contents(after), read_contents(before)
    assert found.operators == expected.operators
    assert [(layer.weight_bits, layer.activation_bits, layer.per_channel) for layer in found.layers] == [
        (layer.weight_bits, layer.activation_bits, layer.per_channel) for layer in expected.layers
    ]
    assert (found.weight_type, found.activation_type) == (expected.weight_type, expected.activation_type)
    onnx.shape_inference.infer_shapes(after, strict_mode=True)


def test_inputs_and_outputs_keep_their_names_and_all_else_is_short(bundled):
    before, after = bundled["w4"].graph, compact(bundled["w4"]).graph
    for old, new in ((before.input, after.input), (before.output, after.output)):
        assert [value.name for value in old] == [value.name for value in new]
        assert [value.type for value in old] == [value.type for value in new]
    ends = {value.name for value in (*after.input, *after.output)}
    names = {name for node in after.node for name in (*node.input, *node.output)} - ends
    assert max(map(len, names)) <= 2
    assert not any(node.name or node.doc_string for node in after.node)
    assert {tensor.name for tensor in after.initializer} <= names


def one(nodes, tensors, kind=TensorProto.FLOAT, opset=21):
    """A model from ``a`` [2, 3, 4, 4] to ``out``."""
    graph = helper.make_graph(
        nodes,
        "a long name for a graph",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 3, 4, 4])],
        [helper.make_tensor_value_info("out", kind, ["n", "c", "h", "w"])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


A = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)


def test_identical_tensors_are_shared_unless_their_type_or_shape_differs():
    ones = np.ones(1, np.float32)
    tensors = [
        numpy_helper.from_array(ones, "nobody reads it"),
        numpy_helper.from_array(ones, "first"),
        helper.make_tensor("second", TensorProto.FLOAT, [1], [1.0]),  # stored as a list of floats, not as raw bytes
        numpy_helper.from_array(ones.reshape(1, 1), "another shape"),
        numpy_helper.from_array(ones.view(np.int32), "another type"),
    ]
    nodes = [
        helper.make_node("Add", ["a", "first"], ["x"]),
        helper.make_node("Add", ["x", "second"], ["y"]),
        helper.make_node("Add", ["y", "another shape"], ["z"]),
        helper.make_node("Cast", ["another type"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["z", "cast"], ["out"]),
    ]
    before = one(nodes, tensors)
    after = compact(before)
    assert len(after.graph.initializer) == 3
    np.testing.assert_array_equal(outputs(after, {"a": A})[0][0], outputs(before, {"a": A})[0][0])
    assert "a" not in {name for node in after.graph.node for name in node.output}  # the input's name stays its own


def test_attributes_go_only_where_they_say_the_default():
    rng = np.random.default_rng(2)
    weight = numpy_helper.from_array(rng.normal(size=(3, 3, 3, 3)).astype(np.float32), "w")
    plain = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 1, "kernel_shape": [3, 3]}
    other = {"strides": [2, 2], "dilations": [1, 1], "pads": [1] * 4, "group": 1, "kernel_shape": [3, 3]}
    cases = [
        (helper.make_node("Conv", ["a", "w"], ["out"], **plain), set()),
        (helper.make_node("Conv", ["a", "w"], ["out"], **other), {"strides", "pads"}),
        (helper.make_node("AveragePool", ["a"], ["out"], kernel_shape=[2, 2], ceil_mode=0), {"kernel_shape"}),
        (helper.make_node("Softmax", ["a"], ["out"], axis=-1), set()),
        (helper.make_node("Softmax", ["a"], ["out"], axis=1), {"axis"}),
        (helper.make_node("LeakyRelu", ["a"], ["out"], alpha=0.01), set()),
        (helper.make_node("Transpose", ["a"], ["out"], perm=[0, 1, 2, 3]), {"perm"}),  # the default reverses
    ]
    for node, kept in cases:
        before = one([node], [weight] if "w" in node.input else [])
        after = compact(before)
        assert {attribute.name for attribute in after.graph.node[0].attribute} == kept, node.op_type
        np.testing.assert_array_equal(outputs(after, {"a": A})[0][0], outputs(before, {"a": A})[0][0])


def test_the_defaults_of_onnxruntimes_operators_are_its_own():
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known = {schema.name: schema.attributes for schema in get_all_operator_schema() if schema.domain == "com.microsoft"}
    for operator, defaults in MICROSOFT_DEFAULTS.items():
        for name, value in defaults.items():
            default = onnx.AttributeProto.FromString(known[operator][name]._default_value)
            assert helper.get_attribute_value(default) == value, (operator, name)


@pytest.mark.parametrize("computed", [False, True])
def test_a_fused_convolution_needs_no_kernel_shape_unless_its_weights_are_computed(computed):
    rng = np.random.default_rng(2)
    tensors = [
        numpy_helper.from_array(rng.integers(0, 99, (3, 3, 3, 3)).astype(np.int8), "w"),
        numpy_helper.from_array(np.int8(0), "weight zero"),
        numpy_helper.from_array(np.uint8(9), "zero"),
        numpy_helper.from_array(np.float32(0.1), "scale"),
    ]
    nodes = [helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"])]
    if computed:
        nodes.append(helper.make_node("Concat", ["w"], ["v"], axis=0))
    plain = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 1, "kernel_shape": [3, 3]}
    weight = ["v" if computed else "w", "scale", "weight zero"]
    inputs = ["q", "scale", "zero", *weight, "scale", "zero"]
    options = {**plain, "auto_pad": "NOTSET", "channels_last": 0, "domain": "com.microsoft"}
    nodes += [
        helper.make_node("QLinearConv", inputs, ["c"], **options),
        helper.make_node("DequantizeLinear", ["c", "scale", "zero"], ["out"]),
    ]
    before = one(nodes, tensors)
    before.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after = compact(before)
    kept = {attribute.name for attribute in after.graph.node[-2].attribute}
    assert kept == ({"channels_last", "kernel_shape"} if computed else {"channels_last"})
    for old, new in zip(outputs(before, {"a": A}), outputs(after, {"a": A}), strict=True):
        np.testing.assert_array_equal(old[0], new[0])


@pytest.mark.parametrize(("zero", "dropped"), [([0, 0, 0], True), ([0, 1, 0], False)])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_zero_points_of_weights_go_only_where_they_are_zero(zero, dropped, kind):
    rng = np.random.default_rng(2)
    tensors = [
        numpy_helper.from_array(rng.integers(0, 99, (3, 3, 1, 1)).astype(kind), "w"),
        numpy_helper.from_array(np.float32([0.5, 0.25, 1]), "scale"),
        numpy_helper.from_array(np.array(zero, kind), "zero"),
        numpy_helper.from_array(np.array(0, kind), "activation zero"),
        numpy_helper.from_array(np.float32(0.1), "activation scale"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "activation scale", "activation zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "activation scale", "activation zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["v"], axis=0),
        helper.make_node("Conv", ["x", "v"], ["out"]),
    ]
    before = one(nodes, tensors)
    after = compact(before)
    assert [len(node.input) for node in after.graph.node] == [3, 3, 2 if dropped else 3, 2]
    for old, new in zip(outputs(before, {"a": A}), outputs(after, {"a": A}), strict=True):
        np.testing.assert_array_equal(old[0], new[0])


def test_text_and_unused_operator_sets_go():
    before = one([helper.make_node("Relu", ["a"], ["out"], name="n", doc_string="d")], [])
    before.producer_name, before.doc_string, before.model_version = "p", "d", 7
    before.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    before.metadata_props.add(key="k", value="v")
    after = compact(before)
    assert [entry.domain for entry in after.opset_import] == [""]
    assert not any((after.producer_name, after.doc_string, after.model_version, after.metadata_props))
    assert after.ByteSize() < before.ByteSize() / 2 + 60


def test_a_subgraph_keeps_the_names_that_it_refers_to():
    inner = helper.make_graph(
        [helper.make_node("Add", ["long", "offset"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 3, 4, 4])],
    )
    tensors = [numpy_helper.from_array(np.float32(2), "offset"), numpy_helper.from_array(np.array(True), "condition")]
    nodes = [
        helper.make_node("Relu", ["a"], ["long"]),
        helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner),
    ]
    before = one(nodes, tensors)
    np.testing.assert_array_equal(outputs(compact(before), {"a": A})[0][0], np.maximum(A, 0) + 2)
