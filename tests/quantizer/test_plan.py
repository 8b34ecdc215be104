"""Bit widths of the layers: defaults, first and last, names and patterns; and which nodes are layers at all."""

import re

import pytest
from nets import conv, net
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
    return layer_bits(graph, QuantConfig(**{"activation_type": DType.uint8, "per_channel": True} | options))


@pytest.mark.parametrize(
    ("options", "ends", "others"),
    [
        ({}, (8, 8), (8, 8)),
        ({"weight_bits": 3, "activation_bits": 5}, (3, 5), (3, 5)),
        ({"weight_type": DType.int4}, (4, 8), (4, 8)),
        ({"weight_bits": 3, "activation_bits": 4, "keep_first_last": 8}, (8, 8), (3, 4)),
        ({"weight_bits": 3, "activation_bits": 4, "keep_first_last": 5}, (5, 8), (3, 4)),  # what they read keeps all
        ({"weight_bits": 6, "keep_first_last": 4}, (6, 8), (6, 8)),  # keeping never takes bits
        ({"weight_type": DType.int4, "weight_bits": 3, "keep_first_last": 8}, (4, 8), (3, 8)),  # nor exceeds the type
        ({"activation_type": DType.int16, "keep_first_last": 8}, (8, 16), (8, 16)),
    ],
)
def test_layers_of_the_bundled_model(graph, options, ends, others):
    bits = bits_of(graph, **options)
    assert sorted(bits) == sorted(RESNET8)
    assert [next(iter(bits)), list(bits)[-1]] == ["conv", "dense"]
    assert bits["conv"] == bits["dense"] == LayerBits(*ends)
    assert {bits[name] for name in RESNET8[1:-1]} == {LayerBits(*others)}


def test_names_and_patterns_override_in_their_order(graph):
    layers = {
        "*": {"activation_bits": 6},
        "stack2.*": {"weight_bits": 2},
        "stack2.conv?": {"activation_bits": 3},
        "dense": {"weight_bits": 4, "activation_bits": 4},
    }
    bits = bits_of(graph, weight_bits=5, keep_first_last=8, layers=layers)
    expected = {"conv": (8, 6), "stack1.conv1": (5, 6), "stack2.conv1": (2, 3), "stack2.conv2": (2, 3)}
    expected |= {"stack2.skip": (2, 6), "dense": (4, 4)}
    assert {name: bits[name] for name in expected} == {name: LayerBits(*pair) for name, pair in expected.items()}


@pytest.mark.parametrize("name", ["dens", "Dense", "stack4.*", ""])
def test_a_name_without_a_layer_lists_the_layers(graph, name):
    with pytest.raises(ExperimentError, match=f"`quant.layers` names {re.escape(repr(name))}") as caught:
        bits_of(graph, layers={name: {"weight_bits": 4}})
    assert all(layer in caught.value.problem for layer in RESNET8)
    assert caught.value.remedy == "'quant.layers={dense: {weight_bits: 8}}'"


def test_what_is_no_layer():
    """Shared weights, computed weights, other dimensions, a Gemm that does more than multiply."""
    nodes = [
        conv("image", "w1", "shared1"),
        conv("shared1", "w1", "shared2"),
        helper.make_node("Relu", ["w2"], ["computed"]),
        conv("shared2", "computed", "c2"),
        conv("c2", "w3", "plain"),
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
    graph = net([helper.make_node("Relu", ["image"], ["scores"])], outputs={"scores": (2, 6, 6)}).proto().graph
    assert bits_of(graph, keep_first_last=8) == {}
    with pytest.raises(ExperimentError, match="matches no layer"):
        bits_of(graph, layers={"a": {"weight_bits": 4}})
