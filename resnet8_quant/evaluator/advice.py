"""Plain advice where a measurement calls for it: what an expert colleague would say on seeing the row.

In: a `RunResult`. Out: sentences, most urgent first; none where all is well.
"""

from __future__ import annotations

from collections.abc import Callable

from resnet8_quant.results import RunResult

LARGE_LOSS = 0.05  # accuracy ratio
NEAR_CHANCE = 2.0  # times the accuracy of guessing
SLOWER = 1.05  # times the float model's median latency
MANY_TIES = 0.001  # of the images
CLASSES_OF_CHANCE = 10


def _collapse(row: RunResult) -> str | None:
    if row.accuracy is None or row.accuracy_delta is None:
        return None
    if row.accuracy <= NEAR_CHANCE / CLASSES_OF_CHANCE:
        broken = f"WARNING: top-1 of {100 * row.accuracy:.2f} % is near chance: this model is broken, do not ship it. "
        float_works = row.float_accuracy is not None and row.float_accuracy > NEAR_CHANCE / CLASSES_OF_CHANCE
        return broken + ("Check the calibration and the types." if float_works else "Check the input range and layout.")
    if row.accuracy_delta < -LARGE_LOSS:
        narrow = min(row.weight_bits or 8, row.activation_bits or 8) < 8
        hint = "quant=u8s8 or calibration=percentile"
        if narrow and row.refine == "none":
            hint = "refine=best" if row.per_channel else "refine=best with quant.per_channel=true"
        elif narrow:
            hint = "more bits for the layers that need them: quant.layers, or allocate=accuracy"
        return f"WARNING: top-1 fell by {-100 * row.accuracy_delta:.2f} points. Try {hint}."
    return None


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
        how += f" ({row.compute_kernels} Conv/Gemm, {row.integer_kernels} of them integer)"
    if row.deploy == "arm" and "avx" in (row.cpu or ""):
        return f"deploy=arm {how}, which is not an Arm; here try deploy=x86."
    if row.deploy not in (None, "none"):
        return f"The deployed model {how}; python -m resnet8_quant.profile model.onnx shows where its time goes."
    hint = "deploy=x86" if row.format == "QDQ" else "quant.format=QDQ deploy=x86"
    return f"{row.activation_type} activations {how}; try {hint}."


def _ties(row: RunResult) -> str | None:
    if row.ties is None or row.eval_images is None or row.ties <= MANY_TIES * row.eval_images:
        return None
    if row.float_ties is not None and row.ties <= row.float_ties:
        return None
    return f"{row.ties} images tie between classes in the quantized output; the first class wins."


def _stays_float(row: RunResult) -> str | None:
    if row.deploy in (None, "none") or row.kernels not in ("mixed", "simulated", "float"):
        return None
    return (
        f"WARNING: {row.integer_kernels} of {row.compute_kernels} Conv/Gemm run as integer kernels after "
        f"deploy={row.deploy}, the others in float."
    )


RULES: tuple[Callable[[RunResult], str | None], ...] = (_collapse, _stays_float, _slow, _ties)


def advise(row: RunResult) -> list[str]:
    """All sentences that apply to ``row``."""
    return [sentence for rule in RULES if (sentence := rule(row)) is not None]
