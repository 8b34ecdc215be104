"""The graphs that emit takes and refuses: old opsets, MatMul, plans that do not fit, biases that do not."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_net import (
    ALL,
    FEED,
    IMAGES,
    OFF,
    assert_optimized_agrees,
    assert_simulated,
    initializers,
    nearest,
    quantized,
    rounded,
    run,
    small_net,
    small_plan,
)

from resnet8_quant.config import DType, Layout
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.emit import at_least_opset, emit
from resnet8_quant.quantizer.plan import LayerPlan, Plan
from resnet8_quant.quantizer.quant_params import QuantParams


def test_opsets_in_between_are_bridged(base):
    """Softmax changed its meaning with opset 13: the graph is rewritten; MatMul did not: only the number is raised."""

    def one(kind, opset, **attributes):
        graph = helper.make_graph(
            [helper.make_node(kind, ["x", "y"][: 1 + (kind == "MatMul")], ["z"], **attributes)],
            "one",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 2])],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)

    feed = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "y": np.eye(2, dtype=np.float32)}
    for kind, attributes in (("Softmax", {"axis": 0}), ("Softmax", {}), ("MatMul", {}), ("ReduceMean", {"axes": [1]})):
        old = one(kind, 12, **attributes)
        new = at_least_opset(old, 25)
        assert (new.opset_import[0].version, new.ir_version) == (25, 13)
        assert old.opset_import[0].version == 12
        np.testing.assert_allclose(run(new, feed)[0], run(old, feed)[0], rtol=1e-6)
    assert at_least_opset(one("MatMul", 25), 21).opset_import[0].version == 25


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_old_model_gets_the_opset_that_its_types_need(bits, opset):
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
    nodes = [
        helper.make_node("MatMul", ["left", "image"], ["m1"]),
        helper.make_node("MatMul", ["m1", "right"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2, 5, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
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
    "no grid": (lambda plan: without(plan, "r1"), "no grid"),
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
