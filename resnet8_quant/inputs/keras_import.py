"""Keras -> ONNX, without TensorFlow.

In: the path of an h5 file of a Keras 2 or Keras 3 image classifier, or of a .keras file (keras_file.py reads them).
Out: an ONNX model (opset 21) with one input "image", float32 NHWC raw pixels, and one output "probabilities".

Layers that it knows, in functional and sequential models: InputLayer, Conv2D, DepthwiseConv2D, BatchNormalization,
Activation (linear, relu, relu6, sigmoid, softmax), ReLU, Softmax, Add, AveragePooling2D, MaxPooling2D,
GlobalAveragePooling2D, Flatten, Reshape, Dropout, Dense and ZeroPadding2D, all in the layout channels_last. Any other
is refused.

Inside the graph tensors are NCHW; nodes and initializers carry the names of the Keras layers. The same file always
gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs.graph import PRODUCER, Graph
from resnet8_quant.inputs.keras_file import LARGEST_INTEGER, Layer, Refused, opened, read_layers, shown, whole

log = logging.getLogger(__name__)

INPUT, OUTPUT = "image", "probabilities"
OPSET, IR_VERSION = 21, 10
ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "softmax")
RANKS = {1: "features", 3: "an image"}  # of a tensor without the batch -> what it is
CONVERSION_SECONDS = 30
REFUSED = 3  # exit code of the process that converts
RESAVE = "save the whole model, architecture and weights, with Keras: model.save('model.h5')"


class Tensor(NamedTuple):
    """A tensor of the graph; its shape without the batch: (channels, height, width), or (features,)."""

    name: str
    shape: tuple[int, ...]


def convert_h5(path: Path) -> onnx.ModelProto:
    """Convert a Keras file.

    Args:
        path: file written by ``model.save('model.h5')`` or ``model.save('model.keras')``: functional or sequential, one
            input [H,W,C], one output of one row of scores per image.

    Returns:
        A checked model: input "image" float32 ["batch",H,W,C], pixels as the Keras model takes them; output
        "probabilities" float32 ["batch",classes], what the last layer yields: no softmax is added where it has none.
        BatchNormalization stays a node.

    Raises:
        ExperimentError: the file is not a Keras model, is damaged or hostile, or holds something that is not
            supported; the message names the file and the layer.
    """
    if not path.is_file():
        raise ExperimentError(f"{path}: no such file", "give the path of a Keras file: model=keras model.path=FILE.h5")
    ends = [onnx.ValueInfoProto(name=name) for name in (INPUT, OUTPUT)]  # their shapes are known at the end
    empty = helper.make_graph([], "classifier", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    graph = Graph(helper.make_model(empty, producer_name=PRODUCER, opset_imports=opsets, ir_version=IR_VERSION))
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        try:
            file, archived = stack.enter_context(opened(path, stack.enter_context(temporary_folder())))
            layers, first, last = read_layers(file, archived)
        except OSError as error:
            raise ExperimentError(f"{path} is not a readable HDF5 file: {error}", RESAVE) from error
        except Refused as error:
            raise ExperimentError(f"{path}: {error}", RESAVE) from error
        for layer in layers:
            try:
                tensors[layer.name] = _convert_layer(graph, layer, tensors)
            except Refused as error:
                raise ExperimentError(
                    f"{path}: layer `{layer.name}` ({layer.class_name}): {error}",
                    f"supported layers: {', '.join(LAYERS)}; for anything else export the model to ONNX with tf2onnx "
                    "and run with model=onnx model.path=FILE",
                ) from error
    if len(tensors[last].shape) != 1:
        raise ExperimentError(f"{path}: the model ends in an image; expected one row of scores per image", RESAVE)
    graph.rename({tensors[last].name: OUTPUT})
    channels, height, width = tensors[first].shape
    for value, shape in ((graph.input, (height, width, channels)), (graph.output, tensors[last].shape)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["batch", *shape]))
    model = graph.finish()
    onnx.checker.check_model(model, full_check=True)
    log.info("%s: %d Keras layers became %d ONNX nodes", path, len(layers), len(graph.nodes))
    return model


def convert_apart(path: Path) -> onnx.ModelProto:
    """`convert_h5` in a process of its own, for files that nobody has vouched for.

    A damaged file may keep the HDF5 library busy for ever or crash it, and neither can be stopped from within.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", __name__, str(path)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=CONVERSION_SECONDS)
    except subprocess.TimeoutExpired as error:
        problem = f"{path} is damaged: the HDF5 library did not read it in {CONVERSION_SECONDS} seconds"
        raise ExperimentError(problem, RESAVE) from error
    if done.returncode == 0:
        return onnx.load_from_string(done.stdout)
    if done.returncode == REFUSED:
        raise ExperimentError(*json.loads(done.stdout))
    if done.returncode < 0:
        raise ExperimentError(f"{path} is damaged: the HDF5 library crashed on it", RESAVE)
    raise RuntimeError(f"cannot convert {path}: {done.stderr.decode(errors='replace')}")


def _convert_layer(graph: Graph, layer: Layer, tensors: dict[str, Tensor]) -> Tensor:
    """Check a layer's class and inputs, then emit it."""
    if layer.class_name not in LAYERS:
        raise Refused("this class is not supported")
    emit, counts, rank = LAYERS[layer.class_name]
    sources = layer.inputs()
    if len(sources) not in counts:
        raise Refused(f"it takes {len(sources)} inputs")
    for source in sources:
        if source not in tensors:
            raise Refused(f"its input {shown(source)} is not the output of a layer before it")
        if rank not in (None, len(tensors[source].shape)):
            raise Refused(f"its input is {RANKS[len(tensors[source].shape)]}; expected {RANKS[rank]}")
    layer.choice("data_format", ("channels_last",), "channels_last")
    return emit(graph, layer, *(tensors[source] for source in sources))


def _input(graph: Graph, layer: Layer) -> Tensor:
    key = "batch_shape" if "batch_shape" in layer.config else "batch_input_shape"
    match layer.config.get(key):
        case [_, height, width, channels]:
            shape = (whole(key, channels), whole(key, height), whole(key, width))
            return Tensor(graph.add_node("Transpose", [INPUT], "nchw", perm=[0, 3, 1, 2]), shape)
    raise Refused(f"`{key}` is {shown(layer.config.get(key))}; expected [null, height, width, channels]")


def _convolution(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    channels, kernel = x.shape[0], layer.integers("kernel_size", 2)
    if layer.class_name == "DepthwiseConv2D":
        groups, multiplier = channels, layer.integer("depth_multiplier", 1)
        weight = layer.weight((*kernel, channels, multiplier), "depthwise_kernel", "kernel")
        # Output channel c * multiplier + m is filter m of input channel c, in Keras as in ONNX.
        weight = weight.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, *kernel)
    else:
        groups, filters = layer.integer("groups", 1), layer.integer("filters")
        if channels % groups or filters % groups:
            raise Refused(f"`groups` is {groups}; expected a divisor of {channels} channels and {filters} filters")
        weight = layer.weight((*kernel, channels // groups, filters), "kernel").transpose(3, 2, 0, 1)
    strides, dilations = layer.integers("strides", 2, 1), layer.integers("dilation_rate", 2, 1)
    if max(strides) > 1 and max(dilations) > 1:
        raise Refused(f"`strides` {strides} together with `dilation_rate` {dilations}; supported: one of them")
    pads, sizes = _windows(layer, x, kernel, strides, dilations)
    names = [x.name, graph.add_initializer(f"{layer.name}.weight", weight), *_bias(graph, layer, len(weight))]
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}
    output = graph.add_node("Conv", names, layer.name, **attributes)
    return _fused_activation(graph, layer, Tensor(output, (len(weight), *sizes)))


def _windows(
    layer: Layer, x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...] = (1, 1)
) -> tuple[list[int], list[int]]:
    """ONNX pads [top, left, bottom, right] and the output's [height, width] for a window that slides over ``x``."""
    same = layer.choice("padding", ("valid", "same"), "valid") == "same"
    before, after, sizes = [], [], []
    for size, width, stride, dilation in zip(x.shape[1:], kernel, strides, dilations, strict=True):
        extent = (width - 1) * dilation + 1
        steps = math.ceil(size / stride) if same else (size - extent) // stride + 1
        if steps < 1:
            raise Refused(f"its window of {extent} pixels is larger than the input of {size}")
        total = max((steps - 1) * stride + extent - size, 0) if same else 0
        before.append(total // 2)  # Keras puts the odd pixel at the bottom and the right
        after.append(total - total // 2)
        sizes.append(steps)
    return [*before, *after], sizes


def _bias(graph: Graph, layer: Layer, units: int) -> list[str]:
    has_bias = layer.flag("use_bias", True)
    return [graph.add_initializer(f"{layer.name}.bias", layer.weight((units,), "bias"))] if has_bias else []


def _batch_normalization(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    _require_last_axis(layer, x)
    channels = x.shape[:1]
    values = {
        "gamma": layer.weight(channels, "gamma") if layer.flag("scale", True) else np.ones(channels, np.float32),
        "beta": layer.weight(channels, "beta") if layer.flag("center", True) else np.zeros(channels, np.float32),
        "moving_mean": layer.weight(channels, "moving_mean"),
        "moving_variance": layer.weight(channels, "moving_variance"),
    }
    names = [graph.add_initializer(f"{layer.name}.{key}", value) for key, value in values.items()]
    epsilon = layer.number("epsilon", 1e-3)
    return Tensor(graph.add_node("BatchNormalization", [x.name, *names], layer.name, epsilon=epsilon), x.shape)


def _require_last_axis(layer: Layer, x: Tensor) -> None:
    """Refuse an axis other than Keras' last one, the channels or features, which is axis 1 in the graph."""
    (axis,) = layer.integers("axis", 1, default=-1, lowest=-1)
    if axis not in (-1, len(x.shape)):
        raise Refused(f"`axis` is {axis}; supported: the last one")


def _activate(graph: Graph, x: Tensor, activation: str, name: str, highest: float = 6.0) -> Tensor:
    """``x`` after one of ACTIVATIONS; relu6 is a clip at ``highest``."""
    if activation == "linear":
        return x
    if activation == "relu":
        return Tensor(graph.add_node("Relu", [x.name], name), x.shape)
    if activation == "sigmoid":
        return Tensor(graph.add_node("Sigmoid", [x.name], name), x.shape)
    if activation == "softmax":
        return Tensor(graph.add_node("Softmax", [x.name], name, axis=1), x.shape)
    limits = {"min": 0.0, "max": highest}
    names = [graph.add_initializer(f"{name}.{key}", np.float32(limit)) for key, limit in limits.items()]
    return Tensor(graph.add_node("Clip", [x.name, *names], name), x.shape)


def _fused_activation(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    activation = layer.choice("activation", ACTIVATIONS, "linear")
    return _activate(graph, x, activation, f"{layer.name}.{activation}")


def _activation(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    return _activate(graph, x, layer.choice("activation", ACTIVATIONS), layer.name)


def _relu(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    for key in ("negative_slope", "threshold"):
        if layer.number(key, 0.0) != 0:
            raise Refused(f"`{key}` is {layer.number(key, 0.0)}; supported: 0")
    if layer.config.get("max_value") is None:
        return _activate(graph, x, "relu", layer.name)
    highest = layer.number("max_value", 6.0)
    if highest < 0:
        raise Refused(f"`max_value` is {highest}; expected 0 or more")
    return _activate(graph, x, "relu6", layer.name, highest)


def _softmax(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    _require_last_axis(layer, x)
    return _activate(graph, x, "softmax", layer.name)


def _add(graph: Graph, layer: Layer, total: Tensor, *others: Tensor) -> Tensor:
    for i, x in enumerate(others, 1):
        if x.shape != total.shape:
            raise Refused(f"its inputs have different shapes: channels first, {total.shape} and {x.shape}")
        name = layer.name if i == len(others) else f"{layer.name}.{i}"
        total = Tensor(graph.add_node("Add", [total.name, x.name], name), x.shape)
    return total


def _pool(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    """A pooling layer; Keras and ONNX both leave the padding out of an average."""
    kernel = layer.integers("pool_size", 2, default=2)
    strides = kernel if layer.config.get("strides") is None else layer.integers("strides", 2)
    pads, sizes = _windows(layer, x, kernel, strides)
    op_type = layer.class_name.removesuffix("ing2D")  # AveragePool, MaxPool
    name = graph.add_node(op_type, [x.name], layer.name, kernel_shape=kernel, strides=strides, pads=pads)
    return Tensor(name, (x.shape[0], *sizes))


def _global_average_pool(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    keepdims = layer.flag("keepdims", False)
    pooled = graph.add_node("GlobalAveragePool", [x.name], layer.name if keepdims else f"{layer.name}.pool")
    if keepdims:
        return Tensor(pooled, (x.shape[0], 1, 1))
    return Tensor(graph.add_node("Flatten", [pooled], layer.name, axis=1), x.shape[:1])


def _flatten(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    name = x.name
    if math.prod(x.shape) > x.shape[0]:  # Keras flattens [H,W,C]; at 1x1 the order is the same
        name = graph.add_node("Transpose", [name], f"{layer.name}.nhwc", perm=[0, 2, 3, 1])
    return Tensor(graph.add_node("Flatten", [name], layer.name, axis=1), (math.prod(x.shape),))


def _reshape(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    """Keras reshapes [H,W,C]; the graph's images are [C,H,W], so that they are turned before and after."""
    target = layer.config.get("target_shape")
    if not isinstance(target, list) or len(target) not in RANKS:
        raise Refused(f"`target_shape` is {shown(target)}; expected [features] or [height, width, channels]")
    sizes = [size if size == -1 else whole("target_shape", size) for size in target]
    count = math.prod(x.shape)
    if sizes.count(-1) == 1 and count % math.prod(sizes) == 0:
        sizes[sizes.index(-1)] = count // -math.prod(sizes)
    if math.prod(sizes) != count or min(sizes) < 1 or max(sizes) > LARGEST_INTEGER:
        raise Refused(f"`target_shape` is {shown(target)}, but its input has {count} values")
    name = x.name
    if len(x.shape) > 1:
        name = graph.add_node("Transpose", [name], f"{layer.name}.nhwc", perm=[0, 2, 3, 1])
    shape = graph.add_initializer(f"{layer.name}.shape", np.array([0, *sizes], np.int64))  # 0: the batch, as it is
    if len(sizes) == 1:
        return Tensor(graph.add_node("Reshape", [name, shape], layer.name), (count,))
    name = graph.add_node("Reshape", [name, shape], f"{layer.name}.reshape")
    height, width, channels = sizes
    return Tensor(graph.add_node("Transpose", [name], layer.name, perm=[0, 3, 1, 2]), (channels, height, width))


def _dense(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    units = layer.integer("units")
    weight = graph.add_initializer(f"{layer.name}.weight", layer.weight((x.shape[0], units), "kernel"))
    name = graph.add_node("Gemm", [x.name, weight, *_bias(graph, layer, units)], layer.name)
    return _fused_activation(graph, layer, Tensor(name, (units,)))


def _zero_padding(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    match layer.config.get("padding"):
        case [[_, _] as rows, [_, _] as columns]:
            top, bottom, left, right = (whole("padding", size, lowest=0) for size in (*rows, *columns))
        case padding:
            raise Refused(f"`padding` is {shown(padding)}; expected [[top, bottom], [left, right]]")
    pads = graph.add_initializer(f"{layer.name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    channels, height, width = x.shape
    name = graph.add_node("Pad", [x.name, pads], layer.name)
    return Tensor(name, (channels, height + top + bottom, width + left + right))


class Emitter(NamedTuple):
    """How a layer class becomes ONNX nodes."""

    emit: Callable[..., Tensor]  # (graph, layer, tensors that it takes) -> the tensor that it yields
    counts: range = range(1, 2)  # how many tensors it may take
    rank: int | None = None  # of these, without the batch: 3 an image, 1 features, None either


LAYERS = {
    "InputLayer": Emitter(_input, counts=range(1)),
    "Conv2D": Emitter(_convolution, rank=3),
    "DepthwiseConv2D": Emitter(_convolution, rank=3),
    "BatchNormalization": Emitter(_batch_normalization),
    "Activation": Emitter(_activation),
    "ReLU": Emitter(_relu),
    "Softmax": Emitter(_softmax),
    "Add": Emitter(_add, counts=range(2, 65)),
    "AveragePooling2D": Emitter(_pool, rank=3),
    "MaxPooling2D": Emitter(_pool, rank=3),
    "GlobalAveragePooling2D": Emitter(_global_average_pool, rank=3),
    "Flatten": Emitter(_flatten),
    "Reshape": Emitter(_reshape),
    "Dropout": Emitter(lambda graph, layer, x: x),  # inference drops nothing
    "Dense": Emitter(_dense, rank=1),
    "ZeroPadding2D": Emitter(_zero_padding, rank=3),
}


def main(path: Path) -> int:
    """Write the model to stdout, or the problem and the remedy as JSON; for `convert_apart`."""
    try:
        content, code = bytes(convert_h5(path).SerializeToString()), 0
    except ExperimentError as error:
        content, code = json.dumps([error.problem, error.remedy]).encode(), REFUSED
    sys.stdout.buffer.write(content)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
