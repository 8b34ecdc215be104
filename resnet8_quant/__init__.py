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
        Comparison,
        Evaluation,
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
    from resnet8_quant.inputs.dataset import Dataset, Split
    from resnet8_quant.inputs.model import FloatModel
    from resnet8_quant.options import quant_name
    from resnet8_quant.results import RunResult

__version__ = "0.1.0"

_MODULES = {
    "api": (
        *("Calibration", "Comparison", "Evaluation", "QuantizedModel", "calibrate", "compare", "compose", "evaluate"),
        *("load_dataset", "load_model", "quantize", "run"),
    ),
    "config": (
        *("AllocateConfig", "CalibrationConfig", "Config", "DataConfig", "DeployConfig", "EvaluationConfig"),
        *("LatencyConfig", "ModelConfig", "QuantConfig", "RefineConfig", "TrackingConfig"),
    ),
    "errors": ("ExperimentError",),
    "inputs.dataset": ("Dataset", "Split"),
    "inputs.model": ("FloatModel",),
    "options": ("quant_name",),
    "results": ("RunResult",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
