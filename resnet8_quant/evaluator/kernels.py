"""Does a quantized model really compute in integers? The graph that ONNX Runtime runs tells.

In: a serialized model. Out: how many of its matrix products run as integer kernels, and all operators that run.

A Q/DQ graph only promises integers: ONNX Runtime fuses a DequantizeLinear-Conv-QuantizeLinear chain into an integer
kernel where it has one for these types on this CPU; otherwise it computes in float, slower than the float model.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet8_quant.evaluator.session import open_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Kernels = Literal["integer", "mixed", "simulated", "float"]

# Operators that multiply by weights, whatever their domain (ai.onnx, com.microsoft, com.microsoft.nchwc).
INTEGER_PRODUCTS = {
    *("QLinearConv", "ConvInteger"),
    *("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
FLOAT_PRODUCTS = {
    *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"),
    *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulBnb4"),
}
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
INT8_COMPUTE = 4  # accuracy_level of MatMulNBits: activations become 8 bit blocks; below it products are float


@dataclass(frozen=True)
class KernelReport:
    """What runs.

    Attributes:
        kernels: "integer": all products; "mixed": some; "simulated": none although the model is quantized;
            "float": the model is not quantized.
        integer: number of convolutions and matrix products that run as integer kernels.
        total: number of convolutions and matrix products.
        ops: operator, with its domain if not ai.onnx's -> count, most frequent first.
    """

    kernels: Kernels
    integer: int
    total: int
    ops: dict[str, int]


def kernel_report(model: bytes, threads: int) -> KernelReport:
    """Let ONNX Runtime optimise a model and count the kernels it chose.

    Args:
        model: serialized ModelProto.
        threads: as in the latency measurement, so that the same graph is looked at.

    Raises:
        ExperimentError: ONNX Runtime cannot load the model.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="resnet8_quant-") as folder:
        path = Path(folder, "optimized.onnx")
        open_session(model, threads, optimized_model=path)
        nodes = list(onnx.load(path).graph.node)
    integer = sum(_is_integer(node) for node in nodes)
    total = integer + sum(_is_float(node) for node in nodes)
    quantized = integer > 0 or _has_quantizers(onnx.load_from_string(model))
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    return KernelReport(_judge(integer, total, quantized), integer, total, dict(ops.most_common()))


def _judge(integer: int, total: int, quantized: bool) -> Kernels:
    if not quantized:
        return "float"
    if integer == 0:
        return "simulated"
    return "integer" if integer == total else "mixed"


def _is_integer(node: NodeProto) -> bool:
    if node.op_type == "MatMulNBits":
        return any(attribute.name == "accuracy_level" and attribute.i == INT8_COMPUTE for attribute in node.attribute)
    return node.op_type in INTEGER_PRODUCTS


def _is_float(node: NodeProto) -> bool:
    return node.op_type in FLOAT_PRODUCTS or (node.op_type == "MatMulNBits" and not _is_integer(node))


def _has_quantizers(model: ModelProto) -> bool:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type in QUANTIZERS for node in nodes)
