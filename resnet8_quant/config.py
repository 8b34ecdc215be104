"""The schema of a run: enumerations and dataclasses. No behaviour; what may be combined with what is in checks.py.

The same dataclasses are Hydra's structured config (run.py) and the arguments of the core functions (a notebook).
Every default equals the default of the command line; conf/ documents each field where it is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional


class DType(Enum):
    """Number formats of tensors; the member's name is the word in the config and the CSV."""

    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    int16 = "int16"
    uint16 = "uint16"
    int4 = "int4"
    uint4 = "uint4"
    int2 = "int2"
    uint2 = "uint2"

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
    moving_average = "moving_average"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"
    lp = "lp"


class Sampling(Enum):
    """Which images calibrate."""

    stratified = "stratified"
    first = "first"
    mlperf_tiny = "mlperf_tiny"


class WeightScale(Enum):
    """What the scale of a weight makes small: nothing, or the error of which quantity."""

    max = "max"
    mse = "mse"
    hessian = "hessian"
    rounded = "rounded"


class Rounding(Enum):
    """How weights become integers."""

    nearest = "nearest"
    gptq = "gptq"
    descent = "descent"


class Target(Enum):
    """What a layer's integers approximate: its float weights, or what it makes of the float model's input."""

    weights = "weights"
    outputs = "outputs"


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


class TrackingKind(Enum):
    """Where runs are logged besides their own folder."""

    none = "none"
    mlflow = "mlflow"


class Layout(Enum):
    """Order of the input's axes; auto reads it from the model's input shape."""

    auto = "auto"
    NHWC = "NHWC"
    NCHW = "NCHW"


class DeployInput(Enum):
    """What a deployed model takes: what the float model takes, or the images' bytes."""

    float32 = "float32"
    uint8 = "uint8"


class DeployOutput(Enum):
    """What a deployed model gives: what it gave before, or something from its 32-bit sums."""

    same = "same"
    probabilities = "probabilities"
    logits = "logits"
    label = "label"


@dataclass
class QuantConfig:
    name: str = "int8"
    activation_type: DType = DType.int8
    weight_type: DType = DType.int8
    per_channel: bool = False
    format: Format = Format.QDQ
    activation_symmetric: bool = False
    weight_symmetric: Optional[bool] = None
    reduce_range: bool = False
    weight_bits: Optional[int] = None
    activation_bits: Optional[int] = None
    residual_bits: int = 8
    keep_first_last: Optional[int] = None
    layers: dict[str, dict[str, int]] = field(default_factory=dict)
    compact: bool = False


@dataclass
class CalibrationConfig:
    method: Method = Method.minmax
    samples_per_class: int = 100
    sampling: Sampling = Sampling.stratified
    index_file: Optional[str] = None
    indices: Optional[list[int]] = None
    averaging_constant: Optional[float] = None
    percentile: Optional[float] = None
    norm: Optional[float] = None
    bins: Optional[int] = 2048
    allow_test_images: bool = False


@dataclass
class RefineConfig:
    name: str = "none"
    weight_scale: WeightScale = WeightScale.max
    rounding: Rounding = Rounding.nearest
    target: Target = Target.weights
    bias: bool = False
    equalize: bool = False
    activation_ranges: bool = False
    activation_order: bool = True
    damping: float = 0.01
    images: int = 1000


@dataclass
class AllocateConfig:
    name: str = "none"
    budget_bytes: Optional[int] = None
    max_accuracy_drop: Optional[float] = None
    validation_images: int = 5000
    choices: list[int] = field(default_factory=lambda: [2, 4, 7])


@dataclass
class DeployConfig:
    name: str = "none"
    activation_type: Optional[DType] = None
    avoid_saturation: bool = False
    pixel_blocking: bool = False
    gemm_convolutions: bool = False
    input: DeployInput = DeployInput.float32
    output: DeployOutput = DeployOutput.same


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
    batch_size: int = 50
    threads: int = 0
    providers: list[str] = field(default_factory=lambda: ["CPUExecutionProvider"])


@dataclass
class LatencyConfig:
    runs: int = 300
    warmup: int = 50
    threads: int = 1
    throughput_batch: int = 100


@dataclass
class TrackingConfig:
    kind: TrackingKind = TrackingKind.none
    uri: Optional[str] = None
    experiment: Optional[str] = None


@dataclass
class Config:
    quant: QuantConfig = field(default_factory=QuantConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    allocate: AllocateConfig = field(default_factory=AllocateConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 42
    cache_dir: Optional[str] = None
    resume: Optional[str] = None
