"""Raise a model's opset, with as little change to its graph as that takes."""

from __future__ import annotations

from copy import deepcopy

import onnx
from onnx import helper, version_converter

from resnet8_quant.graphs.graph import DEFAULT_DOMAIN

REDEFINED = ("RoiAlign", "Split")  # at opsets 16 and 18, under the attributes that they had


def at_least_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a copy of ``model`` at ``opset`` or its own, whichever is higher, without its value_info.

    Where no operator of the graph changed in between but for types and optional additions, that is a new number;
    otherwise onnx.version_converter rewrites the graph.
    """
    copy = deepcopy(model)
    del copy.graph.value_info[:]
    default = next(entry for entry in copy.opset_import if entry.domain in DEFAULT_DOMAIN)
    if default.version < opset:
        op_types = {node.op_type for node in copy.graph.node if node.domain in DEFAULT_DOMAIN}
        if not all(_only_extended(op_type, default.version, opset) for op_type in op_types):
            return at_least_opset(version_converter.convert_version(copy, opset), opset)
        default.version = opset
    needed = helper.find_min_ir_version_for(copy.opset_import, ignore_unknown=True)
    copy.ir_version = max(copy.ir_version, needed)
    return copy


def _only_extended(op_type: str, old: int, new: int) -> bool:
    """Whether a node that is legal at opset ``old`` means the same at ``new``, as far as the two schemas tell."""
    before, after = onnx.defs.get_schema(op_type, old), onnx.defs.get_schema(op_type, new)
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    known, added = before.attributes, after.attributes.keys() - before.attributes.keys()
    inputs = [value.name for value in before.inputs]
    return before.since_version == after.since_version or (
        not (after.deprecated or op_type in REDEFINED)
        and known.keys() <= after.attributes.keys()
        and all(after.attributes[name].default_value == known[name].default_value for name in known)
        and not any(after.attributes[name].required for name in added)
        and [value.name for value in after.inputs][: len(inputs)] == inputs
        and all(value.option != required for value in after.inputs[len(inputs) :])
        and len(before.outputs) == len(after.outputs)
    )
