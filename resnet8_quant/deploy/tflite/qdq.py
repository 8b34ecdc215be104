"""A Q/DQ model as TensorFlow Lite sees it: int8 parameters of activations, int8 weights around 0, NHWC shapes.

In: an ONNX model with QuantizeLinear and DequantizeLinear around its operators. Out: what `convert` asks of it; what
the format does not allow is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.graph import Graph, attributes, input_name, static_shapes

REMEDY = "python run.py quant=int8 quant.per_channel=true deploy=tflite"
LOW_BIT_REMEDY = "python run.py quant=w4a8 refine=best deploy=tflite"


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


class QdqGraph:
    """The graph of a Q/DQ model for one image.

    Attributes:
        graph: the ONNX graph.
        input, output: names of its ends.
        shapes: of its values, in ONNX's order; 0 where a size is not known.
        arrays: values of initializers, and of the casts of them.
        constants: weights and biases, by the name of the dequantized value.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        stored = {tensor.name for tensor in model.graph.initializer}  # which old models list as inputs too
        inputs, outputs = [value for value in model.graph.input if value.name not in stored], model.graph.output
        if len(inputs) != 1 or len(outputs) != 1:
            raise refuse(f"the model has {len(inputs)} inputs and {len(outputs)} outputs, not one each")
        self.graph = Graph(model)
        self.input, self.output = self.graph.input.name, self.graph.output.name
        self.shapes = static_shapes(model)
        self.arrays = {name: numpy_helper.to_array(tensor) for name, tensor in self.graph.initializers.items()}
        self.constants: dict[str, Constant] = {}

    def parameters(self, node: onnx.NodeProto) -> tuple[np.float32, int]:
        """Scale and int8 zero point of a QuantizeLinear of an activation."""
        scale = self.arrays.get(node.input[1])
        zero = self.arrays.get(node.input[2]) if len(node.input) > 2 else np.uint8(0)
        if len(node.input) < 3 and attributes(node).get("output_dtype", 0) not in (0, onnx.TensorProto.UINT8):
            raise refuse(f"{node.input[0]} has a QuantizeLinear without zero point, whose type is output_dtype")
        if scale is None or zero is None or np.size(scale) != 1 or not 0 < scale.item() < np.inf:
            raise refuse(f"the scale of {node.input[0]} is no single positive constant")
        zero = np.asarray(zero)
        if zero.dtype not in (np.uint8, np.int8):
            raise refuse(f"{node.input[0]} has {zero.dtype} activations; TensorFlow Lite's kernels take int8")
        shift = 128 if zero.dtype == np.uint8 else 0
        return np.float32(scale.item()), int(zero.item()) - shift

    def quantizer(self, name: str) -> onnx.NodeProto:
        """The one QuantizeLinear that reads an operator's output."""
        readers = self.graph.consumers(name)
        quantizers = [node for node in readers if node.op_type == "QuantizeLinear"]
        if len(readers) != 1 or not quantizers:
            raise refuse(f"{name} is used in float: there is no QuantizeLinear behind it")
        return quantizers[0]

    def same_as_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear has the parameters of the QuantizeLinear before it."""
        quantize = self.graph.producer(node.input[0])
        return quantize is not None and self.parameters(quantize) == self.parameters(node)

    def is_output(self, quantize: onnx.NodeProto) -> bool:
        """Whether what a QuantizeLinear writes is the model's output, dequantized or not."""
        ends = {name for node in self.graph.consumers(quantize.output[0]) for name in node.output}
        return self.output in ends | {quantize.output[0]}

    def activation(self, name: str) -> tuple[str, str] | None:
        """The output name and the fused activation of a Relu or Clip behind ``name``; None: there is none."""
        readers = self.graph.consumers(name)
        if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
            return None
        node = readers[0]
        if node.op_type == "Relu":
            return node.output[0], "RELU"
        limits = self.limits(node)
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
            f"{name} is limited to {limits[0]} to {limits[1]} (by a Clip, or activations of fewer than 8 bits), which "
            "no fused activation says",
            LOW_BIT_REMEDY,
        )

    def limits(self, node: onnx.NodeProto) -> tuple[float | None, ...]:
        """Lowest and highest value of a Clip; None: no limit."""
        if unknown := [name for name in node.input[1:] if name and name not in self.arrays]:
            raise refuse(f"{node.output[0]} is a Clip whose limits are computed: {', '.join(unknown)}")
        settings = attributes(node)  # before operator set 11
        values = [self.arrays.get(input_name(node, position)) for position in (1, 2)]
        values = [
            settings.get(key) if value is None else value for key, value in zip(("min", "max"), values, strict=True)
        ]
        return tuple(None if value is None else float(value) for value in values)

    def nhwc(self, name: str) -> tuple[int, ...]:
        """The shape of an ONNX value as TensorFlow Lite stores it."""
        shape = self.shapes.get(name, ())
        if not shape or not all(shape):
            raise refuse(f"the shape of {name} is not known before the model runs")
        return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 and name not in self.images else shape

    @property
    def images(self) -> set[str]:
        """Names of the 4-D values that are NHWC in ONNX already: the input before its Transpose."""
        return {self.input} if self._input_is_nhwc() else set()

    def _input_is_nhwc(self) -> bool:
        return any(node.op_type == "Transpose" for node in self.graph.consumers(self.input)) or any(
            node.op_type == "Transpose"
            for quantize in self.graph.consumers(self.input)
            for dequantize in self.graph.consumers(quantize.output[0])
            for node in self.graph.consumers(dequantize.output[0])
        )

    def inputs(self) -> set[str]:
        """The graph's input, and what a Transpose makes of it."""
        image = self.input
        return {image} | {node.output[0] for node in self.graph.consumers(image) if node.op_type == "Transpose"}

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

    def read_constant(self, node: onnx.NodeProto) -> None:
        """Remember the weights or the bias that a DequantizeLinear reads."""
        if node.input[0] not in self.arrays:
            raise refuse(f"{node.input[0]} is neither an activation nor a constant")
        codes = _as_plain_integers(self.arrays[node.input[0]])
        zero = self.arrays[name] if (name := input_name(node, 2)) else np.zeros(1, codes.dtype)
        scale, axis = self.arrays[node.input[1]], attributes(node).get("axis", 1)
        self.constants[node.output[0]] = Constant(codes, scale, _as_plain_integers(np.asarray(zero)), axis)

    def read_cast(self, node: onnx.NodeProto) -> None:
        """Remember the integers of a Cast: codes of 2 to 4 bits are stored in their own type."""
        if node.input[0] not in self.arrays:
            raise refuse(f"{node.input[0]} is cast, which is only known of constant weights")
        self.arrays[node.output[0]] = _as_plain_integers(self.arrays[node.input[0]])


def _as_plain_integers(codes: np.ndarray) -> np.ndarray:
    """NumPy's own types: 2- and 4-bit codes come in types of ml_dtypes."""
    if codes.dtype.name in ("int2", "int4"):
        return codes.astype(np.int8)
    if codes.dtype.name in ("uint2", "uint4"):
        return codes.astype(np.uint8)
    return codes
