"""A graph that computes with its own shapes, as an exported x.view(x.size(0), -1) does, is refined like any other."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Config, DType, Layout, QuantConfig, RefineConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

QUANT = QuantConfig(activation_type=DType.uint8, per_channel=True, weight_bits=4)
IMAGES = CalibrationImages.of(np.random.default_rng(0).integers(0, 256, (130, 4, 4, 3), dtype=np.uint8))


def net(batch=None):
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(size=(6, 3, 3, 3)),
        "v": rng.normal(size=(24, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["scores"]),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors += [numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("rest", -1))]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch or "batch", 3, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch or "batch", 5])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    input_spec = InputSpec("image", Layout.NCHW, (4, 4, 3), batch, 5)
    return FloatModel("shapes", proto.SerializeToString(), input_spec, "", "")


def test_more_images_than_a_chunk():
    made = quantize(net(), IMAGES, Config(QUANT, refine=RefineConfig("bias", bias=True)))
    assert [layer.weight_bits for layer in made.contents.layers] == [4, 4]


def test_a_fixed_batch_is_refused():
    with pytest.raises(ExperimentError, match=r"computes with shapes \(Shape\)"):
        quantize(net(10), IMAGES, Config(QUANT, refine=RefineConfig("bias", bias=True)))
