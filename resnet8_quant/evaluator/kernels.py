"""What ONNX Runtime makes of a model on this CPU: its kernels, and whether an application's session predicts the same.

In: a serialized model. Out: how many of its matrix products and of all its operators run as integer kernels; for a
single operator of the graph that runs, what kind of kernel it is; for an evaluation, a `RuntimeCheck`.

A Q/DQ graph only promises integers: ONNX Runtime fuses a DequantizeLinear-Conv-QuantizeLinear chain into an integer
kernel where it has one for these types on this CPU; otherwise it computes in float, slower than the float model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnet8_quant.config import EvaluationConfig
from resnet8_quant.evaluator.accuracy import Classifier, Evaluation, evaluate
from resnet8_quant.files import temporary_folder
from resnet8_quant.graphs.graph import INTEGER_OPERATORS
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.graphs.session import differs_by_default, open_session
from resnet8_quant.inputs.dataset import Split

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

KernelKind = Literal["integer", "float", "quantize", "layout", "control"]

# Operators that multiply by weights, whatever their domain (ai.onnx, com.microsoft, com.microsoft.nchwc).
INTEGER_PRODUCTS = set(INTEGER_OPERATORS)
FLOAT_PRODUCTS = {
    *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"),
    *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulBnb4"),
}
PRODUCTS = {*INTEGER_PRODUCTS, *FLOAT_PRODUCTS, "MatMulNBits"}  # of the last an attribute decides
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
        *("ConstantOfShape", "Range", "Size"),
    },
    "control": {"If", "Loop", "Scan"},
}
KERNELS: dict[str, KernelKind] = {operator: kernel for kernel, operators in OPERATORS.items() for operator in operators}
# Operators that always return floats, or never, whatever they read.
RETURNS_FLOATS = {"DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
RETURNS_INTEGERS = {
    *("QuantizeLinear", "QLinearConv", "Shape", "Size", "ArgMax", "ArgMin", "NonZero", "ConvInteger", "MatMulInteger"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsNaN", "IsInf"),
}
FLOAT_TYPES = {"float", "float16", "bfloat16", "double"}  # as ONNX Runtime's profiler names them
INT8_COMPUTE = 4  # accuracy_level of MatMulNBits: activations become 8 bit blocks; below it products are float


@dataclass(frozen=True)
class KernelReport:
    """What runs.

    Attributes:
        kernels: "integer": all products, and whatever they depend on (a softmax of the scores may be float); "mixed":
            some of it; "simulated": no product although the model is quantized; "float": the model is not quantized.
            With another execution provider than the CPU's first: that one's name, since it compiles its part of the
            graph and does not say what it runs.
        integer: number of convolutions and matrix products that run as integer kernels; None: unknown.
        total: number of convolutions and matrix products; None: unknown.
        ops: operator, with its domain if not ai.onnx's -> count, most frequent first.
        quantized_ops: operators, products or not, that compute with integers; None: unknown.
        float_ops: that compute in float; None: unknown. Conversions from one type to the other and operators that only
            move numbers (Reshape, Transpose, Concat) are neither.
    """

    kernels: str
    integer: int | None
    total: int | None
    ops: dict[str, int]
    quantized_ops: int | None = None
    float_ops: int | None = None


@dataclass(frozen=True)
class RuntimeCheck:
    """What ONNX Runtime makes of a model.

    Attributes:
        kernels: how many of its convolutions and matrix products run as integer kernels.
        saturating_layers: layers whose sums can saturate on x86 CPUs without VNNI; empty: the model is portable.
        default_session_accuracy: top-1 in a session with ONNX Runtime's default options; None where it is the exact
            one's, because the model is portable or this CPU's kernels do not saturate.
        default_session_changed: number of predictions that differ from the exact ones; None likewise.
    """

    kernels: KernelReport
    saturating_layers: tuple[str, ...]
    default_session_accuracy: float | None = None
    default_session_changed: int | None = None

    @property
    def portable(self) -> bool:
        """Whether no kernel can saturate, so that every session on every CPU predicts the same."""
        return not self.saturating_layers


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

    with temporary_folder() as folder:
        path = folder / "optimized.onnx"
        open_session(model, threads, optimized_model=path)
        graph = onnx.load(path).graph
    nodes = list(graph.node)
    integer = sum(_is_integer(node) for node in nodes)
    total = sum(node.op_type in PRODUCTS for node in nodes)
    kinds = kernel_kinds(graph)
    if integer:
        kernels = "mixed" if "float" in _kinds_before_products(nodes, kinds) else "integer"
    else:
        kernels = "simulated" if _has_quantizers(onnx.load_from_string(model)) else "float"
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    counts = Counter(kinds)
    return KernelReport(kernels, integer, total, dict(ops.most_common()), counts["integer"], counts["float"])


def kernel_kinds(graph: GraphProto) -> list[KernelKind]:
    """What kind of kernel runs each operator of the graph that ONNX Runtime runs, in its order.

    Types of tensors are followed from the inputs, since ONNX Runtime writes none into its graph. An If, Loop or Scan is
    one operator.
    """
    from onnx import TensorProto

    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    are_floats = {value.name for value in graph.input if value.type.tensor_type.elem_type in floats}
    are_floats |= {tensor.name for tensor in graph.initializer if tensor.data_type in floats}
    kinds = []
    for node in graph.node:
        reads = [name for name in node.input if name]
        first = reads[1:2] if node.op_type == "Where" else reads[:1]  # its first input is the condition
        returns = bool(are_floats.intersection(first))
        if node.op_type == "Cast":
            returns = any(attribute.name == "to" and attribute.i in floats for attribute in node.attribute)
        elif node.op_type == "QGemm":
            returns = len(node.input) <= INTEGER_OPERATORS["QGemm"].output_scale
        elif node.op_type in RETURNS_FLOATS or node.op_type in OPERATORS["float"]:
            returns = True
        elif node.op_type in RETURNS_INTEGERS or node.op_type.startswith("QLinear"):
            returns = False
        kinds.append(kernel_kind(node, {"float"} if returns or are_floats.intersection(first) else {"integer"}))
        if returns:
            are_floats.update(node.output)
    return kinds


def _kinds_before_products(nodes: Sequence[NodeProto], kinds: Sequence[KernelKind]) -> set[KernelKind]:
    """Kinds of the products, and of all operators whose results they depend on."""
    needed: set[str] = set()
    found = set()
    for node, kind in zip(reversed(nodes), reversed(kinds), strict=True):
        if node.op_type in PRODUCTS or needed.intersection(node.output):
            found.add(kind)
            needed.update(filter(None, node.input))
    return found


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
    return KERNELS.get(node.op_type) or ("float" if FLOAT_TYPES.intersection(element_types) else "integer")


def check_runtime(
    model: Classifier, split: Split, evaluation: Evaluation, config: EvaluationConfig, threads: int
) -> RuntimeCheck:
    """Look at the kernels, and evaluate in a default session where that can differ on this CPU.

    Args:
        model: that was evaluated.
        split: what it was evaluated on.
        evaluation: by exact integer arithmetic.
        config: of the evaluation.
        threads: of the latency measurement, as in ``kernel_report``.

    Raises:
        ExperimentError: ONNX Runtime cannot load or run the model.
    """
    kernels = kernel_report(model.serialized, threads, config.providers)
    layers = tuple(saturating_layers(model.serialized))
    if not layers or not differs_by_default(model.serialized):
        return RuntimeCheck(kernels, layers)
    default = evaluate(model, split, config, exact=False, description="evaluating in the default session")
    changed = int(np.sum(default.predictions != evaluation.predictions))
    return RuntimeCheck(kernels, layers, default.accuracy, changed)


def _is_integer(node: NodeProto) -> bool:
    if node.op_type == "MatMulNBits":
        return any(attribute.name == "accuracy_level" and attribute.i == INT8_COMPUTE for attribute in node.attribute)
    return node.op_type in INTEGER_PRODUCTS


def _has_quantizers(model: ModelProto) -> bool:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type in QUANTIZERS for node in nodes)
