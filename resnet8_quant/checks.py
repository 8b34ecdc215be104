"""What may be combined with what: tables of legal values, and the checks between fields before any work.

In: a `Config`. Out: nothing, or an `ExperimentError` that names the field, the value, the choices and what to type.
"""

from __future__ import annotations

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DeployConfig,
    DType,
    Format,
    Method,
    ModelKind,
    QuantConfig,
    Sampling,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.low_bit import check_allocate, check_refine, check_widths
from resnet8_quant.tracking import check_tracking

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

_REASONS: tuple[tuple[DType | Format, DType | None, str], ...] = (
    (DType.float32, None, "float32 means no quantization, of both or of neither"),
    (DType.int8, DType.uint8, "ONNX Runtime has no kernel for int8 activations with uint8 weights"),
    (Format.QOperator, None, "ONNX's integer operators take 8-bit types only; quant.format=QDQ takes all"),
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

_DEPLOYABLE = (DType.uint8, DType.int8)

# Field -> (lowest, highest or None).
_RANGES: dict[str, tuple[int, int | None]] = {
    "calibration.samples_per_class": (1, None),
    "evaluation.batch_size": (1, 10_000),
    "evaluation.threads": (0, 1024),
    "latency.runs": (0, 1_000_000),
    "latency.warmup": (0, 1_000_000),
    "latency.threads": (0, 1024),
    "latency.throughput_batch": (0, 10_000),
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
    check_widths(config.quant)
    if config.quant.activation_type is not DType.float32:
        _check_calibration(config.calibration, config.quant)
    check_refine(config)
    check_allocate(config)
    _check_deploy(config.deploy, config.quant, config.model.kind)
    _check_inputs(config)
    check_tracking(config.tracking)


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
    eight_bits = weight in (DType.int8, DType.uint8)
    if quant.reduce_range and not eight_bits:
        raise ExperimentError(
            f"`quant.reduce_range` is true with `quant.weight_type` {weight.name}; it narrows 8-bit weights to 7 bits",
            "python run.py quant.reduce_range=false",
        )


def _check_calibration(calibration: CalibrationConfig, quant: QuantConfig) -> None:
    method = calibration.method
    known = PARAMETERS[method]
    for name in sorted({name for parameters in PARAMETERS.values() for name in parameters}):
        value = getattr(calibration, name)
        if name not in known:
            if value is not None:
                users = " or ".join(f"calibration={m.name}" for m, p in PARAMETERS.items() if name in p)
                raise ExperimentError(
                    f"`calibration.{name}` is {value}, but calibration={method.name} does not read it",
                    f"leave it out, or choose {users}",
                )
            continue
        if value is None and (name != "bins" or method in HISTOGRAM_OPTIONAL):
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
            f"calibration.bins={2 * levels if 2 * levels > 4096 else 8 * levels}",
        )
    _check_sampling(calibration)


def _check_sampling(calibration: CalibrationConfig) -> None:
    given = [name for name in ("index_file", "indices") if getattr(calibration, name) is not None]
    if calibration.sampling is not Sampling.mlperf_tiny:
        if given:
            raise ExperimentError(
                f"`calibration.{given[0]}` is set, but calibration.sampling={calibration.sampling.name} does not read "
                "it",
                "leave it out, or choose calibration.sampling=mlperf_tiny",
            )
        return
    if len(given) != 1:
        raise ExperimentError(
            "`calibration.sampling` is mlperf_tiny, which needs either calibration.index_file or calibration.indices; "
            f"{'both are' if given else 'neither is'} set",
            "calibration.index_file=calibration_samples_idxs.npy (from MLPerf Tiny's image classification benchmark)",
        )
    if not calibration.allow_test_images:
        raise ExperimentError(
            "`calibration.sampling` is mlperf_tiny, whose list names TEST images, but calibration.allow_test_images is "
            "false",
            "to leave these images out of the evaluation: calibration.allow_test_images=true",
        )


def _check_deploy(deploy: DeployConfig, quant: QuantConfig, model: ModelKind) -> None:
    if deploy.activation_type is None:
        plain = DeployConfig()
        for name in ("avoid_saturation", "pixel_blocking", "gemm_convolutions", "input", "output"):
            value = getattr(deploy, name)
            if value != getattr(plain, name):
                shown = getattr(value, "name", str(value).lower())
                raise ExperimentError(
                    f"`deploy.{name}` is {shown}, but deploy={deploy.name} rewrites nothing",
                    f"python run.py deploy=x86 deploy.{name}={shown}",
                )
        return
    if deploy.activation_type not in _DEPLOYABLE:
        raise ExperimentError(
            f"`deploy.activation_type` is {deploy.activation_type.name}; valid are "
            f"{', '.join(kind.name for kind in _DEPLOYABLE)}",
            "python run.py deploy=x86",
        )
    if quant.activation_type is DType.float32 and model is not ModelKind.onnx:
        raise ExperimentError(
            f"`deploy`: the model has no QuantizeLinear with quant={quant.name}, so there are no integers to deploy",
            f"python run.py quant=int8 deploy={deploy.name}",
        )
    if quant.activation_type is not DType.float32 and quant.activation_type not in _DEPLOYABLE:
        raise ExperimentError(
            f"`quant.activation_type` is {quant.activation_type.name} with deploy={deploy.name}: ONNX Runtime's "
            f"integer kernels take 8-bit activations, {' or '.join(kind.name for kind in _DEPLOYABLE)}",
            "python run.py quant=u8s8 deploy=x86",
        )
    if quant.weight_type in (DType.int16, DType.uint16):
        raise ExperimentError(
            f"`quant.weight_type` is {quant.weight_type.name} with deploy={deploy.name}: ONNX Runtime's integer "
            "kernels take weights of 8 bits or fewer",
            f"python run.py quant=u8s8 deploy={deploy.name}",
        )
    if quant.format is Format.QOperator:
        raise ExperimentError(
            f"`quant.format` is QOperator with deploy={deploy.name}, which starts from Q/DQ pairs and writes integer "
            "operators itself",
            f"python run.py quant.format=QDQ deploy={deploy.name}",
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
