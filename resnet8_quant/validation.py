"""What may be combined with what: a table of rules, checked in order before any work.

In: a `Config`. Out: nothing, or an `ExperimentError` that names the field, the value, the choices and what to type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

from resnet8_quant.config import (
    Analysis,
    Config,
    DataConfig,
    DeployConfig,
    DeployInput,
    DeployOutput,
    DType,
    Format,
    Method,
    ModelKind,
    QuantConfig,
    RefineConfig,
    Resize,
    Rounding,
    Runtime,
    Sampling,
    SizeOf,
    Target,
    TrackingKind,
    WeightScale,
)
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.settings import Group, check_value_types, flatten, word

# onnxruntime.quantization itself cannot write 2 bits; quant.weight_bits can
_ALL_WEIGHTS = frozenset(DType) - {DType.float32, DType.int2, DType.uint2}

# What onnxruntime.quantization can write: format -> activation type -> weight types.
LEGAL: dict[Format, dict[DType, frozenset[DType]]] = {
    Format.QDQ: {
        DType.int8: _ALL_WEIGHTS - {DType.uint8},
        DType.uint8: _ALL_WEIGHTS,
        DType.int16: _ALL_WEIGHTS,
        DType.uint16: _ALL_WEIGHTS,
        DType.float32: frozenset({DType.float32}),
    },
    Format.QOperator: {
        DType.int8: frozenset({DType.int8}),
        DType.uint8: frozenset({DType.int8, DType.uint8}),
        DType.float32: frozenset({DType.float32}),
    },
}
# Why a combination is not in the table: (types or format that it has, reason), the first that fits.
_REASONS: tuple[tuple[set[DType | Format], str], ...] = (
    ({DType.float32}, "float32 means no quantization, of both or of neither"),
    ({DType.int8, DType.uint8}, "ONNX Runtime has no kernel for int8 activations with uint8 weights"),
    ({Format.QOperator}, "ONNX's integer operators take 8-bit types only; quant.format=QDQ takes all"),
    (set(), "onnxruntime.quantization cannot write it"),
)

_BINS = (128.0, float(1 << 17))
# Which parameters a method reads, and the values they may have: (lowest, highest), both included. None is the method's
# default (DEFAULTS in quantizer/calibration/methods.py), except for bins.
PARAMETERS: dict[Method, dict[str, tuple[float, float]]] = {
    Method.minmax: {"bins": _BINS},
    Method.moving_average: {"averaging_constant": (1e-6, 1.0), "bins": _BINS},
    Method.percentile: {"percentile": (50.0, 100.0), "bins": _BINS},
    Method.entropy: {"bins": _BINS},
    Method.mse: {"bins": _BINS},
    Method.lp: {"norm": (0.5, 10.0), "bins": _BINS},
}
# Without bins these take no histogram: faster, but ranges.csv cannot say how much noise a range makes.
HISTOGRAM_OPTIONAL = (Method.minmax, Method.moving_average)

_8_BITS = (DType.uint8, DType.int8)
SQLITE = "sqlite:///"
_LAYER_FIELDS = ("weight_bits", "activation_bits")
_LAYER_FLOAT = "float"  # and the field that keeps a layer in float
FLOAT = "float"  # the same as one of allocate.choices
_FLOAT_TO_TFLITE = ", which keeps layers in float, with deploy={deploy}, whose kernels take integers only"
# The fields of `refine` that change something, with the value that changes nothing.
_UNREFINED: dict[str, object] = {
    "weight_scale": WeightScale.max,
    "rounding": Rounding.nearest,
    "target": Target.weights,
    "bias": False,
    "equalize": False,
    "activation_ranges": False,
    "distill": False,
}

Condition = Callable[[Config], bool]


@dataclass(frozen=True)
class Rule:
    """One thing that no run can do.

    Attributes:
        field: the setting that is wrong, as on the command line; the problem begins with "`field` is value".
        broken: whether a config breaks the rule.
        sentence: how the problem goes on; ``str.format`` fills in ``c``, the config, and the facts of ``_error``.
        remedy: overrides that make the config valid in this respect, filled in likewise.
    """

    field: str
    broken: Condition
    sentence: str
    remedy: str


def is_float(config: Config) -> bool:
    """Whether nothing is quantized."""
    return config.quant.activation_type is DType.float32


def is_low_bit(quant: QuantConfig) -> bool:
    """Whether any layer may have fewer bits than its types."""
    return bool(quant.weight_bits or quant.activation_bits or quant.layers)


def is_refined(refine: RefineConfig) -> bool:
    """Whether a refinement changes anything."""
    return any(getattr(refine, name) != plain for name, plain in _UNREFINED.items())


def allocates(config: Config) -> bool:
    """Whether bit widths are chosen within a budget."""
    return config.allocate.budget_bytes is not None or config.allocate.max_accuracy_drop is not None


def _is_choice(value: Any) -> bool:
    """Whether one of allocate.choices is a number of bits, or float; OmegaConf takes any value there."""
    return value == FLOAT or (isinstance(value, Integral) and not isinstance(value, bool))


def _numbers(config: Config) -> list[int]:
    """The bit widths among allocate.choices."""
    return [choice for choice in config.allocate.choices if choice != FLOAT]


def _calibrates(config: Config) -> bool:
    return not is_float(config)


def _deploys(config: Config) -> bool:
    return config.deploy.activation_type is not None


def _to_tflite(config: Config) -> bool:
    return config.deploy.runtime is Runtime.tflite


def _rewrites(config: Config) -> bool:
    return _deploys(config) or _to_tflite(config)


def _reconstructs(config: Config) -> bool:
    return is_refined(config.refine) or is_low_bit(config.quant)


def _samples_test_images(config: Config) -> bool:
    return _calibrates(config) and config.calibration.sampling is Sampling.mlperf_tiny


def _tracks(config: Config) -> bool:
    return config.tracking.kind is not TrackingKind.none


def layer_override(layer: str, field: str, bits: int | str) -> str:
    """The bit width of a layer, or ``float: true``, as a shell takes it; a name with dots needs the braces."""
    return f"'quant.layers={{{layer}: {{{field}: {bits}}}}}'"


def _outside(value: Any, low: float, high: float | None) -> bool:
    """Whether a value is set and is not within these limits, both included; NaN is not."""
    return value is not None and not (low <= value and (high is None or value <= high))


def _limits(
    field: str, low: float, high: float | None, valid: float, when: Condition = lambda c: True, typed: str = ""
) -> Rule:
    """The limits of a number, both included; the remedy types ``valid``, with ``typed`` before it."""
    limits = f"{low:g} or more" if high is None else f"{low:.10g} to {high:.10g}"
    read = attrgetter(field)
    return Rule(
        field, lambda c: when(c) and _outside(read(c), low, high), f"; valid are {limits}", f"{typed}{field}={valid}"
    )


def _unread(field: str, when: Condition, reader: str, remedy: str, unset: object = None) -> Rule:
    """A setting that is set although nothing reads it, which would be a quiet surprise."""
    read = attrgetter(field)
    return Rule(field, lambda c: when(c) and read(c) != unset, f", but {reader}", remedy)


def _parameter(name: str, method: Method, default: float) -> tuple[Rule, Rule]:
    """The rules of a parameter that one calibration method reads."""
    field, choose = f"calibration.{name}", f"calibration={method.name}"
    reader = f"calibration={{c.calibration.method.name}} does not read it; {choose} does"
    by_another = _unread(
        field, lambda c: _calibrates(c) and c.calibration.method is not method, reader, f"{choose} {field}={default}"
    )
    return by_another, _limits(field, *PARAMETERS[method][name], default, _calibrates, f"{choose} ")


def _input(group: str, name: str, *readers: str, unset: object = None) -> Rule:
    """A setting that some kinds of model or data read."""
    return _unread(
        f"{group}.{name}",
        lambda c: getattr(c, group).kind.name not in readers,
        f"{group}={{c.{group}.kind.name}} does not read it",
        f"{group}={readers[0]} {group}.{name}={{value}}",
        unset,
    )


def _is_store(uri: str | None) -> bool:
    """Whether MLflow can log to an address: a SQLite file or a server."""
    parts = urlsplit(uri or "")
    if parts.scheme in ("http", "https"):
        return bool(parts.hostname)
    return (uri or "").startswith(SQLITE) and bool((uri or "").removeprefix(SQLITE).strip("/"))


def _levels(config: Config) -> int:
    """Number of integers of the activation type."""
    return 1 << config.quant.activation_type.bits


def _widest(dtype: DType) -> int:
    return min(8, dtype.bits)


# The rules in the order in which they are checked: field, condition, sentence, remedy.
# fmt: off
RULES: tuple[Rule, ...] = (
    _limits("calibration.samples_per_class", 1, None, 1),
    _limits("evaluation.batch_size", 1, 10_000, 50),
    _limits("evaluation.threads", 0, 1024, 0),
    _limits("evaluation.timeout", 1, 86_400, 30),
    _limits("latency.runs", 0, 1_000_000, 300),
    _limits("latency.warmup", 0, 1_000_000, 50),
    _limits("latency.threads", 0, 1024, 1),
    _limits("latency.throughput_batch", 0, 10_000, 100),
    _limits("seed", 0, 2**32 - 1, 42),

    Rule("quant.reduce_range", lambda c: c.quant.reduce_range and c.quant.weight_type not in _8_BITS,
         " with `quant.weight_type` {c.quant.weight_type.name}; it reduces 8-bit weights to 7 bits",
         "quant.reduce_range=false"),
    _unread("quant.compact", is_float, "quant=float does not read it", "quant.compact=false", False),
    *(_unread(f"quant.{name}", is_float, "quant=float does not read it", f"quant=u8s8 quant.{name}=4")
      for name in ("weight_bits", "activation_bits", "keep_first_last")),
    _unread("quant.residual_bits", lambda c: c.quant.activation_bits is None,
            "without quant.activation_bits nothing reads it", "quant.residual_bits=8", 8),
    _limits("quant.keep_first_last", 2, 8, 8),

    *_parameter("averaging_constant", Method.moving_average, 0.01),
    *_parameter("percentile", Method.percentile, 99.999),
    *_parameter("norm", Method.lp, 2.4),
    _limits("calibration.bins", *_BINS, 2048, _calibrates),
    Rule("calibration.bins",
         lambda c: _calibrates(c) and c.calibration.bins is None and c.calibration.method not in HISTOGRAM_OPTIONAL,
         f"; valid are {_BINS[0]:.0f} to {_BINS[1]:.0f} with calibration={{c.calibration.method.name}}",
         "calibration.bins=2048"),
    Rule("calibration.bins",
         lambda c: (_calibrates(c) and c.calibration.method is Method.entropy
                    and _outside(c.calibration.bins, 2 * _levels(c), None)),
         "; entropy needs at least twice the {levels} levels of {c.quant.activation_type.name}, or there is nothing to "
         "choose from", "calibration.bins={enough_bins}"),
    *(_unread(f"calibration.{name}", lambda c: _calibrates(c) and not _samples_test_images(c),
              "calibration.sampling={c.calibration.sampling.name} does not read it; sampling=mlperf_tiny does",
              f"calibration.{name}=null") for name in ("index_file", "indices")),
    Rule("calibration.sampling",
         lambda c: _samples_test_images(c) and (c.calibration.index_file is None) == (c.calibration.indices is None),
         ", which needs either calibration.index_file (MLPerf Tiny's calibration_samples_idxs.npy) or "
         "calibration.indices; now neither is set, or both are",
         "calibration.sampling=mlperf_tiny calibration.allow_test_images=true calibration.indices=null "
         "calibration.index_file=calibration_samples_idxs.npy"),
    Rule("calibration.sampling", lambda c: _samples_test_images(c) and not c.calibration.allow_test_images,
         ", whose list names TEST images, but calibration.allow_test_images is false; true leaves these images out of "
         "the evaluation", "calibration.allow_test_images=true"),

    Rule("refine", lambda c: is_float(c) and is_refined(c.refine), ", but quant=float has no weights to refine",
         "refine=none"),
    Rule("quant.format", lambda c: _reconstructs(c) and c.quant.format is not Format.QDQ,
         "; {cause} needs Q/DQ pairs", "quant.format=QDQ"),
    Rule("quant.reduce_range", lambda c: _reconstructs(c) and c.quant.reduce_range,
         "; with {cause} the bit width of weights is quant.weight_bits",
         "quant.reduce_range=false quant.weight_bits=7"),
    Rule("refine.damping", lambda c: _reconstructs(c) and not 0.0 < c.refine.damping <= 1.0,
         "; valid are above 0 to 1", "refine.damping=0.01"),
    _limits("refine.images", 1, None, 1000, _reconstructs),
    *(_unread(f"refine.{name}", lambda c: not c.refine.distill, "refine={refine} does not read it; refine=distill does",
              f"refine=distill refine.{name}={{value}}", getattr(RefineConfig(), name))
      for name in ("distill_images", "distill_steps", "learning_rate", "minutes", "mirror", "shift",
                   "validation_images")),
    *(_limits(f"refine.{name}", low, high, valid, typed="refine=distill ") for name, low, high, valid in (
        ("distill_images", 2, None, 1000), ("distill_steps", 1, 10_000_000, 2400), ("learning_rate", 1e-6, 0.1, 0.004),
        ("minutes", 0.01, 10_000, 5), ("shift", 0, 100, 1), ("validation_images", 1, None, 2000))),

    Rule("allocate", lambda c: c.allocate.name != "none" and not allocates(c),
         ", but neither allocate.budget_bytes nor allocate.max_accuracy_drop is set", "allocate.budget_bytes=48000"),
    Rule("quant.reduce_range", lambda c: allocates(c) and c.quant.reduce_range,
         ", but allocate chooses the bit widths of weights", "quant.reduce_range=false"),
    Rule("allocate.budget_bytes", lambda c: None not in (c.allocate.budget_bytes, c.allocate.max_accuracy_drop),
         " and `allocate.max_accuracy_drop` {c.allocate.max_accuracy_drop}; a model has one of these limits",
         "allocate.max_accuracy_drop=null"),
    Rule("allocate.max_accuracy_drop",
         lambda c: c.allocate.max_accuracy_drop is not None and not 0.0 <= c.allocate.max_accuracy_drop < 1.0,
         "; valid are 0 to 1, a ratio", "allocate.max_accuracy_drop=0.01"),
    _limits("allocate.validation_images", 1, None, 5000, allocates),
    Rule("allocate", lambda c: allocates(c) and is_float(c),
         ", but quant=float has no weights whose bits could be chosen",
         "allocate=none allocate.budget_bytes=null allocate.max_accuracy_drop=null"),
    Rule("quant.format", lambda c: allocates(c) and c.quant.format is not Format.QDQ,
         "; allocate={c.allocate.name} needs Q/DQ pairs", "quant.format=QDQ"),
    _limits("allocate.budget_bytes", 1, 2**31 - 1, 48000),
    _unread("allocate.count", lambda c: not allocates(c), "allocate=none chooses no bit widths",
            "allocate=bytes deploy=tflite allocate.count={value}", SizeOf.file),
    Rule("allocate.count", lambda c: c.allocate.count is SizeOf.tflite and not _to_tflite(c),
         ", but deploy={deploy} writes no .tflite file", "allocate=bytes deploy=tflite allocate.count=tflite"),
    Rule("allocate.choices",
         lambda c: any(not _is_choice(choice) for choice in c.allocate.choices) or (allocates(c) and (
             not c.allocate.choices or any(_outside(bits, 2, _widest(c.quant.weight_type)) for bits in _numbers(c)))),
         "; valid are one or more of 2 to {widest} with {c.quant.weight_type.name}, and float",
         "allocate.choices=[2,{widest}]"),
    Rule("allocate.choices", lambda c: _to_tflite(c) and allocates(c) and FLOAT in c.allocate.choices,
         _FLOAT_TO_TFLITE, "allocate.choices={numbers}"),

    *(_unread(f"deploy.{name}", lambda c: not _deploys(c), "deploy=none rewrites nothing",
              f"deploy=x86 deploy.{name}={{value}}", False)
      for name in ("avoid_saturation", "pixel_blocking", "gemm_convolutions")),
    *(_unread(f"deploy.{name}", lambda c: not _rewrites(c), "deploy=none rewrites nothing",
              f"deploy=x86 deploy.{name}={{value}}", getattr(DeployConfig(), name)) for name in ("input", "output")),
    *(_unread(f"deploy.{name}", lambda c: not _to_tflite(c), "only deploy=tflite does",
              f"deploy=tflite deploy.{name}={{value}}", getattr(DeployConfig(), name))
      for name in ("verify", "c_array", "c_code")),
    Rule("deploy.activation_type", lambda c: _to_tflite(c) and _deploys(c),
         " with deploy.runtime=tflite, whose activations are int8; valid is null",
         "deploy=tflite deploy.activation_type=null"),
    Rule("deploy.input", lambda c: _deploys(c) and c.deploy.input is DeployInput.int8,
         " with deploy={deploy}; valid are float32, uint8", "deploy={deploy} deploy.input=uint8"),
    Rule("deploy.output", lambda c: _deploys(c) and c.deploy.output is DeployOutput.int8,
         " with deploy={deploy}; valid are same, probabilities, logits, label",
         "deploy={deploy} deploy.output=logits"),
    Rule("deploy.output", lambda c: _to_tflite(c) and c.deploy.output in (DeployOutput.same, DeployOutput.label),
         " with deploy={deploy}; valid are int8, logits, probabilities", "deploy={deploy} deploy.output=int8"),
    Rule("deploy.verify", lambda c: c.deploy.verify is not None and c.deploy.verify < 1,
         "; valid are 1 or more, and null for all test images", "deploy.verify=null"),
    Rule("deploy", lambda c: _rewrites(c) and is_float(c) and c.model.kind is not ModelKind.onnx,
         ", but the model has no QuantizeLinear with quant=float, so there are no integers to deploy",
         "quant={integers} deploy={deploy}"),
    Rule("quant.weight_type",
         lambda c: _to_tflite(c) and _calibrates(c) and c.quant.weight_type not in (DType.int8, DType.int4),
         " with deploy={deploy}, whose kernels take int8 or int4 weights around a zero point of 0",
         "quant=tflite_int8"),
    Rule("quant.activation_type",
         lambda c: _rewrites(c) and _calibrates(c) and c.quant.activation_type not in _8_BITS,
         " with deploy={deploy}, whose integer kernels take 8-bit activations, uint8 or int8",
         "quant.activation_type={activation}"),
    Rule("quant.activation_bits", lambda c: _to_tflite(c) and (c.quant.activation_bits or 8) < 8,
         " with deploy={deploy}, whose kernels take 8-bit activations; weights may have fewer bits",
         "quant.activation_bits=null"),
    Rule("quant.layers", lambda c: _to_tflite(c) and keeps_float_layers(c.quant),
         _FLOAT_TO_TFLITE, "quant.layers={{}}"),
    Rule("analyze", lambda c: c.analyze is not Analysis.none and is_float(c),
         ", but quant=float has nothing quantized to analyze", "analyze=none"),
    Rule("quant.format", lambda c: c.analyze is not Analysis.none and c.quant.format is not Format.QDQ,
         "; analyze=layers needs Q/DQ pairs", "quant.format=QDQ"),
    Rule("quant.format", lambda c: _rewrites(c) and c.quant.format is Format.QOperator,
         " with deploy={deploy}, which starts from Q/DQ pairs and writes integers itself", "quant.format=QDQ"),
    Rule("deploy.activation_type", lambda c: _deploys(c) and c.deploy.activation_type not in _8_BITS,
         "; valid are uint8, int8", "deploy.activation_type=uint8"),
    Rule("quant.weight_type", lambda c: _deploys(c) and c.quant.weight_type in (DType.int16, DType.uint16),
         " with deploy={deploy}: ONNX Runtime's integer kernels take weights of 8 bits or fewer",
         "quant.weight_type=int8"),

    _input("model", "path", "onnx", "keras"),
    _input("model", "source", "mlperf_tiny"),
    _input("data", "path", "arrays", "folder"),
    _input("data", "root", "cifar10"),
    _input("data", "max_bytes", "arrays", "folder", unset=DataConfig().max_bytes),
    *(_input("data", name, "folder", unset=getattr(DataConfig(), name))
      for name in ("test_fraction", "size", "gray", "classes", "max_broken")),
    _limits("data.test_fraction", 0.01, 0.9, 0.2, typed="data=folder "),
    _unread("data.split_seed", lambda c: c.data.test_fraction is None, "without data.test_fraction nothing reads it",
            "data=folder data.test_fraction=0.2 data.split_seed={value}", 0),
    _limits("data.split_seed", 0, 2**32 - 1, 0, typed="data=folder data.test_fraction=0.2 "),
    Rule("data.size", lambda c: c.data.size is not None and (
             len(c.data.size) != 2 or any(_outside(side, 1, 4096) for side in c.data.size)),
         "; valid are height and width, 1 to 4096", "data=folder data.size=[96,96]"),
    _unread("data.resize", lambda c: c.data.size is None, "without data.size nothing reads it",
            "data=folder data.size=[96,96] data.resize={value}", Resize.stretch),
    Rule("data.classes", lambda c: c.data.classes is not None and not c.data.classes,
         "; valid are one or more names", "data=folder data.classes=null"),
    _limits("data.max_broken", 0, 1, 0.01, typed="data=folder "),
    _input("data", "first_label", "arrays", unset=0),
    _limits("data.first_label", 0, 1, 1, typed="data=arrays "),
    _limits("data.max_bytes", 1, None, DataConfig().max_bytes, typed="data=arrays "),
    Rule("model.mean", lambda c: not all(map(math.isfinite, c.model.mean or [])),
         "; every value must be a finite number", "model.mean=[125.3,123.0,113.9]"),
    Rule("model.std", lambda c: not all(0 < value < math.inf for value in c.model.std or []),
         "; every value must be above 0 and finite", "model.std=[63.0,62.1,66.7]"),
    Rule("model.std", lambda c: max(c.model.std or [1.0]) < 1.0,
         ", as torchvision has it for pixels of 0 to 1; here mean and std are for pixels of 0 to 255", "{in_pixels}"),

    *(_unread(f"tracking.{name}", lambda c: not _tracks(c), "tracking=none does not read it",
              f"tracking=mlflow tracking.{name}={{value}}") for name in ("uri", "experiment")),
    Rule("tracking.experiment",
         lambda c: _tracks(c) and (not c.tracking.experiment or c.tracking.experiment != c.tracking.experiment.strip()),
         "; it needs a name without space around it", "tracking=mlflow tracking.experiment=resnet8-quant"),
    Rule("tracking.uri", lambda c: _tracks(c) and not _is_store(c.tracking.uri),
         "; valid are sqlite:///FILE, http://HOST:PORT, https://HOST:PORT "
         "(MLflow no longer writes to folders of files)", "tracking=mlflow tracking.uri=sqlite:///outputs/mlflow/mlflow.db"),
)
# fmt: on


def validate(config: Config) -> None:
    """Refuse what no run can do, before any work.

    Raises:
        ExperimentError: names the field, the value found, what is valid, and what to type instead.
    """
    check_value_types(config)
    _check_dtypes(config.quant)
    _check_bit_widths(config.quant)
    _check_credentials(config)
    for rule in RULES:
        if rule.broken(config):
            raise _error(rule, config)
    defaults = flatten(Config())
    for field, value in flatten(config).items():
        if value.lstrip("-").isdecimal() and abs(int(value)) >= 1 << 63:
            raise ExperimentError(
                f"`{field}` is {value}; 64 bits do not hold it", f"{COMMAND} {field}={defaults[field]}"
            )


def _error(rule: Rule, config: Config) -> ExperimentError:
    value = attrgetter(rule.field)(config)
    low_bit = "what quant.weight_bits, activation_bits and layers ask for"
    facts = {
        "c": config,
        "value": word(_preset(value) if isinstance(value, Group) else value),
        "deploy": _preset(config.deploy),
        "refine": _preset(config.refine),
        "cause": f"refine={_preset(config.refine)}" if is_refined(config.refine) else low_bit,
        "levels": _levels(config),
        "numbers": word(_numbers(config) or [2, _widest(config.quant.weight_type)]).replace(" ", ""),
        "enough_bins": max(2048, 2 * _levels(config)),
        "in_pixels": _in_pixels(config),
        "widest": _widest(config.quant.weight_type),
        "integers": "tflite_int8" if _to_tflite(config) else "int8",
        "activation": "int8" if _to_tflite(config) else "uint8",
    }
    shown = repr(value) if isinstance(value, str) and value != value.strip() else facts["value"]
    problem = f"`{rule.field}` is {shown}{rule.sentence.format(**facts)}"
    if isinstance(value, list):
        facts["value"] = word(value).replace(", ", ",")  # one word of a shell
    return ExperimentError(problem, f"{COMMAND} {rule.remedy.format(**facts)}")


def _in_pixels(config: Config) -> str:
    """model.mean and model.std for pixels of 0 to 255, where they are for pixels of 0 to 1."""
    given = {"mean": config.model.mean, "std": config.model.std}
    scaled = {name: [f"{255 * value:.7g}" for value in values] for name, values in given.items() if values}
    return " ".join(f"'model.{name}=[{','.join(values)}]'" for name, values in scaled.items())


def _preset(part: Any) -> str:
    """The option that a group of settings started from, for a sentence."""
    return str(part.name).partition("+")[0]


def _check_dtypes(quant: QuantConfig) -> None:
    """Refuse data types that onnxruntime.quantization cannot write together."""
    activation, weight, form = quant.activation_type, quant.weight_type, quant.format
    if weight in LEGAL[form].get(activation, ()):
        return
    present = {activation, weight, form}
    reason = next(reason for needed, reason in _REASONS if needed <= present)
    choices = sorted(f"{a.name}/{w.name}" for a, weights in LEGAL[form].items() for w in weights)
    raise ExperimentError(
        f"`quant.activation_type`/`quant.weight_type` is {activation.name}/{weight.name} with `quant.format` "
        f"{form.name}: {reason}; valid with {form.name} are {', '.join(choices)}",
        f"{COMMAND} quant.activation_type=uint8 quant.weight_type=int8",
    )


def _check_bit_widths(quant: QuantConfig) -> None:
    """Refuse bit widths below 2 or above those of the type that stores them, and layers that say something else."""
    fields = _LAYER_FIELDS if quant.activation_bits is None else (*_LAYER_FIELDS, "residual_bits")
    # setting, its last word, its value, and how to type another value
    widths: list[tuple[str, str, int, Callable[[int], str]]] = []
    for key in fields:
        if quant.activation_type is not DType.float32 and getattr(quant, key) is not None:  # for float32: RULES
            widths.append((f"quant.{key}", key, getattr(quant, key), f"quant.{key}={{}}".format))
    for layer, settings in quant.layers.items():
        _check_float_layer(quant, layer, settings)
        for key, value in settings.items():
            if key == _LAYER_FLOAT:
                continue
            known = key if key in _LAYER_FIELDS else "weight_bits"
            widths.append((f"quant.layers.{layer}.{key}", key, value, partial(layer_override, layer, known)))
    for field, key, value, override in widths:
        dtype = quant.weight_type if key == "weight_bits" else quant.activation_type
        if quant.activation_type is DType.float32:
            problem, remedy = f"{value}, but quant=float does not read it", f"quant=u8s8 {override(4)}"
        elif field.startswith("quant.layers.") and key not in _LAYER_FIELDS:
            problem, remedy = (
                f"not a field of a layer; valid are {', '.join((*_LAYER_FIELDS, _LAYER_FLOAT))}",
                override(8),
            )
        elif dtype.bits > 8 and key == "activation_bits":
            reason = "ONNX Runtime has no kernel for 16-bit integers that are clipped; valid types are int8, uint8"
            problem = f"{value} with `quant.activation_type` {dtype.name}; {reason}"
            remedy = "quant.activation_type=uint8"
        elif _outside(value, 2, _widest(dtype)):
            problem, remedy = f"{value}; valid are 2 to {_widest(dtype)} with {dtype.name}", override(_widest(dtype))
        else:
            continue
        raise ExperimentError(f"`{field}` is {problem}", f"{COMMAND} {remedy}")


def _check_float_layer(quant: QuantConfig, layer: str, settings: dict[str, Any]) -> None:
    """Refuse a layer that is to stay in float and to have bits, and true or false for a number and the reverse."""
    field, kept = f"quant.layers.{layer}", settings.get(_LAYER_FLOAT)
    for key, value in settings.items():
        is_bits = isinstance(value, Integral) and not isinstance(value, bool)
        if not (isinstance(value, bool) if key == _LAYER_FLOAT else is_bits):
            valid, remedy = ("true or false", "true") if key == _LAYER_FLOAT else ("a number of bits, 2 to 8", "8")
            named = key if key in (*_LAYER_FIELDS, _LAYER_FLOAT) else "weight_bits"
            override = layer_override(layer, named, int(remedy) if remedy.isdigit() else remedy)
            raise ExperimentError(f"`{field}.{key}` is {word(value)}; valid is {valid}", f"{COMMAND} {override}")
    if kept and quant.activation_type is DType.float32:
        raise ExperimentError(
            f"`{field}.float` is true, but quant=float does not read it",
            f"{COMMAND} quant=u8s8 {layer_override(layer, _LAYER_FLOAT, 'true')}",
        )
    if kept and len(settings) > 1:
        others = ", ".join(key for key in settings if key != _LAYER_FLOAT)
        raise ExperimentError(
            f"`{field}` has `float` true and {others}; a layer in float has no bit widths",
            f"{COMMAND} {layer_override(layer, _LAYER_FLOAT, 'true')}",
        )


def keeps_float_layers(quant: QuantConfig) -> bool:
    """Whether quant.layers keeps any layer in float."""
    return any(settings.get(_LAYER_FLOAT) for settings in quant.layers.values())


def _check_credentials(config: Config) -> None:
    """Refuse an address with a user name, without repeating it: it would be written into every run's record."""
    uri = urlsplit(config.tracking.uri or "")
    if uri.scheme in ("http", "https") and uri.username is not None:
        raise ExperimentError(
            "`tracking.uri` holds a user name, which would be written into every run's record",
            "export MLFLOW_TRACKING_USERNAME=NAME MLFLOW_TRACKING_PASSWORD=PASSWORD",
        )


def check_validation_images(config: Config, free: int, calibrating: int, total: int, classes: int) -> None:
    """Refuse a validation split for which too few training images are left; the remedy holds for both settings.

    Args:
        config: of the run; without ``allocate.max_accuracy_drop`` there is no such split.
        free: training images that do not calibrate.
        calibrating: training images that do.
        total: training images.
        classes: of them.
    """
    needed = config.allocate.validation_images
    if config.allocate.max_accuracy_drop is None or free >= needed:
        return
    remedy = f"allocate.validation_images={free}"
    if free < total // 4:  # hardly any are left: calibrate on at most half of them, and validate on a quarter
        smaller = max(1, total // 2 // classes)
        remedy = f"calibration.samples_per_class={smaller} allocate.validation_images={max(1, total // 4)}"
    raise ExperimentError(
        f"`allocate.validation_images` is {needed}, but {calibrating} of {total} training images calibrate "
        f"(`calibration.samples_per_class` is {config.calibration.samples_per_class}), which leaves {free}",
        f"{COMMAND} {remedy}",
    )


def check_analyzed_images(config: Config, free: int, total: int, classes: int) -> None:
    """Refuse an analysis of the layers if all training images calibrate; arguments as above.

    ``refine.distill`` refuses that itself.
    """
    if config.analyze is not Analysis.layers or free or config.refine.distill:
        return
    each = total // 2 // classes
    remedy = f"calibration.samples_per_class={each}" if each else "analyze=none"
    raise ExperimentError(
        f"`analyze` is layers, but all {total} training images calibrate, which leaves none to look at",
        f"{COMMAND} {remedy}",
    )
