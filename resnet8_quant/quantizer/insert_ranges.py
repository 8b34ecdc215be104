"""Float model + ranges -> Q/DQ or QOperator graph: onnxruntime's quantize_static, and what it needs around it.

The ranges are handed to quantize_static as a calibration cache, its documented way in.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Collection, Iterator

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.quantization.registry import QDQRegistry

from resnet8_quant.config import DType, QuantConfig
from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs.graph import DEFAULT_DOMAIN, Graph, at_least_opset
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.calibrate import OPERATORS, Calibration
from resnet8_quant.quantizer.emit import OLDEST_OPSET
from resnet8_quant.quantizer.plan import layer_bits, layer_nodes

log = logging.getLogger(__name__)

QUANT_TYPES: dict[DType, QuantType] = {
    DType[name]: dtype for dtype in QuantType if (name := dtype.name.removeprefix("Q").lower()) in DType.__members__
}


def serialize(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same model, every time."""
    return bytes(model.SerializeToString(deterministic=True))


def insert_ranges(
    model: FloatModel, calibration: Calibration, quant: QuantConfig, in_float: Collection[str] = ()
) -> bytes:
    """Run quantize_static with the ranges of ``calibration``; return the checked model's bytes.

    Args:
        in_float: layers that stay in float, besides those of ``quant.layers``.
    """
    proto = model.proto()
    kept = _name_float_layers(proto, quant, in_float)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAIN)
    if quant.per_channel and opset < OLDEST_OPSET:  # a scale for each channel
        proto = at_least_opset(proto, OLDEST_OPSET)
    add_pre_process_metadata(proto)  # load_model did that work; without the mark quantize_static asks for it
    options: dict[str, object] = {"ActivationSymmetric": quant.activation_symmetric}
    if quant.weight_symmetric is not None:
        options["WeightSymmetric"] = quant.weight_symmetric
    printed = io.StringIO()
    with (
        temporary_folder() as folder,
        contextlib.redirect_stdout(printed),
        _own_scale_for_average_pools(),
        _shapes_written_by_python(),
        _counted_lines(),
    ):
        cache, output = folder / "ranges.json", folder / "model.onnx"
        # a calibration cache is tagged with a method's name; MinMax means "these are the ranges"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, dict(calibration.ranges)), cache)
        quantize_static(
            proto,
            output,
            None,
            quant_format=QuantFormat[quant.format.name],
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=kept,
            per_channel=quant.per_channel,
            reduce_range=quant.reduce_range,
            activation_type=QUANT_TYPES[quant.activation_type],
            weight_type=QUANT_TYPES[quant.weight_type],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
            calibration_cache_path=cache,
        )
        serialized = output.read_bytes()
    if printed.getvalue():
        log.debug("onnxruntime: %s", printed.getvalue())
    if kept:
        serialized = serialize(_hold_in_float(onnx.load_from_string(serialized), kept))
    onnx.checker.check_model(serialized, full_check=False)
    return serialized


def _name_float_layers(proto: onnx.ModelProto, quant: QuantConfig, in_float: Collection[str]) -> list[str]:
    """Names of the nodes that stay in float; each gets one of its own, by which onnxruntime goes."""
    if not quant.layers and not in_float:
        return []
    quantized = layer_bits(proto.graph, quant).keys() - set(in_float)
    taken = {node.name for node in proto.graph.node}
    kept = [node for node in layer_nodes(proto.graph) if node.output[0] not in quantized]
    for node in kept:
        node.name = f"{node.output[0]}_in_float"
        while node.name in taken:
            node.name += "_"
    return [node.name for node in kept]


def _hold_in_float(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Put a Sum of one tensor before the nodes ``kept`` where they read a DequantizeLinear.

    ONNX Runtime's WeightBiasQuantization makes int8 of a float weight that stands between DequantizeLinear and
    QuantizeLinear, without being asked. It looks at the neighbours alone, and no other pass removes such a Sum.
    """
    graph = Graph(model)
    for node in [node for node in graph.nodes if node.name in kept]:
        producer = graph.producer(node.input[0])
        if producer is not None and producer.op_type == "DequantizeLinear":
            name = graph.unique_name(f"{node.name}_input")
            graph.insert_before(node, onnx.helper.make_node("Sum", [node.input[0]], [name], name))
            node.input[0] = name
    return graph.finish()


@contextlib.contextmanager
def _own_scale_for_average_pools() -> Iterator[None]:
    """Let an AveragePool's output have the scale that its own range asks for, in QDQ as in QOperator.

    onnxruntime's table has an entry for QDQ that copies the input's scale to the output. That is right for MaxPool,
    but an average is far smaller than the maximum before it: ResNet8 loses about 20 of 10,000 images. Operators
    without an entry get a scale for each tensor, and the integer kernel takes both.
    """
    entry = QDQRegistry.pop("AveragePool")
    try:
        yield
    finally:
        QDQRegistry["AveragePool"] = entry


@contextlib.contextmanager
def _shapes_written_by_python() -> Iterator[None]:
    """Let a full disk stop onnxruntime, which infers shapes from one temporary file into another.

    onnx writes the second one in C++ without looking whether that worked. A file that breaks off after the weights is
    still a model, without the shapes, so that fewer operators were quantized and nobody was told.
    """
    original = onnx.shape_inference.infer_shapes_path

    def infer(model_path: str, output_path: str) -> None:
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(model_path)), output_path)

    setattr(onnx.shape_inference, "infer_shapes_path", infer)  # noqa: B010 (a function, to a type checker)
    try:
        yield
    finally:
        setattr(onnx.shape_inference, "infer_shapes_path", original)  # noqa: B010


@contextlib.contextmanager
def _counted_lines() -> Iterator[None]:
    """Log what onnxruntime says about each of a thousand weights as one sentence for each thing said."""
    said: dict[str, list[tuple[int, str]]] = {}

    def collect(record: logging.LogRecord) -> bool:
        if "onnxruntime" not in record.pathname:
            return True
        text = record.getMessage()
        said.setdefault(re.split(r"[\s\[]+[`'\d]", text)[0], []).append((record.levelno, text))
        return False

    root = logging.getLogger()  # onnxruntime logs to it itself
    root.addFilter(collect)
    try:
        yield
    finally:
        root.removeFilter(collect)
        for lines in said.values():
            more = f" (and {len(lines) - 1:,} more of the kind)" if len(lines) > 1 else ""
            level, text = lines[0]
            log.log(level, "onnxruntime: %s%s", " ".join(text.split()), more)
