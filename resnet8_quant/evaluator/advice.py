"""Advice where a measurement calls for it: what an experienced colleague would say on seeing the row.

In: a `RunResult`. Out: sentences, most urgent first; none where all is well. What to try stands below its sentence as a
command that repeats the run with other settings; a setting that the run had already is never advised.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from resnet8_quant.errors import missing_extra
from resnet8_quant.results import RunResult

LARGE_LOSS = 0.05  # accuracy ratio; a warning whatever its p-value
SIGNIFICANT_LOSS = 0.01  # accuracy ratio; a warning where the p-value is below SIGNIFICANT_P
SIGNIFICANT_P = 0.01
NEAR_CHANCE = 2.0  # times the accuracy of guessing
NEAR_CHANCE_OF_TWO = 1.2
FEW_CLASSES = 3  # with fewer, twice the accuracy of guessing is no longer near chance
SLOWER = 1.05  # times the float model's median latency
MANY_TIES = 0.001  # of the images
LOW_BITS = 7  # fewer bits than these want a refinement

# Advising a new GROUP=NAME drops these fields of the group from the command: they belong to the old name.
_DROPPED: dict[str, tuple[str, ...]] = {
    "quant": ("quant.",),
    "refine": ("refine.",),
    "allocate": ("allocate.",),
    "calibration": ("calibration.averaging_constant", "calibration.percentile", "calibration.norm"),
}
_MORE_BITS = {2: 3, 3: 4, 4: 7, 5: 7, 6: 7}


def advise(result: RunResult) -> list[str]:
    """All sentences that apply to a result; a command is on a line of its own, indented by four spaces."""
    return [sentence for rule in RULES if (sentence := rule(result)) is not None]


def _saturates(result: RunResult) -> str | None:
    if result.portable is not False:
        return None
    remedy = _portable_remedy(result)
    if result.default_session_accuracy is None or result.accuracy is None:
        return (
            "On x86 CPUs without VNNI, ONNX Runtime's default session can saturate with this model and predict "
            f"differently. Exact everywhere:{remedy}"
        )
    if not result.default_session_changed:
        return (
            "This CPU has no VNNI, and ONNX Runtime's default session can saturate with this model; here none of "
            f"{result.eval_images} predictions differ. Exact on any images:{remedy}"
        )
    return (
        "WARNING: this CPU has no VNNI. ONNX Runtime's default session, which applications open, saturates with this "
        f"model: {result.default_session_changed} of {result.eval_images} predictions differ, top-1 "
        f"{100 * result.default_session_accuracy:.2f} % in place of {100 * result.accuracy:.2f} %. Exact at the same "
        f"speed:{remedy}"
    )


def _portable_remedy(result: RunResult) -> str:
    """What makes a model portable; each was measured to (benchmarks/cpus.py)."""
    if not result.calibration_method:  # a model from elsewhere
        return " weights of 7 bits, or quantize the float model with quant=u8s7"
    if result.format == "QOperator":
        return _command(result, "quant.reduce_range=true")
    if (choices := result.settings.get("config.allocate.choices")) is not None:
        return _command(result, f"allocate.choices=[2,4,7{',float' if 'float' in choices else ''}]")
    if (result.weight_bits or 8) > 7:
        return _command(result, "quant.weight_bits=7")
    if "config.quant.layers" in result.settings:
        return " at most 7 bits for each layer of quant.layers"
    return _command(result, "quant.keep_first_last=7")


def _loss(result: RunResult) -> str | None:
    if result.accuracy is None or result.accuracy_delta is None:
        return None
    if result.classes is not None and result.accuracy <= _near_chance(result.classes):
        broken = f"top-1 of {100 * result.accuracy:.2f} % is near chance: this model is broken, do not ship it."
        remedy = _accuracy_remedy(result)
        if result.float_accuracy is not None and result.float_accuracy <= _near_chance(result.classes):
            remedy = (
                "So is the float model: check its input range and layout, model.mean=[R,G,B] model.std=[R,G,B] in "
                "pixels 0..255, model.layout=NHWC or NCHW."
            )
        return f"WARNING: {broken} {remedy}"
    loss = -result.accuracy_delta
    significant = result.mcnemar_p is not None and result.mcnemar_p < SIGNIFICANT_P and loss >= SIGNIFICANT_LOSS
    if loss > LARGE_LOSS or significant:
        return f"WARNING: top-1 fell by {100 * loss:.2f} points. {_accuracy_remedy(result)}"
    return None


def _near_chance(classes: int) -> float:
    """Accuracy up to which a model is called broken: twice that of guessing, or 1.2 times with two classes."""
    return (NEAR_CHANCE if classes >= FEW_CLASSES else NEAR_CHANCE_OF_TWO) / classes


def _accuracy_remedy(result: RunResult) -> str:
    """The next thing to try against a loss, from the most to the least likely to help."""
    weight_bits, activation_bits = result.weight_bits or 8, result.activation_bits or 8
    if not result.calibration_method:
        return "Quantize the float model instead: quant=u8s7 model=onnx model.path=MODEL.onnx."
    # Allocated widths differ by layer, and weight_bits is that of most layers: the types show whether any is low.
    refine = (result.refine or "").partition("+")[0]  # "best+damping=0.1": with other parameters
    low = any(dtype in (result.weight_type or "") for dtype in ("int2", "int4"))
    if low or min(weight_bits, activation_bits) < LOW_BITS:
        if refine not in ("best", "distill"):
            per_channel = () if result.per_channel else ("quant.per_channel=true",)
            return f"So few bits want refined weights. Try:{_command(result, *per_channel, 'refine=best')}"
        if refine == "best":
            # Of the sample's 100 training images of each class some must be held out.
            few = (
                ("calibration.samples_per_class=50", "refine.validation_images=250") if result.data == "sample" else ()
            )
            extra = missing_extra("torch", "distill").remedy
            command = _command(result, "refine=distill", *few)
            return f"Distillation finds better weights; it takes minutes, and PyTorch ({extra}). Try:{command}"
        return _more_bits(result, weight_bits)
    if not result.per_channel:
        overrides = "quant.per_channel=true" if result.quant_type == "u8s7" else "quant=u8s7"
        return f"A scale for each channel helps most. Try:{_command(result, overrides)}"
    if result.calibration_method != "percentile":
        return f"Outliers may widen the ranges. Try:{_command(result, 'calibration=percentile')}"
    # A refinement is written as Q/DQ, and does not go with reduce_range.
    if (
        result.refine != "best"
        and refine != "distill"
        and result.format == "QDQ"
        and "config.quant.reduce_range" not in result.settings
    ):
        return f"Try:{_command(result, 'refine=best')}"
    return "ranges.csv and per_class.csv show where it is lost."


def _more_bits(result: RunResult, weight_bits: int) -> str:
    """What is left for low-bit weights that are refined already."""
    budget = result.settings.get("config.allocate.budget_bytes", "")
    drop = result.settings.get("config.allocate.max_accuracy_drop")
    if budget.isdecimal():
        return f"Give it more bytes:{_command(result, f'allocate.budget_bytes={int(budget) * 5 // 4}')}"
    if drop is not None:
        return f"Allow a smaller drop:{_command(result, f'allocate.max_accuracy_drop={float(drop) / 2:g}')}"
    if weight_bits >= LOW_BITS and (result.activation_bits or 8) >= LOW_BITS:
        return "Some layers need more bits than quant.layers gives them."
    if weight_bits >= LOW_BITS:
        return f"Activations need more bits. Try:{_command(result, 'quant.activation_bits=8')}"
    # The validation split of allocate=accuracy has more images than the sample.
    overrides = "allocate=accuracy" if result.data == "cifar10" else f"quant.weight_bits={_MORE_BITS[weight_bits]}"
    return f"Some layers need more bits. Try:{_command(result, overrides)}"


def _stays_float(result: RunResult) -> str | None:
    if (
        result.deploy in (None, "none")
        or result.tflite_bytes is not None
        or result.kernels not in ("mixed", "simulated", "float")
    ):
        return None
    if result.conv_gemm_integer == result.conv_gemm_total:
        time = result.non_integer_time_share
        share = "" if time is None else f"; {100 * time:.0f} % of the time is not integer"
        return (
            f"WARNING: all {result.conv_gemm_total} Conv/Gemm run as integer kernels after deploy={result.deploy}, but "
            f"{result.float_ops} operators between them compute in float{share}. To see them:\n    "
            "python -m resnet8_quant.profile model.onnx"
        )
    return (
        f"WARNING: {result.conv_gemm_integer} of {result.conv_gemm_total} Conv/Gemm run as integer kernels after "
        f"deploy={result.deploy}, the others in float."
    )


def _slow(result: RunResult) -> str | None:
    fast, slow = result.float_latency_us_median, result.latency_us_median
    elsewhere = result.tflite_bytes is not None  # the target is no CPU of ONNX Runtime
    if elsewhere or not result.calibration_method or fast is None or slow is None or slow < SLOWER * fast:
        return None
    how = f"ran {slow / fast:.1f}x slower than float on this CPU"
    x86 = "asimd" not in (result.cpu or "")
    target = "deploy=x86" if x86 else "deploy=arm"
    if result.deploy == "arm" and "avx" in (result.cpu or ""):
        return f"deploy=arm {how}, which is not an Arm. Try:{_command(result, 'deploy=x86')}"
    if result.deploy == "x86" and "uint8" in (result.weight_type or "") and (result.weight_bits or 8) > 7:
        return (
            f"8-bit weights on uint8 kernels {how}; int8 weights of 7 bits are exact, too. Try:"
            f"{_command(result, 'quant.weight_bits=7')}"
        )
    if result.deploy not in (None, "none"):
        return (
            f"The deployed model {how}; this shows where its time goes:\n    python -m resnet8_quant.profile model.onnx"
        )
    if result.kernels == "simulated":
        return (
            f"{result.weight_type} weights {how}: only the file shrinks, all kernels compute in float. For integer "
            f"kernels, which store 8-bit weights:{_command(result, target)}"
        )
    if result.kernels == "mixed" and result.conv_gemm_integer != result.conv_gemm_total:
        how += f" ({result.conv_gemm_total} Conv/Gemm, {result.conv_gemm_integer} of them integer)"
    overrides = [target]
    if result.format != "QDQ":
        overrides.insert(0, "quant.format=QDQ" if result.quant_type == "u8s7" else "quant=u8s7")
    elif x86 and (result.weight_bits or 8) > 7:
        overrides.insert(0, "quant.weight_bits=7")
    return f"{result.activation_type} activations {how}. Try:{_command(result, *overrides)}"


def _ties(result: RunResult) -> str | None:
    ties, images = result.quant_ties, result.eval_images
    if ties is None or images is None or ties <= max(MANY_TIES * images, result.float_ties or 0):
        return None
    return f"{result.quant_ties} images tie between classes in the quantized output; the first class wins."


def _busy(result: RunResult) -> str | None:
    if not result.machine_busy or result.other_processes_share is None:
        return None
    return (
        "The machine was busy while latency was measured: other processes took "
        f"{100 * result.other_processes_share:.0f} % of the cores' time. Measure again on a quiet one."
    )


RULES: tuple[Callable[[RunResult], str | None], ...] = (_saturates, _loss, _stays_float, _slow, _ties, _busy)


def _command(result: RunResult, *overrides: str) -> str:
    """The command that repeats a run with ``overrides`` changed, on a line of its own.

    Without the run's own overrides (it was started from Python, or by an experiment file) only ``overrides`` are given.
    """
    try:
        own = shlex.split(result.overrides or "")
    except ValueError:  # an open quote
        own = ["experiment="]
    if any(_key(override) == "experiment" for override in own) or (not own and result.settings):
        return f"\n    {shlex.join(overrides)}"
    keys = {_key(override) for override in overrides}
    dropped = tuple(prefix for key in keys for prefix in _DROPPED.get(key, ()))
    kept = [
        override for override in own if (key := _key(override)) not in {*keys, "resume"} and not key.startswith(dropped)
    ]
    return f"\n    {shlex.join(['python', 'run.py', *kept, *overrides])}"


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
