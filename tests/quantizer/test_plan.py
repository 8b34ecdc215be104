"""Bit widths of the layers: defaults, first and last, names and patterns; and which nodes are layers at all."""

import pytest
from nets import net
from onnx import helper

from resnet8_quant.config import DType, QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.plan import LayerBits, layer_bits, layer_nodes

BLOCKS = [f"stack{stack}.{name}" for stack in (1, 2, 3) for name in ("conv1", "conv2", "skip")]
RESNET8 = ["conv", *(name for name in BLOCKS if name != "stack1.skip"), "dense"]


@pytest.fixture(scope="module")
def graph(model):
    return model.proto().graph


def bits_of(graph, **options):
    options = {"activation_type": DType.uint8, "per_channel": True} | options
    return layer_bits(graph, QuantConfig(**options))


def test_layers_of_the_bundled_model(graph):
    assert sorted(bits_of(graph)) == sorted(RESNET8)
    assert [next(iter(bits_of(graph))), list(bits_of(graph))[-1]] == ["conv", "dense"]
    assert set(bits_of(graph).values()) == {LayerBits(8, 8)}
    assert set(bits_of(graph, weight_bits=3, activation_bits=5).values()) == {LayerBits(3, 5)}
    assert set(bits_of(graph, weight_type=DType.int4).values()) == {LayerBits(4, 8)}


def test_first_and_last_are_kept(graph):
    found = bits_of(graph, weight_bits=3, activation_bits=4, keep_first_last=8)
    assert found["conv"] == found["dense"] == LayerBits(8, 8)
    assert {found[name] for name in RESNET8[1:-1]} == {LayerBits(3, 4)}
    found = bits_of(graph, weight_bits=3, activation_bits=4, keep_first_last=5)
    assert found["conv"] == found["dense"] == LayerBits(5, 8)  # what they read keeps all bits


def test_keeping_never_takes_bits_nor_exceeds_the_type(graph):
    found = bits_of(graph, weight_bits=6, keep_first_last=4)
    assert set(found.values()) == {LayerBits(6, 8)}
    found = bits_of(graph, weight_type=DType.int4, weight_bits=3, activation_bits=3, keep_first_last=8)
    assert found["conv"] == LayerBits(4, 8)
    found = bits_of(graph, activation_type=DType.int16, keep_first_last=8)
    assert found["conv"] == LayerBits(8, 16)


def test_names_and_patterns_override_in_their_order(graph):
    layers = {
        "*": {"activation_bits": 6},
        "stack2.*": {"weight_bits": 2},
        "stack2.conv?": {"activation_bits": 3},
        "dense": {"weight_bits": 4, "activation_bits": 4},
    }
    found = bits_of(graph, weight_bits=5, keep_first_last=8, layers=layers)
    assert found["conv"] == LayerBits(8, 6)
    assert found["stack1.conv1"] == LayerBits(5, 6)
    assert found["stack2.conv1"] == found["stack2.conv2"] == LayerBits(2, 3)
    assert found["stack2.skip"] == LayerBits(2, 6)
    assert found["dense"] == LayerBits(4, 4)


@pytest.mark.parametrize("name", ["dens", "Dense", "stack4.*", ""])
def test_a_name_without_a_layer_lists_the_layers(graph, name):
    with pytest.raises(ExperimentError) as caught:
        bits_of(graph, layers={name: {"weight_bits": 4}})
    assert f"`quant.layers` names {name!r}" in caught.value.problem
    for layer in RESNET8:
        assert layer in caught.value.problem
    assert caught.value.remedy == "'quant.layers={dense: {weight_bits: 8}}'"


def test_what_is_no_layer():
    """Shared weights, computed weights, other dimensions, a Gemm that does more than multiply."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["shared1"], auto_pad="SAME_UPPER"),
        helper.make_node("Conv", ["shared1", "w1"], ["shared2"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["w2"], ["computed"]),
        helper.make_node("Conv", ["shared2", "computed"], ["c2"], auto_pad="SAME_UPPER"),
        helper.make_node("Conv", ["c2", "w3"], ["plain"], auto_pad="SAME_UPPER"),
        helper.make_node("Flatten", ["plain"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4"], ["halved"], alpha=0.5),
        helper.make_node("Gemm", ["halved", "w5", "b5"], ["twice"], beta=2.0),
        helper.make_node("MatMul", ["twice", "w6"], ["product"]),
        helper.make_node("Gemm", ["product", "w7"], ["scores"], transB=1, alpha=1.0, beta=1.0, transA=0),
    ]
    weights = {"w1": (2, 2, 3, 3), "w2": (2, 2, 3, 3), "w3": (2, 2, 3, 3), "w4": (72, 5), "w5": (5, 5), "b5": (5,)}
    model = net(nodes, **weights, w6=(5, 5), w7=(3, 5))
    assert [node.output[0] for node in layer_nodes(model.proto().graph)] == ["plain", "product", "scores"]


def test_a_model_without_layers_has_no_widths():
    model = net([helper.make_node("Relu", ["image"], ["scores"])], outputs=(("scores", (2, 6, 6)),))
    assert bits_of(model.proto().graph, keep_first_last=8) == {}
    with pytest.raises(ExperimentError, match="matches no layer"):
        bits_of(model.proto().graph, layers={"a": {"weight_bits": 4}})
