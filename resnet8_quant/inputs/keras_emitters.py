"""Keras layers as ONNX nodes: the table of what can be converted.

In:  a layer of a Keras file (keras_layer.py) and the tensors that it takes.
Out: nodes and initializers in a `Graph`, and the tensor that the layer makes.

Inside the graph tensors are NCHW; nodes and initializers carry the names of the Keras layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.graphs.graph import Graph
from resnet8_quant.inputs.keras_layer import Layer, shown
from resnet8_quant.inputs.onnx_graph import INPUT, Tensor


def _input(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    key = "batch_shape" if "batch_shape" in layer.config else "batch_input_shape"
    match layer.config.get(key):
        case [_, *sizes] if len(sizes) == 3:
            height, width, channels = (layer.whole(key, size) for size in sizes)
        case shape:
            raise layer.refused(f"`{key}` is {shown(shape)}; expected [null, height, width, channels]")
    return Tensor(graph.add_node("Transpose", [INPUT], "nchw", perm=[0, 3, 1, 2]), (channels, height, width))


def _conv(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    channels = _image(layer, inputs[0])[0]
    filters, groups = layer.integer("filters"), layer.integer("groups", default=1)
    if channels % groups or filters % groups:
        raise layer.refused(f"`groups` is {groups}; expected a divisor of {channels} channels and {filters} filters")
    kernel = layer.integers("kernel_size", 2)
    weight = layer.weight((*kernel, channels // groups, filters), "kernel")
    return _convolve(graph, layer, inputs[0], weight.transpose(3, 2, 0, 1), groups)


def _depthwise(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    channels = _image(layer, inputs[0])[0]
    kernel, multiplier = layer.integers("kernel_size", 2), layer.integer("depth_multiplier", default=1)
    weight = layer.weight((*kernel, channels, multiplier), "depthwise_kernel", "kernel")
    # output channel c * multiplier + m is filter m of input channel c, in Keras as in ONNX
    weight = weight.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, *kernel)
    return _convolve(graph, layer, inputs[0], weight, channels)


def _convolve(graph: Graph, layer: Layer, x: Tensor, weight: NDArray[np.float32], groups: int) -> Tensor:
    """A Conv with ``weight`` [filters, channels / groups, height, width], then the layer's activation."""
    strides, dilations = layer.integers("strides", 2, default=1), layer.integers("dilation_rate", 2, default=1)
    if max(strides) > 1 and max(dilations) > 1:
        raise layer.refused(f"`strides` {strides} together with `dilation_rate` {dilations}; supported: one of them")
    filters, kernel = len(weight), weight.shape[2:]
    pads, sizes = _windows(layer, x, kernel, strides, dilations)
    names = [x.name, graph.add_initializer(f"{layer.name}.weight", weight)]
    if layer.flag("use_bias", True):
        names.append(graph.add_initializer(f"{layer.name}.bias", layer.weight((filters,), "bias")))
    name = graph.add_node(
        "Conv",
        names,
        layer.name,
        kernel_shape=list(kernel),
        strides=list(strides),
        pads=pads,
        dilations=list(dilations),
        group=groups,
    )
    return _fused_activation(graph, layer, Tensor(name, (filters, *sizes)))


def _windows(
    layer: Layer, x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...] = (1, 1)
) -> tuple[list[int], tuple[int, int]]:
    """ONNX pads [top, left, bottom, right] and the output's (height, width) for a window that slides over ``x``."""
    same = layer.choice("padding", ("valid", "same"), "valid") == "same"
    before, after, sizes = [], [], []
    for size, width, stride, dilation in zip(_image(layer, x)[1:], kernel, strides, dilations, strict=True):
        extent = (width - 1) * dilation + 1
        steps = math.ceil(size / stride) if same else (size - extent) // stride + 1
        if steps < 1:
            raise layer.refused(f"its window of {extent} pixels is larger than the input of {size}")
        total = max((steps - 1) * stride + extent - size, 0) if same else 0
        before.append(total // 2)  # Keras puts the odd pixel at the bottom and the right
        after.append(total - total // 2)
        sizes.append(steps)
    return [*before, *after], (sizes[0], sizes[1])


def _batch_normalization(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    axis = layer.integers("axis", 1, default=-1, lowest=-1)[0]
    if axis not in (-1, len(x.shape)):
        raise layer.refused(f"`axis` is {axis}; supported: the last one")
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


def _relu(graph: Graph, x: Tensor, name: str) -> Tensor:
    return Tensor(graph.add_node("Relu", [x.name], name), x.shape)


def _clip(graph: Graph, x: Tensor, name: str, highest: float = 6.0) -> Tensor:
    limits = {"min": np.float32(0), "max": np.float32(highest)}
    names = [graph.add_initializer(f"{name}.{key}", np.asarray(value)) for key, value in limits.items()]
    return Tensor(graph.add_node("Clip", [x.name, *names], name), x.shape)


def _softmax(graph: Graph, x: Tensor, name: str) -> Tensor:
    # Keras' last axis, the channels or features, is axis 1 here
    return Tensor(graph.add_node("Softmax", [x.name], name, axis=1), x.shape)


def _linear(graph: Graph, x: Tensor, name: str) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Graph, Tensor, str], Tensor]] = {
    "linear": _linear,
    "relu": _relu,
    "relu6": _clip,
    "softmax": _softmax,
}


def _fused_activation(graph: Graph, layer: Layer, x: Tensor) -> Tensor:
    kind = layer.choice("activation", ACTIVATIONS, "linear")
    return ACTIVATIONS[kind](graph, x, f"{layer.name}.{kind}")


def _activation(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    return ACTIVATIONS[layer.choice("activation", ACTIVATIONS)](graph, inputs[0], layer.name)


def _relu_layer(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    for key in ("negative_slope", "threshold"):
        if layer.number(key, 0.0) != 0:
            raise layer.refused(f"`{key}` is {layer.number(key, 0.0)}; supported: 0")
    if layer.config.get("max_value") is None:
        return _relu(graph, inputs[0], layer.name)
    highest = layer.number("max_value", 6.0)
    if highest < 0:
        raise layer.refused(f"`max_value` is {highest}; expected 0 or more")
    return _clip(graph, inputs[0], layer.name, highest)


def _softmax_layer(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    axis = layer.integers("axis", 1, default=-1, lowest=-1)[0]
    if axis not in (-1, len(inputs[0].shape)):
        raise layer.refused(f"`axis` is {axis}; supported: the last one")
    return _softmax(graph, inputs[0], layer.name)


def _add(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    total = inputs[0]
    for i, x in enumerate(inputs[1:], 1):
        if x.shape != total.shape:
            raise layer.refused(f"its inputs have different shapes: channels first, {total.shape} and {x.shape}")
        name = layer.name if i == len(inputs) - 1 else f"{layer.name}.{i}"
        total = Tensor(graph.add_node("Add", [total.name, x.name], name), x.shape)
    return total


def _pool(kind: str) -> Callable[[Graph, Layer, list[Tensor]], Tensor]:
    """The emitter of a pooling layer; both frameworks leave the padding out of an average."""

    def emit(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        kernel = layer.integers("pool_size", 2, default=2)
        strides = kernel if layer.config.get("strides") is None else layer.integers("strides", 2)
        pads, sizes = _windows(layer, x, kernel, strides)
        name = graph.add_node(kind, [x.name], layer.name, kernel_shape=list(kernel), strides=list(strides), pads=pads)
        return Tensor(name, (x.shape[0], *sizes))

    return emit


def _global_average_pool(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    x, channels = inputs[0], _image(layer, inputs[0])[0]
    if layer.flag("keepdims", False):
        return Tensor(graph.add_node("GlobalAveragePool", [x.name], layer.name), (channels, 1, 1))
    pooled = graph.add_node("GlobalAveragePool", [x.name], f"{layer.name}.pool")
    return Tensor(graph.add_node("Flatten", [pooled], layer.name, axis=1), (channels,))


def _flatten(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    _require_channels_last(layer)
    name = x.name
    if math.prod(x.shape) > x.shape[0]:  # Keras flattens [H,W,C]; at 1x1 the order is the same
        name = graph.add_node("Transpose", [name], f"{layer.name}.nhwc", perm=[0, 2, 3, 1])
    return Tensor(graph.add_node("Flatten", [name], layer.name, axis=1), (math.prod(x.shape),))


def _dropout(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    return inputs[0]  # inference drops nothing


def _dense(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if len(x.shape) != 1:
        raise layer.refused("its input is an image; supported: features, after Flatten or GlobalAveragePooling2D")
    units = layer.integer("units")
    names = [x.name, graph.add_initializer(f"{layer.name}.weight", layer.weight((x.shape[0], units), "kernel"))]
    if layer.flag("use_bias", True):
        names.append(graph.add_initializer(f"{layer.name}.bias", layer.weight((units,), "bias")))
    return _fused_activation(graph, layer, Tensor(graph.add_node("Gemm", names, layer.name), (units,)))


def _zero_padding(graph: Graph, layer: Layer, inputs: list[Tensor]) -> Tensor:
    channels, height, width = _image(layer, inputs[0])
    match layer.config.get("padding"):
        case [[_, _] as rows, [_, _] as columns]:
            top, bottom, left, right = (layer.whole("padding", size, lowest=0) for size in (*rows, *columns))
            pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        case padding:
            raise layer.refused(f"`padding` is {shown(padding)}; expected [[top, bottom], [left, right]]")
    name = graph.add_node("Pad", [inputs[0].name, graph.add_initializer(f"{layer.name}.pads", pads)], layer.name)
    return Tensor(name, (channels, height + top + bottom, width + left + right))


def _image(layer: Layer, x: Tensor) -> tuple[int, int, int]:
    """(channels, height, width) of ``x``, for a layer that works on images in Keras' own layout."""
    _require_channels_last(layer)
    match x.shape:
        case (channels, height, width):
            return channels, height, width
        case _:
            raise layer.refused(f"its input is {x.shape[0]} features; expected an image")


def _require_channels_last(layer: Layer) -> None:
    layer.choice("data_format", ("channels_last",), "channels_last")


Emitter = Callable[[Graph, Layer, list[Tensor]], Tensor]

EMITTERS: dict[str, Emitter] = {
    "InputLayer": _input,
    "Conv2D": _conv,
    "DepthwiseConv2D": _depthwise,
    "BatchNormalization": _batch_normalization,
    "Activation": _activation,
    "ReLU": _relu_layer,
    "Softmax": _softmax_layer,
    "Add": _add,
    "AveragePooling2D": _pool("AveragePool"),
    "MaxPooling2D": _pool("MaxPool"),
    "GlobalAveragePooling2D": _global_average_pool,
    "Flatten": _flatten,
    "Dropout": _dropout,
    "Dense": _dense,
    "ZeroPadding2D": _zero_padding,
}

INPUTS = {"InputLayer": range(1), "Add": range(2, 65)}  # how many inputs a class takes, where it is not one
