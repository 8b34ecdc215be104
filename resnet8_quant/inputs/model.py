"""Float models: the bundled networks, the MLPerf Tiny reference, or any ONNX or Keras classifier that fits the data.

In: the `model` part of the config, the dataset's image shape and number of classes. Out: a `FloatModel`, checked, with
its input spec known, and brought to one form: fold.py folds BatchNorm and constants, exported.py drops what exporters
add, outputs.py makes [N, classes] of other outputs.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from resnet8_quant.config import Layout, ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError, typed_setting
from resnet8_quant.files import expanded, open_regular, sha256_bytes
from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.graph import attributes
from resnet8_quant.graphs.session import first_line, open_session, run_batch
from resnet8_quant.inputs.exported import normalize
from resnet8_quant.inputs.fold import fold
from resnet8_quant.inputs.input_spec import InputSpec, check_channels
from resnet8_quant.inputs.outputs import plain_output
from resnet8_quant.inputs.splits import Dataset

log = logging.getLogger(__name__)

RESOURCES = Path(__file__).parents[1] / "resources"
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "ConvInteger", "MatMulInteger")
LARGEST_FILE = 500 * 2**20  # bytes; this is a tool for small networks
MOST_OPERATORS = 2000  # onnxruntime's quantizer takes minutes for more: its time grows with their square
LARGEST_TENSOR = 256 * 2**20  # bytes of one activation of one image
REFERENCE = "mlperf_tiny"  # name of the file whose digest is known
LARGEST_BATCH = 10_000  # images, as evaluation.batch_size may have
IMAGE_RANK = 4  # [N, C, H, W]
BUNDLED = (ModelKind.resnet8, ModelKind.mobilenet)
EXPORT = "export the model with one float32 input and one float32 output, the scores of the classes"
USAGE = "python run.py model=onnx model.path=FILE.onnx"
KERAS_USAGE = "python run.py model=keras model.path=FILE.h5"


@dataclass(frozen=True, repr=False)
class FloatModel:
    """A float classifier, ready for quantization.

    Attributes:
        name: for the table and the CSV.
        serialized: ONNX bytes, BatchNorm folded. Bytes, because onnxruntime's quantizer changes the proto it is given.
        input_spec: what it expects at its input.
        digest: SHA-256 of ``serialized``, hexadecimal.
        source: the file it came from.
    """

    name: str
    serialized: bytes
    input_spec: InputSpec
    digest: str
    source: str

    def proto(self) -> onnx.ModelProto:
        """A fresh ModelProto, which the caller may change."""
        return onnx.load_from_string(self.serialized)

    def __repr__(self) -> str:
        spec = self.input_spec
        size = "x".join(map(str, spec.shape))
        return f"FloatModel({self.name!r}, {len(self.serialized):,} bytes, images of {size}, {spec.classes} classes)"


def load_model(config: ModelConfig, image_shape: tuple[int, int, int], classes: int, cache: Path) -> FloatModel:
    """Load, check and fold the model that ``config`` names.

    Args:
        config: kind, and path or source where the kind needs one.
        image_shape: height, width, channels of the data.
        classes: of the data; the model must have at least as many outputs.
        cache: folder for downloads.

    Raises:
        ExperimentError: no such file, not an ONNX or Keras model, or one that does not fit the data.
    """
    name, path = _locate(config, cache)
    mean, std = (None if values is None else tuple(values) for values in (config.mean, config.std))
    required = InputSpec("", config.layout, image_shape, None, classes, mean, std)
    try:
        state = path.stat()
    except OSError as error:
        raise ExperimentError(
            f"`model.path`: {path} cannot be read ({error.strerror})",
            {ModelKind.onnx: USAGE, ModelKind.keras: KERAS_USAGE}.get(
                config.kind, f"python run.py model={config.kind.name}"
            ),
        ) from error
    return _load(name, path, config.kind, required, (state.st_size, state.st_mtime_ns))


def load_model_for(data: Dataset, config: ModelConfig, cache: Path) -> FloatModel:
    """`load_model` for the images and classes of ``data``; where its labels begin at 1, the error says so."""
    height, width, channels = data.test.images.shape[1:]
    try:
        return load_model(config, (height, width, channels), data.classes, cache)
    except ExperimentError:
        if min(data.train.labels.min(), data.test.labels.min()) != 1:
            raise
        try:
            load_model(config, (height, width, channels), data.classes - 1, cache)
        except ExperimentError:
            pass  # it is not that, or not that alone
        else:
            classes = typed_setting("data.classes", data.class_names[1:])
            raise ExperimentError(
                f"`data`: its labels are 1 to {data.classes - 1}, the model has {data.classes - 1} outputs, 0 to "
                f"{data.classes - 2}",
                classes if data.name == "folder" else "data.first_label=1",
            ) from None
        raise


def is_quantized(model: FloatModel) -> list[str]:
    """The operators that say that a model is quantized; none in a float model."""
    return sorted({node.op_type for node in model.proto().graph.node if node.op_type.startswith(QUANTIZED)})


def refuse_quantized(model: FloatModel) -> None:
    """Refuse to quantize what is quantized already; the message names the operators that say so."""
    if operators := is_quantized(model):
        raise ExperimentError(
            f"`model.path`: {model.source} is quantized already ({', '.join(operators)})",
            "measure it with quant=float, rewrite it with quant=float deploy=x86, or give the float model",
        )


def _locate(config: ModelConfig, cache: Path) -> tuple[str, Path]:
    """Name and file of the model."""
    if config.kind in BUNDLED:
        return config.kind.name, RESOURCES / f"{config.kind.name}.onnx"
    if config.kind is ModelKind.mlperf_tiny:
        from resnet8_quant.inputs.reference import reference_weights

        return reference_weights(config.source, cache)
    if config.path is None:
        usage = USAGE if config.kind is ModelKind.onnx else KERAS_USAGE
        raise ExperimentError(f"`model.path` is not set, and model={config.kind.name} needs it", usage)
    path = expanded(config.path)
    return path.stem, path


@lru_cache(maxsize=4)
def _load(name: str, path: Path, kind: ModelKind, required: InputSpec, state: tuple[int, int]) -> FloatModel:
    """Load one model once per process and ``state`` (size and time of its file): the jobs of a sweep share it."""
    if kind in (ModelKind.mlperf_tiny, ModelKind.keras):
        from resnet8_quant.inputs.keras_import import convert_apart, convert_h5

        if kind is ModelKind.keras:
            _check_file(path, "a Keras file", KERAS_USAGE)

        model = convert_h5(path) if kind is ModelKind.mlperf_tiny and name == REFERENCE else convert_apart(path)
    else:
        model = _parse(path)
    model = plain_output(model, required.classes)
    input_spec = _infer_input_spec(model, required)
    normalize(model)
    serialized = fold(model, input_spec).SerializeToString(deterministic=True)
    if kind is ModelKind.onnx and input_spec.batch is None:
        input_spec = _with_batch_that_runs(serialized, input_spec)
    shape, batch = "x".join(map(str, input_spec.shape)), input_spec.batch or "free"
    input_text = f"{input_spec.layout.name} input {input_spec.name!r} of {shape}, batch {batch}"
    log.info("model %s: %s, %d classes, %d bytes", name, input_text, input_spec.classes, len(serialized))
    log.debug("model file: %s", path)
    return FloatModel(name, serialized, input_spec, sha256_bytes(serialized), str(path))


def _check_file(path: Path, what: str, remedy: str) -> None:
    """Refuse what is no regular file, or is too large."""
    try:
        open_regular(path, LARGEST_FILE).close()
    except OSError as error:
        raise ExperimentError(f"`model.path`: {path} cannot be read as {what}: {error.strerror}", remedy) from error


def _parse(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that may be anything."""
    remedy = f"give an ONNX classifier: {USAGE}"
    _check_file(path, "an ONNX file", remedy)
    with open_regular(path) as file:
        if file.read(4) == b"PK\x03\x04":
            raise ExperimentError(
                f"`model.path`: {path} is an archive, such as torch.save writes, not an ONNX model",
                "export it with torch.onnx.export, as examples/own_model/export.py does, and give that file",
            )
    try:
        model = onnx.load(path, load_external_data=False)
        _check_external_data(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph  # also of computed shapes
        outputs = inferred.output
        del model.graph.output[:]
        model.graph.output.extend(outputs)  # their shapes; those of inner tensors would only make the file larger
    except ExperimentError:
        raise
    except Exception as error:  # protobuf, checker and shape inference raise their own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if (elsewhere := re.search(r"should be stored in (.+?), but", reason)) is not None:
            raise ExperimentError(
                f"`model.path`: the weights of {path} are in a file of their own, {elsewhere[1]}, which cannot be read",
                "put it there, or export both as one file: torch.onnx.export(..., external_data=False)",
            ) from error
        raise ExperimentError(f"`model.path`: {path} is not a valid ONNX model: {reason}", remedy) from error
    if not model.graph.node:
        raise ExperimentError(f"`model.path`: {path} holds an empty graph", remedy)
    _refuse_training_mode(model, path)
    if len(model.graph.node) > MOST_OPERATORS:
        problem = f"`model.path`: {path} has {len(model.graph.node):,} operators, more than {MOST_OPERATORS:,}"
        raise ExperimentError(problem, f"simplify it, or give a smaller one: {USAGE}")
    for value in inferred.value_info:
        size = 4 * math.prod(size or 1 for size in _sizes(value))
        if size > LARGEST_TENSOR * max(1, (_sizes(inferred.input[0]) or [None])[0] or 1):
            problem = f"`model.path`: {path} computes {_describe(value)}: {size:,} bytes for one image"
            raise ExperimentError(f"{problem}, more than {LARGEST_TENSOR:,}", remedy)
    return model


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse weights in files of their own that are too large, before they are read."""
    size = 0
    for tensor in _get_all_tensors(model):
        if uses_external_data(tensor):
            part = ExternalDataInfo(tensor)
            place = path.parent / part.location
            if place.is_file():
                size += part.length or place.stat().st_size - (part.offset or 0)
    if size > LARGEST_FILE:
        raise ExperimentError(
            f"`model.path`: the weights of {path} are in files of {size:,} bytes, more than {LARGEST_FILE:,}",
            f"give a smaller model: {USAGE}",
        )


def _refuse_training_mode(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a BatchNormalization or Dropout that goes on learning or dropping."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := attributes(node).get("value")) is not None:
            constants[node.output[0]] = value
    for node in model.graph.node:
        # Before opset 14 the other outputs say so.
        training = node.op_type == "BatchNormalization" and (
            attributes(node).get("training_mode", 0) or any(node.output[1:])
        )
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants:
            training = bool(np.any(onnx.numpy_helper.to_array(constants[node.input[2]])))
        if training:
            raise ExperimentError(
                f"`model.path`: {path} was exported in training mode: {node.op_type} {node.name!r} is in it",
                "call model.eval() before torch.onnx.export, and export it again",
            )


def _with_batch_that_runs(serialized: bytes, input_spec: InputSpec) -> InputSpec:
    """The input spec of a model whose batch is free, with a fixed batch of 1 where it runs on single images alone."""
    session = open_session(serialized, 1, exact=False)
    images = np.zeros((3, *input_spec.shape), np.uint8)
    try:
        runtime.run(session, None, {input_spec.name: input_spec.prepare(images)})
        return input_spec
    except ExperimentError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = first_line(error)
    run_batch(session, input_spec.name, input_spec.prepare(images[:1]))
    log.warning("the model's batch is free, but it runs on single images only, and is run so: %s", reason)
    return replace(input_spec, batch=1)


def _infer_input_spec(model: onnx.ModelProto, required: InputSpec) -> InputSpec:
    """Read what the model expects at its input, and refuse what does not fit what the config and the data require.

    Args:
        model: its outputs have shapes.
        required: without name and batch; its layout may be auto.
    """
    height, width, channels = required.shape

    def refuse(actual: str, how: str = "data=arrays data.path=FILE.npz") -> ExperimentError:
        return ExperimentError(
            f"`model`: found {actual}; expected one float32 input [N,{height},{width},{channels}] (NHWC) or "
            f"[N,{channels},{height},{width}] (NCHW) and one float32 output [N,{required.classes}]",
            f"choose data of that shape ({how}) or export the model with such an input" if how else EXPORT,
        )

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    for values, side in ((inputs, "input"), (outputs, "output")):
        description = ", ".join(_describe(value) for value in values)
        if len(values) != 1:
            raise refuse(f"{len(values)} {side}s ({description})", "")
        if values[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise refuse(f"{side} {description}", "")

    sizes, output_sizes = _sizes(inputs[0]), _sizes(outputs[0])
    shapes = {Layout.NHWC: (height, width, channels), Layout.NCHW: (channels, height, width)}
    candidates = shapes if required.layout is Layout.auto else [required.layout]
    layouts = [layout for layout in candidates if _fits(sizes, shapes[layout])]
    if not layouts:
        stated = "" if required.layout is Layout.auto else f" while `model.layout` is {required.layout.name}"
        raise refuse(f"input {_describe(inputs[0])}{stated}", *_resizing(sizes, required.shape))
    if len(layouts) > 1:
        raise ExperimentError(
            f"`model.layout`: input {_describe(inputs[0])} can be read as NHWC and as NCHW",
            "say which: model.layout=NHWC or model.layout=NCHW",
        )
    if (sizes[0] or 1) > LARGEST_BATCH:
        raise ExperimentError(
            f"`model`: its batch is fixed at {sizes[0]:,} images; expected at most {LARGEST_BATCH:,}",
            "export it with a free batch",
        )
    if len(output_sizes) != 2 or output_sizes[1] is None or output_sizes[1] < required.classes:
        raise refuse(f"output {_describe(outputs[0])}")
    check_channels(required.mean, required.std, channels)
    return replace(
        required,
        name=inputs[0].name,
        layout=layouts[0],
        batch=sizes[0],
        classes=output_sizes[1],
        mean=required.mean if any(required.mean or ()) else None,  # 0 and 1 say what the model takes, and do nothing
        std=required.std if any(value != 1 for value in required.std or ()) else None,
    )


def _resizing(sizes: list[int | None], shape: tuple[int, int, int]) -> list[str]:
    """What makes images [H,W,C] of files fit an input of these sizes; empty where neither their size nor gray does."""
    colour = {(3, 1): ["data.gray=true"], (1, 3): ["data.gray=false"], (shape[2], shape[2]): []}
    for place, size in ((1, sizes[2:]), (3, sizes[1:3])) if len(sizes) == 4 else ():
        words = colour.get((shape[2], sizes[place] or 0))
        if words is not None and None not in size and size != [*shape[:2]]:
            words = [*words, f"data.size=[{size[0]},{size[1]}]"]
        if words:
            return [f"data=folder {' '.join(words)}"]
    return []


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes of a tensor's axes; None where an axis is free."""
    return [axis.dim_value if axis.dim_value > 0 else None for axis in value.type.tensor_type.shape.dim]


def _fits(sizes: list[int | None], shape: tuple[int, int, int]) -> bool:
    return len(sizes) == 4 and all(size in (None, expected) for size, expected in zip(sizes[1:], shape, strict=True))


def _describe(value: onnx.ValueInfoProto) -> str:
    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    sizes = ",".join("N" if size is None else str(size) for size in _sizes(value))
    return f"{value.name} {dtype} [{sizes}]"
