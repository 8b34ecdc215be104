"""What emit writes: NumPy computes the emitted model from the plan alone, and ONNX Runtime agrees."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from small_net import (
    ALL,
    OFF,
    assert_optimized_agrees,
    assert_simulated,
    container_of,
    initializers,
    nearest,
    quantized,
    rounded,
    run,
    small_plan,
    with_integers,
)

from resnet8_quant.config import DType
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerPlan, Plan, QuantizedWeight


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_weights_compute_what_the_plan_says(base, bits, per_channel, symmetric):
    kind = DType.uint8
    model, calibration = base[kind]
    plan = small_plan(calibration, kind, weight_bits=bits, per_channel=per_channel, symmetric=symmetric)
    emitted = emit(model, plan)
    assert_simulated(emitted, plan)
    assert_optimized_agrees(emitted, plan)
    stored = initializers(emitted)
    for layer in plan.layers:
        tensor = stored[layer.weight.name + "_quantized"]
        assert tensor.data_type == getattr(TensorProto, container_of(bits, symmetric).name.upper())
        assert len(tensor.raw_data) == -(-layer.weight.codes.size * layer.weight.dtype.bits // 8)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(int), layer.weight.codes)
        zero = numpy_helper.to_array(stored[layer.weight.name + "_zero_point"])
        np.testing.assert_array_equal(zero.astype(int), layer.weight.zero_point)


@pytest.mark.parametrize("kind", [DType.uint8, DType.int8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_activations_compute_what_the_plan_says(base, kind, bits):
    model, calibration = base[kind]
    plan = small_plan(calibration, kind, bits)
    emitted = emit(model, plan)
    found = assert_simulated(emitted, plan)
    assert_optimized_agrees(emitted, plan)
    for name in ("r1", "pool", "flat"):
        assert len(np.unique(found[name])) <= 2**bits
    params = plan.tensors["r1"]
    assert (found["r1"].min(), found["r1"].max()) == (params.qmin, params.qmax)


@pytest.mark.parametrize("kind", [DType.uint8, DType.int8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_layer_reads_a_tensor_on_a_grid_of_its_own(base, kind, bits):
    """r1 keeps 8 bits for the Add; a finer, 8-bit grid for the Conv alone is possible too."""
    model, calibration = base[kind]
    plan = small_plan(calibration, kind, narrow=bits)
    if bits == 8:
        halved = replace(plan.tensors["r1"], scale=np.float32(plan.tensors["r1"].scale / 2))
        plan = replace(plan, layers=(plan.layers[0], replace(plan.layers[1], input_params=halved), plan.layers[2]))
    emitted = emit(model, plan)
    found = assert_simulated(emitted, plan)
    private = found["r1_for_c2"]
    assert len(np.unique(private)) <= 2**bits
    r1 = plan.tensors["r1"]
    floats = (found["r1"].astype(float) - r1.zero_point) * np.float64(r1.scale)
    np.testing.assert_array_equal(private, rounded(floats, plan.layers[1].input_params)[1])
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


PAIRS = ("image", "r1", "c2", "sum", "pool", "flat", "scores")


def test_a_narrow_grid_saturates_however_far_a_value_is(base):
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


@pytest.mark.parametrize("bits", [2, 4])
def test_the_bundled_model_with_few_bits_runs_and_is_smaller(model, bits):
    original, calibration = quantized(model, load_sample().train.images[:24], per_channel=True)
    plan = plan_of(model, calibration, DType.uint8, lambda n, a, axis: nearest(n, a, bits, axis, True))
    emitted = emit(original, plan)
    opset = {2: 25, 4: 21}[bits]
    assert emitted.opset_import[0].version == opset
    data = load_sample().test
    feed = {model.input_spec.name: model.input_spec.prepare(data.images[:200])}
    for level in (OFF, ALL):
        scores = run(emitted, feed, level)[0]
        assert np.isfinite(scores).all()
        if bits == 4:  # rounding to nearest leaves little, but more than chance
            assert (scores.argmax(1) == data.labels[:200]).mean() > 0.3
    assert kernel_report(emitted.SerializeToString(), 1).kernels == "integer"
    assert len(emitted.SerializeToString()) < len(original.SerializeToString()) * {2: 0.6, 4: 0.75}[bits]
