"""Layers that quant.layers keeps in float: in the graph, in ONNX Runtime's kernels, and beside a copy in pieces."""

import numpy as np
import onnx
import pytest
from nets import ALL, NETS, PICTURES, arrays_of, branching, pictures, run

from resnet8_quant.config import Config, DType, QuantConfig, RefineConfig, Rounding, Target
from resnet8_quant.graphs.partly_quantized import PartlyQuantized
from resnet8_quant.quantizer.plan import layer_nodes
from resnet8_quant.quantizer.quantize import quantize

MODELS = {name: make for name, make in NETS.items() if name != "gemm alone"} | {"branching": branching}
REFINED = RefineConfig(rounding=Rounding.gptq, target=Target.outputs, bias=True, activation_ranges=True)


@pytest.mark.parametrize("refine", [RefineConfig(), REFINED], ids=["plain", "refined"])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", MODELS)
def test_a_float_layer_is_float_and_the_others_are_not(name, place, refine):
    model = MODELS[name]()
    nodes = layer_nodes(model.proto().graph)
    kept = nodes[place]
    quant = QuantConfig(
        activation_type=DType.uint8,
        weight_bits=4,
        per_channel=place == 0,
        layers={kept.output[0]: {"float": True}},
    )
    done = quantize(model, pictures(), Config(quant, refine=refine))
    written, floats = onnx.load_from_string(done.serialized), arrays_of(model.proto())
    node = next(node for node in written.graph.node if kept.input[1] in node.input)
    for read in kept.input[1:]:
        np.testing.assert_array_equal(arrays_of(written)[read], floats[read])
    assert node.op_type == kept.op_type
    assert len(done.summary.layers) == len(nodes) - 1

    # ONNX Runtime's kernels compute what the graph says: one code of a quantized output apart where sums are rounded
    batch = model.input_spec.batch or 20
    feed = {"image": model.input_spec.prepare(PICTURES[:batch])}
    exact, optimized = run(written, feed)[0], run(written, feed, ALL)[0]
    step = np.ptp(exact) / 100
    assert np.abs(exact - optimized).max() <= step

    # and so does the float model with its parts quantized
    if done.summary.layers:
        parts = PartlyQuantized(model.proto(), written)
        names = [layer.name for layer in parts.layers]
        assert kept.output[0] not in names
        whole = run(parts.model(names, names, others=True), feed)[0]
        assert np.abs(exact - whole).max() <= step
        np.testing.assert_allclose(run(parts.model(), feed)[0], run(model.proto(), feed)[0], rtol=1e-5, atol=1e-4)
