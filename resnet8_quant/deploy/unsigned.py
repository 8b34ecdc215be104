"""Weights of integer operators as uint8, where int8 ones could saturate on an x86 CPU without VNNI.

In: a fused `Graph`. Out: the same graph, exact on every CPU. See graphs/saturation.py for what saturates.
"""

from __future__ import annotations

from resnet8_quant.deploy.graph import Graph
from resnet8_quant.graphs.saturation import INTEGER_OPERATORS, saturating_nodes, to_unsigned


def use_unsigned_weights(graph: Graph) -> list[str]:
    """Give layers that can saturate uint8 weights, 128 more with a zero point 128 more; return the layers' names.

    The kernel for uint8 with uint8 is exact on every CPU, and slower than that for uint8 with int8 where that is exact.
    """
    outputs = {node.output[0] for node in saturating_nodes(graph.finish())}
    names = []
    for node in graph.nodes:
        inputs = INTEGER_OPERATORS.get(node.op_type)
        if inputs is None or node.output[0] not in outputs or node.input[inputs.weight] not in graph.tensors:
            continue
        for position in (inputs.weight, inputs.weight_zero_point):
            name = node.input[position]
            node.input[position] = graph.put(f"{name}_unsigned", to_unsigned(graph.array(name)))
        names.append(str(node.output[0]))
    return names
