"""Grids of activations: whose width counts, which range is taken, and that values land where ONNX puts them."""

import numpy as np
import pytest
from nets import PICTURES, net, pictures
from onnx import helper
from small_net import OFF, rounded, run

from resnet8_quant.config import CalibrationConfig, DType, Method, QuantConfig
from resnet8_quant.quantizer.calibration.engine import calibrate
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.quantize import OPERATORS
from resnet8_quant.quantizer.refine.activations import ActivationGrids, narrow_levels, on_grid
from resnet8_quant.quantizer.refine.bits import layer_bits


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
def made():
    """Config of the types -> the grids, and the nodes by output."""
    model, found = graph_model(), {}
    graph = model.proto().graph

    def make(in_place=False, method=Method.minmax, **options):
        quant = QuantConfig(**({"activation_type": DType.uint8, "per_channel": True} | options))
        config = CalibrationConfig(method, percentile=99.0 if method is Method.percentile else None)
        key = quant.activation_type, quant.activation_symmetric, method
        if key not in found:
            found[key] = calibrate(model, pictures(), quant, config, OPERATORS, threads=1, cache=None)
        grids = ActivationGrids(graph, layer_bits(graph, quant), quant, config, found[key], in_place)
        return grids, {node.output[0]: node for node in graph.node}, found[key]

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


def counts(grids):
    return {name: grids.stored(name, None).levels.count for name in ORDER}


def test_without_widths_all_grids_are_those_of_calibration(made):
    grids, _, calibration = made()
    for name in ORDER[:5]:  # what comes then moves the values of sum
        assert grids.stored(name, None) == calibration.grids[name]
    assert set(counts(grids).values()) == {256}


def test_only_what_layers_alone_read_is_stored_narrow(made):
    """image is read by c1, c2 by c3; r1 also by an Add, and c3, sum, pool by no layer; scores is an output."""
    grids, nodes, _ = made(activation_bits=4)
    wide = dict.fromkeys(ORDER, 256)
    assert counts(grids) == wide | {"image": 16, "c2": 16}
    assert grids.read(nodes["c2"], None).levels == Levels(0, 15, False)
    assert grids.read(nodes["c3"], None) is grids.stored("c2", None)
    assert grids.read(nodes["scores"], None).levels.count == 16
    grids, _, _ = made(activation_bits=4, residual_bits=6)
    assert counts(grids) == dict.fromkeys(ORDER, 64) | {"image": 16, "c2": 16}


def test_a_reader_that_is_wider_widens_what_is_stored(made):
    grids, nodes, _ = made(activation_bits=4, residual_bits=5, layers={"c[23]": {"activation_bits": 7}})
    found = counts(grids)
    assert (found["image"], found["r1"], found["c2"], found["sum"]) == (16, 128, 128, 32)
    assert grids.read(nodes["c2"], None) is grids.stored("r1", None)


def test_operators_that_move_values_keep_their_grid(made):
    grids, _, _ = made(activation_bits=4, residual_bits=6)
    counts(grids)
    assert grids.stored("pool", None) == grids.stored("flat", None) == grids.stored("sum", None)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", [DType.uint8, DType.int8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_narrow_levels_are_in_the_type(bits, kind, symmetric):
    levels = narrow_levels(kind, bits, symmetric)
    assert levels.symmetric == symmetric
    if kind is DType.uint8:
        assert (levels.lowest, levels.highest) == (0, 2**bits - 1)
    else:
        assert (levels.lowest, levels.highest) == (-(2 ** (bits - 1)) + symmetric, 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("kind", [DType.uint8, DType.int8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("method", [Method.minmax, Method.percentile, Method.mse])
def test_narrow_grids_are_by_the_method_or_in_place(made, values, bits, kind, symmetric, method):
    """In place is the smallest error on the values themselves; minmax holds all of them."""
    options = {"activation_type": kind, "activation_symmetric": symmetric, "activation_bits": bits}
    by_method, nodes, _ = made(method=method, **options)
    in_place, _, _ = made(True, method, **options)

    def error(grid, array):
        return float(((rounded(array, grid)[0] - array) ** 2).mean())

    for layer, name in (("c1", "image"), ("c2", "r1"), ("c3", "c2")):
        array = values[name]
        first, second = by_method.read(nodes[layer], array), in_place.read(nodes[layer], array)
        for grid in (first, second):
            assert grid.levels == narrow_levels(kind, bits, symmetric)
            assert grid.levels.lowest <= grid.zero_point <= grid.levels.highest
            if name == "r1" and not symmetric:
                assert grid.zero_point == grid.levels.lowest
        assert error(second, array) <= 1.02 * error(first, array)
        if method is Method.minmax:
            assert first.high >= array.max() - 0.51 * first.scale
            assert first.low <= array.min() + 0.51 * first.scale
        # in place even where values of another distribution come in
        halved, _, _ = made(True, method, **options)
        assert halved.read(nodes[layer], array / 2).scale == pytest.approx(second.scale / 2, rel=0.05)


def test_a_grid_is_decided_once(made, values):
    grids, nodes, _ = made(True, activation_bits=3)
    first = grids.read(nodes["c2"], values["r1"])
    assert grids.read(nodes["c2"], 2 * values["r1"]) is first
    stored = grids.stored("c2", values["c2"])
    assert grids.stored("c2", None) is stored


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", [DType.uint8, DType.int8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_values_land_where_onnxruntime_puts_them(bits, kind, symmetric):
    """Q, Clip, DQ; the input is not changed."""
    grid = Grid.of(np.float32(-1.3), np.float32(2.1), narrow_levels(kind, bits, symmetric))
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 2
    x[0] = [0.0, 1e30, -1e30, 0.5 * grid.scale, 1.5 * grid.scale, -0.5 * grid.scale, 2.1]
    kept = x.copy()
    found = on_grid(x, grid)
    np.testing.assert_array_equal(x, kept)
    dtype = np.dtype(kind.name)
    onnx_type = helper.np_dtype_to_tensor_dtype(dtype)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("Clip", ["q", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "scale", "zero"], ["y"]),
    ]
    feeds = {
        "x": x,
        "scale": np.asarray(grid.scale, np.float32),
        "zero": np.asarray(grid.zero_point, dtype),
        "low": np.asarray(grid.levels.lowest, dtype),
        "high": np.asarray(grid.levels.highest, dtype),
    }
    infos = [
        helper.make_tensor_value_info(name, 1 if name in ("x", "scale") else onnx_type, array.shape)
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(nodes, "bridge", infos, [helper.make_tensor_value_info("y", 1, x.shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    np.testing.assert_array_equal(found, run(model, feeds)[0])
    assert found.dtype == np.float32
    assert len(np.unique(found)) <= grid.levels.count
