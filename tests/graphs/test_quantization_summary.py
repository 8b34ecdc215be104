"""What is read back from graphs that are written here by hand, so that the right answer is known."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from resnet8_quant.graphs.quantization_summary import LayerSummary, payload_bytes, summarize


def tensor(name, dtype, values):
    numpy_dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype))
    return numpy_helper.from_array(np.asarray(values).astype(numpy_dtype), name)


def layer_model(dtype, values, zero_point=None, *, cast="", clip=None, activation="UINT8", scales=1.0, zeros=True):
    """image - Q - [Clip] - DQ - Conv with a 1x1 weight of ``values`` through [Cast] and DQ - Q - DQ - scores."""
    low, high = clip or (0, 0)
    floats = {"w_scale": scales, "s": 0.5}
    tensors = [tensor("w", dtype, np.asarray(values)[:, None, None, None])]
    tensors += [tensor("w_zero", cast or dtype, zero_point or 0)]
    tensors += [tensor(name, "FLOAT", number) for name, number in floats.items()]
    tensors += [tensor(name, activation, number) for name, number in {"z": 0, "low": low, "high": high}.items()]
    zero, weight_zero = ", z" if zeros else "", "" if zero_point is None else ", w_zero"
    model = parse_model(f"""<ir_version: 13, opset_import: ["": 25]>
        layer (float[1, 1, 4, 4] image) => (float[1, {len(values)}, 4, 4] scores) {{
            q = QuantizeLinear (image, s{zero})
            {"c = Clip (q, low, high)" if clip else ""}
            x = DequantizeLinear ({"c" if clip else "q"}, s{zero})
            {f"wide = Cast <to = {getattr(TensorProto, cast)}> (w)" if cast else ""}
            v = DequantizeLinear <axis = 0> ({"wide" if cast else "w"}, w_scale{weight_zero})
            scores_QuantizeLinear_Input = Conv (x, v)
            p = QuantizeLinear (scores_QuantizeLinear_Input, s, z)
            scores = DequantizeLinear (p, s, z)
        }}""")
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model, full_check=True)
    return model


RANGES = {"INT8": (-128, 127), "UINT8": (0, 255), "INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}


@st.composite
def weights(draw):
    """(type, values, zero point or None)."""
    dtype = draw(st.sampled_from(sorted(RANGES)))
    low, high = RANGES[dtype]
    shift = draw(st.integers(0, 7))  # small values are as likely as large ones
    codes = st.integers(low >> shift, high >> shift)
    return dtype, draw(st.lists(codes, min_size=2, max_size=2)), draw(st.none() | codes)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(weights(), st.booleans())
def test_weight_bits_are_the_fewest_that_hold_the_values(weight, cast):
    """But more than half the type's; as stored, whether or not a Cast widens them."""
    dtype, values, zero_point = weight
    width, signed = RANGES[dtype][1].bit_length() + (dtype[0] == "I"), dtype[0] == "I"
    codes = [*values, *([] if zero_point is None else [zero_point])]

    def holds(bits):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return low <= min(codes) and max(codes) <= high

    bits = next(bits for bits in range(width // 2 + 1, width + 1) if holds(bits))
    inner = ("INT8" if signed else "UINT8") if cast and width < 8 else ""
    summary = summarize(layer_model(dtype, values, zero_point, cast=inner))
    assert summary.layers == (LayerSummary("scores", "Conv", dtype.lower(), bits, "uint8", 8, False, "w"),)
    assert summary.weight_type == dtype.lower()
    assert summary.operators == {"Conv": [1, 0]}
    assert (summary.quantized_ops, summary.float_ops) == (1, 0)


@pytest.mark.parametrize(
    ("activation", "clip", "bits"),
    [("UINT8", None, 8), ("UINT8", (0, 15), 4), ("UINT8", (3, 4), 1), ("INT8", (-8, 8), 5), ("INT16", None, 16)],
)
def test_activation_bits_are_those_that_a_clip_leaves(activation, clip, bits):
    """A Clip of the integers counts as no operator."""
    summary = summarize(layer_model("INT8", [-128, 127], clip=clip, activation=activation))
    (layer,) = summary.layers
    assert (layer.activation_type, layer.activation_bits) == (activation.lower(), bits)
    assert summary.operators == {"Conv": [1, 0]}


def test_a_scale_per_channel_and_a_missing_zero_point():
    model = layer_model("INT8", [-100, 100], scales=[1.0, 2.0], zeros=False)
    summary = summarize(model)
    assert summary.per_channel
    assert summary.layers == (LayerSummary("scores", "Conv", "int8", 8, "uint8", 8, True, "w"),)
    model.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert summarize(model).layers[0].activation_type == "int8"


def test_a_clip_of_floats_is_an_operator_and_a_float_activation_is_said_to_be_one():
    summary = summarize(
        parse_model("""<ir_version: 10, opset_import: ["": 21]>
            weights (float[1, 2] x) => (float[1, 2] y) <int8[1, 1] w = {1}, float s = {1}, float low = {0}> {
                clipped = Clip (x, low)
                v = DequantizeLinear (w, s)
                y = MatMul (v, clipped)
            }""")
    )
    assert summary.layers == (LayerSummary("y", "MatMul", "int8", 5, "float32", 32, False, "w"),)
    assert summary.operators == {"Clip": [0, 1], "MatMul": [0, 1]}


def test_integer_operators():
    summary = summarize(
        parse_model("""<ir_version: 10, opset_import: ["": 21]>
            integers (float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)
            <int8[2, 1, 1, 1] w = {1, 2}, float[2] ws = {1, 2}, int8[2] wz = {0, 0}, float s = {1}, uint8 z = {0}> {
                x_quantized = QuantizeLinear (x, s, z)
                y_quantized = QLinearConv (x_quantized, s, z, w, ws, wz, s, z)
                y = DequantizeLinear (y_quantized, s, z)
            }""")
    )
    assert summary.layers == (LayerSummary("y", "QLinearConv", "int8", 8, "uint8", 8, True, "w"),)


def test_a_float_model_has_no_layers(model):
    summary = summarize(model.proto())
    assert summary.layers == ()
    assert (summary.activation_type, summary.weight_type) == ("float32", "float32")


@pytest.mark.parametrize(("dtype", "bits"), [("INT2", 2), ("UINT4", 4), ("INT8", 8), ("FLOAT", 32)])
def test_payload_bytes_are_those_stored(dtype, bits):
    for count in range(6):
        stored = tensor("t", dtype, np.zeros(count))
        assert payload_bytes(stored) == -(-count * bits // 8) == len(stored.raw_data)
