"""Plain advice where a measurement calls for it: what an expert colleague would say on seeing the row.

In: a `RunResult`. Out: sentences, most urgent first; none where all is well.
"""

from __future__ import annotations

from collections.abc import Callable

from resnet8_quant.results import RunResult

LARGE_LOSS = 0.05  # accuracy ratio
NEAR_CHANCE = 2.0  # times the accuracy of guessing
NEAR_CHANCE_OF_TWO = 1.2
FEW_CLASSES = 3  # with fewer, twice the accuracy of guessing is no longer near chance
SLOWER = 1.05  # times the float model's median latency
MANY_TIES = 0.001  # of the images


def _collapse(row: RunResult) -> str | None:
    if row.accuracy is None or row.accuracy_delta is None:
        return None
    if row.classes is not None and row.accuracy <= _near_chance(row.classes):
        broken = f"WARNING: top-1 of {100 * row.accuracy:.2f} % is near chance: this model is broken, do not ship it. "
        float_works = row.float_accuracy is not None and row.float_accuracy > _near_chance(row.classes)
        return broken + ("Check the calibration and the types." if float_works else "Check the input range and layout.")
    if row.accuracy_delta < -LARGE_LOSS:
        narrow = min(row.weight_bits or 8, row.activation_bits or 8) < 7
        hint = "calibration=percentile" if row.per_channel else "quant=u8s7 or calibration=percentile"
        if narrow and row.refine == "none":
            hint = "refine=best" if row.per_channel else "refine=best with quant.per_channel=true"
        elif narrow:
            hint = "more bits for the layers that need them: quant.layers, or allocate=accuracy"
        return f"WARNING: top-1 fell by {-100 * row.accuracy_delta:.2f} points. Try {hint}."
    return None


def _near_chance(classes: int) -> float:
    """Accuracy up to which a model is called broken: twice that of guessing, or 1.2 times with two classes."""
    return (NEAR_CHANCE if classes >= FEW_CLASSES else NEAR_CHANCE_OF_TWO) / classes


def _saturates(row: RunResult) -> str | None:
    if row.portable is not False:
        return None
    remedy = _remedy(row)
    if row.default_session_accuracy is None or row.accuracy is None:
        return (
            "On x86 CPUs without VNNI, ONNX Runtime's default session can saturate with this model and answer "
            f"differently; exact everywhere: {remedy}."
        )
    if not row.default_session_changed:
        return (
            "This CPU has no VNNI, and ONNX Runtime's default session can saturate with this model; here none of "
            f"{row.eval_images} predictions differ. Exact on any images: {remedy}."
        )
    return (
        f"WARNING: this CPU has no VNNI. ONNX Runtime's default session, which applications open, saturates with this "
        f"model: {row.default_session_changed} of {row.eval_images} predictions differ, top-1 "
        f"{100 * row.default_session_accuracy:.2f} % in place of {100 * row.accuracy:.2f} %. Exact at the same speed: "
        f"{remedy}."
    )


def _remedy(row: RunResult) -> str:
    """What makes a model portable; each was measured to (benchmarks/cpus.py)."""
    if not row.calibration_method:  # a model from elsewhere
        return "weights of 7 bits, or quantize the float model with quant=u8s7"
    if row.format == "QOperator":
        return "quant.reduce_range=true"
    return "quant.weight_bits=7" if (row.weight_bits or 8) >= 7 else "quant.keep_first_last=7"


def _slow(row: RunResult) -> str | None:
    fast, slow = row.float_latency_us_median, row.latency_us_median
    if not row.calibration_method or fast is None or slow is None or slow < SLOWER * fast:
        return None
    how = f"ran {slow / fast:.1f}x slower than float on this CPU"
    if row.kernels == "simulated":
        return (
            f"{row.weight_type} weights {how}: only the file shrinks, all kernels compute in float. "
            f"Try quant.weight_bits={row.weight_bits} with an 8-bit type."
        )
    if row.kernels == "mixed":
        how += f" ({row.conv_gemm_total} Conv/Gemm, {row.conv_gemm_integer} of them integer)"
    if row.deploy == "arm" and "avx" in (row.cpu or ""):
        return f"deploy=arm {how}, which is not an Arm; here try deploy=x86."
    if row.deploy == "x86" and "uint8" in (row.weight_type or ""):
        return f"8-bit weights on uint8 kernels {how}; int8 weights of 7 bits are exact too: try quant.weight_bits=7."
    if row.deploy not in (None, "none"):
        return f"The deployed model {how}; python -m resnet8_quant.profile model.onnx shows where its time goes."
    hint = "quant.weight_bits=7 deploy=x86" if row.format == "QDQ" else "quant=u8s7 deploy=x86"
    return f"{row.activation_type} activations {how}; try {hint}."


def _ties(row: RunResult) -> str | None:
    if row.quant_ties is None or row.eval_images is None or row.quant_ties <= MANY_TIES * row.eval_images:
        return None
    if row.float_ties is not None and row.quant_ties <= row.float_ties:
        return None
    return f"{row.quant_ties} images tie between classes in the quantized output; the first class wins."


def _stays_float(row: RunResult) -> str | None:
    if row.deploy in (None, "none") or row.kernels not in ("mixed", "simulated", "float"):
        return None
    return (
        f"WARNING: {row.conv_gemm_integer} of {row.conv_gemm_total} Conv/Gemm run as integer kernels after "
        f"deploy={row.deploy}, the others in float."
    )


RULES: tuple[Callable[[RunResult], str | None], ...] = (_saturates, _collapse, _stays_float, _slow, _ties)


def advise(row: RunResult) -> list[str]:
    """All sentences that apply to ``row``."""
    return [sentence for rule in RULES if (sentence := rule(row)) is not None]
