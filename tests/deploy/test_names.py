"""Models whose tensors already have the names that deploying would give."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from deployed import NETS, answers, build, pictures, plain, quant_config, rewritten

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DeployInput,
    DeployOutput,
    RefineConfig,
    Rounding,
    WeightScale,
)
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

ROUNDED = RefineConfig("nearest", WeightScale.mse, Rounding.nearest, images=24)


def names(serialized):
    """All tensors of a model."""
    graph = onnx.load_from_string(serialized).graph
    made = {name for node in graph.node for name in node.output}
    return made | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}


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


@pytest.fixture(scope="module")
def models():
    """{bits of the weights: (model, its quantized bytes)}."""
    model = build(**NETS["rows move"], mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0))
    config = quant_config("u8s8", weight_bits=4)
    narrow = quantize(
        model, CalibrationImages.of(pictures(model)), Config(config, CalibrationConfig(bins=None), ROUNDED)
    )
    return {8: (model, plain(model, "u8s8")), 4: (model, narrow.serialized)}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("end", ["image", "probabilities"])
def test_an_end_may_have_any_name(models, bits, end):
    model, serialized = models[bits]
    options = {"output": DeployOutput.logits, "input": DeployInput.uint8}
    deployed, input_spec = rewritten(serialized, "x86_amx", model.input_spec, **options)
    expected = answers(deployed, input_spec, pictures(model))
    made = sorted(names(deployed) - names(serialized))
    assert any(name.endswith("_moved") for name in made) == (bits == 4)
    assert any(name.endswith("_nhwc_stored") for name in made) == (bits == 4)
    for name in made:
        described = replace(model.input_spec, name=name) if end == "image" else model.input_spec
        other, input_spec = rewritten(renamed(serialized, end, name), "x86_amx", described, **options)
        np.testing.assert_array_equal(answers(other, input_spec, pictures(model)), expected, name)
        assert types(other) == types(deployed), name  # weights in few bits stay so
