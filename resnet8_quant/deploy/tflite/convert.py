"""From a Q/DQ model in ONNX to TensorFlow Lite's operators, with the very integers that the model holds.

In: ONNX with QuantizeLinear and DequantizeLinear around its operators. Out: a `TfliteModel` in int8.

uint8 activations become int8 by subtracting 128 from codes and zero points, which changes no value. Weights are int8
around a zero point of 0, or int4. What TensorFlow Lite has no operator for is refused by name: nothing is computed in
float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel
from resnet8_quant.deploy.tflite.qdq import LOW_BIT_REMEDY, QdqGraph, refuse
from resnet8_quant.deploy.tflite.reference import padding
from resnet8_quant.graphs.graph import DEFAULT_DOMAIN, attributes, input_name

SOFTMAX = (np.float32(1 / 256), -128)  # the only output parameters that the kernels of SOFTMAX and LOGISTIC take


def convert(model: onnx.ModelProto, description: str = "", int4: bool = True) -> TfliteModel:
    """Translate a Q/DQ model.

    Args:
        model: with one image input and one output.
        description: for the file.
        int4: pack weights of at most 4 bits, where TensorFlow Lite Micro's kernels take them.

    Raises:
        ExperimentError: an operator, a type, a shape or a scale without counterpart.
    """
    converted = _Converter(model, description, int4).convert()
    _keep_int8_at_the_peak(converted)
    return converted


def _keep_int8_at_the_peak(model: TfliteModel) -> None:
    """Store weights as int8 where packing them would cost RAM.

    TensorFlow Lite Micro unpacks the int4 weights of a layer into memory beside the activations; a layer that runs when
    these take most would raise what the model needs.
    """
    live = model.live_bytes()
    for step, operator in enumerate(model.operators):
        weights = model.tensors[operator.inputs[1]] if len(operator.inputs) > 1 else None
        if weights is not None and weights.dtype == "int4" and live[step] + int(np.prod(weights.shape)) > max(live):
            weights.dtype = "int8"


class _Converter:
    """The graph while it is translated: which tensor stands for which ONNX value."""

    def __init__(self, model: onnx.ModelProto, description: str, int4: bool) -> None:
        self.onnx = QdqGraph(model)
        self.int4 = int4
        self.result = TfliteModel([], [], -1, -1, description)
        self.tensor: dict[str, int] = {}  # of a quantized activation, by each of its names in ONNX
        self.flattened: dict[int, tuple[int, int, int]] = {}  # tensor -> height, width, channels before Flatten
        self.channels_last: set[str] = set()  # images that are NHWC in ONNX too: behind a Transpose, before a Flatten

    def convert(self) -> TfliteModel:
        for node in self.onnx.graph.nodes:
            handler = HANDLERS.get(node.op_type)
            if handler is None or node.domain not in DEFAULT_DOMAIN:
                raise refuse(f"TensorFlow Lite has no counterpart for {node.op_type} ({node.name or node.output[0]})")
            handler(self, node)
        if self.onnx.output not in self.tensor:
            raise refuse(f"the output {self.onnx.output} is not quantized")
        self.result.output = self.tensor[self.onnx.output]
        if self.result.output in self.flattened:
            raise refuse("its output is a flattened image, whose values TensorFlow Lite orders otherwise")
        if self.result.input < 0:
            raise refuse("its input is not quantized")
        return self.result

    # -- quantization parameters ----------------------------------------------------------------------------------

    def source(self, node: onnx.NodeProto, index: int = 0) -> int:
        """The tensor of an operator's input."""
        name = node.input[index]
        if name not in self.tensor:
            raise refuse(f"the input {name} of {node.op_type} is not quantized")
        if name in self.channels_last and node.op_type not in FLATTENING:
            raise refuse(f"{node.output[0]} reads an image that is transposed to NHWC, which only Flatten may")
        return self.tensor[name]

    def call(self, name: str, same: str) -> None:
        """Give a tensor another name, that of a value with the same codes in the same order."""
        self.tensor[name] = self.tensor[same]
        if same in self.channels_last:
            self.channels_last.add(name)

    def finish(
        self,
        kind: str,
        node: onnx.NodeProto,
        inputs: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
        params: tuple[np.float32, int] | None = None,
        **options: Any,
    ) -> int:
        """Append an operator whose output is what ``node`` computes, with the Relu or Relu6 behind it.

        Args:
            shape: of the output; None: as ONNX has it.
            params: scale and zero point that the kernel writes, if it cannot write those that ONNX has.
        """
        name = node.output[0]
        last, activation = self.onnx.activation(name) or (name, "NONE")
        quantize = self.onnx.quantizer(last)
        asked = self.onnx.parameters(quantize)
        if params is not None and self.onnx.is_output(quantize):
            asked = params  # nothing behind it needs another scale, and 1/256 is what callers expect
        params = params or asked
        shape = shape or self.onnx.nhwc(name)
        if kind in FUSING:
            options["activation"] = activation if params == asked else "NONE"
        fused = options.get("activation") == activation
        output = self.append(kind, inputs, name, shape, params, **options)
        if params != asked:
            output = self.append("QUANTIZE", (output,), f"{name}_rescaled", shape, asked)
        if activation != "NONE" and not fused:
            output = self.append(activation, (output,), last, shape, asked)
        self.tensor[quantize.output[0]] = output
        return output

    def finish_same_scale(
        self, kind: str, node: onnx.NodeProto, inputs: tuple[int, ...], shape: tuple[int, ...], **options: Any
    ) -> int:
        """As ``finish`` for an operator that keeps scale and zero point."""
        return self.finish(kind, node, inputs, shape, self.params(inputs[0]), **options)

    def append(
        self,
        kind: str,
        inputs: tuple[int, ...],
        name: str,
        shape: tuple[int, ...],
        params: tuple[np.float32, int],
        **options: Any,
    ) -> int:
        """Append an operator; its output."""
        output = self.activation_tensor(name, shape, *params)
        self.result.operators.append(Operator(kind, inputs, (output,), options))
        orders = {self.flattened[i] for i in inputs if i in self.flattened}
        if orders and kind != "FULLY_CONNECTED":  # which undoes it in its weights
            plain = any(
                i not in self.flattened and self.result.tensors[i].data is None and self.result.tensors[i].shape[-1] > 1
                for i in inputs
            )
            if len(orders) > 1 or kind == "CONCATENATION" or (plain and kind in ("ADD", "MUL")):
                raise refuse(f"{name} joins images that were flattened, whose values TensorFlow Lite orders otherwise")
            self.flattened[output] = orders.pop()
        return output

    def params(self, tensor: int) -> tuple[np.float32, int]:
        """Scale and zero point of an activation."""
        scale = self.result.tensors[tensor].scale
        assert scale is not None
        return scale[0], self.result.tensors[tensor].zero_point

    def activation_tensor(self, name: str, shape: tuple[int, ...], scale: Any, zero_point: int) -> int:
        return self.result.add(Tensor(name, shape, "int8", np.array([scale], np.float32), zero_point))

    # -- weights --------------------------------------------------------------------------------------------------

    def weight_tensor(self, name: str, codes: np.ndarray, scale: np.ndarray, axis: int, packs: bool) -> int:
        small = self.int4 and packs and codes.min() >= -8 and codes.max() <= 7
        per_channel = axis if len(scale) > 1 else None
        tensor = Tensor(name, codes.shape, "int4" if small else "int8", scale, 0, per_channel, codes)
        return self.result.add(tensor)

    def bias_tensor(self, node: onnx.NodeProto, source: int, scale: np.ndarray, outputs: int) -> int:
        """int32 on scale input times weights, as ONNX Runtime's quantizer writes it too.

        Zeros where the layer has none: LiteRT's convolutions do not run without.
        """
        name, product = input_name(node, 2), self.params(source)[0] * scale
        if not name:
            name, codes = f"{node.output[0]}_bias", np.zeros(outputs, np.int32)
        elif name in self.onnx.constants:
            constant = self.onnx.constants[name]
            codes, scale_read = constant.codes, np.asarray(constant.scale, np.float64).reshape(-1)
            if np.any(constant.zero_point) or not np.allclose(scale_read, product, rtol=1e-5, atol=0):
                values = (codes.astype(np.float64) - constant.zero_point) * scale_read
                codes = np.rint(values / product.astype(np.float64))
        elif name in self.onnx.arrays:
            codes = np.rint(self.onnx.arrays[name].astype(np.float64) / product.astype(np.float64))
        else:
            raise refuse(f"the bias of {node.output[0]} is computed; it must be constant")
        if np.abs(codes.astype(np.float64)).max(initial=0) > 2**31 - 1:
            raise refuse(f"the bias of {node.output[0]} does not fit int32 on its scale")
        codes = np.broadcast_to(codes.reshape(-1), (outputs,))
        axis = 0 if len(product) > 1 else None
        return self.result.add(Tensor(name, codes.shape, "int32", product, 0, axis, codes.astype(np.int32)))

    # -- operators ------------------------------------------------------------------------------------------------

    def quantize(self, node: onnx.NodeProto) -> None:
        if node.output[0] in self.tensor:  # the end of an operator, which made the tensor
            return
        name = node.input[0]
        if name in self.tensor and name not in (self.onnx.input,):
            # Q behind DQ: the same integers, or the same values on another scale
            source, params = self.tensor[name], self.onnx.parameters(node)
            self.call(node.output[0], name)
            if params != self.params(source):
                shape = self.result.tensors[source].shape
                self.tensor[node.output[0]] = self.append("QUANTIZE", (source,), node.output[0], shape, params)
            return
        if name in self.onnx.inputs():
            scale, zero_point = self.onnx.parameters(node)
            if self.result.input >= 0:
                if (scale, zero_point) != self.params(self.result.input):
                    raise refuse(f"the input {self.onnx.input} is quantized twice, on different scales")
                self.tensor[node.output[0]] = self.result.input
                return
            image = self.onnx.input
            shape = self.onnx.shapes[image]
            if not self.onnx._input_is_nhwc() and len(shape) == 4:
                shape = (shape[0], shape[2], shape[3], shape[1])
            if not all(shape):
                raise refuse(f"the shape of the input {image} is not fixed")
            self.result.input = self.activation_tensor(image, shape, scale, zero_point)
            self.tensor[node.output[0]] = self.result.input
            return
        raise refuse(f"{name} is computed in float before it is quantized")

    def dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self.tensor:
            params = self.onnx.parameters(node)
            if params != self.params(self.tensor[node.input[0]]) and not self.onnx.same_as_quantized(node):
                raise refuse(f"{node.input[0]} is dequantized with other parameters than it is quantized with")
            self.call(node.output[0], node.input[0])
        else:
            self.onnx.read_constant(node)

    def conv(self, node: onnx.NodeProto) -> None:
        settings = attributes(node)
        source = self.source(node)
        codes, scale = self.onnx.weights(node, 0)
        if codes.ndim != 4:
            raise refuse(f"{node.output[0]} is no 2-D convolution")
        channels = self.result.tensors[source].shape[3]
        group = settings.get("group", 1)
        if list(settings.get("dilations", [1, 1])) != [1, 1]:
            raise refuse(
                f"{node.output[0]} is a dilated convolution, which TensorFlow Lite Micro computes in another way"
            )
        strides = tuple(settings.get("strides", [1, 1]))
        source, mode = self.padded(node, source, codes.shape[2:], strides, settings)
        if 1 < group == channels:
            weight = self.weight_tensor(node.input[1], codes.transpose(1, 2, 3, 0), scale, 3, packs=False)
            bias = self.bias_tensor(node, source, scale, len(codes))
            options = {"strides": strides, "padding": mode, "depth_multiplier": codes.shape[0] // channels}
            self.finish("DEPTHWISE_CONV_2D", node, (source, weight, bias), **options)
        else:
            # The kernels see groups in the shapes. Of packed weights they unpack those of one group only.
            weight = self.weight_tensor(node.input[1], codes.transpose(0, 2, 3, 1), scale, 0, packs=group == 1)
            bias = self.bias_tensor(node, source, scale, len(codes))
            self.finish("CONV_2D", node, (source, weight, bias), strides=strides, padding=mode)

    def padded(
        self, node: onnx.NodeProto, source: int, kernel: Any, strides: Any, settings: dict[str, Any]
    ) -> tuple[int, str]:
        """The tensor to read, with a PAD in front where neither SAME nor VALID says it; and which of them."""
        before = self.result.tensors[source]
        pads, same = _pads(before.shape, kernel, strides, settings)
        if not any(pads):
            return source, "VALID"
        if pads == same:
            return source, "SAME"
        sizes = np.array([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], np.int32)
        shape = tuple(int(size) + int(sizes[i].sum()) for i, size in enumerate(before.shape))
        table = self.result.add(Tensor(f"{node.output[0]}_pads", (4, 2), "int32", data=sizes))
        return self.append("PAD", (source, table), f"{node.output[0]}_padded", shape, self.params(source)), "VALID"

    def gemm(self, node: onnx.NodeProto) -> None:
        settings = attributes(node)
        if node.op_type == "Gemm" and (
            settings.get("transA", 0) or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0
        ):
            raise refuse(f"{node.output[0]} is a Gemm with transA, alpha or beta")
        transposed = bool(settings.get("transB", 0))
        source = self.source(node)
        if len(self.onnx.shapes[node.input[0]]) != 2:
            raise refuse(f"{node.output[0]} is a product of other than two dimensions")
        codes, scale = self.onnx.weights(node, 0 if transposed else 1)
        if codes.ndim != 2:
            raise refuse(f"{node.output[0]} is a product with weights of {codes.ndim} dimensions, not two")
        codes = codes if transposed else codes.T
        if source in self.flattened:
            # ONNX flattened channels first; TensorFlow Lite stores them last.
            height, width, channels = self.flattened[source]
            codes = codes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(codes), -1)
        packs = len(scale) == 1
        weight = self.weight_tensor(node.input[1], np.ascontiguousarray(codes), scale, 0, packs)
        bias = self.bias_tensor(node, source, scale, len(codes))
        self.finish("FULLY_CONNECTED", node, (source, weight, bias), (1, len(codes)))

    def add(self, node: onnx.NodeProto) -> None:
        """Add or Mul of two activations, or of one and a constant; sizes of 1 are repeated."""
        first, second = (self.operand(node, index) for index in (0, 1))
        self.finish(node.op_type.upper(), node, (first, second))

    def operand(self, node: onnx.NodeProto, index: int) -> int:
        """An input of Add or Mul as a tensor with as many dimensions as the output."""
        name, rank = node.input[index], len(self.onnx.shapes[node.output[0]])
        if name not in self.onnx.constants:
            source = self.source(node, index)
            if len(self.result.tensors[source].shape) != rank:
                raise refuse(f"{node.output[0]} adds or multiplies tensors with different numbers of dimensions")
            return source
        constant = self.onnx.constants[name]
        codes, zero = _as_int8(constant.codes), _as_int8(constant.zero_point)
        if np.size(constant.scale) != 1:
            raise refuse(f"the constant {name} of {node.op_type} has a scale for each channel")
        values = codes.reshape((1,) * (rank - codes.ndim) + codes.shape)
        if rank == 4:
            values = values.transpose(0, 2, 3, 1)
        elif values.size > 1 and any(self.tensor.get(other) in self.flattened for other in node.input):
            raise refuse(f"{node.output[0]} adds or multiplies a constant to an image that was flattened")
        scale = np.asarray(constant.scale, np.float32).reshape(1)
        data = np.ascontiguousarray(values)
        return self.result.add(Tensor(name, data.shape, "int8", scale, int(zero.reshape(-1)[0]), None, data))

    def hard_swish(self, node: onnx.NodeProto) -> None:
        """The kernel takes any output scale."""
        self.finish("HARD_SWISH", node, (self.source(node),))

    def sigmoid(self, node: onnx.NodeProto) -> None:
        """The kernel writes steps of 1/256; a QUANTIZE puts them on another scale."""
        self.finish("LOGISTIC", node, (self.source(node),), params=SOFTMAX)

    def relu(self, node: onnx.NodeProto) -> None:
        """A Relu or Clip between quantized tensors; one behind an operator belongs to that."""
        name = node.input[0]
        if name not in self.tensor:
            return
        producer = self.onnx.graph.producer(name)
        if node.op_type == "Relu":
            self.finish("RELU", node, (self.source(node),))
        elif producer is not None and producer.op_type == "QuantizeLinear":
            raise refuse(
                f"{name} is limited for one of its readers (activations of fewer than 8 bits), which TensorFlow Lite "
                "does not express",
                LOW_BIT_REMEDY,
            )
        elif self.onnx.limits(node) == (0.0, 6.0):
            self.finish_same_scale("RELU6", node, (self.source(node),), self.onnx.nhwc(node.output[0]))
        else:
            raise refuse(f"{node.output[0]} is a Clip to {self.onnx.limits(node)}; TensorFlow Lite has 0 to 6")

    def pad(self, node: onnx.NodeProto) -> None:
        """With zeros, whose code is the zero point."""
        settings = attributes(node)
        source = self.source(node)
        before = self.result.tensors[source]
        pads = settings.get("pads")
        if pads is None and len(node.input) > 1 and node.input[1] in self.onnx.arrays:
            pads = self.onnx.arrays[node.input[1]].tolist()
        if (
            settings.get("mode", b"constant") != b"constant"
            or input_name(node, 3)
            or pads is None
            or settings.get("value")
        ):
            raise refuse(f"{node.output[0]} is a Pad with a mode, axes or sizes that are not constant")
        value = input_name(node, 2)
        constant = self.onnx.constants.get(value)
        filled = constant.codes - constant.zero_point if constant else self.onnx.arrays.get(value, np.zeros(1))
        if len(pads) != 8 or min(pads) < 0 or np.any(filled) or any((pads[0], pads[4])):
            raise refuse(f"{node.output[0]} is a Pad of {list(pads)} with {filled}; TensorFlow Lite pads images with 0")
        sizes = np.array([[pads[axis], pads[axis + 4]] for axis in (0, 2, 3, 1)], np.int32)
        shape = tuple(int(size + added.sum()) for size, added in zip(before.shape, sizes, strict=True))
        table = self.result.add(Tensor(f"{node.output[0]}_pads", (4, 2), "int32", data=sizes))
        self.finish_same_scale("PAD", node, (source, table), shape)

    def pool(self, node: onnx.NodeProto) -> None:
        settings = attributes(node)
        source = self.source(node)
        tensor = self.result.tensors[source]
        height, width = tensor.shape[1:3]
        average = node.op_type != "MaxPool"
        whole = node.op_type == "GlobalAveragePool" or (
            average
            and tuple(settings["kernel_shape"]) == (height, width)
            and not any(settings.get("pads", [0]))
            and settings.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        )
        if any(step != 1 for step in settings.get("dilations", [])):
            raise refuse(f"{node.output[0]} is a dilated pool, which TensorFlow Lite does not have")
        last, _ = self.onnx.activation(node.output[0]) or (node.output[0], "NONE")
        if whole and self.onnx.parameters(self.onnx.quantizer(last)) != self.params(source):
            self.mean(node, source, keep_dims=True)
            return
        kernel = (height, width) if whole else tuple(settings["kernel_shape"])
        strides = kernel if whole else tuple(settings.get("strides", [1, 1]))
        pads, same = _pads(tensor.shape, kernel, strides, settings)
        if settings.get("ceil_mode", 0) or (average and any(pads)):
            raise refuse(
                f"{node.output[0]} is a pool with ceil_mode or padding, which TensorFlow Lite counts in another way"
            )
        if any(pads) and pads != same:
            raise refuse(f"{node.output[0]} is a pool with the padding {pads}, which is not TensorFlow Lite's SAME")
        kind = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
        options = {"filter": kernel, "strides": strides, "padding": "SAME" if any(pads) else "VALID"}
        self.finish_same_scale(kind, node, (source,), self.onnx.nhwc(node.output[0]), **options)

    def mean(self, node: onnx.NodeProto, source: int, keep_dims: bool) -> None:
        axes = self.result.add(Tensor(f"{node.output[0]}_axes", (2,), "int32", data=np.array([1, 2], np.int32)))
        self.finish("MEAN", node, (source, axes), keep_dims=keep_dims)

    def reduce_mean(self, node: onnx.NodeProto) -> None:
        settings = attributes(node)
        axes = settings.get("axes")
        if axes is None and input_name(node, 1) in self.onnx.arrays:
            axes = self.onnx.arrays[node.input[1]].tolist()
        rank = len(self.onnx.shapes[node.input[0]])
        if rank != 4 or sorted(int(axis) % 4 for axis in axes or ()) != [2, 3]:
            raise refuse(f"{node.output[0]} is a mean over other axes than height and width")
        self.mean(node, self.source(node), keep_dims=bool(settings.get("keepdims", 1)))

    def reshape(self, node: onnx.NodeProto) -> None:
        source = self.source(node)
        shape = self.onnx.shapes[node.output[0]]
        before = self.result.tensors[source].shape
        if len(shape) != 2 or shape[0] != 1:
            raise refuse(f"{node.output[0]} is reshaped to {list(shape)}; only [1, N] has the same order in NHWC")
        table = self.result.add(Tensor(f"{node.output[0]}_shape", (2,), "int32", data=np.array(shape, np.int32)))
        output = self.finish_same_scale("RESHAPE", node, (source, table), shape, new_shape=list(shape))
        if len(before) == 4 and before[1] * before[2] > 1 and node.input[0] not in self.channels_last:
            self.flattened[output] = before[1:]

    def softmax(self, node: onnx.NodeProto) -> None:
        rank = len(self.onnx.shapes[node.input[0]])
        if attributes(node).get("axis", -1) % rank != rank - 1 or rank != 2:
            raise refuse(f"{node.output[0]} is a Softmax over another axis than the last of two")
        shape = self.onnx.shapes[node.output[0]]
        self.finish("SOFTMAX", node, (self.source(node),), shape, SOFTMAX, beta=1.0)

    def concat(self, node: onnx.NodeProto) -> None:
        """Each input on the output's scale first, as ONNX's DequantizeLinear and QuantizeLinear put it there."""
        last, _ = self.onnx.activation(node.output[0]) or (node.output[0], "NONE")
        params = self.onnx.parameters(self.onnx.quantizer(last))
        inputs = []
        for index in range(len(node.input)):
            source = self.source(node, index)
            if self.params(source) != params:
                shape = self.result.tensors[source].shape
                source = self.append("QUANTIZE", (source,), f"{node.output[0]}_{index}", shape, params)
            inputs.append(source)
        rank = len(self.onnx.shapes[node.input[0]])
        axis = attributes(node)["axis"] % rank
        self.finish("CONCATENATION", node, tuple(inputs), axis={0: 0, 1: 3, 2: 1, 3: 2}[axis] if rank == 4 else axis)

    def transpose(self, node: onnx.NodeProto) -> None:
        """Between NHWC and NCHW nothing moves: TensorFlow Lite's tensors are NHWC."""
        permutation = list(attributes(node).get("perm", []))
        name = node.input[0]
        if permutation not in ([0, 3, 1, 2], [0, 2, 3, 1]):
            raise refuse(f"{node.output[0]} is transposed by {permutation}")
        if name in self.tensor:
            height, width = self.result.tensors[self.tensor[name]].shape[1:3]
            to_nchw, was_nhwc = permutation == [0, 3, 1, 2], name in self.channels_last
            is_image = self.tensor[name] == self.result.input and self.onnx.images
            if height * width > 1 and to_nchw != (was_nhwc or bool(is_image)):
                raise refuse(
                    f"{node.output[0]} is transposed by {permutation}, which is not from one order to the other"
                )
            self.call(node.output[0], name)
            self.channels_last.discard(node.output[0])
            if not to_nchw and height * width > 1:
                self.channels_last.add(node.output[0])
        elif name != self.onnx.input:
            raise refuse(f"{name} is transposed in float")

    def cast(self, node: onnx.NodeProto) -> None:
        self.onnx.read_cast(node)


def _pads(shape: tuple[int, ...], kernel: Any, strides: Any, settings: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Padding of a window as ONNX orders it: top, left, bottom, right; what it is, and TensorFlow Lite's SAME."""
    sizes = zip(shape[1:3], kernel, strides, strict=True)
    (top, bottom), (left, right) = (padding(size, int(k), int(stride), "SAME") for size, k, stride in sizes)
    same = [top, left, bottom, right]
    auto = settings.get("auto_pad", b"NOTSET")
    choices = {b"SAME_UPPER": same, b"SAME_LOWER": [bottom, right, top, left], b"VALID": [0] * 4}
    return choices.get(auto, [int(pad) for pad in settings.get("pads", [0] * 4)]), same


def _as_int8(codes: np.ndarray) -> np.ndarray:
    """int8 codes or zero points of uint8 or int8 ones."""
    if codes.dtype == np.uint8:
        return (codes.astype(np.int16) - 128).astype(np.int8)
    if codes.dtype != np.int8:
        raise refuse(f"a constant has {codes.dtype} codes; TensorFlow Lite's kernels take int8")
    return codes


FUSING = frozenset(
    ("ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MUL")
)  # kernels that take a Relu or Relu6
FLATTENING = frozenset(("Flatten", "Reshape"))  # of an NHWC image they have TensorFlow Lite's order
HANDLERS: dict[str, Callable[[_Converter, onnx.NodeProto], None]] = {
    "Add": _Converter.add,
    "AveragePool": _Converter.pool,
    "Cast": _Converter.cast,
    "Clip": _Converter.relu,
    "Concat": _Converter.concat,
    "Conv": _Converter.conv,
    "DequantizeLinear": _Converter.dequantize,
    "Flatten": _Converter.reshape,
    "Gemm": _Converter.gemm,
    "GlobalAveragePool": _Converter.pool,
    "HardSwish": _Converter.hard_swish,
    "MatMul": _Converter.gemm,
    "MaxPool": _Converter.pool,
    "Mul": _Converter.add,
    "Pad": _Converter.pad,
    "QuantizeLinear": _Converter.quantize,
    "ReduceMean": _Converter.reduce_mean,
    "Relu": _Converter.relu,
    "Reshape": _Converter.reshape,
    "Sigmoid": _Converter.sigmoid,
    "Softmax": _Converter.softmax,
    "Transpose": _Converter.transpose,
}
