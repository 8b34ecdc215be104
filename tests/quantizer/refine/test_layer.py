"""One layer: what its codes and its bias make of the quantized input, against the float output."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import run_nodes
from onnx import helper
from strategies import PROPERTY, TYPES

from resnet8_quant.config import DType, QuantConfig, RefineConfig, Rounding, Target, WeightScale
from resnet8_quant.quantizer.plan import bias_codes
from resnet8_quant.quantizer.quant_params import QuantParams
from resnet8_quant.quantizer.refine.im2col import Geometry, im2col
from resnet8_quant.quantizer.refine.layer import node_of_plan, quantize_layer

PARAMS = QuantParams(np.float32(0.1), 0, DType.uint8, 0, 255)
QUANT = QuantConfig(per_channel=True)
GPTQ = RefineConfig("gptq", WeightScale.hessian, Rounding.gptq, Target.outputs, bias=True)

RNG = np.random.default_rng(3)
LAYERS = {
    "conv": (helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 0, 1, 2], strides=[2, 1]), (6, 4, 3, 3), 0),
    "conv without bias": (helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), (6, 4, 3, 3), 0),
    "conv with an empty bias": (helper.make_node("Conv", ["x", "w", ""], ["y"]), (6, 4, 1, 1), 0),
    "groups": (helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2), (6, 2, 3, 3), 0),
    "depthwise": (helper.make_node("Conv", ["x", "w", "b"], ["y"], group=4), (8, 1, 3, 3), 0),
    "gemm": (helper.make_node("Gemm", ["x", "w", "b"], ["y"]), (40, 6), 1),
    "gemm transposed": (helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), (6, 40), 0),
    "gemm without bias": (helper.make_node("Gemm", ["x", "w"], ["y"]), (40, 6), 1),
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (40, 6), 1),
}


def layer(case, seed=0):
    """A node, its constants, its input in the float and in the quantized model: correlated, clipped, off its mean."""
    node, shape, axis = LAYERS[case]
    rng = np.random.default_rng(seed)
    constants = {"w": rng.normal(size=shape).astype(np.float32)}
    if "b" in node.input:
        constants["b"] = rng.normal(size=shape[axis]).astype(np.float32)
    if len(shape) == 4:
        mixed = np.einsum("nchw,cd->ndhw", rng.normal(size=(24, 4, 7, 7)), rng.normal(size=(4, 4)))
    else:
        mixed = rng.normal(size=(400, 40)) @ rng.normal(size=(40, 40)) / 6
    floating = np.maximum(mixed + 0.5, 0).astype(np.float32)
    quantized = np.minimum(np.floor(floating / 0.4) * 0.4, 3.0).astype(np.float32)
    return node, constants, floating, quantized


def plan_of(case, refinement, bits=4, quant=QUANT, seed=0, params=PARAMS):
    node, constants, floating, quantized = layer(case, seed)
    return quantize_layer(node, constants, params, bits, quant, refinement, (quantized, floating))


def outputs_of(case, plan, seed=0):
    """The layer's float output, and what the plan makes of the quantized input."""
    node, constants, floating, quantized = layer(case, seed)
    changed, values = node_of_plan(node, plan, constants)
    return run_nodes([node], {"x": floating, **constants})[0], run_nodes([changed], {"x": quantized, **values})[0]


def error(case, plan, seed=0):
    floating, quantized = outputs_of(case, plan, seed)
    return float(((floating.astype(float) - quantized) ** 2).mean())


@PROPERTY
@given(
    st.sampled_from(list(LAYERS)),
    st.sampled_from([(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)]),
    TYPES,
    st.booleans(),
    st.sampled_from([None, False, True]),
)
def test_codes_are_in_the_shape_of_the_weight(case, widths, dtype, per_channel, symmetric):
    """And symmetric where the type is, unless the config says so."""
    (node, shape, axis), (bits, width) = LAYERS[case], widths
    constants = layer(case)[1]
    quant = QuantConfig(weight_type=dtype, per_channel=per_channel, weight_symmetric=symmetric)
    plan = plan_of(case, RefineConfig(), bits, quant)
    weight = plan.weight
    assert (plan.output, plan.input, plan.input_params, weight.name) == ("y", "x", PARAMS, "w")
    assert weight.dtype is DType[f"{dtype.name.removesuffix('8')}{width}"]
    assert weight.codes.shape == shape
    assert weight.codes.dtype == weight.zero_point.dtype == np.dtype(dtype.name)
    assert weight.axis == (axis if per_channel else None)
    assert weight.scale.shape == weight.zero_point.shape == ((shape[axis],) if per_channel else ())
    assert weight.scale.dtype == np.float32
    rest = np.abs(weight.dequantized() - constants["w"])
    assert rest.max() <= 1.01 * np.ptp(constants["w"]) / (2 ** (bits - 1) - 1)
    np.testing.assert_array_equal(plan.bias, constants["b"].astype(float) if "b" in node.input else None)
    middle = 0 if dtype is DType.int8 else 2 ** (bits - 1)
    if dtype is DType.int8 if symmetric is None else symmetric:
        assert (weight.zero_point == middle).all()
    elif per_channel and bits >= 4:
        assert (weight.zero_point != middle).any()


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("target", Target)
def test_the_bias_makes_the_mean_output_equal(case, target):
    """To float32's precision, as the mean is over the same images."""
    for bias in (False, True):
        plan = plan_of(case, RefineConfig(target=target, bias=bias), bits=3)
        means = [np.moveaxis(y, 1, 0).reshape(y.shape[1], -1).mean(1, dtype=np.float64) for y in outputs_of(case, plan)]
        is_same = np.abs(means[0] - means[1]).max() < 1e-4
        assert is_same == (bias and case != "matmul")


@pytest.mark.parametrize("case", ["conv", "gemm", "gemm transposed", "groups"])
def test_at_8_bits_the_outputs_are_those_of_least_squares(case):
    """The best weights that NumPy's lstsq finds for the quantized input; the damping costs a little."""
    node, constants, _, quantized = layer(case)
    geometry = Geometry.of(node, constants["w"], quantized.shape)
    expected, outputs_of_plan = outputs_of(
        case, plan_of(case, RefineConfig(target=Target.outputs, bias=True, damping=1e-4), 8)
    )
    rows = im2col(quantized, geometry)
    outputs = np.moveaxis(expected, 1, -1).reshape(len(rows), geometry.group, -1)
    best = 0.0
    for g in range(geometry.group):
        design = np.column_stack([rows[:, g], np.ones(len(rows))]).astype(float)
        solved = np.linalg.lstsq(design, outputs[:, g].astype(float), rcond=None)[0]
        best += ((design @ solved - outputs[:, g]) ** 2).sum()
    assert ((expected.astype(float) - outputs_of_plan) ** 2).sum() < 1.02 * best + 1e-3 * (
        expected.astype(float) ** 2
    ).sum()


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("bits", [2, 4])
def test_each_refinement_brings_the_output_closer(case, bits):
    """Weights that know the outputs undo a part of what quantization did to the input, even with 8 bits."""
    outputs = RefineConfig(weight_scale=WeightScale.hessian, rounding=Rounding.gptq, target=Target.outputs)
    plain, biased, gptq, without_bias = (
        np.mean([error(case, plan_of(case, refinement, bits, seed=seed), seed) for seed in range(3)])
        for refinement in (RefineConfig(), RefineConfig(bias=True), GPTQ, outputs)
    )
    if case in ("matmul", "gemm"):  # a MatMul has no bias; without one GPTQ must know the mean
        assert without_bias < 0.7 * plain
    if case != "matmul":
        assert biased < plain
        assert gptq < (0.99 if case == "depthwise" else 0.9) * biased
        at_8_bits = [error(case, plan_of(case, RefineConfig(target=target, bias=True), 8)) for target in Target]
        assert at_8_bits[1] < 0.999 * at_8_bits[0]


@pytest.mark.parametrize("bias", [np.float32(0.5), np.arange(6, dtype=np.float32)[None]])
def test_a_bias_of_any_shape_has_a_value_for_each_channel(bias):
    node, constants, floating, quantized = layer("gemm")
    constants["b"] = bias
    plan = quantize_layer(node, constants, PARAMS, 8, QUANT, RefineConfig(), (quantized, floating))
    assert plan.bias.tolist() == np.broadcast_to(bias, (1, 6))[0].tolist()


@pytest.mark.parametrize("case", ["conv", "gemm", "matmul", "depthwise"])
def test_inputs_that_are_always_zero_leave_finite_codes(case):
    node, constants, floating, quantized = layer(case)
    floating[:, :2] = quantized[:, :2] = 0
    for x in ((quantized, floating), (np.zeros_like(quantized), np.zeros_like(floating))):
        plan = quantize_layer(node, constants, PARAMS, 3, QUANT, GPTQ, x)
        assert np.isfinite(plan.weight.scale).all()
        assert np.abs(plan.weight.codes).max() <= 4
        assert plan.bias is None or np.isfinite(plan.bias).all()


def test_a_bias_fits_into_32_bits():
    weight = np.full((2, 3, 1, 1), 1e-7, np.float32)
    bias = np.array([-0.3, 0.0], np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    params = QuantParams(np.float32(2e-4), 0, DType.uint16, 0, 65535)
    quant = QuantConfig(activation_type=DType.uint16, per_channel=True)
    plan = quantize_layer(node, {"w": weight, "b": bias}, params, 8, quant, RefineConfig(), None)
    scale = np.float32(params.scale) * plan.weight.scale
    np.testing.assert_allclose(bias_codes(plan.bias, scale) * scale, bias, atol=1e-6)
