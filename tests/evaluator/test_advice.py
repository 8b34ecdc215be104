"""Advice on a row: what it says where, and that what it advises is new, can be pasted and is no refused config."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet8_quant.evaluator.advice import advise
from resnet8_quant.results import RunResult

RUN = "python run.py"


WELL = (
    {"quant_type": "int8", "activation_type": "int8", "weight_type": "int8", "weight_bits": 8, "activation_bits": 8}
    | {"per_channel": True, "format": "QDQ", "calibration_method": "minmax", "refine": "none", "deploy": "none"}
    | {"data": "cifar10", "eval_images": 1000, "classes": 10, "quant_ties": 0, "float_ties": 0}
    | {"accuracy": 0.88, "accuracy_delta": -0.002, "float_accuracy": 0.882, "mcnemar_p": 0.5}
    | {"kernels": "integer", "latency_us_median": 100.0, "float_latency_us_median": 200.0}
    | {"cpu": "some, 2 cores, avx2"}
)


def quantized(**changes: object) -> RunResult:
    return RunResult(**(WELL | changes))  # type: ignore[arg-type]


def only(**changes: object) -> tuple[str, str]:
    """The one sentence that applies, and the command below it."""
    (advice,) = advise(quantized(**changes))
    sentence, _, command = advice.partition("\n    ")
    return sentence, command


LOSS = {"accuracy": 0.82, "accuracy_delta": -0.06}
W2A8 = {"quant_type": "w2a8", "weight_type": "int2", "weight_bits": 2, "overrides": "quant=w2a8"}


def test_no_advice_when_all_is_well() -> None:
    assert advise(quantized()) == []
    assert advise(RunResult(status="failed", error="x")) == []
    assert advise(quantized(accuracy_delta=-0.05, latency_us_median=200.0, quant_ties=1, portable=True)) == []


@pytest.mark.parametrize(
    ("delta", "p", "warned"),
    [(-0.01, 0.009, True), (-0.01, 0.01, False), (-0.0099, 1e-9, False), (-0.051, 0.5, True), (-0.051, None, True)],
)
def test_a_significant_loss_is_a_warning_whatever_its_size(delta: float, p: float | None, warned: bool) -> None:
    advice = advise(quantized(accuracy_delta=delta, mcnemar_p=p))
    assert bool(advice) == warned
    if warned:
        assert advice[0].startswith(f"WARNING: top-1 fell by {-100 * delta:.2f} points")


@pytest.mark.parametrize(("classes", "accuracy", "broken"), [(2, 0.7, False), (2, 0.55, True), (100, 0.1, False)])
def test_chance_depends_on_the_number_of_classes(classes: int, accuracy: float, broken: bool) -> None:
    sentence, _ = only(accuracy=accuracy, accuracy_delta=-0.2, classes=classes)
    assert ("near chance" in sentence) == broken


def test_a_broken_float_model_is_not_the_quantizations_fault() -> None:
    sentence, command = only(accuracy=0.1, accuracy_delta=0.0, float_accuracy=0.1)
    assert "So is the float model" in sentence
    assert command == ""


def test_two_bits_without_refinement_want_refine_best() -> None:
    sentence, command = only(accuracy=0.1, accuracy_delta=-0.78, **W2A8)
    assert sentence.startswith("WARNING: top-1 of 10.00 % is near chance: this model is broken")
    assert "calibration" not in sentence
    assert command == f"{RUN} quant=w2a8 refine=best"


CHAIN = [
    ({"quant_type": "int8", "per_channel": False, "overrides": "quant=int8 quant.compact=true"}, "quant=u8s7"),
    ({"quant_type": "u8s7", "per_channel": False, "overrides": "quant=u8s7"}, "quant=u8s7 quant.per_channel=true"),
    ({"quant_type": "u8s8", "overrides": "quant=u8s8"}, "quant=u8s8 calibration=percentile"),
    (
        {"calibration_method": "lp", "overrides": "quant=u8s8 calibration=lp calibration.norm=3"},
        "quant=u8s8 calibration=percentile",
    ),
    ({"calibration_method": "percentile", "overrides": "calibration=percentile"}, "calibration=percentile refine=best"),
    ({"weight_bits": 4, "per_channel": False}, "quant.per_channel=true refine=best"),
    ({"weight_bits": 7, "weight_type": "int2+int4+int8", "overrides": "allocate=bytes"}, "allocate=bytes refine=best"),
    ({"weight_bits": 4, "refine": "gptq", "overrides": "refine=gptq refine.bias=true"}, "refine=best"),
    (
        {"weight_bits": 4, "refine": "best+damping=0.1", "overrides": "quant=w4a8 refine=best refine.damping=0.1"},
        "quant=w4a8 refine=distill",
    ),
    (
        {"weight_bits": 4, "refine": "best", "data": "sample", "overrides": "calibration.samples_per_class=100"},
        "refine=distill calibration.samples_per_class=50 refine.validation_images=250",
    ),
    ({"weight_bits": 4, "refine": "distill", "overrides": "quant=w4a8"}, "quant=w4a8 allocate=accuracy"),
    ({"weight_bits": 4, "refine": "distill", "data": "sample"}, "quant.weight_bits=7"),
    ({"activation_bits": 4, "refine": "distill+damping=0.1"}, "quant.activation_bits=8"),
    (
        {"weight_bits": 2, "refine": "distill", "overrides": "allocate=bytes allocate.budget_bytes=40000",
         "settings": {"config.allocate.budget_bytes": "40000"}},
        "allocate=bytes allocate.budget_bytes=50000",
    ),
    (
        {"weight_bits": 2, "refine": "distill", "overrides": "allocate=accuracy",
         "settings": {"config.allocate.max_accuracy_drop": "0.01"}},
        "allocate=accuracy allocate.max_accuracy_drop=0.005",
    ),
    ({"overrides": "'quant.layers={stack1.*: {weight_bits: 7}}' resume=true"},
     "'quant.layers={stack1.*: {weight_bits: 7}}' calibration=percentile"),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "advised"), [("[2, 4, 8]", "[2,4,7]"), ('[2, 8, "float"]', "[2,4,7,float]")])
def test_allocated_widths_that_could_saturate(choices: str, advised: str) -> None:
    _, command = only(portable=False, weight_bits=8, settings={"config.allocate.choices": choices})
    assert command == f"'allocate.choices={advised}'"


@pytest.mark.parametrize(("changes", "overrides"), CHAIN, ids=[overrides for _, overrides in CHAIN])
def test_what_to_try_against_a_loss(changes: dict[str, object], overrides: str) -> None:
    assert only(**LOSS, **changes)[1] == f"{RUN} {overrides}"


def test_distillation_says_what_it_needs() -> None:
    assert "pip install -c constraints.txt -e '.[distill]'" in only(**LOSS, weight_bits=4, refine="best")[0]


@pytest.mark.parametrize("refine", ["best", "distill", "distill+shift=0"])
def test_when_all_was_tried_no_command_is_left(refine: str) -> None:
    sentence, command = only(**LOSS, calibration_method="percentile", refine=refine)
    assert "ranges.csv" in sentence
    assert command == ""


@pytest.mark.parametrize("start", [{"overrides": "experiment=bit_map"}, {"settings": {"config.latency.runs": "0"}}])
def test_a_run_without_overrides_of_its_own_is_told_the_new_ones_alone(start: dict[str, object]) -> None:
    assert only(**LOSS, **start)[1] == "calibration=percentile"


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    weight_bits=st.sampled_from([2, 4, 7, 8]),
    per_channel=st.booleans(),
    form=st.sampled_from(["QDQ", "QOperator"]),
    method=st.sampled_from(["minmax", "percentile", "mse"]),
    refine=st.sampled_from(["none", "gptq", "best", "distill"]),
    deploy=st.sampled_from(["none", "x86", "arm"]),
    kernels=st.sampled_from(["integer", "mixed", "simulated"]),
    quant=st.sampled_from(["int8", "u8s8", "u8s7"]),
    portable=st.booleans(),
)
def test_no_advice_is_what_the_run_has(
    weight_bits, per_channel, form, method, refine, deploy, kernels, quant, portable
):
    """A setting of the row is never advised."""
    row = {"format": form, "calibration_method": method, "quant_type": quant, "kernels": kernels, "portable": portable}
    row |= {"weight_bits": weight_bits, "per_channel": per_channel, "refine": refine, "deploy": deploy}
    has = {f"quant={quant}", f"calibration={method}", f"refine={refine}", f"deploy={deploy}"}
    has |= {f"quant.weight_bits={weight_bits}", f"quant.per_channel={str(per_channel).lower()}"}
    for advice in advise(quantized(**row, **LOSS, latency_us_median=320.0)):
        _, _, command = advice.partition("\n    python run.py")
        assert not has.intersection(shlex.split(command)), advice


def test_a_model_that_can_saturate_is_told_where_it_differs() -> None:
    sentence, command = only(portable=False, overrides="quant=u8s8")
    assert sentence == (
        "On x86 CPUs without VNNI, ONNX Runtime's default session can saturate with this model and predict "
        "differently. Exact everywhere:"
    )
    assert command == f"{RUN} quant=u8s8 quant.weight_bits=7"
    here = {"portable": False, "default_session_accuracy": 0.61, "default_session_changed": 250}
    sentence, _ = only(**here)
    assert "250 of 1000 predictions differ, top-1 61.00 % in place of 88.00 %" in sentence
    assert sentence.startswith("WARNING: this CPU has no VNNI")
    assert only(**here, format="QOperator")[1] == f"{RUN} quant.reduce_range=true"
    assert only(**here, weight_bits=4)[1] == f"{RUN} quant.keep_first_last=7"
    sentence, _ = only(**{**here, "default_session_changed": 0})
    assert "none of 1000 predictions differ" in sentence


SLOW = {"latency_us_median": 320.0, "conv_gemm_total": 10, "conv_gemm_integer": 4, "kernels": "mixed"}


@pytest.mark.parametrize(
    ("changes", "part", "command"),
    [
        ({}, "int8 activations ran 1.6x slower", f"{RUN} quant.weight_bits=7 deploy=x86"),
        ({"weight_bits": 7}, "10 Conv/Gemm, 4 of them integer", f"{RUN} deploy=x86"),
        ({"cpu": "some, 2 cores, asimddp"}, "slower", f"{RUN} deploy=arm"),
        ({"format": "QOperator"}, "slower", f"{RUN} quant=u8s7 deploy=x86"),
        ({"kernels": "integer", "deploy": "arm", "overrides": "deploy=arm"}, "is not an Arm", f"{RUN} deploy=x86"),
        ({"kernels": "integer", "deploy": "x86", "weight_type": "uint8"}, "uint8", f"{RUN} quant.weight_bits=7"),
        ({"kernels": "simulated", **W2A8}, "only the file shrinks", f"{RUN} quant=w2a8 deploy=x86"),
        ({"kernels": "integer", "deploy": "x86"}, "deployed model", "python -m resnet8_quant.profile model.onnx"),
    ],
)  # fmt: skip
def test_a_slow_model_is_told_to_deploy(changes: dict[str, object], part: str, command: str) -> None:
    sentence, advised = only(**{**SLOW, **changes})
    assert part in sentence
    assert advised == command


def test_what_stays_float_after_a_deployment_is_a_warning() -> None:
    first, second = advise(quantized(**SLOW, deploy="x86"))
    assert first == "WARNING: 4 of 10 Conv/Gemm run as integer kernels after deploy=x86, the others in float."
    assert "profile" in second
    changes = {"conv_gemm_integer": 10, "float_ops": 7, "non_integer_time_share": 0.4, "latency_us_median": 100.0}
    (sentence,) = advise(quantized(**SLOW | changes, deploy="x86"))
    assert "all 10 Conv/Gemm" in sentence
    assert "7 operators between them compute in float; 40 % of the time is not integer" in sentence


def test_ties_are_mentioned() -> None:
    assert only(quant_ties=7)[0].startswith("7 images tie")
    assert advise(quantized(quant_ties=7, float_ties=7)) == []


def test_a_busy_machine_is_mentioned() -> None:
    assert "other processes took 65 % of the cores' time" in only(machine_busy=True, other_processes_share=0.65)[0]
    assert advise(quantized(machine_busy=False, other_processes_share=0.01)) == []
