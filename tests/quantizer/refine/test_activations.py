"""Parameters of activations: whose width counts, which range is taken, and that values land where ONNX puts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import OFF, PICTURES, conv, net, pictures, rounded, run, with_outputs
from onnx import helper
from strategies import PROPERTY, TYPES

from resnet8_quant.config import CalibrationConfig, Config, DType, Method, QuantConfig, RefineConfig
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.plan import layer_bits
from resnet8_quant.quantizer.quant_params import QuantScheme
from resnet8_quant.quantizer.refine.activations import ActivationParams

# r1 is read by a layer and by an Add
MODEL = net(
    [
        conv("image", "w1", "c1"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        conv("r1", "w2", "c2"),
        conv("c2", "w3", "c3"),
        helper.make_node("Add", ["c3", "r1"], ["sum"]),
        helper.make_node("MaxPool", ["sum"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4"], ["scores"]),
    ],
    **{"w1": (4, 2, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1), "w4": (36, 3)},
)
NODES = {node.output[0]: node for node in MODEL.proto().graph.node}
ORDER = ("image", "r1", "c2", "c3", "sum", "pool", "flat", "scores")


@pytest.fixture(scope="module")
def params_of():
    """Config of the types -> the params and the calibration."""
    calibrations = {}

    def make(in_place=False, method=Method.minmax, **options):
        quant = QuantConfig(**({"activation_type": DType.uint8, "per_channel": True} | options))
        calibration = CalibrationConfig(method, percentile=99.0 if method is Method.percentile else None)
        config = Config(quant, calibration, RefineConfig(activation_ranges=in_place))
        key = quant.activation_type, quant.activation_symmetric, method
        if key not in calibrations:
            calibrations[key] = calibrate(MODEL, pictures(), config)
        graph = MODEL.proto().graph
        return ActivationParams(graph, layer_bits(graph, quant), config, calibrations[key]), calibrations[key]

    return make


@pytest.fixture(scope="module")
def values():
    """Every tensor of the float model."""
    names, feed = list(NODES), MODEL.input_spec.prepare(PICTURES)
    arrays = run(with_outputs(MODEL.proto(), names[:-1]), {"image": feed}, OFF, names)
    return {"image": feed} | dict(zip(names, arrays, strict=True))


def levels(params):
    return {name: params.stored(name, None).levels for name in ORDER}


def test_only_what_layers_alone_read_is_stored_low_bit(params_of):
    """image is read by c1, c2 by c3; r1 also by an Add, and c3, sum, pool by no layer; scores is an output."""
    params, calibration = params_of(activation_bits=4)
    assert levels(params) == dict.fromkeys(ORDER, 256) | {"image": 16, "c2": 16}
    assert params.stored("r1", None) == calibration.params["r1"]
    assert (params.read(NODES["c2"], None).qmin, params.read(NODES["c2"], None).qmax) == (0, 15)
    assert params.read(NODES["c3"], None) is params.stored("c2", None)
    assert params.read(NODES["scores"], None).levels == 16
    params, _ = params_of(activation_bits=4, residual_bits=6)
    assert levels(params) == dict.fromkeys(ORDER, 64) | {"image": 16, "c2": 16}
    # operators that move values keep their parameters
    assert params.stored("pool", None) == params.stored("flat", None) == params.stored("sum", None)


def test_a_reader_that_is_wider_widens_what_is_stored(params_of):
    params, _ = params_of(activation_bits=4, residual_bits=5, layers={"c[23]": {"activation_bits": 7}})
    stored = levels(params)
    assert (stored["image"], stored["r1"], stored["c2"], stored["sum"]) == (16, 128, 128, 32)
    assert params.read(NODES["c2"], None) is params.stored("r1", None)


@PROPERTY
@given(
    st.sampled_from([2, 4, 6]), TYPES, st.booleans(), st.sampled_from([Method.minmax, Method.percentile, Method.mse])
)
def test_low_bit_params_are_by_the_method_or_in_place(params_of, values, bits, dtype, symmetric, method):
    """In place is the smallest error on the values themselves; minmax holds all of them."""
    options = {"activation_type": dtype, "activation_symmetric": symmetric, "activation_bits": bits}
    by_method, in_place, halved = (params_of(refined, method, **options)[0] for refined in (False, True, True))
    scheme = QuantScheme.of_activation(dtype, symmetric, bits)
    for layer, name in (("c1", "image"), ("c2", "r1"), ("c3", "c2")):
        array = values[name]
        first, second = by_method.read(NODES[layer], array), in_place.read(NODES[layer], array)
        for low_bit in (first, second):
            assert (low_bit.dtype, low_bit.qmin, low_bit.qmax) == (dtype, scheme.qmin, scheme.qmax)
            if name == "r1" and not symmetric:
                assert low_bit.zero_point == low_bit.qmin
        errors = [((rounded(array, low_bit)[0] - array) ** 2).mean() for low_bit in (first, second)]
        assert errors[1] <= 1.02 * errors[0]
        if method is Method.minmax:
            assert first.high >= array.max() - 0.51 * first.scale
            assert first.low <= array.min() + 0.51 * first.scale
        # in place even where values of another distribution come in, and decided once
        assert halved.read(NODES[layer], array / 2).scale == pytest.approx(second.scale / 2, rel=0.05)
        assert in_place.read(NODES[layer], array / 2) is second
