"""Write and read .tflite files with the object API of the schema that the runtimes' packages carry.

In: a `TfliteModel`. Out: the bytes of a flatbuffer, and back.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel
from resnet8_quant.errors import ExperimentError, missing_extra

SCHEMAS = ("ai_edge_litert.schema_py_generated", "tflite_micro.tensorflow.lite.micro.python.schema_py_generated")
ALIGNMENT = 16
# Operator -> name of its options, if it has some, and the version that its int8 kernel wants.
OPERATORS = {
    "ADD": ("AddOptions", 2),
    "AVERAGE_POOL_2D": ("Pool2DOptions", 2),
    "CONCATENATION": ("ConcatenationOptions", 2),
    "CONV_2D": ("Conv2DOptions", 3),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 3),
    "DEQUANTIZE": ("DequantizeOptions", 2),
    "FULLY_CONNECTED": ("FullyConnectedOptions", 4),
    "HARD_SWISH": ("HardSwishOptions", 1),
    "LOGISTIC": ("", 2),
    "MAX_POOL_2D": ("Pool2DOptions", 2),
    "MEAN": ("ReducerOptions", 2),
    "MUL": ("MulOptions", 2),
    "PAD": ("PadOptions", 2),
    "QUANTIZE": ("QuantizeOptions", 2),
    "RELU": ("", 2),
    "RELU6": ("", 2),
    "RESHAPE": ("ReshapeOptions", 1),
    "SOFTMAX": ("SoftmaxOptions", 2),
}

DTYPES = {"int8", "uint8", "int4", "int16", "int32", "int64", "float32"}
NEEDED = (
    "ModelT",
    "Model",
    "TensorType",
    "BuiltinOperator",
    "OperatorT",
    *filter(None, {o for o, _ in OPERATORS.values()}),
)


def schema() -> Any:
    """The module with the classes of the format.

    Raises:
        ExperimentError: neither runtime is installed, or its schema is one that we do not know.
    """
    for name in SCHEMAS:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if lacking := [needed for needed in NEEDED if not hasattr(module, needed)]:
            package = name.partition(".")[0]
            raise ExperimentError(
                f"the installed {package.replace('_', '-')} has another version of the .tflite schema: it lacks "
                f"{', '.join(lacking)}",
                "pip install -c constraints.txt -e '.[tflite]'",
            )
        return module
    raise missing_extra("ai-edge-litert", "tflite")


def write(model: TfliteModel) -> bytes:
    """The bytes of the .tflite file; the same model gives the same bytes."""
    fb = schema()
    import flatbuffers

    root = fb.ModelT()
    root.version = 3
    root.description = model.description
    root.buffers = [fb.BufferT()]
    root.operatorCodes = []
    root.metadata = []

    def buffer(data: bytes) -> int:
        entry = fb.BufferT()
        entry.data = np.frombuffer(data, np.uint8)
        root.buffers.append(entry)
        return len(root.buffers) - 1

    graph = fb.SubGraphT()
    graph.name = "main"
    graph.inputs, graph.outputs = [model.input], [model.output]
    graph.tensors = [_tensor(fb, tensor, buffer) for tensor in model.tensors]
    kinds = list(dict.fromkeys(operator.kind for operator in model.operators))
    for kind in kinds:
        code = fb.OperatorCodeT()
        code.builtinCode = getattr(fb.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = OPERATORS[kind][1]
        root.operatorCodes.append(code)
    graph.operators = [_operator(fb, operator, kinds) for operator in model.operators]
    root.subgraphs = [graph]
    for name, data in model.metadata.items():
        entry = fb.MetadataT()
        entry.name, entry.buffer = name, buffer(data)
        root.metadata.append(entry)
    builder = flatbuffers.Builder(1024)
    builder.Finish(root.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(fb: Any, tensor: Tensor, buffer: Any) -> Any:
    entry = fb.TensorT()
    entry.name = tensor.name
    entry.shape = list(tensor.shape)
    entry.type = getattr(fb.TensorType, tensor.dtype.upper())
    entry.buffer = 0
    if tensor.data is not None:
        data = pack_int4(tensor.data) if tensor.dtype == "int4" else np.ascontiguousarray(tensor.data)
        entry.buffer = buffer(data.astype(data.dtype.newbyteorder("<")).tobytes())
    if tensor.scale is not None:
        quantization = fb.QuantizationParametersT()
        quantization.scale = tensor.scale.astype(np.float32)
        quantization.zeroPoint = np.full(len(tensor.scale), tensor.zero_point, np.int64)
        quantization.quantizedDimension = tensor.axis or 0
        entry.quantization = quantization
    return entry


def pack_int4(values: np.ndarray) -> np.ndarray:
    """int8 codes of -8..7 -> uint8, two each, the first one in the low half."""
    flat = values.reshape(-1).astype(np.uint8) & 0x0F
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[::2] | (flat[1::2] << 4), np.uint8)


def _operator(fb: Any, operator: Operator, kinds: list[str]) -> Any:
    entry = fb.OperatorT()
    entry.opcodeIndex = kinds.index(operator.kind)
    entry.inputs, entry.outputs = list(operator.inputs), list(operator.outputs)
    name = OPERATORS[operator.kind][0]
    if not name:
        return entry
    entry.builtinOptionsType = getattr(fb.BuiltinOptions, name)
    options = getattr(fb, name + "T")()
    given: dict[str, Any] = operator.options
    if "strides" in given:
        options.strideH, options.strideW = given["strides"]
    if "padding" in given:
        options.padding = getattr(fb.Padding, given["padding"])
    if "filter" in given:
        options.filterHeight, options.filterWidth = given["filter"]
    if "activation" in given:
        options.fusedActivationFunction = getattr(fb.ActivationFunctionType, given["activation"])
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        options.dilationHFactor = options.dilationWFactor = 1
    if operator.kind == "DEPTHWISE_CONV_2D":
        options.depthMultiplier = given.get("depth_multiplier", 1)
    if "axis" in given:
        options.axis = given["axis"]
    if "keep_dims" in given:
        options.keepDims = given["keep_dims"]
    if "new_shape" in given:
        options.newShape = given["new_shape"]
    if operator.kind == "SOFTMAX":
        options.beta = given.get("beta", 1.0)
    entry.builtinOptions = options
    return entry


def read(data: bytes) -> TfliteModel:
    """The model in a .tflite file of one graph with one input and one output.

    Raises:
        ExperimentError: it is no such file.
    """
    fb = schema()
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("it does not begin as a .tflite file does")
        root = fb.ModelT.InitFromObj(fb.Model.GetRootAsModel(bytearray(data), 0))
        (graph,) = root.subgraphs
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ValueError(f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, not one each")
        (source,), (result,) = graph.inputs, graph.outputs
        types = {value: name.lower() for name, value in vars(fb.TensorType).items() if not name.startswith("_")}
        kinds = {value: name for name, value in vars(fb.BuiltinOperator).items() if not name.startswith("_")}
        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in root.operatorCodes]
        tensors = [_read_tensor(tensor, types, root.buffers) for tensor in graph.tensors]
        operators = [_read_operator(fb, operator, kinds[codes[operator.opcodeIndex]]) for operator in graph.operators]
        _check(tensors, operators, source, result)
        TfliteModel(tensors, operators, int(source), int(result)).memory()  # what no figures can be had of is damaged
    except Exception as error:  # a damaged flatbuffer raises whatever NumPy and struct raise
        raise ExperimentError(
            f"the .tflite file cannot be read: {error}", "write it again: python run.py quant=int8 deploy=tflite"
        ) from error
    return TfliteModel(tensors, operators, int(source), int(result), (root.description or b"").decode(errors="replace"))


def _check(tensors: list[Tensor], operators: list[Operator], source: int, result: int) -> None:
    """Refuse what the format allows but no model has.

    Raises:
        ValueError: an index that names no tensor, a size below 1, or a tensor that is read before it is computed.
    """
    if any(size < 1 for tensor in tensors for size in tensor.shape):
        raise ValueError("a tensor has a size below 1")
    if strange := {tensor.dtype for tensor in tensors} - DTYPES:
        raise ValueError(f"a tensor is of type {', '.join(sorted(strange))}")
    known = {source} | {i for i, tensor in enumerate(tensors) if tensor.data is not None}
    for operator in operators:
        weighted = operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        if len(operator.outputs) != 1 or not 0 <= operator.outputs[0] < len(tensors) or operator.outputs[0] in known:
            raise ValueError(f"{operator.kind} has {len(operator.outputs)} outputs, or writes what is there already")
        if operator.kind == "RESHAPE" and tensors[operator.inputs[0]].data is not None:
            raise ValueError("RESHAPE reads a constant")
        if not operator.inputs or weighted > (len(operator.inputs) == 3):
            raise ValueError(f"{operator.kind} has {len(operator.inputs)} inputs")
        if any(i != -1 and i not in known for i in operator.inputs) or operator.inputs[0] == -1:
            raise ValueError(f"{operator.kind} reads a tensor before it is computed")
        known.add(operator.outputs[0])
    if not 0 <= source < len(tensors) or result not in known or tensors[result].data is not None:
        raise ValueError("its input or its output is no tensor that is computed")


def _read_tensor(entry: Any, types: dict[int, str], buffers: Any) -> Tensor:
    dtype, shape = types[entry.type], tuple(int(size) for size in entry.shape)
    raw, data = buffers[entry.buffer].data, None
    if raw is not None and len(raw):
        stored = np.asarray(raw, np.uint8).tobytes()
        if dtype == "int4":
            halves = np.frombuffer(stored, np.uint8)
            codes = np.stack([halves & 0x0F, halves >> 4], 1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
            data = np.where(codes > 7, codes - 16, codes).astype(np.int8).reshape(shape)
        else:
            data = np.frombuffer(stored, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    quantization = entry.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return Tensor(entry.name.decode(errors="replace"), shape, dtype, data=data)
    scale = np.asarray(quantization.scale, np.float32)
    axis = int(quantization.quantizedDimension) if len(scale) > 1 else None
    return Tensor(entry.name.decode(errors="replace"), shape, dtype, scale, int(quantization.zeroPoint[0]), axis, data)


def _read_operator(fb: Any, entry: Any, kind: str) -> Operator:
    options: dict[str, object] = {}
    stored = entry.builtinOptions
    names = {
        "padding": {value: name for name, value in vars(fb.Padding).items()},
        "fusedActivationFunction": {value: name for name, value in vars(fb.ActivationFunctionType).items()},
    }
    if hasattr(stored, "strideH"):
        options["strides"] = (stored.strideH, stored.strideW)
        options["padding"] = names["padding"][stored.padding]
    if hasattr(stored, "filterHeight"):
        options["filter"] = (stored.filterHeight, stored.filterWidth)
    if hasattr(stored, "fusedActivationFunction"):
        options["activation"] = names["fusedActivationFunction"][stored.fusedActivationFunction]
    for name, ours in (
        ("depthMultiplier", "depth_multiplier"),
        ("axis", "axis"),
        ("keepDims", "keep_dims"),
        ("beta", "beta"),
    ):
        if hasattr(stored, name):
            options[ours] = getattr(stored, name)
    inputs = tuple(int(i) for i in entry.inputs)
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and len(inputs) == 2:
        inputs += (-1,)
    return Operator(kind, inputs, tuple(int(i) for i in entry.outputs), options)
