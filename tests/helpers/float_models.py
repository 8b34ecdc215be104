"""A float model from nodes, for the small networks of all tests (tests/conftest.py puts this folder on the path)."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import Layout
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.model import FloatModel


def float_model(nodes, weights, input_spec, outputs, opset=21):
    """A checked `FloatModel`.

    Args:
        nodes: they read ``input_spec.name``.
        weights: {name: array}, stored as float32; int64 stays.
        input_spec: of the input.
        outputs: {name: shape without the batch}.
        opset: of the model.
    """
    height, width, channels = input_spec.shape
    shape = (channels, height, width) if input_spec.layout is Layout.NCHW else input_spec.shape
    ends = {input_spec.name: shape} | outputs
    batch = input_spec.batch or "batch"
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *ends[name]]) for name in ends]
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    tensors = [
        numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)
        for name, array in arrays.items()
    ]
    graph = helper.make_graph(nodes, "net", described[:1], described[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    return FloatModel("net", serialized, input_spec, sha256_bytes(serialized), "")
