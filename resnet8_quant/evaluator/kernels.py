"""Which kernels ONNX Runtime chooses for a model: integer or float.

In: a serialized model. Out: how many of its matrix products run as integer kernels, and all operators that run; for a
single operator of the graph that runs, what kind of kernel it is.

A Q/DQ graph only promises integers: ONNX Runtime fuses a DequantizeLinear-Conv-QuantizeLinear chain into an integer
kernel where it has one for these types on this CPU; otherwise it computes in float, slower than the float model.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import open_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Kernels = Literal["integer", "mixed", "simulated", "float"]
KernelKind = Literal["integer", "float", "quantize", "layout", "control"]

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
# Operators whose name alone says what kind of kernel they are.
OPERATORS: dict[KernelKind, set[str]] = {
    "integer": INTEGER_PRODUCTS,
    "float": FLOAT_PRODUCTS,
    "quantize": {*QUANTIZERS, "Cast"},  # from one number type to another
    "layout": {  # numbers are moved, not computed
        *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile", "Pad"),
        *("Concat", "Split", "Slice", "Gather", "Shape", "DepthToSpace", "SpaceToDepth", "Constant"),
        *("ReorderInput", "ReorderOutput"),  # to and from the blocked layout of the float convolutions
    },
    "control": {"If", "Loop", "Scan"},
}
KINDS: dict[str, KernelKind] = {operator: kind for kind, operators in OPERATORS.items() for operator in operators}
FLOAT_TYPES = {"float", "float16", "bfloat16", "double"}  # as ONNX Runtime's profiler names them
INT8_COMPUTE = 4  # accuracy_level of MatMulNBits: activations become 8 bit blocks; below it products are float


@dataclass(frozen=True)
class KernelReport:
    """What runs.

    Attributes:
        kernels: "integer": all products; "mixed": some; "simulated": none although the model is quantized;
            "float": the model is not quantized. With another execution provider than the CPU's first: that one's name,
            since it compiles its part of the graph and does not say what it runs.
        integer: number of convolutions and matrix products that run as integer kernels; None: unknown.
        total: number of convolutions and matrix products; None: unknown.
        ops: operator, with its domain if not ai.onnx's -> count, most frequent first.
    """

    kernels: str
    integer: int | None
    total: int | None
    ops: dict[str, int]


def kernel_report(model: bytes, threads: int, providers: Sequence[str] = CPU) -> KernelReport:
    """Let ONNX Runtime optimise a model and count the kernels it chose.

    Args:
        model: serialized ModelProto.
        threads: as in the latency measurement, so that the same graph is looked at.
        providers: that run the model.

    Raises:
        ExperimentError: ONNX Runtime cannot load the model.
    """
    if providers[0] != CPU[0]:
        return KernelReport(providers[0].removesuffix("ExecutionProvider"), None, None, {})
    import onnx

    with tempfile.TemporaryDirectory(prefix="resnet8_quant-") as folder:
        path = Path(folder, "optimized.onnx")
        open_session(model, threads, optimized_model=path)
        nodes = list(onnx.load(path).graph.node)
    integer = sum(_is_integer(node) for node in nodes)
    total = integer + sum(_is_float(node) for node in nodes)
    quantized = integer > 0 or _has_quantizers(onnx.load_from_string(model))
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    return KernelReport(_overall(integer, total, quantized), integer, total, dict(ops.most_common()))


def kernel_kind(node: NodeProto, element_types: Collection[str]) -> KernelKind:
    """What kind of kernel runs an operator.

    Args:
        node: of the graph that ONNX Runtime runs, after its optimizations.
        element_types: of the first input and the first output, as ONNX Runtime's profiler names them ("float",
            "uint8"). They decide where the operator's name does not: an AveragePool is a float kernel, a MaxPool of
            uint8 an integer one.

    Returns:
        "integer" or "float" arithmetic; "quantize": from one number type to another; "layout": numbers are moved;
        "control": runs a graph of its own.
    """
    if _is_integer(node) or node.op_type.startswith("QLinear"):
        return "integer"
    return KINDS.get(node.op_type) or ("float" if FLOAT_TYPES.intersection(element_types) else "integer")


def _overall(integer: int, total: int, quantized: bool) -> Kernels:
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
