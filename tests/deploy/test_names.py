"""Models whose tensors already have the names that deploying would give."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from deployed import NETS, answers, build, pictures, plain, quantized, rewritten

from resnet8_quant.config import DeployInput, DeployOutput, RefineConfig, Rounding, WeightScale


def names(serialized):
    """All tensors of a model."""
    graph = onnx.load_from_string(serialized).graph
    outputs = {name for node in graph.node for name in node.output}
    return outputs | {value.name for value in (*graph.initializer, *graph.input)}


def types(serialized):
    """How many initializers there are of each type."""
    return Counter(tensor.data_type for tensor in onnx.load_from_string(serialized).graph.initializer)


def renamed(serialized, old, new):
    """The model with a tensor called otherwise."""
    model = onnx.load_from_string(serialized)
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new if value.name == old else value.name
    return model.SerializeToString()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("end", ["image", "probabilities"])
def test_an_end_may_have_any_name(bits, end):
    model = build(**NETS["rows move"], mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0))
    refine = RefineConfig("nearest", WeightScale.mse, Rounding.nearest, images=24)
    serialized = plain(model, "u8s8") if bits == 8 else quantized(model, "u8s8", refine=refine, weight_bits=4)
    options = {"output": DeployOutput.logits, "input": DeployInput.uint8}
    deployed, input_spec = rewritten(serialized, "x86_amx", model.input_spec, **options)
    expected = answers(deployed, input_spec, pictures(model))
    new = sorted(names(deployed) - names(serialized))
    for mark in ("_moved", "_nhwc_stored"):
        assert any(name.endswith(mark) for name in new) == (bits == 4)
    for name in new:
        described = replace(model.input_spec, name=name) if end == "image" else model.input_spec
        other, input_spec = rewritten(renamed(serialized, end, name), "x86_amx", described, **options)
        np.testing.assert_array_equal(answers(other, input_spec, pictures(model)), expected, name)
        assert types(other) == types(deployed), name  # weights in few bits stay so
