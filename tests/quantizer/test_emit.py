"""What emit writes: NumPy computes the emitted model from the plan alone, and ONNX Runtime agrees."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model
from small_net import (
    ALL,
    FEED,
    IMAGES,
    OFF,
    assert_optimized_agrees,
    assert_simulated,
    container_of,
    initializers,
    nearest,
    quantized,
    rounded,
    run,
    small_net,
    small_plan,
    with_integers,
)

from resnet8_quant.config import DType, Layout
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerPlan, Plan, QuantizedWeight
from resnet8_quant.quantizer.quant_params import QuantParams

PAIRS = ("image", "r1", "c2", "sum", "pool", "flat", "scores")  # tensors of the small network that are quantized


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(
    kind=st.sampled_from([DType.uint8, DType.int8]),
    bits=st.integers(2, 8),
    own_bits=st.none() | st.integers(2, 7),
    weight_bits=st.integers(2, 8),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
)
def test_a_model_computes_what_its_plan_says(base, kind, bits, own_bits, weight_bits, per_channel, symmetric):
    """Activations of ``bits``, one layer that reads a tensor in ``own_bits`` of its own, weights of ``weight_bits``."""
    symmetric = symmetric or kind is DType.int8  # no kernel takes int8 activations with uint8 weights
    model, calibration = base[kind]
    plan = small_plan(
        calibration,
        kind,
        bits,
        weight_bits=weight_bits,
        per_channel=per_channel,
        symmetric=symmetric,
        narrow=own_bits,
    )
    emitted = emit(model, plan)
    integers = assert_simulated(emitted, plan)
    assert_optimized_agrees(emitted, plan)

    # Activations stay within their bits, and what one layer reads is rounded once more from what is stored.
    for name in ("r1", "pool", "flat"):
        assert len(np.unique(integers[name])) <= 2**bits
    levels = plan.tensors["r1"]
    if weight_bits == 8:
        assert (integers["r1"].min(), integers["r1"].max()) == (levels.qmin, levels.qmax)
    if own_bits not in (None, bits):
        r1 = plan.tensors["r1"]
        floats = (integers["r1"].astype(float) - r1.zero_point) * np.float64(r1.scale)
        np.testing.assert_array_equal(integers["r1_for_c2"], rounded(floats, plan.layers[1].input_params)[1])

    # Weights are stored as planned, in the fewest bytes.
    stored = initializers(emitted)
    for layer in plan.layers:
        tensor = stored[layer.weight.name + "_quantized"]
        assert tensor.data_type == getattr(TensorProto, container_of(weight_bits, symmetric).name.upper())
        assert len(tensor.raw_data) == -(-layer.weight.codes.size * layer.weight.dtype.bits // 8)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(int), layer.weight.codes)
        zero = numpy_helper.to_array(stored[layer.weight.name + "_zero_point"])
        np.testing.assert_array_equal(zero.astype(int), layer.weight.zero_point)


def test_a_layer_may_read_a_tensor_on_a_finer_grid_of_as_many_bits(base):
    """r1 keeps its grid for the Add."""
    model, calibration = base[DType.uint8]
    plan = small_plan(calibration, DType.uint8)
    halved = replace(plan.tensors["r1"], scale=np.float32(plan.tensors["r1"].scale / 2))
    plan = replace(plan, layers=(plan.layers[0], replace(plan.layers[1], input_params=halved), plan.layers[2]))
    emitted = emit(model, plan)
    assert_simulated(emitted, plan)
    assert_optimized_agrees(emitted, plan)


def test_layers_share_a_chain_only_where_they_share_a_grid(base):
    model, calibration = base[DType.uint8]
    plan = small_plan(calibration, DType.uint8, narrow=4)
    operators = [node.op_type for node in emit(model, plan).graph.node]
    assert operators.count("QuantizeLinear") == len(PAIRS) + 1
    assert operators.count("Clip") == 1
    same = replace(plan.layers[1], input_params=plan.tensors["r1"])
    operators = [
        node.op_type for node in emit(model, replace(plan, layers=(plan.layers[0], same, plan.layers[2]))).graph.node
    ]
    assert operators.count("QuantizeLinear") == len(PAIRS)
    assert "Clip" not in operators


def test_a_grid_of_few_bits_saturates_however_far_a_value_is(base):
    model, calibration = base[DType.int8]
    plan = small_plan(calibration, DType.int8, tensor_bits=3)
    traced, names = with_integers(emit(model, plan))
    image = np.zeros((1, 2, 8, 8), np.float32)
    grid = plan.tensors["image"]
    near = np.array([grid.low, grid.high, grid.low - grid.scale, grid.high + grid.scale])
    image.flat[:8] = [*near, -3e38, 3e38, -np.inf, np.inf]
    found = run(traced, {"image": image}, outputs=[names["image"]])[0]
    np.testing.assert_array_equal(found, rounded(image, grid)[1])
    assert set(found.flat[:8]) == {grid.qmin, grid.qmax}


def plan_of(model, calibration, kind, weight_of):
    """A plan for any model of quantize_static, by what its graph says; ``weight_of``: (name, array, axis) -> weight."""
    float_model = model.proto()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in float_model.graph.initializer}
    layers = []
    for node in float_model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            axis = 0 if node.op_type == "Conv" else 1
            weight = weight_of(node.input[1], arrays[node.input[1]], axis)
            bias = arrays[node.input[2]].astype(np.float64)
            layers.append(LayerPlan(node.output[0], node.input[0], calibration.params[node.input[0]], weight, bias))
    return Plan(tuple(layers), dict(calibration.params), kind)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize(
    ("activation", "symmetric"),
    [(DType.uint8, False), (DType.int8, False), (DType.int8, True)],
    ids=["uint8", "int8", "int8-symmetric"],
)
def test_a_plan_that_repeats_quantize_static_changes_nothing(model, images, per_channel, activation, symmetric):
    options = {"per_channel": per_channel, "activation_symmetric": symmetric}
    original, calibration = quantized(model, load_sample().train.images[:24], activation, **options)
    stored = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(original).items()}

    def weight(name, array, axis):
        scale, zero = stored[f"{name}_scale"], stored[f"{name}_zero_point"]
        values = stored[f"{name}_quantized"]
        return QuantizedWeight(name, values, scale, zero, axis if scale.ndim else None, 8, DType.int8)

    before = original.SerializeToString(deterministic=True)
    plan = plan_of(model, calibration, activation, weight)
    emitted = emit(original, plan)
    assert original.SerializeToString(deterministic=True) == before
    assert emit(original, plan).SerializeToString(deterministic=True) == emitted.SerializeToString(deterministic=True)
    feed = {model.input_spec.name: model.input_spec.prepare(load_sample().test.images[:100])}
    np.testing.assert_array_equal(run(emitted, feed, ALL)[0], run(original, feed, ALL)[0])
    assert kernel_report(emitted.SerializeToString(), 1) == kernel_report(before, 1)
    names = initializers(emitted).keys()
    shared = {"flatten_scale", "flatten_zero_point"}  # quantize_static lets it use the scale of what it flattens
    assert names - shared == initializers(original).keys()


@pytest.mark.parametrize(("opset", "bits"), [(11, 8), (11, 4), (13, 2), (18, 4), (18, 8)])
def test_an_old_model_gets_the_opset_that_its_types_need(opset, bits):
    model, calibration = quantized(small_net(opset), IMAGES)
    plan = small_plan(calibration, DType.uint8, weight_bits=bits)
    emitted = emit(model, plan)
    assert emitted.opset_import[0].version == {2: 25, 4: 21, 8: max(13, opset)}[bits]
    assert_simulated(emitted, plan)
    assert_optimized_agrees(emitted, plan)


def test_matmul_on_either_side():
    """A MatMul's weight may come first; it has no bias."""
    rng = np.random.default_rng(1)
    arrays = {"left": rng.normal(size=(5, 8)), "right": rng.normal(size=(8, 4))}
    proto = parse_model("""<ir_version: 10, opset_import: ["": 21]>
        products (float[batch, 2, 8, 8] image) => (float[batch, 2, 5, 4] scores) {
            m1 = MatMul (left, image)
            scores = MatMul (m1, right)
        }""")
    weights = (numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items())
    proto.graph.initializer.extend(weights)
    input_spec = InputSpec("image", Layout.NCHW, (8, 8, 2), None, 4)
    original, calibration = quantized(FloatModel("p", proto.SerializeToString(), input_spec, "p", ""), IMAGES)
    grids = calibration.params
    left = nearest("left", arrays["left"], 4, None, True)
    right = nearest("right", arrays["right"], 4, 1, True)
    layers = (
        LayerPlan("m1", "image", grids["image"], left, None),
        LayerPlan("scores", "m1", grids["m1"], right, None),
    )
    emitted = emit(original, Plan(layers, grids, DType.uint8))
    image, _ = rounded(FEED, grids["image"])
    middle, _ = rounded(left.dequantized().astype(float) @ image, grids["m1"])
    expected, _ = rounded(middle @ right.dequantized(), grids["scores"])
    for level in (OFF, ALL):
        np.testing.assert_allclose(run(emitted, {"image": FEED}, level)[0], expected, atol=1.01 * grids["scores"].scale)
    with pytest.raises(ValueError, match="takes no bias"):
        emit(original, Plan((replace(layers[0], bias=np.zeros(5)), layers[1]), grids, DType.uint8))


def change_layer(plan, index=0, **fields):
    layers = list(plan.layers)
    layers[index] = replace(layers[index], **fields)
    return replace(plan, layers=tuple(layers))


def change_weight(plan, **fields):
    return change_layer(plan, weight=replace(plan.layers[0].weight, **fields))


def without(plan, name):
    return replace(plan, tensors={key: grid for key, grid in plan.tensors.items() if key != name})


REFUSED = {
    "no such weight": (lambda plan: change_weight(plan, name="w9"), "has 0 users"),
    "another shape": (lambda plan: change_weight(plan, codes=np.zeros((4, 2, 1, 1), np.int8)), "has the shape"),
    "too wide": (lambda plan: change_weight(plan, dtype=DType.int4), "int4 has not"),
    "scales": (lambda plan: change_weight(plan, scale=np.float32([1, 2])), "expected"),
    "no bias": (lambda plan: change_layer(plan, bias=None), "plan it too"),
    "bias shape": (lambda plan: change_layer(plan, bias=np.zeros(3)), "does not fit"),
    "other input": (lambda plan: change_layer(plan, input="r1"), "does not read"),
    "no params": (lambda plan: without(plan, "r1"), "no parameters"),
    "levels": (
        lambda plan: replace(plan, tensors=plan.tensors | {"r1": QuantParams(np.float32(1), 0, DType.uint8, -8, 7)}),
        "uint8 has not",
    ),
    "zero point": (
        lambda plan: replace(plan, tensors=plan.tensors | {"r1": QuantParams(np.float32(1), 9, DType.uint8, 0, 7)}),
        "outside 0..7",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_plan_that_does_not_fit_is_refused(base, why):
    model, calibration = base[DType.uint8]
    change, message = REFUSED[why]
    with pytest.raises(ValueError, match=message):
        emit(model, change(small_plan(calibration, DType.uint8)))


def test_a_weight_with_two_users_is_refused(base):
    model, calibration = base[DType.uint8]
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    source = next(node.output[0] for node in shared.graph.node if node.input[0] == "w2_quantized")
    shared.graph.node.append(helper.make_node("Identity", [source], ["copy"]))
    with pytest.raises(ValueError, match="2 users"):
        emit(shared, small_plan(calibration, DType.uint8))


def test_a_bias_beyond_32_bits_saturates(base):
    model, calibration = base[DType.uint8]
    plan = change_layer(small_plan(calibration, DType.uint8), bias=np.array([1e12, -1e12, 0, 1]))
    stored = numpy_helper.to_array(initializers(emit(model, plan))["b1_quantized"])
    assert stored[:3].tolist() == [2**31 - 1, -(2**31), 0]
