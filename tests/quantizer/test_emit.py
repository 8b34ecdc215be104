"""What emit writes: the emitted model computes what its plan says, and ONNX Runtime's kernels agree."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import (
    ALL,
    OFF,
    PICTURES,
    arrays_of,
    assert_simulated,
    branching,
    integers_of,
    net,
    pictures,
    quantized,
    rounded,
    run,
)
from onnx import TensorProto, helper
from strategies import PROPERTY

from resnet8_quant.config import DType
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerPlan, Plan, QuantizedWeight
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme

TENSORS = ("image", "r1", "c2", "sum", "pool", "flat", "scores")  # that are quantized
WEIGHTS = {"w1": ("c1", "image", "b1", 0), "w2": ("c2", "r1", None, 0), "w3": ("scores", "flat", "b3", 1)}
ARRAYS = arrays_of(branching().proto())
FEED = branching().input_spec.prepare(PICTURES)


@pytest.fixture(scope="module")
def base():
    """{activation type: the Q/DQ model of `branching` and its calibration}."""
    return {dtype: quantized(branching(), pictures(), dtype) for dtype in (DType.uint8, DType.int8)}


def container_of(bits, symmetric):
    """The narrowest type; symmetric weights are signed."""
    return DType[f"{'int' if symmetric else 'uint'}{next(width for width in (2, 4, 8) if width >= bits)}"]


def nearest(name, array, bits, axis, symmetric):
    """A weight rounded to nearest, with the scale that its extremes ask for."""
    array = np.asarray(array, np.float32)
    rest = tuple(i for i in range(array.ndim) if i != axis)
    low, high = np.minimum(array.min(rest), 0), np.maximum(array.max(rest), 0)
    half = 2 ** (bits - 1) - 1
    scale = np.maximum(-low, high) / half if symmetric else (high - low) / (2**bits - 1)
    zero = np.zeros_like(scale) if symmetric else np.rint(-low / scale)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    limits = (-half, half) if symmetric else (0, 2**bits - 1)
    values = np.clip(np.rint(array / scale.reshape(shape)) + zero.reshape(shape), *limits)
    dtype = np.int8 if symmetric else np.uint8
    scale, zero = np.asarray(scale, np.float32), np.asarray(zero).astype(dtype)
    return QuantizedWeight(name, values.astype(dtype), scale, zero, axis, container_of(bits, symmetric))


def plan_of(
    calibration, dtype, bits=8, *, weight_bits=8, per_channel=True, symmetric=True, own_bits=None, tensor_bits=8
):
    """``bits``: of r1 and what Gemm reads; ``own_bits``: of what the second Conv reads of r1."""

    def params_of(name, bit_width):
        return QuantParams.of_range(*calibration.ranges[name], QuantScheme.of_activation(dtype, False, bit_width))

    wide = dict.fromkeys(calibration.ranges, tensor_bits) | {"flat": bits, "pool": bits, "r1": bits}
    tensors = {name: params_of(name, bit_width) for name, bit_width in wide.items()}
    layers = []
    for weight, (output, source, bias, axis) in WEIGHTS.items():
        params = params_of("r1", own_bits) if source == "r1" and own_bits is not None else tensors[source]
        codes = nearest(weight, ARRAYS[weight], weight_bits, axis if per_channel else None, symmetric)
        values = np.array([0.5, -0.25, 0.125, 3.0]) if bias is None else ARRAYS[bias].astype(np.float64)
        layers.append(LayerPlan(output, source, params, codes, values))
    return Plan(tuple(layers), tensors, dtype)


def assert_computes(model, plan):
    """The emitted model computes its plan; optimized, it is a step off at most and all products are integer kernels.

    Not so for int8 activations, of which ONNX Runtime makes few on x86.
    """
    emitted = emit(model, plan)
    integers = assert_simulated(branching(), plan, emitted, FEED)
    if plan.activation_type is DType.uint8:
        report = kernel_report(emitted.SerializeToString(), 1)
        assert (report.kernels, report.total) == ("integer", 3)
    fast, exact = (run(emitted, {"image": FEED}, level)[0] for level in (ALL, OFF))
    assert np.abs(fast - exact).max() <= 1.01 * plan.tensors["scores"].scale
    return emitted, integers


@settings(PROPERTY, max_examples=30)
@given(
    dtype=st.sampled_from([DType.uint8, DType.int8]),
    bits=st.integers(2, 8),
    own_bits=st.none() | st.integers(2, 7),
    weight_bits=st.integers(2, 8),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
)
def test_a_model_computes_what_its_plan_says(base, dtype, bits, own_bits, weight_bits, per_channel, symmetric):
    """Activations of ``bits``, one layer that reads a tensor in ``own_bits`` of its own, weights of ``weight_bits``."""
    symmetric = symmetric or dtype is DType.int8  # no kernel takes int8 activations with uint8 weights
    model, calibration = base[dtype]
    options = {"weight_bits": weight_bits, "per_channel": per_channel, "symmetric": symmetric, "own_bits": own_bits}
    plan = plan_of(calibration, dtype, bits, **options)
    emitted, integers = assert_computes(model, plan)

    # Activations stay within their bits, and what one layer reads is rounded once more from what is stored.
    for name in ("r1", "pool", "flat"):
        assert len(np.unique(integers[name])) <= 2**bits
    r1 = plan.tensors["r1"]
    if weight_bits == 8:
        assert (integers["r1"].min(), integers["r1"].max()) == (r1.qmin, r1.qmax)
    if own_bits not in (None, bits):
        floats = (integers["r1"].astype(float) - r1.zero_point) * np.float64(r1.scale)
        np.testing.assert_array_equal(integers["r1_for_c2"], rounded(floats, plan.layers[1].input_params)[1])

    # Weights are stored as planned, in the fewest bytes.
    arrays, tensors = arrays_of(emitted), {tensor.name: tensor for tensor in emitted.graph.initializer}
    for layer in plan.layers:
        name = layer.weight.name
        tensor = tensors[f"{name}_quantized"]
        assert tensor.data_type == getattr(TensorProto, container_of(weight_bits, symmetric).name.upper())
        assert len(tensor.raw_data) == -(-layer.weight.codes.size * layer.weight.dtype.bits // 8)
        np.testing.assert_array_equal(arrays[f"{name}_quantized"].astype(int), layer.weight.codes)
        np.testing.assert_array_equal(arrays[f"{name}_zero_point"].astype(int), layer.weight.zero_point)


def test_layers_share_a_chain_only_where_they_share_parameters(base):
    """A layer may read r1 in fewer bits, or on a finer grid of as many; the Add reads it as it is stored."""
    model, calibration = base[DType.uint8]
    plan = plan_of(calibration, DType.uint8, own_bits=4)
    stored = plan.tensors["r1"]
    finer = replace(stored, scale=np.float32(stored.scale / 2))
    for params, chains, clips in ((plan.layers[1].input_params, 1, 1), (finer, 1, 0), (stored, 0, 0)):
        emitted, _ = assert_computes(model, change_layer(plan, 1, input_params=params))
        operators = [node.op_type for node in emitted.graph.node]
        assert operators.count("QuantizeLinear") == len(TENSORS) + chains
        assert operators.count("Clip") == clips


def test_few_bits_saturate_however_far_a_value_is(base):
    model, calibration = base[DType.int8]
    plan = plan_of(calibration, DType.int8, tensor_bits=3)
    image, params = np.zeros((1, 2, 6, 6), np.float32), plan.tensors["image"]
    near = np.array([params.low, params.high, params.low - params.scale, params.high + params.scale])
    image.flat[:8] = [*near, -3e38, 3e38, -np.inf, np.inf]
    integers = integers_of(emit(model, plan), image)["image"]
    np.testing.assert_array_equal(integers, rounded(image, params)[1])
    assert set(integers.flat[:8]) == {params.qmin, params.qmax}


@pytest.mark.parametrize(
    ("activation", "symmetric", "per_channel"),
    [(DType.uint8, False, True), (DType.int8, False, False), (DType.int8, True, True)],
)
def test_a_plan_that_repeats_quantize_static_changes_nothing(model, images, activation, symmetric, per_channel):
    options = {"per_channel": per_channel, "activation_symmetric": symmetric}
    original, calibration = quantized(model, images, activation, **options)
    stored, arrays, before = arrays_of(original), arrays_of(model.proto()), original.SerializeToString()
    layers = []
    for node in model.proto().graph.node:
        if node.op_type in ("Conv", "Gemm"):
            source, name, bias = node.input
            scale, zero, codes = (stored[f"{name}_{part}"] for part in ("scale", "zero_point", "quantized"))
            axis = ("Conv", "Gemm").index(node.op_type) if scale.ndim else None
            weight = QuantizedWeight(name, codes, scale, zero, axis, DType.int8)
            params = calibration.params[source]
            layers.append(LayerPlan(node.output[0], source, params, weight, arrays[bias].astype(np.float64)))
    plan = Plan(tuple(layers), dict(calibration.params), activation)
    emitted = emit(original, plan)
    assert original.SerializeToString() == before
    assert emit(original, plan) == emitted
    feed = {model.input_spec.name: model.input_spec.prepare(load_sample().test.images[:100])}
    np.testing.assert_array_equal(run(emitted, feed, ALL)[0], run(original, feed, ALL)[0])
    assert kernel_report(emitted.SerializeToString(), 1) == kernel_report(before, 1)
    shared = {"flatten_scale", "flatten_zero_point"}  # quantize_static lets it use the scale of what it flattens
    assert arrays_of(emitted).keys() - shared == stored.keys()


@pytest.mark.parametrize(("opset", "bits"), [(11, 8), (11, 4), (13, 2), (18, 4), (18, 8)])
def test_an_old_model_gets_the_opset_that_its_types_need(opset, bits):
    model, calibration = quantized(branching(opset), pictures())
    emitted, _ = assert_computes(model, plan_of(calibration, DType.uint8, weight_bits=bits))
    assert emitted.opset_import[0].version == {2: 25, 4: 21, 8: max(13, opset)}[bits]


def test_matmul_on_either_side():
    """A MatMul's weight may come first; it has no bias."""
    nodes = [
        helper.make_node("MatMul", ["left", "image"], ["m1"]),
        helper.make_node("MatMul", ["m1", "right"], ["scores"]),
    ]
    float_model = net(nodes, outputs={"scores": (2, 5, 4)}, left=(5, 6), right=(6, 4))
    original, calibration = quantized(float_model, pictures())
    arrays, params = arrays_of(float_model.proto()), calibration.params
    left = nearest("left", arrays["left"], 4, None, True)
    right = nearest("right", arrays["right"], 4, 1, True)
    layers = (
        LayerPlan("m1", "image", params["image"], left, None),
        LayerPlan("scores", "m1", params["m1"], right, None),
    )
    emitted = emit(original, Plan(layers, params, DType.uint8))
    image, _ = rounded(FEED, params["image"])
    middle, _ = rounded(left.dequantized().astype(float) @ image, params["m1"])
    expected, _ = rounded(middle @ right.dequantized(), params["scores"])
    for level in (OFF, ALL):
        np.testing.assert_allclose(
            run(emitted, {"image": FEED}, level)[0], expected, atol=1.01 * params["scores"].scale
        )


def change_layer(plan, index=0, **fields):
    layers = list(plan.layers)
    layers[index] = replace(layers[index], **fields)
    return replace(plan, layers=tuple(layers))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("has 0 users", {"name": "w9"}),
        ("has the shape", {"codes": np.zeros((4, 2, 1, 1), np.int8)}),
        ("int4 has not", {"dtype": DType.int4}),
        ("does not read", {"input": "r1"}),
    ],
)
def test_a_plan_for_another_graph_is_refused(base, message, changes):
    model, calibration = base[DType.uint8]
    plan = plan_of(calibration, DType.uint8)
    changes = changes if "input" in changes else {"weight": replace(plan.layers[0].weight, **changes)}
    with pytest.raises(ValueError, match=message):
        emit(model, change_layer(plan, **changes))


def test_a_bias_beyond_32_bits_saturates(base):
    model, calibration = base[DType.uint8]
    plan = change_layer(plan_of(calibration, DType.uint8), bias=np.array([1e12, -1e12, 0, 1]))
    assert arrays_of(emit(model, plan))["b1_quantized"][:3].tolist() == [2**31 - 1, -(2**31), 0]
