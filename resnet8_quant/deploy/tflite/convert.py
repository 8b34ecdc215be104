"""From a Q/DQ model in ONNX to TensorFlow Lite's operators, with the very integers that the model holds.

In: ONNX with QuantizeLinear and DequantizeLinear around its operators. Out: a `TfliteModel` in int8.

uint8 activations become int8 by subtracting 128 from codes and zero points, which changes no value. Weights are int8
around a zero point of 0, or int4. What TensorFlow Lite has no operator for is refused by name: nothing is computed in
float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel
from resnet8_quant.deploy.tflite.reference import padding
from resnet8_quant.errors import ExperimentError

REMEDY = "python run.py quant=int8 quant.per_channel=true deploy=tflite"
LOW_BIT_REMEDY = "python run.py quant=w4a8 refine=best deploy=tflite"
SOFTMAX = (np.float32(1 / 256), -128)  # the only output parameters that the kernel takes


def refuse(problem: str, remedy: str = REMEDY) -> ExperimentError:
    """The error for a model that has no counterpart in TensorFlow Lite."""
    return ExperimentError(f"`deploy` is tflite, but {problem}", remedy)


@dataclass
class Constant:
    """Integer codes with their parameters, as DequantizeLinear reads them."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


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
        inferred = _with_batch_of_one(model)
        self.graph = inferred.graph
        self.int4 = int4
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self.shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
        self.result = TfliteModel([], [], -1, -1, description)
        self.tensor: dict[str, int] = {}  # of a quantized activation, by each of its names in ONNX
        self.constants: dict[str, Constant] = {}  # by the name of the dequantized value
        self.flattened: dict[int, tuple[int, int, int]] = {}  # tensor -> height, width, channels before Flatten

    def convert(self) -> TfliteModel:
        for node in self.graph.node:
            handler = HANDLERS.get(node.op_type)
            if handler is None or node.domain not in ("", "ai.onnx"):
                raise refuse(f"TensorFlow Lite has no counterpart for {node.op_type} ({node.name or node.output[0]})")
            handler(self, node)
        (output,) = self.graph.output
        if output.name not in self.tensor:
            raise refuse(f"the output {output.name} is not quantized")
        self.result.output = self.tensor[output.name]
        if self.result.input < 0:
            raise refuse("its input is not quantized")
        return self.result

    # -- quantization parameters ----------------------------------------------------------------------------------

    def parameters(self, node: onnx.NodeProto) -> tuple[np.float32, int]:
        """Scale and int8 zero point of a QuantizeLinear of an activation."""
        scale = self.arrays.get(node.input[1])
        zero = self.arrays.get(node.input[2]) if len(node.input) > 2 else np.uint8(0)
        if scale is None or zero is None or np.size(scale) != 1:
            raise refuse(f"the scale of {node.input[0]} is no single constant")
        zero = np.asarray(zero)
        if zero.dtype not in (np.uint8, np.int8):
            raise refuse(f"{node.input[0]} has {zero.dtype} activations; TensorFlow Lite's kernels take int8")
        shift = 128 if zero.dtype == np.uint8 else 0
        return np.float32(scale.item()), int(zero.item()) - shift

    def quantizer(self, name: str) -> onnx.NodeProto:
        """The one QuantizeLinear that reads an operator's output."""
        readers = self.consumers.get(name, [])
        quantizers = [node for node in readers if node.op_type == "QuantizeLinear"]
        if len(readers) != 1 or not quantizers:
            raise refuse(f"{name} is used in float: there is no QuantizeLinear behind it")
        return quantizers[0]

    def source(self, node: onnx.NodeProto, index: int = 0) -> int:
        """The tensor of an operator's input."""
        name = node.input[index]
        if name not in self.tensor:
            raise refuse(f"the input {name} of {node.op_type} is not quantized")
        return self.tensor[name]

    def finish(
        self,
        kind: str,
        node: onnx.NodeProto,
        inputs: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
        **options: Any,
    ) -> int:
        """Append an operator whose output is what ``node`` computes, with the Relu or Relu6 behind it."""
        name = node.output[0]
        activation = self.activation(name)
        if activation is not None:
            last, options["activation"] = activation
            name = last
        elif "activation" in OPTIONS_WITH_ACTIVATION.get(kind, ()):
            options["activation"] = "NONE"
        quantize = self.quantizer(name)
        scale, zero_point = self.parameters(quantize)
        if kind == "SOFTMAX":
            scale, zero_point = SOFTMAX
        output = self.activation_tensor(name, shape or self.nhwc(name), scale, zero_point)
        self.result.operators.append(Operator(kind, inputs, (output,), options))
        self.tensor[quantize.output[0]] = output
        return output

    def finish_same_scale(
        self, kind: str, node: onnx.NodeProto, inputs: tuple[int, ...], shape: tuple[int, ...], **options: Any
    ) -> int:
        """As ``finish`` for an operator that keeps scale and zero point; another output scale gets a QUANTIZE."""
        source = self.result.tensors[inputs[0]]
        quantize = self.quantizer(node.output[0])
        scale, zero_point = self.parameters(quantize)
        assert source.scale is not None
        kept = self.activation_tensor(node.output[0], shape, source.scale[0], source.zero_point)
        self.result.operators.append(Operator(kind, inputs, (kept,), options))
        output = kept
        if (scale, zero_point) != (source.scale[0], source.zero_point):
            output = self.activation_tensor(quantize.output[0], shape, scale, zero_point)
            self.result.operators.append(Operator("QUANTIZE", (kept,), (output,)))
        self.tensor[quantize.output[0]] = output
        return output

    def activation(self, name: str) -> tuple[str, str] | None:
        """The output name and the fused activation of a Relu or Clip behind ``name``; None: there is none."""
        readers = self.consumers.get(name, [])
        if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
            return None
        node = readers[0]
        if node.op_type == "Relu":
            return node.output[0], "RELU"
        low, high = (self.arrays.get(n) if n else None for n in [*node.input[1:], "", ""][:2])
        limits = tuple(None if limit is None else float(limit) for limit in (low, high))
        if limits == (0.0, 6.0):
            return node.output[0], "RELU6"
        quantize = self.quantizer(node.output[0])
        scale, zero_point = self.parameters(quantize)
        lowest, highest = ((code - zero_point) * float(scale) for code in (-128, 127))
        if (limits[0] is None or limits[0] <= lowest) and (limits[1] is None or limits[1] >= highest):
            return node.output[0], "NONE"
        if (
            limits[0] is not None
            and abs(limits[0]) < 0.5 * float(scale)
            and (limits[1] is None or limits[1] >= highest)
        ):
            return node.output[0], "RELU"
        raise refuse(
            f"{name} has activations of fewer than 8 bits, limited to {limits[0]} to {limits[1]}, which no fused "
            "activation says",
            LOW_BIT_REMEDY,
        )

    def activation_tensor(self, name: str, shape: tuple[int, ...], scale: Any, zero_point: int) -> int:
        return self.result.add(Tensor(name, shape, "int8", np.array([scale], np.float32), zero_point))

    def nhwc(self, name: str) -> tuple[int, ...]:
        """The shape of an ONNX value as TensorFlow Lite stores it."""
        shape = self.shapes.get(name, ())
        if not shape or not all(shape):
            raise refuse(f"the shape of {name} is not known before the model runs")
        return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 and name not in self.images else shape

    @property
    def images(self) -> set[str]:
        """Names of the 4-D values that are NHWC in ONNX already: the input before its Transpose."""
        return {self.graph.input[0].name} if self._input_is_nhwc() else set()

    def _input_is_nhwc(self) -> bool:
        return any(node.op_type == "Transpose" for node in self.consumers.get(self.graph.input[0].name, ())) or any(
            node.op_type == "Transpose"
            for quantize in self.consumers.get(self.graph.input[0].name, ())
            for dequantize in self.consumers.get(quantize.output[0], ())
            for node in self.consumers.get(dequantize.output[0], ())
        )

    # -- weights --------------------------------------------------------------------------------------------------

    def weights(self, node: onnx.NodeProto, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """int8 codes around 0 and float32 scales, one or one for each channel of ``axis``."""
        constant = self.constants.get(node.input[1])
        if constant is None:
            raise refuse(f"the weights of {node.op_type} ({node.output[0]}) are not quantized constants")
        centre = 128 if constant.codes.dtype == np.uint8 else 0
        if constant.codes.dtype.name in ("int16", "uint16") or (constant.zero_point.astype(np.int32) != centre).any():
            raise refuse(
                f"the weights of {node.output[0]} are {constant.codes.dtype} with zero points "
                f"{sorted(set(constant.zero_point.reshape(-1).tolist()))[:3]}; TensorFlow Lite takes int8 around 0"
            )
        codes = constant.codes.astype(np.int32) - centre
        if codes.min() < -127 - (centre == 0) or codes.max() > 127:
            raise refuse(f"the weights of {node.output[0]} do not fit int8 around 0")
        scale = np.asarray(constant.scale, np.float32).reshape(-1)
        if len(scale) > 1 and constant.axis % codes.ndim != axis:
            raise refuse(f"the scales of {node.output[0]} belong to axis {constant.axis}, not to the outputs")
        return codes.astype(np.int8), scale

    def weight_tensor(self, name: str, codes: np.ndarray, scale: np.ndarray, axis: int, packs: bool) -> int:
        small = self.int4 and packs and codes.min() >= -8 and codes.max() <= 7
        per_channel = axis if len(scale) > 1 else None
        tensor = Tensor(name, codes.shape, "int4" if small else "int8", scale, 0, per_channel, codes)
        return self.result.add(tensor)

    def bias_tensor(self, node: onnx.NodeProto, source: int, scale: np.ndarray) -> int:
        """int32 on scale input times weights, as ONNX Runtime's quantizer writes it too."""
        if len(node.input) < 3 or not node.input[2]:
            return -1
        name = node.input[2]
        if name in self.constants:
            codes = self.constants[name].codes
        elif name in self.arrays:
            input_scale = self.result.tensors[source].scale
            assert input_scale is not None
            codes = np.rint(
                self.arrays[name].astype(np.float64) / (np.float32(input_scale[0]) * scale).astype(np.float64)
            )
        else:
            raise refuse(f"the bias of {node.output[0]} is computed; it must be constant")
        if np.abs(codes.astype(np.float64)).max(initial=0) > 2**31 - 1:
            raise refuse(f"the bias of {node.output[0]} does not fit int32 on its scale")
        input_scale = self.result.tensors[source].scale
        assert input_scale is not None
        product = np.float32(input_scale[0]) * scale
        axis = 0 if len(product) > 1 else None
        return self.result.add(Tensor(name, codes.shape, "int32", product, 0, axis, codes.astype(np.int32)))

    # -- operators ------------------------------------------------------------------------------------------------

    def quantize(self, node: onnx.NodeProto) -> None:
        if node.output[0] in self.tensor:  # the end of an operator, which made the tensor
            return
        name = node.input[0]
        if name in self.tensor and name not in (self.graph.input[0].name,):
            # Q behind DQ: the same integers, or the same values on another scale
            source = self.result.tensors[self.tensor[name]]
            scale, zero_point = self.parameters(node)
            assert source.scale is not None
            if (scale, zero_point) == (source.scale[0], source.zero_point):
                self.tensor[node.output[0]] = self.tensor[name]
                return
            output = self.activation_tensor(node.output[0], source.shape, scale, zero_point)
            self.result.operators.append(Operator("QUANTIZE", (self.tensor[name],), (output,)))
            self.tensor[node.output[0]] = output
            return
        if name in self.inputs():
            scale, zero_point = self.parameters(node)
            image = self.graph.input[0].name
            shape = self.shapes[image]
            if not self._input_is_nhwc() and len(shape) == 4:
                shape = (shape[0], shape[2], shape[3], shape[1])
            if not all(shape):
                raise refuse(f"the shape of the input {image} is not fixed")
            self.result.input = self.activation_tensor(image, shape, scale, zero_point)
            self.tensor[node.output[0]] = self.result.input
            return
        raise refuse(f"{name} is computed in float before it is quantized")

    def inputs(self) -> set[str]:
        """The graph's input, and what a Transpose makes of it."""
        image = self.graph.input[0].name
        return {image} | {node.output[0] for node in self.consumers.get(image, ()) if node.op_type == "Transpose"}

    def dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self.tensor:
            self.tensor[node.output[0]] = self.tensor[node.input[0]]
            return
        codes = self.arrays.get(node.input[0])
        if codes is None:
            raise refuse(f"{node.input[0]} is neither an activation nor a constant")
        codes = _as_plain_integers(codes)
        scale = self.arrays[node.input[1]]
        zero = self.arrays[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, codes.dtype)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        self.constants[node.output[0]] = Constant(codes, scale, _as_plain_integers(np.asarray(zero)), axis)

    def conv(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        source = self.source(node)
        codes, scale = self.weights(node, 0)
        if codes.ndim != 4:
            raise refuse(f"{node.output[0]} is no 2-D convolution")
        channels = self.result.tensors[source].shape[3]
        group = attributes.get("group", 1)
        if list(attributes.get("dilations", [1, 1])) != [1, 1]:
            raise refuse(
                f"{node.output[0]} is a dilated convolution, which TensorFlow Lite Micro computes in another way"
            )
        strides = tuple(attributes.get("strides", [1, 1]))
        source, mode = self.padded(node, source, codes.shape[2:], strides, attributes)
        if group == 1:
            weight = self.weight_tensor(node.input[1], codes.transpose(0, 2, 3, 1), scale, 0, packs=True)
            bias = self.bias_tensor(node, source, scale)
            self.finish("CONV_2D", node, (source, weight, bias), strides=strides, padding=mode)
        elif group == channels:
            weight = self.weight_tensor(node.input[1], codes.transpose(1, 2, 3, 0), scale, 3, packs=False)
            bias = self.bias_tensor(node, source, scale)
            options = {"strides": strides, "padding": mode, "depth_multiplier": codes.shape[0] // channels}
            self.finish("DEPTHWISE_CONV_2D", node, (source, weight, bias), **options)
        else:
            raise refuse(
                f"{node.output[0]} has {group} groups of {channels} channels; TensorFlow Lite Micro takes 1 or all"
            )

    def padded(
        self, node: onnx.NodeProto, source: int, kernel: Any, strides: Any, attributes: dict[str, Any]
    ) -> tuple[int, str]:
        """The tensor to read, with a PAD in front where neither SAME nor VALID says it; and which of them."""
        before = self.result.tensors[source]
        height, width = before.shape[1:3]
        pads = [int(pad) for pad in attributes.get("pads", [0, 0, 0, 0])]
        auto = attributes.get("auto_pad", b"NOTSET")
        auto = auto.decode() if isinstance(auto, bytes) else auto
        same = [
            padding(size, int(k), int(s), "SAME") for size, k, s in zip((height, width), kernel, strides, strict=True)
        ]
        if auto == "SAME_UPPER":
            pads = [same[0][0], same[1][0], same[0][1], same[1][1]]
        elif auto == "SAME_LOWER":
            pads = [same[0][1], same[1][1], same[0][0], same[1][0]]
        if not any(pads):
            return source, "VALID"
        if pads == [same[0][0], same[1][0], same[0][1], same[1][1]]:
            return source, "SAME"
        sizes = np.array([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], np.int32)
        shape = tuple(int(size) + int(sizes[i].sum()) for i, size in enumerate(before.shape))
        assert before.scale is not None
        output = self.activation_tensor(f"{node.output[0]}_padded", shape, before.scale[0], before.zero_point)
        table = self.result.add(Tensor(f"{node.output[0]}_pads", (4, 2), "int32", data=sizes))
        self.result.operators.append(Operator("PAD", (source, table), (output,)))
        return output, "VALID"

    def gemm(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        if node.op_type == "Gemm" and (
            attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        ):
            raise refuse(f"{node.output[0]} is a Gemm with transA, alpha or beta")
        transposed = bool(attributes.get("transB", 0))
        source = self.source(node)
        codes, scale = self.weights(node, 0 if transposed else 1)
        codes = codes if transposed else codes.T
        if source in self.flattened:
            # ONNX flattened channels first; TensorFlow Lite stores them last.
            height, width, channels = self.flattened[source]
            codes = codes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(codes), -1)
        packs = len(scale) == 1
        weight = self.weight_tensor(node.input[1], np.ascontiguousarray(codes), scale, 0, packs)
        bias = self.bias_tensor(node, source, scale)
        self.finish("FULLY_CONNECTED", node, (source, weight, bias), (1, len(codes)))

    def add(self, node: onnx.NodeProto) -> None:
        first, second = self.source(node, 0), self.source(node, 1)
        if self.result.tensors[first].shape != self.result.tensors[second].shape:
            raise refuse(f"{node.output[0]} adds or multiplies tensors of different shapes")
        self.finish({"Add": "ADD", "Mul": "MUL"}[node.op_type], node, (first, second))

    def pool(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        source = self.source(node)
        tensor = self.result.tensors[source]
        height, width = tensor.shape[1:3]
        average = node.op_type != "MaxPool"
        whole = node.op_type == "GlobalAveragePool" or (
            average and tuple(attributes["kernel_shape"]) == (height, width) and not any(attributes.get("pads", [0]))
        )
        scale, zero_point = self.parameters(self.quantizer(node.output[0]))
        assert tensor.scale is not None
        if whole and (scale, zero_point) != (tensor.scale[0], tensor.zero_point):
            self.mean(node, source, keep_dims=True)
            return
        kernel = (height, width) if whole else tuple(attributes["kernel_shape"])
        strides = kernel if whole else tuple(attributes.get("strides", [1, 1]))
        pads = attributes.get("pads", [0, 0, 0, 0])
        if attributes.get("ceil_mode", 0) or (average and any(pads)):
            raise refuse(
                f"{node.output[0]} is a pool with ceil_mode or padding, which TensorFlow Lite counts in another way"
            )
        mode = "VALID"
        if any(pads):
            same = [padding(s, k, t, "SAME") for s, k, t in zip((height, width), kernel, strides, strict=True)]
            if list(pads) != [same[0][0], same[1][0], same[0][1], same[1][1]]:
                raise refuse(
                    f"{node.output[0]} is a pool with the padding {list(pads)}, which is not TensorFlow Lite's SAME"
                )
            mode = "SAME"
        kind = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
        options = {"filter": kernel, "strides": strides, "padding": mode, "activation": "NONE"}
        self.finish_same_scale(kind, node, (source,), self.nhwc(node.output[0]), **options)

    def mean(self, node: onnx.NodeProto, source: int, keep_dims: bool) -> None:
        axes = self.result.add(Tensor(f"{node.output[0]}_axes", (2,), "int32", data=np.array([1, 2], np.int32)))
        self.finish("MEAN", node, (source, axes), keep_dims=keep_dims)

    def reduce_mean(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        axes = attributes.get("axes")
        if axes is None and len(node.input) > 1:
            axes = self.arrays[node.input[1]].tolist()
        rank = len(self.shapes[node.input[0]])
        if rank != 4 or sorted(int(axis) % 4 for axis in axes or ()) != [2, 3]:
            raise refuse(f"{node.output[0]} is a mean over other axes than height and width")
        self.mean(node, self.source(node), keep_dims=bool(attributes.get("keepdims", 1)))

    def reshape(self, node: onnx.NodeProto) -> None:
        source = self.source(node)
        shape = self.shapes[node.output[0]]
        before = self.result.tensors[source].shape
        if len(shape) != 2 or shape[0] != 1:
            raise refuse(f"{node.output[0]} is reshaped to {list(shape)}; only [1, N] has the same order in NHWC")
        table = self.result.add(Tensor(f"{node.output[0]}_shape", (2,), "int32", data=np.array(shape, np.int32)))
        output = self.finish_same_scale("RESHAPE", node, (source, table), shape, new_shape=list(shape))
        if len(before) == 4 and before[1] * before[2] > 1:
            self.flattened[output] = before[1:]

    def softmax(self, node: onnx.NodeProto) -> None:
        rank = len(self.shapes[node.input[0]])
        if _attributes(node).get("axis", -1) % rank != rank - 1 or rank != 2:
            raise refuse(f"{node.output[0]} is a Softmax over another axis than the last of two")
        self.finish("SOFTMAX", node, (self.source(node),), self.shapes[node.output[0]], beta=1.0)

    def concat(self, node: onnx.NodeProto) -> None:
        """Each input on the output's scale first, as ONNX's DequantizeLinear and QuantizeLinear put it there."""
        quantize = self.quantizer(node.output[0])
        scale, zero_point = self.parameters(quantize)
        inputs = []
        for index in range(len(node.input)):
            source = self.source(node, index)
            tensor = self.result.tensors[source]
            assert tensor.scale is not None
            if (tensor.scale[0], tensor.zero_point) != (scale, zero_point):
                moved = self.activation_tensor(f"{node.output[0]}_{index}", tensor.shape, scale, zero_point)
                self.result.operators.append(Operator("QUANTIZE", (source,), (moved,)))
                source = moved
            inputs.append(source)
        rank = len(self.shapes[node.input[0]])
        axis = _attributes(node)["axis"] % rank
        self.finish("CONCATENATION", node, tuple(inputs), axis={0: 0, 1: 3, 2: 1, 3: 2}[axis] if rank == 4 else axis)

    def transpose(self, node: onnx.NodeProto) -> None:
        """Between NHWC and NCHW nothing moves: TensorFlow Lite's tensors are NHWC."""
        permutation = list(_attributes(node).get("perm", []))
        name = node.input[0]
        if permutation not in ([0, 3, 1, 2], [0, 2, 3, 1]):
            raise refuse(f"{node.output[0]} is transposed by {permutation}")
        if name in self.tensor:
            self.tensor[node.output[0]] = self.tensor[name]
            readers = self.consumers.get(node.output[0], [])
            for quantize in readers:
                if quantize.op_type == "QuantizeLinear":
                    self.tensor[quantize.output[0]] = self.tensor[name]
        elif name != self.graph.input[0].name:
            raise refuse(f"{name} is transposed in float")

    def skip(self, node: onnx.NodeProto) -> None:
        """Relu and Clip are part of the operator before them."""
        if node.input[0] not in self.tensor:
            return
        if node.op_type == "Clip":
            raise refuse(
                f"{node.input[0]} is limited for one of its readers (activations of fewer than 8 bits), which "
                "TensorFlow Lite does not express",
                LOW_BIT_REMEDY,
            )
        raise refuse(f"{node.op_type} ({node.output[0]}) stands alone between quantized tensors")

    def cast(self, node: onnx.NodeProto) -> None:
        """Codes of 2 to 4 bits are stored in their own type and cast to int8."""
        if node.input[0] not in self.arrays:
            raise refuse(f"{node.input[0]} is cast, which is only known of constant weights")
        self.arrays[node.output[0]] = _as_plain_integers(self.arrays[node.input[0]])


def _with_batch_of_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for one image, with the shape of every value that can be inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if len(copy.graph.input) != 1 or len(copy.graph.output) != 1:
        raise refuse(f"the model has {len(copy.graph.input)} inputs and {len(copy.graph.output)} outputs, not one each")
    for value in (*copy.graph.input, *copy.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions):
            dimensions[0].dim_value = 1
    del copy.graph.value_info[:]
    return shape_inference.infer_shapes(copy, data_prop=True)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _as_plain_integers(codes: np.ndarray) -> np.ndarray:
    """NumPy's own types: 2- and 4-bit codes come in types of ml_dtypes."""
    if codes.dtype.name in ("int2", "int4"):
        return codes.astype(np.int8)
    if codes.dtype.name in ("uint2", "uint4"):
        return codes.astype(np.uint8)
    return codes


OPTIONS_WITH_ACTIVATION: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("ADD", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONCATENATION"), ("activation",)
)
HANDLERS: dict[str, Callable[[_Converter, onnx.NodeProto], None]] = {
    "Add": _Converter.add,
    "AveragePool": _Converter.pool,
    "Cast": _Converter.cast,
    "Clip": _Converter.skip,
    "Concat": _Converter.concat,
    "Conv": _Converter.conv,
    "DequantizeLinear": _Converter.dequantize,
    "Flatten": _Converter.reshape,
    "Gemm": _Converter.gemm,
    "GlobalAveragePool": _Converter.pool,
    "MatMul": _Converter.gemm,
    "MaxPool": _Converter.pool,
    "Mul": _Converter.add,
    "QuantizeLinear": _Converter.quantize,
    "ReduceMean": _Converter.reduce_mean,
    "Relu": _Converter.skip,
    "Reshape": _Converter.reshape,
    "Softmax": _Converter.softmax,
    "Transpose": _Converter.transpose,
}
