"""Fold BatchNorm, constant Mul/Add after Conv, and constants into the weights.

In: ONNX bytes as an exporter wrote them. Out: ONNX bytes with standard operators only. ONNX Runtime's own
semantics-preserving ("basic") optimizations do the folding; this module decides whether there is anything to fold,
proves on random images that nothing changed, and says by name what could not be folded.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.input_spec import InputSpec

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of an output in the order of 1; folding rounds differently in float32


def needs_folding(model: onnx.ModelProto) -> bool:
    """Whether the graph holds what quantization should not see: BatchNorm, constant nodes, affine ops after Conv."""
    conv_outputs = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("BatchNormalization", "Constant", "Identity", "Dropout"):
            return True
        affine = node.op_type in ("Mul", "Add", "Sub", "Div")
        if affine and conv_outputs & set(node.input) and constants & set(node.input):
            return True
    return False


def fold(model: onnx.ModelProto, input_spec: InputSpec) -> onnx.ModelProto:
    """Return ``model`` with everything folded that can be; the same object where there is nothing to do."""
    if not needs_folding(model):
        return model
    original = model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="resnet8_quant.") as folder:
        path = Path(folder) / "folded.onnx"
        try:
            new_session(original, level="basic", optimized_model=path)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExperimentError(
                f"`model`: ONNX Runtime cannot load it: {str(error).splitlines()[0]}",
                "export the model again; its operators must be in ONNX Runtime's CPU provider",
            ) from error
        folded = onnx.load(path)
    used = {node.domain for node in folded.graph.node}
    kept = [opset for opset in folded.opset_import if opset.domain in used | {""}]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    _require_same_outputs(original, folded.SerializeToString(), input_spec)
    for node in folded.graph.node:
        if node.op_type == "BatchNormalization":
            log.warning("BatchNormalization %r could not be folded into a Conv: it stays float", node.name)
    log.info("folded %d operators into %d", len(model.graph.node), len(folded.graph.node))
    return folded


def _require_same_outputs(original: bytes, folded: bytes, input_spec: InputSpec) -> None:
    images = np.random.default_rng(0).integers(0, 256, (input_spec.batch or 4, *input_spec.shape), dtype=np.uint8)
    feed = {input_spec.name: input_spec.prepare(images)}
    before, after = (new_session(data, threads=0).run(None, feed)[0] for data in (original, folded))
    difference = float(np.max(np.abs(before - after)))
    if not difference <= TOLERANCE * max(1.0, float(np.max(np.abs(before)))):
        raise ExperimentError(
            f"`model`: folding BatchNorm changed the output by {difference:g}",
            "export the model with BatchNorm folded, then run again",
        )
