"""Values of a model's inner tensors.

In: a ModelProto with one input, names of its tensors. Out: a function from a batch to their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import onnx

from resnet8_quant.graphs import runtime
from resnet8_quant.graphs.runtime import Level, new_session

Tap = Callable[[np.ndarray], list[np.ndarray]]


def tap(model: onnx.ModelProto, tensors: Sequence[str], level: Level = "all", threads: int = 1) -> Tap:
    """Open a session that also gives inner tensors.

    Args:
        model: not changed.
        tensors: names of any tensors that nodes compute, or of the model's input.
        level: of graph optimizations; with "none" the values are those of the graph as it is written.
        threads: within an operator; 0: as many as there are cores.

    Returns:
        A function from a batch for the model's input to the values of ``tensors``, in their order. It may be called
        from several threads at once.
    """
    tapped = deepcopy(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    source = next(value.name for value in model.graph.input if value.name not in initializers)
    outputs = {value.name for value in model.graph.output}
    computed = list(dict.fromkeys(name for name in tensors if name != source))
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in outputs)
    session = new_session(tapped.SerializeToString(), threads, level=level)

    def run(batch: np.ndarray) -> list[np.ndarray]:
        # ONNX Runtime takes an empty list of names for all outputs
        arrays = runtime.run(session, computed, {source: batch}) if computed else []
        values = {source: batch} | dict(zip(computed, arrays, strict=True))
        return [values[name] for name in tensors]

    return run
