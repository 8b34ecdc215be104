"""Float models: the bundled ResNet8, the MLPerf Tiny reference, or any ONNX classifier that fits the data.

In: the `model` part of the config, the dataset's image shape and number of classes. Out: a `FloatModel`, checked, with
BatchNorm folded and its input spec known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import lru_cache
from pathlib import Path

import onnx

from resnet8_quant.config import Layout, ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.input_spec import InputSpec

log = logging.getLogger(__name__)

RESOURCES = Path(__file__).parents[1] / "resources"
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "ConvInteger", "MatMulInteger")
LARGEST_FILE = 500 * 2**20  # bytes; this is a tool for small networks


@dataclass(frozen=True)
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
    serialized: bytes = dataclass_field(repr=False)
    input_spec: InputSpec
    digest: str
    source: str

    def proto(self) -> onnx.ModelProto:
        """A fresh ModelProto, which the caller may change."""
        return onnx.load_from_string(self.serialized)


@lru_cache(maxsize=4)
def _load(key: tuple[object, ...], name: str, path: Path, spec_of: _SpecRequest) -> FloatModel:
    """One model per process and file state (``key``): the jobs of a sweep share it."""
    proto = _parse(path)
    input_spec = infer_input_spec(proto, spec_of)
    from resnet8_quant.inputs.fold import fold

    serialized = fold(proto, input_spec).SerializeToString(deterministic=True)
    model = FloatModel(name, serialized, input_spec, sha256_bytes(serialized), str(path))
    log.info(
        "model %s: %s input %r of %dx%dx%d, batch %s, %d classes, %d bytes",
        name,
        input_spec.layout.name,
        input_spec.name,
        *input_spec.shape,
        input_spec.batch or "free",
        input_spec.classes,
        len(serialized),
    )
    log.debug("model file: %s", path)
    return model


def load_model(config: ModelConfig, image_shape: tuple[int, int, int], classes: int, cache: Path) -> FloatModel:
    """Load, check and fold the model that ``config`` names.

    Args:
        config: kind, and path or source where the kind wants one.
        image_shape: height, width, channels of the data.
        classes: of the data; the model must have at least as many outputs.
        cache: folder for downloads and conversions.

    Raises:
        ExperimentError: no such file, not an ONNX or Keras model, or one that does not fit the data.
    """
    name, path = SOURCES[config.kind](config, cache)
    request = _SpecRequest(
        config.layout,
        image_shape,
        classes,
        tuple(config.mean) if config.mean is not None else None,
        tuple(config.std) if config.std is not None else None,
        config.kind.name,
    )
    try:
        state = path.stat()
    except OSError as error:
        raise ExperimentError(
            f"`model.path`: {path} cannot be read ({error.strerror})", f"{_usage(config.kind)}"
        ) from error
    return _load((str(path), state.st_size, state.st_mtime_ns), name, path, request)


@dataclass(frozen=True)
class _SpecRequest:
    """What the data and the config ask of a model's input."""

    layout: Layout
    image_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    kind: str


def _bundled(config: ModelConfig, cache: Path) -> tuple[str, Path]:
    return "resnet8", RESOURCES / "resnet8.onnx"


def _mlperf_tiny(config: ModelConfig, cache: Path) -> tuple[str, Path]:
    from resnet8_quant.inputs.reference import reference_model

    return reference_model(config.source, cache)


def _own(config: ModelConfig, cache: Path) -> tuple[str, Path]:
    if config.path is None:
        raise ExperimentError("`model.path` is not set, and model=onnx needs it", _usage(config.kind))
    path = Path(config.path).expanduser()
    return path.stem, path


SOURCES: dict[ModelKind, Callable[[ModelConfig, Path], tuple[str, Path]]] = {
    ModelKind.resnet8: _bundled,
    ModelKind.mlperf_tiny: _mlperf_tiny,
    ModelKind.onnx: _own,
}


def _usage(kind: ModelKind) -> str:
    return (
        "python run.py model=onnx model.path=FILE.onnx"
        if kind is ModelKind.onnx
        else f"python run.py model={kind.name}"
    )


def _parse(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that may be anything."""
    remedy = "give an ONNX classifier: python run.py model=onnx model.path=FILE.onnx"
    if path.is_dir():
        raise ExperimentError(f"`model.path`: {path} is a folder, not an ONNX file", remedy)
    if path.stat().st_size > LARGEST_FILE:
        raise ExperimentError(f"`model.path`: {path} has more than {LARGEST_FILE >> 20} MiB", remedy)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        outputs = onnx.shape_inference.infer_shapes(model).graph.output
        del model.graph.output[:]
        model.graph.output.extend(outputs)  # their shapes; those of inner tensors would only make the file larger
    except Exception as error:  # protobuf, checker and shape inference raise their own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExperimentError(f"`model.path`: {path} is not a valid ONNX model: {reason}", remedy) from error
    if not model.graph.node:
        raise ExperimentError(f"`model.path`: {path} holds an empty graph", remedy)
    return model


def infer_input_spec(model: onnx.ModelProto, request: _SpecRequest) -> InputSpec:
    """Read what the model expects at its input, and refuse what does not fit the data.

    Raises:
        ExperimentError: more than one input or output, another dtype, rank or shape; says what was found and expected.
    """
    height, width, channels = request.image_shape
    expected = (
        f"expected one float32 input [N,{height},{width},{channels}] (NHWC) or [N,{channels},{height},{width}] (NCHW) "
        f"and one float32 output [N,{request.classes}]"
    )
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)

    def refuse(found: str) -> ExperimentError:
        return ExperimentError(
            f"`model`: {found}; {expected}",
            "choose data of that shape (data=arrays data.path=FILE.npz) or export the model with such an input",
        )

    for values, what in ((inputs, "input"), (outputs, "output")):
        shown = ", ".join(_describe(value) for value in values)
        if len(values) != 1:
            raise refuse(f"found {len(values)} {what}s ({shown})")
        if values[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise refuse(f"found {what} {shown}")
    dims, out_dims = _dims(inputs[0]), _dims(outputs[0])
    fits = {
        Layout.NHWC: _fits(dims, (height, width, channels)),
        Layout.NCHW: _fits(dims, (channels, height, width)),
    }
    candidates = [layout for layout, fit in fits.items() if fit and request.layout in (Layout.auto, layout)]
    if not candidates:
        stated = "" if request.layout is Layout.auto else f" while `model.layout` is {request.layout.name}"
        raise refuse(f"found input {_describe(inputs[0])}{stated}")
    if len(candidates) > 1:
        raise ExperimentError(
            f"`model.layout`: input {_describe(inputs[0])} can be read as NHWC and as NCHW",
            "say which: model.layout=NHWC or model.layout=NCHW",
        )
    if len(out_dims) != 2 or out_dims[1] is None or out_dims[1] < request.classes:
        raise refuse(f"found output {_describe(outputs[0])}")
    for field, numbers in (("mean", request.mean), ("std", request.std)):
        if numbers is not None and len(numbers) != channels:
            raise ExperimentError(
                f"`model.{field}` has {len(numbers)} values, the images have {channels} channels",
                f"give one value per channel in pixel units, for example "
                f"'model.{field}=[{','.join(['127.5'] * channels)}]'",
            )
    return InputSpec(
        name=inputs[0].name,
        layout=candidates[0],
        shape=request.image_shape,
        batch=dims[0],
        classes=out_dims[1],
        mean=request.mean,
        std=request.std,
    )


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes of a tensor's axes; None where an axis is free."""
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim
    ]


def _fits(dims: list[int | None], shape: tuple[int, int, int]) -> bool:
    return len(dims) == 4 and all(found in (None, wanted) for found, wanted in zip(dims[1:], shape, strict=True))


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower().replace("float", "float32", 1)
    kind = kind.replace("float3216", "float16")
    sizes = ",".join("N" if size is None else str(size) for size in _dims(value))
    return f"{value.name} {kind} [{sizes}]"


def refuse_quantized(model: FloatModel) -> None:
    """Refuse to quantize what is quantized already.

    Raises:
        ExperimentError: names the operators that say so.
    """
    found = sorted({node.op_type for node in model.proto().graph.node if node.op_type.startswith(QUANTIZED)})
    if found:
        raise ExperimentError(
            f"`model.path`: {model.source} is quantized already ({', '.join(found)})",
            "measure it with quant=float, rewrite it with quant=float deploy=x86, or give the float model",
        )
