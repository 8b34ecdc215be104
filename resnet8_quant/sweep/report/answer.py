"""The top of the page: what it says about each model, and about the choice between them, as texts by name.

In: `Evidence` and limits. Out: the texts that the template has places for, and everything that the page needs to choose
again when the reader changes a limit: say() in templates/page.js makes the same texts from it as `answer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from resnet8_quant import terminal
from resnet8_quant.evaluator.statistics import mcnemar_p
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job, settings
from resnet8_quant.sweep.portability import in_default_session, mark
from resnet8_quant.sweep.report import recommendation
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.recommendation import LEVEL, RULES, UNITS, Limits, Model, flash, ram
from resnet8_quant.sweep.report.tables import command, launchers, measurement

SERIOUS_P, SERIOUS_LOSS = 0.01, 0.01  # a loss of a point that chance does not explain is a warning, whatever its size
YES = "yes"  # a text that is not shown itself, but shows what depends on it
ABOUT_LOSS = {
    "noise": "Its difference from the float model is within noise.",
    "real": "Its loss against the float model is real at the 5 % level.",
    "gain": "Its gain against the float model is real at the 5 % level.",
}


def answer(evidence: Evidence, models: Sequence[Model], limits: Limits) -> tuple[dict[str, str], dict[str, Any]]:
    """The choice within ``limits`` in words, and what the page needs for every other choice."""
    # The same settings with other seeds: the recommended run may be a lucky draw.
    draws: dict[object, list[Job]] = {}
    for job in evidence.jobs:
        draws.setdefault(_but_seed(job), []).append(job)
    started = launchers(evidence.jobs)
    texts = [_model_texts(model, draws[_but_seed(model.job)]) for model in models]
    data = {
        "models": [_model_data(model, started) | {"texts": texts[model.place]} for model in models],
        "level": LEVEL,
        "same_bytes": recommendation.SAME_BYTES,
        "same_latency": recommendation.SAME_LATENCY,
        "rules": RULES,
        "units": UNITS,
        "limits": {**limits},
        "notes": evidence.notes,
        "no_labels": evidence.no_labels,
    }
    within = ", ".join(f"{_number(limits[name])} {unit}" for name, unit in UNITS.items() if name in limits)
    shared = {"limits": within, "models": f"{len(models):,}"}
    chosen = recommendation.recommend(models, limits)
    if chosen is None:
        return shared | _shortfall_texts(models, limits), data
    return shared | texts[chosen.model.place] | _choice_texts(chosen, texts[chosen.best.place], started), data


def _choice_texts(
    chosen: recommendation.Recommendation, best_texts: dict[str, str], started: dict[Path, str]
) -> dict[str, str]:
    """Why the model was chosen; a text that does not apply is empty."""
    test = chosen.tests.get(chosen.model)
    timed = [run for model in chosen.timed for run in model.runs]
    busy = sum(bool(run.row.machine_busy) for run in timed)
    parallel = {started.get(run.path.parent, "") for run in timed} - {"", "basic"}
    left_out = chosen.qualified - chosen.portable
    return {
        "fits": YES,
        "fitting": f"{chosen.fitting:,}",
        "compared": f"{chosen.compared:,}",
        "qualified": f"{chosen.qualified:,}",
        "rule": RULES[chosen.basis],
        "unpaired": YES if chosen.basis == "interval" else "",
        "is_best": YES if chosen.model is chosen.best else "",
        "best": "" if chosen.model is chosen.best else best_texts["name"],
        "tested": YES if test else "",
        "to_wrong": f"{test.to_wrong:,}" if test else "",
        "to_right": f"{test.to_right:,}" if test else "",
        "p": _p(test.p) if test else "",
        "holm": _p(test.holm) if test else "",
        "none_portable": "" if chosen.portable else YES,
        "not_portable": f"{left_out:,}" if chosen.portable and left_out else "",
        "timed": f"{len(chosen.timed):,}" if timed else "",
        "measured": "; ".join(dict.fromkeys(measurement(run.row) for run in timed)),
        "busy": f"{busy:,}" if busy else "",
        "timed_runs": f"{len(timed):,}",
        "parallel": ", ".join(sorted(parallel)),
        "marked": mark(chosen.job.row) or best_texts["marked"],
    }


def _shortfall_texts(models: Sequence[Model], limits: Limits) -> dict[str, str]:
    """Which limits no model meets, and by how much."""
    least, others_hold = recommendation.shortfalls(models, limits)
    texts = {
        "nothing": YES if models else "",
        "no_two": "" if least else YES,
        "one_of": YES if least and others_hold else "",
        "all_of": YES if least and not others_hold else "",
    }
    for name, need in least.items():
        if need is None:
            texts[f"unknown_{name}"] = YES
        else:
            texts |= {f"least_{name}": _number(need), f"excess_{name}": _number(need - limits[name])}
    return texts


def _model_data(model: Model, started: dict[Path, str]) -> dict[str, Any]:
    """A model as the page chooses by it; null where a number is not known."""
    row = model.job.row
    return {
        "needs": model.needs,
        "accuracy": model.accuracy,
        "bar": row.accuracy_ci_low,
        "bytes": None if math.isinf(model.bytes) else model.bytes,
        "latency": None if math.isinf(model.latency) else model.latency,
        "known": model.predictions is not None,
        "portable": not mark(row),
        "quantized": bool(row.calibration_method),
        "runs": len(model.runs),
        "busy": sum(bool(run.row.machine_busy) for run in model.runs),
        "measured": list(dict.fromkeys(measurement(run.row) for run in model.runs)),
        "launchers": sorted({started.get(run.path.parent, "") for run in model.runs}),
        "flips": [(*pair, mcnemar_p(*pair)) for pair in model.flips] or None,
    }


def _model_texts(model: Model, draws: Sequence[Job]) -> dict[str, str]:
    """What the page says about a model, whatever it is compared with."""
    job, row = model.job, model.job.row
    loss = _loss(row)
    ratios = [
        run.row.latency_us_median / run.row.float_latency_us_median
        for run in model.runs
        if run.row.latency_us_median and run.row.float_latency_us_median
    ]
    others = [100 * (other.row.accuracy or 0.0) for other in draws if other is not job]
    spread = f"{min(others):.2f} to {max(others):.2f}, " if len(others) > 1 else ""
    seeds = others and "seed" in settings(row)
    about = (
        in_default_session(row),
        ABOUT_LOSS.get(loss, ""),
        f"{len(model.runs)} runs made this same model; the latency is the median of theirs."
        if len(model.runs) > 1
        else "",
        f"The same settings with other seeds: {fmean(others):.2f} % ({spread}n = {len(others)})." if seeds else "",
    )
    accuracy, float_accuracy = f"{terminal.percent(row.accuracy)}{mark(row)}", terminal.percent(row.float_accuracy)
    wilson = terminal.interval(row.accuracy_ci_low, row.accuracy_ci_high).replace("-", " to ")
    p = "" if row.mcnemar_p is None else f", p = {row.mcnemar_p:.2g}"
    share = (
        f"{100 * row.model_bytes / row.float_model_bytes:.0f} %" if row.model_bytes and row.float_model_bytes else ""
    )
    times = [f"{median(ratios):.2f} times float"] if ratios else []
    serious = f"It loses {-100 * (row.accuracy_delta or 0.0):.2f} points against the float model, and chance does not "
    serious += f"explain that (p = {row.mcnemar_p or 0.0:.2g}): that no other run is better does not make it good."
    return {
        "choices": job.choices,
        "label": job.label,
        "name": f"{job.label} ({job.choices}, {accuracy})",
        "command": command(row),
        "accuracy": accuracy,
        "accuracy_detail": wilson and f"{wilson} %, 95 % Wilson",
        "delta": "" if row.accuracy_delta is None else f"{points(row.accuracy_delta)} points",
        "delta_detail": float_accuracy and f"float {float_accuracy}{p}",
        "size": terminal.size(row.model_bytes),
        "size_detail": share and f"{share} of float",
        "latency": "" if math.isinf(model.latency) else f"{model.latency:.0f} \N{MICRO SIGN}s",
        "latency_detail": ", ".join([*times, *(["busy machine"] if row.machine_busy else [])]),
        "flash": terminal.size(flash(row)),
        "flash_detail": "weights, biases and scales" if row.tflite_bytes is None else "model.tflite",
        "ram": terminal.size(ram(row)),
        "ram_detail": "activations" if row.arena_bytes is None else "arena in TensorFlow Lite Micro",
        "serious": serious if loss == "serious" else "",
        "about": " ".join(filter(None, about)),
        "marked": mark(row),
    }


def _loss(row: RunResult) -> str:
    """A key of ABOUT_LOSS, or "serious"; "" where it is not known."""
    delta, p = row.accuracy_delta, row.mcnemar_p
    if delta is None or p is None or row.calibration_method is None:
        return ""
    if p < SERIOUS_P and delta <= -SERIOUS_LOSS + 1e-9:  # the ratio was rounded
        return "serious"
    return "noise" if p >= LEVEL else "real" if delta < 0 else "gain"


def _but_seed(job: Job) -> object:
    return tuple(sorted((settings(job.row) | {"seed": ""}).items()))


def points(ratio: float) -> str:
    """Percentage points with a sign that is as wide as a digit."""
    return terminal.points(ratio).replace("-", "\N{MINUS SIGN}")


def _number(value: float) -> str:
    """With separators and at most six decimals, as the page writes it."""
    return f"{value:,.6f}".rstrip("0").removesuffix(".")


def _p(value: float) -> str:
    """A p-value as the page writes it; halves are rounded up as there."""
    return f"{math.floor(1000 * value + 0.5) / 1000:.3f}" if value >= 0.001 else "below 0.001"
