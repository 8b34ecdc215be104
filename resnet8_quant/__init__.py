"""Post-training quantization experiments on ResNet8 with ONNX Runtime.

What is listed in ``__all__`` is the public API, described in docs/api.md; anything else may change. It is imported when
it is first used, so that the command line starts without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet8_quant.api import (
        Calibration,
        QuantizedModel,
        calibrate,
        compare,
        compose,
        evaluate,
        load_dataset,
        load_model,
        quantize,
        run,
    )
    from resnet8_quant.config import (
        AllocateConfig,
        CalibrationConfig,
        Config,
        DataConfig,
        DeployConfig,
        EvaluationConfig,
        LatencyConfig,
        ModelConfig,
        QuantConfig,
        RefineConfig,
        TrackingConfig,
    )
    from resnet8_quant.errors import ExperimentError
    from resnet8_quant.evaluator.accuracy import Evaluation
    from resnet8_quant.evaluator.statistics import Comparison
    from resnet8_quant.inputs.dataset import Dataset, Split
    from resnet8_quant.inputs.model import FloatModel
    from resnet8_quant.options import quant_name
    from resnet8_quant.results import RunResult

__version__ = "0.1.0"

# Where the names of __all__ are looked up, in this order; the last one loads ONNX Runtime.
_MODULES = ("config", "errors", "options", "api")

__all__ = [
    "AllocateConfig",
    "Calibration",
    "CalibrationConfig",
    "Comparison",
    "Config",
    "DataConfig",
    "Dataset",
    "DeployConfig",
    "Evaluation",
    "EvaluationConfig",
    "ExperimentError",
    "FloatModel",
    "LatencyConfig",
    "ModelConfig",
    "QuantConfig",
    "QuantizedModel",
    "RefineConfig",
    "RunResult",
    "Split",
    "TrackingConfig",
    "calibrate",
    "compare",
    "compose",
    "evaluate",
    "load_dataset",
    "load_model",
    "quant_name",
    "quantize",
    "run",
]


def __getattr__(name: str) -> Any:
    for module in map(importlib.import_module, (f"{__name__}.{part}" for part in _MODULES if name in __all__)):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
