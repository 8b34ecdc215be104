"""Whether and how a config goes below its types: the checks of widths, refinement and allocation.

In: a `Config`. Out: nothing, or an `ExperimentError` that names the field, the value, the choices and what to type.
"""

from __future__ import annotations

from resnet8_quant.config import Config, DType, Format, QuantConfig, RefineConfig, Rounding, Target, WeightScale
from resnet8_quant.errors import ExperimentError

_LAYER_FIELDS = {"weight_bits": "weight_type", "activation_bits": "activation_type"}
# The fields of `refine` that change something, with the value that changes nothing.
_PLAIN_REFINE: dict[str, object] = {
    "weight_scale": WeightScale.max,
    "rounding": Rounding.nearest,
    "target": Target.weights,
    "bias": False,
    "equalize": False,
    "activation_ranges": False,
}


def narrowed(quant: QuantConfig) -> bool:
    """Whether any layer may be narrower than its types."""
    return bool(quant.weight_bits or quant.activation_bits or quant.layers)


def refines(refine: RefineConfig) -> bool:
    """Whether a refinement changes anything."""
    return any(getattr(refine, name) != plain for name, plain in _PLAIN_REFINE.items())


def refine_word(refine: RefineConfig) -> str:
    """The word for the row: the preset's name, or "custom" where parts of none are on."""
    return "custom" if refine.name == "none" and refines(refine) else refine.name


def typed_width(layer: str, field: str, bits: int) -> str:
    """The width of a layer as a shell takes it; a name with dots or patterns needs the braces."""
    return f"'quant.layers={{{layer}: {{{field}: {bits}}}}}'"


def check_widths(quant: QuantConfig) -> None:
    """Widths of grids: 2 to 8 bits, and never wider than the type that stores them."""
    float_model = quant.activation_type is DType.float32
    if float_model and quant.compact:
        raise ExperimentError("`quant.compact` is true, but quant=float does not read it", "quant.compact=false")
    if quant.residual_bits != 8 and quant.activation_bits is None:
        raise ExperimentError(
            f"`quant.residual_bits` is {quant.residual_bits}, but without quant.activation_bits nothing reads it",
            f"quant.activation_bits={quant.residual_bits}, or quant.residual_bits=8",
        )
    for name, value, kind in (
        ("weight_bits", quant.weight_bits, quant.weight_type),
        ("activation_bits", quant.activation_bits, quant.activation_type),
        ("residual_bits", quant.residual_bits if quant.activation_bits is not None else None, quant.activation_type),
        ("keep_first_last", quant.keep_first_last, None),
        *(
            (f"layers.{layer}.{key}", value, getattr(quant, _LAYER_FIELDS[key]) if key in _LAYER_FIELDS else None)
            for layer, override in quant.layers.items()
            for key, value in override.items()
        ),
    ):
        if value is None:
            continue
        if float_model:
            raise ExperimentError(
                f"`quant.{name}` is {value}, but quant=float does not read it",
                f"python run.py quant=u8s8 {_typed(name, 4)}",
            )
        key = name.rpartition(".")[2]
        if name.startswith("layers.") and key not in _LAYER_FIELDS:
            raise ExperimentError(
                f"`quant.{name}` is not a field of a layer; valid are {', '.join(_LAYER_FIELDS)}",
                typed_width(name[len("layers.") : -len(key) - 1], "weight_bits", 8),
            )
        if kind is not None and kind.bits > 8 and "activation" in key:
            raise ExperimentError(
                f"`quant.{name}` is {value} with `quant.activation_type` {kind.name}; ONNX Runtime has no kernel for "
                "16-bit integers that are clipped; valid types are int8, uint8",
                "quant.activation_type=uint8",
            )
        widest = min(8, kind.bits) if kind else 8
        if not 2 <= value <= widest:
            of_type = f" with {kind.name}" if kind else ""
            raise ExperimentError(f"`quant.{name}` is {value}; valid are 2 to {widest}{of_type}", _typed(name, widest))


def _typed(name: str, bits: int) -> str:
    """The width of a field of `quant` as a shell takes it."""
    if not name.startswith("layers."):
        return f"quant.{name}={bits}"
    layer, _, field = name.removeprefix("layers.").rpartition(".")
    return typed_width(layer, field, bits)


def check_refine(config: Config) -> None:
    """What refines needs something to refine, written as Q/DQ."""
    refine, quant = config.refine, config.quant
    if not refines(refine) and not narrowed(quant):
        return
    cause = f"refine={refine.name}" if refines(refine) else "what quant.weight_bits, activation_bits and layers ask for"
    if quant.activation_type is DType.float32:
        raise ExperimentError(
            f"`refine` is {refine.name}, but quant=float has no weights to refine", "leave refine out"
        )
    if quant.format is not Format.QDQ:
        raise ExperimentError(f"`quant.format` is {quant.format.name}; {cause} is written as QDQ", "quant.format=QDQ")
    if quant.reduce_range:
        raise ExperimentError(
            f"`quant.reduce_range` is true; with {cause} the weights' width is quant.weight_bits",
            "quant.reduce_range=false quant.weight_bits=7",
        )
    if not 0.0 < refine.damping <= 1.0:
        raise ExperimentError(f"`refine.damping` is {refine.damping}; valid are above 0 to 1", "refine.damping=0.01")
    if refine.images < 1:
        raise ExperimentError(f"`refine.images` is {refine.images}; valid are 1 or more", "refine.images=1000")


def check_allocate(config: Config) -> None:
    """A budget needs weights to narrow, written as Q/DQ, and widths to choose from."""
    budget, drop, choices = config.allocate.budget_bytes, config.allocate.max_accuracy_drop, config.allocate.choices
    quant = config.quant
    if budget is None and drop is None:
        if config.allocate.name != "none":
            raise ExperimentError(
                f"`allocate` is {config.allocate.name}, but neither budget_bytes nor max_accuracy_drop is set",
                "allocate.budget_bytes=48000, or allocate=none",
            )
        return
    if quant.reduce_range:
        raise ExperimentError("`quant.reduce_range` is true; allocate chooses the widths", "quant.reduce_range=false")
    if budget is not None and drop is not None:
        raise ExperimentError(
            f"`allocate.budget_bytes` is {budget} and `allocate.max_accuracy_drop` {drop}; one of them limits a model",
            "allocate=bytes, or allocate=accuracy",
        )
    if drop is not None and not 0.0 <= drop < 1.0:
        raise ExperimentError(
            f"`allocate.max_accuracy_drop` is {drop}; valid are 0 to 1, a ratio", "allocate.max_accuracy_drop=0.01"
        )
    if config.allocate.validation_images < 1:
        raise ExperimentError(
            f"`allocate.validation_images` is {config.allocate.validation_images}; valid are 1 or more",
            "allocate.validation_images=5000",
        )
    if quant.activation_type is DType.float32:
        raise ExperimentError(
            f"`allocate` is {config.allocate.name}, but quant=float has no weights to narrow", "leave allocate out"
        )
    if quant.format is not Format.QDQ:
        raise ExperimentError(
            f"`quant.format` is {quant.format.name}; allocate={config.allocate.name} is written as QDQ",
            "quant.format=QDQ",
        )
    if budget is not None and budget < 1:
        raise ExperimentError(
            f"`allocate.budget_bytes` is {budget}; valid are 1 or more", "allocate.budget_bytes=48000"
        )
    widest = min(8, quant.weight_type.bits)
    if not choices or not all(2 <= bits <= widest for bits in choices):
        raise ExperimentError(
            f"`allocate.choices` is {choices}; valid are one or more of 2 to {widest} with {quant.weight_type.name}",
            f"allocate.choices=[2,{widest}]",
        )
