"""Keras h5 -> ONNX, without TensorFlow.

In:  the path of an h5 file of a Keras 2 or Keras 3 image classifier (keras_file.py reads it).
Out: an ONNX model (opset 21) with one input "image", float32 NHWC raw pixels, and one output "probabilities".

Each layer class has one emitter in keras_emitters.py; what is not in its table is refused. The same file always gives
the same bytes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

from resnet8_quant.inputs.keras_emitters import EMITTERS, INPUTS
from resnet8_quant.inputs.keras_file import open_keras
from resnet8_quant.inputs.keras_layer import shown
from resnet8_quant.inputs.onnx_graph import Tensor, finish, new_graph

log = logging.getLogger(__name__)


def convert_h5(path: Path) -> onnx.ModelProto:
    """Convert a Keras h5 file.

    Args:
        path: file written by ``model.save('model.h5')``: functional or sequential, one input [H,W,C], one output of one
            row of scores per image.

    Returns:
        A checked model: input "image" float32 ["batch",H,W,C], pixels as the Keras model takes them; output
        "probabilities" float32 ["batch",classes], what the last layer yields: no softmax is added where it has none.
        BatchNormalization stays a node.

    Raises:
        ExperimentError: the file is not a Keras h5 model, is damaged or hostile, or holds something that is not
            supported; the message names the file and the layer.
    """
    graph = new_graph()
    tensors: dict[str, Tensor] = {}
    with open_keras(path, EMITTERS) as model:
        for layer in model.layers:
            sources = layer.inputs()
            if len(sources) not in INPUTS.get(layer.class_name, range(1, 2)):
                raise layer.refused(f"it takes {len(sources)} inputs")
            for source in sources:
                if source not in tensors:
                    raise layer.refused(f"its input {shown(source)} is not the output of a layer before it")
            tensors[layer.name] = EMITTERS[layer.class_name](graph, layer, [tensors[s] for s in sources])
    channels, height, width = tensors[model.input.name].shape
    output = tensors[model.output.name]
    if len(output.shape) != 1:
        raise model.output.refused("the model ends in an image; expected one row of scores per image")
    converted = finish(graph, (height, width, channels), output)
    log.info("%s: %d Keras layers became %d ONNX nodes", path, len(model.layers), len(graph.nodes))
    return converted
