"""What ONNX Runtime makes of a model on this CPU: its kernels, and whether an application's session predicts the same.

In: a model, and its evaluation by exact integer arithmetic. Out: a `RuntimeCheck`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import EvaluationConfig
from resnet8_quant.evaluator.accuracy import Classifier, Evaluation, evaluate
from resnet8_quant.evaluator.kernels import KernelReport, kernel_report
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.graphs.session import differs_by_default
from resnet8_quant.inputs.dataset import Split


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


def check_runtime(
    model: Classifier, split: Split, evaluation: Evaluation, config: EvaluationConfig, threads: int
) -> RuntimeCheck:
    """Look at the kernels, and evaluate in a default session where that can differ on this CPU.

    Args:
        model: that was evaluated.
        split: what it was evaluated on.
        evaluation: by exact integer arithmetic.
        config: of the evaluation.
        threads: of the latency measurement, whose graph is looked at.

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
