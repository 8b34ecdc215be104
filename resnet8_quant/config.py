"""The schema of a run: enumerations, dataclasses and the checks between fields. No behaviour.

The same dataclasses are Hydra's structured config (run.py) and the arguments of the core functions (a notebook).
Every default equals the default of the command line; conf/ documents each field where it is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from resnet8_quant.errors import ExperimentError


class NumberType(Enum):
    """Number formats of tensors; the member's name is the word in the config and the CSV."""

    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    int16 = "int16"
    uint16 = "uint16"
    int4 = "int4"
    uint4 = "uint4"

    @property
    def bits(self) -> int:
        """Width in bits."""
        return int("".join(filter(str.isdigit, self.name)))


class Format(Enum):
    """How quantization is written in the graph: Q/DQ pairs around float operators, or integer operators."""

    QDQ = "QDQ"
    QOperator = "QOperator"


class Method(Enum):
    """How the range of an activation is found."""

    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"


class ModelKind(Enum):
    """Where the float model comes from."""

    resnet8 = "resnet8"
    mlperf_tiny = "mlperf_tiny"
    onnx = "onnx"


class DataKind(Enum):
    """Where the images come from."""

    cifar10 = "cifar10"
    sample = "sample"
    arrays = "arrays"


class Layout(Enum):
    """Order of the input's axes; auto reads it from the model's input shape."""

    auto = "auto"
    NHWC = "NHWC"
    NCHW = "NCHW"


@dataclass
class QuantConfig:
    name: str = "int8"
    activation_type: NumberType = NumberType.int8
    weight_type: NumberType = NumberType.int8
    per_channel: bool = False
    format: Format = Format.QDQ
    activation_symmetric: bool = False
    weight_symmetric: Optional[bool] = None
    reduce_range: bool = False


@dataclass
class CalibrationConfig:
    method: Method = Method.minmax
    samples_per_class: int = 100
    percentile: Optional[float] = None
    bins: Optional[int] = None
    allow_test_images: bool = False


@dataclass
class ModelConfig:
    kind: ModelKind = ModelKind.resnet8
    source: Optional[str] = None
    path: Optional[str] = None
    layout: Layout = Layout.auto
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None


@dataclass
class DataConfig:
    kind: DataKind = DataKind.cifar10
    root: Optional[str] = None
    path: Optional[str] = None


@dataclass
class EvaluationConfig:
    batch_size: int = 500
    threads: int = 0


@dataclass
class LatencyConfig:
    runs: int = 300
    warmup: int = 50
    threads: int = 1


@dataclass
class Config:
    quant: QuantConfig = field(default_factory=QuantConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    seed: int = 42
    cache_dir: Optional[str] = None


_ALL_WEIGHTS = frozenset(NumberType) - {NumberType.float32}

# What onnxruntime.quantization can write: format -> activation type -> weight types.
LEGAL: dict[Format, dict[NumberType, frozenset[NumberType]]] = {
    Format.QDQ: {
        NumberType.int8: _ALL_WEIGHTS - {NumberType.uint8},
        NumberType.uint8: _ALL_WEIGHTS,
        NumberType.int16: _ALL_WEIGHTS,
        NumberType.uint16: _ALL_WEIGHTS,
        NumberType.float32: frozenset({NumberType.float32}),
    },
    Format.QOperator: {
        NumberType.int8: frozenset({NumberType.int8}),
        NumberType.uint8: frozenset({NumberType.int8, NumberType.uint8}),
        NumberType.float32: frozenset({NumberType.float32}),
    },
}

_REASONS: tuple[tuple[NumberType | Format, NumberType | None, str], ...] = (
    (NumberType.float32, None, "float32 means no quantization, of both or of neither"),
    (NumberType.int8, NumberType.uint8, "ONNX Runtime has no kernel for int8 activations with uint8 weights"),
    (Format.QOperator, None, "ONNX's integer operators take 8-bit types only; quant.format=QDQ takes all"),
)

# Which parameters a method reads, and the values they may have: (lowest, highest), both included.
PARAMETERS: dict[Method, dict[str, tuple[float, float]]] = {
    Method.minmax: {},
    Method.percentile: {"percentile": (50.0, 100.0), "bins": (128, 1 << 20)},
    Method.entropy: {"bins": (128, 1 << 16)},
}

# Field -> (lowest, highest or None).
_RANGES: dict[str, tuple[int, int | None]] = {
    "calibration.samples_per_class": (1, None),
    "evaluation.batch_size": (1, 10_000),
    "evaluation.threads": (0, 1024),
    "latency.runs": (0, 1_000_000),
    "latency.warmup": (0, 1_000_000),
    "latency.threads": (0, 1024),
    "seed": (0, 2**32 - 1),
}


def check(config: Config) -> None:
    """Refuse what no run can do, before any work.

    Raises:
        ExperimentError: names the field, the value found, what is valid, and what to type instead.
    """
    for path, (lowest, highest) in _RANGES.items():
        value: object = config
        for part in path.split("."):
            value = getattr(value, part)
        assert isinstance(value, int)
        if value < lowest or (highest is not None and value > highest):
            limits = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
            raise ExperimentError(f"`{path}` is {value}; valid are {limits}", f"python run.py {path}={max(lowest, 1)}")
    _check_types(config.quant)
    if config.quant.activation_type is not NumberType.float32:
        _check_calibration(config.calibration, config.quant)
    _check_inputs(config)


def _check_types(quant: QuantConfig) -> None:
    activation, weight, form = quant.activation_type, quant.weight_type, quant.format
    legal = LEGAL[form].get(activation, frozenset())
    if weight not in legal:
        reason = next(
            (
                why
                for first, second, why in _REASONS
                if first in (activation, weight, form) and second in (None, weight)
            ),
            "it is not in the table of legal combinations",
        )
        choices = sorted(f"{a.name}/{w.name}" for a, weights in LEGAL[form].items() for w in weights)
        raise ExperimentError(
            f"`quant.activation_type`/`quant.weight_type` is {activation.name}/{weight.name} with `quant.format` "
            f"{form.name}: {reason}; valid with {form.name} are {', '.join(choices)}",
            "python run.py quant=u8s8",
        )
    eight_bits = weight in (NumberType.int8, NumberType.uint8)
    if quant.reduce_range and not eight_bits:
        raise ExperimentError(
            f"`quant.reduce_range` is true with `quant.weight_type` {weight.name}; it narrows 8-bit weights to 7 bits",
            "python run.py quant.reduce_range=false",
        )


def _check_calibration(calibration: CalibrationConfig, quant: QuantConfig) -> None:
    method = calibration.method
    known = PARAMETERS[method]
    for name in ("percentile", "bins"):
        value = getattr(calibration, name)
        if name not in known:
            if value is not None:
                users = " or ".join(f"calibration={m.name}" for m, p in PARAMETERS.items() if name in p)
                raise ExperimentError(
                    f"`calibration.{name}` is {value}, but calibration={method.name} does not read it",
                    f"leave it out, or choose {users}",
                )
            continue
        lowest, highest = known[name]
        if value is None or not lowest <= value <= highest:
            raise ExperimentError(
                f"`calibration.{name}` is {value}; valid are {lowest:g} to {highest:g}",
                f"python run.py calibration={method.name}",
            )
    levels = 2**quant.activation_type.bits
    if method is Method.entropy and calibration.bins is not None and calibration.bins < 2 * levels:
        raise ExperimentError(
            f"`calibration.bins` is {calibration.bins}; entropy needs at least twice the {levels} levels of "
            f"{quant.activation_type.name}, or there is nothing to choose from",
            "choose calibration=minmax" if 2 * levels > known["bins"][1] else f"calibration.bins={8 * levels}",
        )


def _check_inputs(config: Config) -> None:
    """Paths belong to the kind that reads them: one that is ignored would be a quiet surprise."""
    for group, name, owner in (
        ("model", "path", "onnx"),
        ("model", "source", "mlperf_tiny"),
        ("data", "path", "arrays"),
        ("data", "root", "cifar10"),
    ):
        part = getattr(config, group)
        if getattr(part, name) is not None and part.kind.name != owner:
            raise ExperimentError(
                f"`{group}.{name}` is {getattr(part, name)}, but {group}={part.kind.name} does not read it",
                f"python run.py {group}={owner} {group}.{name}={getattr(part, name)}",
            )
    if config.model.std is not None and any(value <= 0 for value in config.model.std):
        raise ExperimentError(
            f"`model.std` is {config.model.std}; every value must be above 0",
            "python run.py 'model.std=[63.0,62.1,66.7]'",
        )
