"""Parameters of activations: whose width counts, which range is taken, and that values land where ONNX puts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import PICTURES, net, pictures
from onnx import helper
from small_net import OFF, rounded, run
from strategies import PROPERTY, TYPES

from resnet8_quant.config import CalibrationConfig, Config, DType, Method, QuantConfig, RefineConfig
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.plan import layer_bits
from resnet8_quant.quantizer.quant_params import QuantScheme
from resnet8_quant.quantizer.refine.activations import ActivationParams


def graph_model():
    """image > c1 > r1 > (c2, add); c2 > add > pool > flat > scores; r1 is read by a layer and by an Add."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], auto_pad="SAME_UPPER"),
        helper.make_node("Conv", ["c2", "w3"], ["c3"], auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["c3", "r1"], ["sum"]),
        helper.make_node("MaxPool", ["sum"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4"], ["scores"]),
    ]
    return net(nodes, w1=(4, 2, 3, 3), w2=(4, 4, 3, 3), w3=(4, 4, 1, 1), w4=(36, 3))


@pytest.fixture(scope="module")
def params_of():
    """Config of the types -> the params, and the nodes by output."""
    model, found = graph_model(), {}
    graph = model.proto().graph

    def make(in_place=False, method=Method.minmax, **options):
        quant = QuantConfig(**({"activation_type": DType.uint8, "per_channel": True} | options))
        calibration = CalibrationConfig(method, percentile=99.0 if method is Method.percentile else None)
        key = quant.activation_type, quant.activation_symmetric, method
        if key not in found:
            found[key] = calibrate(model, pictures(), Config(quant, calibration))
        config = Config(quant, calibration, RefineConfig(activation_ranges=in_place))
        params = ActivationParams(graph, layer_bits(graph, quant), config, found[key])
        return params, {node.output[0]: node for node in graph.node}, found[key]

    return make


@pytest.fixture(scope="module")
def values():
    """Every tensor of the float model."""
    model = graph_model()
    proto = model.proto()
    names = [name for node in proto.graph.node for name in node.output]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name != "scores")
    feed = model.input_spec.prepare(PICTURES)
    return dict(zip(names, run(proto, {"image": feed}, OFF, names), strict=True)) | {"image": feed}


ORDER = ("image", "r1", "c2", "c3", "sum", "pool", "flat", "scores")


def counts(params):
    return {name: params.stored(name, None).levels for name in ORDER}


def test_without_bit_widths_all_params_are_those_of_calibration(params_of):
    params, _, calibration = params_of()
    for name in ORDER[:5]:  # what comes then moves the values of sum
        assert params.stored(name, None) == calibration.params[name]
    assert set(counts(params).values()) == {256}


def test_only_what_layers_alone_read_is_stored_low_bit(params_of):
    """image is read by c1, c2 by c3; r1 also by an Add, and c3, sum, pool by no layer; scores is an output."""
    params, nodes, _ = params_of(activation_bits=4)
    wide = dict.fromkeys(ORDER, 256)
    assert counts(params) == wide | {"image": 16, "c2": 16}
    assert (params.read(nodes["c2"], None).qmin, params.read(nodes["c2"], None).qmax) == (0, 15)
    assert params.read(nodes["c3"], None) is params.stored("c2", None)
    assert params.read(nodes["scores"], None).levels == 16
    params, _, _ = params_of(activation_bits=4, residual_bits=6)
    assert counts(params) == dict.fromkeys(ORDER, 64) | {"image": 16, "c2": 16}


def test_a_reader_that_is_wider_widens_what_is_stored(params_of):
    params, nodes, _ = params_of(activation_bits=4, residual_bits=5, layers={"c[23]": {"activation_bits": 7}})
    found = counts(params)
    assert (found["image"], found["r1"], found["c2"], found["sum"]) == (16, 128, 128, 32)
    assert params.read(nodes["c2"], None) is params.stored("r1", None)


def test_operators_that_move_values_keep_their_params(params_of):
    params, _, _ = params_of(activation_bits=4, residual_bits=6)
    counts(params)
    assert params.stored("pool", None) == params.stored("flat", None) == params.stored("sum", None)


@PROPERTY
@given(
    st.sampled_from([2, 4, 6]), TYPES, st.booleans(), st.sampled_from([Method.minmax, Method.percentile, Method.mse])
)
def test_low_bit_params_are_by_the_method_or_in_place(params_of, values, bits, kind, symmetric, method):
    """In place is the smallest error on the values themselves; minmax holds all of them."""
    options = {"activation_type": kind, "activation_symmetric": symmetric, "activation_bits": bits}
    by_method, nodes, _ = params_of(method=method, **options)
    in_place, _, _ = params_of(True, method, **options)

    def error(low_bit, array):
        return float(((rounded(array, low_bit)[0] - array) ** 2).mean())

    for layer, name in (("c1", "image"), ("c2", "r1"), ("c3", "c2")):
        array = values[name]
        first, second = by_method.read(nodes[layer], array), in_place.read(nodes[layer], array)
        for low_bit in (first, second):
            scheme = QuantScheme.of_activation(kind, symmetric, bits)
            assert (low_bit.dtype, low_bit.qmin, low_bit.qmax) == (kind, scheme.qmin, scheme.qmax)
            assert low_bit.qmin <= low_bit.zero_point <= low_bit.qmax
            if name == "r1" and not symmetric:
                assert low_bit.zero_point == low_bit.qmin
        assert error(second, array) <= 1.02 * error(first, array)
        if method is Method.minmax:
            assert first.high >= array.max() - 0.51 * first.scale
            assert first.low <= array.min() + 0.51 * first.scale
        # in place even where values of another distribution come in
        halved, _, _ = params_of(True, method, **options)
        assert halved.read(nodes[layer], array / 2).scale == pytest.approx(second.scale / 2, rel=0.05)


def test_params_are_decided_once(params_of, values):
    params, nodes, _ = params_of(True, activation_bits=3)
    first = params.read(nodes["c2"], values["r1"])
    assert params.read(nodes["c2"], 2 * values["r1"]) is first
    stored = params.stored("c2", values["c2"])
    assert params.stored("c2", None) is stored
