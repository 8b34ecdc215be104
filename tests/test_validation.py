"""What no run can do is refused by a sentence with field, value, choices and a command; that command then works."""

from __future__ import annotations

import shlex
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resnet8_quant.config import (
    AllocateConfig,
    CalibrationConfig,
    Config,
    DType,
    Format,
    Method,
    ModelConfig,
    QuantConfig,
)
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.sweep.compose import compose_config
from resnet8_quant.validation import HISTOGRAM_OPTIONAL, LEGAL, PARAMETERS, RULES, check_validation_images, validate

LISTED = ["calibration.sampling=mlperf_tiny", "calibration.indices=[1,2]"]
MLFLOW = "tracking=mlflow"
# {what is typed: what the problem says}: at least one line for each rule.
REFUSED: dict[str, str] = {
    "calibration.samples_per_class=0": "`calibration.samples_per_class` is 0; valid are 1 or more",
    "evaluation.batch_size=0": "`evaluation.batch_size` is 0; valid are 1 to 10000",
    "evaluation.threads=1025": "`evaluation.threads` is 1025; valid are 0 to 1024",
    "evaluation.timeout=0": "`evaluation.timeout` is 0.0; valid are 1 to 86400",
    "latency.runs=-1": "`latency.runs` is -1; valid are 0 to 1000000",
    "latency.warmup=-1": "`latency.warmup` is -1; valid are 0 to 1000000",
    "latency.threads=-1": "`latency.threads` is -1; valid are 0 to 1024",
    "latency.throughput_batch=10001": "`latency.throughput_batch` is 10001; valid are 0 to 10000",
    "seed=4294967296": "`seed` is 4294967296; valid are 0 to 4294967295",
    # data types
    "quant.weight_type=uint8": "is int8/uint8 with `quant.format` QDQ: ONNX Runtime has no kernel",
    "quant.activation_type=float32": "float32/int8 with `quant.format` QDQ: float32 means no quantization",
    "quant.format=QOperator quant.activation_type=int16": "8-bit types only; quant.format=QDQ takes all",
    # bit widths
    "quant.weight_bits=1": "`quant.weight_bits` is 1; valid are 2 to 8 with int8",
    "quant.activation_bits=9": "`quant.activation_bits` is 9; valid are 2 to 8 with int8",
    "quant.activation_bits=4 quant.residual_bits=9": "`quant.residual_bits` is 9; valid are 2 to 8 with int8",
    "quant.residual_bits=4": "`quant.residual_bits` is 4, but without quant.activation_bits nothing reads it",
    "quant.keep_first_last=9": "`quant.keep_first_last` is 9; valid are 2 to 8",
    "quant=u8s8 quant.weight_type=int4 quant.weight_bits=5": "`quant.weight_bits` is 5; valid are 2 to 4 with int4",
    "'quant.layers={stack1.*: {activation_bits: 9}}'": "`quant.layers.stack1.*.activation_bits` is 9; valid are 2 to 8",
    "'quant.layers={stack1.conv1: {bits: 4}}'": "`quant.layers.stack1.conv1.bits` is not a field of a layer; valid are",
    "'quant.layers={dense: {residual_bits: 4}}'": "`quant.layers.dense.residual_bits` is not a field of a layer; valid",
    "quant=float 'quant.layers={dense: {weight_bits: 4}}'": "`quant.layers.dense.weight_bits` is 4, but quant=float",
    "'quant.layers={dense: {float: 1}}'": "`quant.layers.dense.float` is 1; valid is true or false",
    "'quant.layers={dense: {weight_bits: true}}'": "`quant.layers.dense.weight_bits` is true; valid is a number of",
    "'quant.layers={dense: {weight_bits: 8, float: true}}'": "`quant.layers.dense` has `float` true and weight_bits",
    "quant=float 'quant.layers={dense: {float: true}}'": "`quant.layers.dense.float` is true, but quant=float",
    "deploy=tflite 'quant.layers={dense: {float: true}}'": "keeps layers in float, with deploy=tflite",
    # analysis
    "quant=float analyze=layers": "`analyze` is layers, but quant=float has nothing quantized to analyze",
    "quant.format=QOperator analyze=layers": "`quant.format` is QOperator; analyze=layers needs Q/DQ pairs",
    "quant.activation_type=uint16 quant.activation_bits=4": "`quant.activation_bits` is 4 with `quant.activation_type`",
    "quant=float quant.weight_bits=4": "`quant.weight_bits` is 4, but quant=float does not read it",
    "quant=float quant.activation_bits=4": "`quant.activation_bits` is 4, but quant=float does not read it",
    "quant=float quant.keep_first_last=4": "`quant.keep_first_last` is 4, but quant=float does not read it",
    "quant=float quant.compact=true": "`quant.compact` is true, but quant=float does not read it",
    "quant.weight_type=int16 quant.reduce_range=true": "`quant.reduce_range` is true with `quant.weight_type` int16",
    # calibration
    "calibration.percentile=99": "calibration=minmax does not read it; calibration=percentile does",
    "calibration=mse calibration.norm=3": "calibration=mse does not read it; calibration=lp does",
    "calibration.averaging_constant=0.1": "calibration=minmax does not read it; calibration=moving_average does",
    "calibration=percentile calibration.percentile=49.9": "`calibration.percentile` is 49.9; valid are 50 to 100",
    "calibration=percentile calibration.percentile=nan": "`calibration.percentile` is NaN; valid are 50 to 100",
    "calibration=lp calibration.norm=10.5": "`calibration.norm` is 10.5; valid are 0.5 to 10",
    "calibration=moving_average calibration.averaging_constant=0": "`calibration.averaging_constant` is 0.0; valid are",
    "calibration.bins=127": "`calibration.bins` is 127; valid are 128 to 131072",
    **{
        f"calibration={method.name} calibration.bins=null": f"128 to 131072 with calibration={method.name}"
        for method in Method
        if method not in HISTOGRAM_OPTIONAL
    },
    "calibration=entropy calibration.bins=511": "`calibration.bins` is 511; entropy needs at least twice the 256",
    "calibration=entropy quant.activation_type=int16": "is 2048; entropy needs at least twice the 65536",
    "calibration.indices=[1]": "`calibration.indices` is [1], but calibration.sampling=stratified does not read it",
    "calibration.sampling=first calibration.index_file=x.npy": "`calibration.index_file` is x.npy, but",
    "calibration.sampling=mlperf_tiny calibration.allow_test_images=true": "now neither is set, or both are",
    f"{shlex.join(LISTED)} calibration.index_file=x.npy calibration.allow_test_images=true": "or both are",
    shlex.join(LISTED): "`calibration.sampling` is mlperf_tiny, whose list names TEST images",
    # refinement
    "quant=float refine=bias": "`refine` is bias, but quant=float has no weights to refine",
    "quant.format=QOperator refine=gptq": "`quant.format` is QOperator; refine=gptq needs Q/DQ pairs",
    "quant.format=QOperator quant.weight_bits=4": "`quant.format` is QOperator; what quant.weight_bits",
    "quant.reduce_range=true quant.weight_bits=8": "`quant.reduce_range` is true; with what quant.weight_bits",
    "refine=best refine.damping=0": "`refine.damping` is 0.0; valid are above 0 to 1",
    "refine=best refine.damping=nan": "`refine.damping` is NaN; valid are above 0 to 1",
    "refine=bias refine.images=0": "`refine.images` is 0; valid are 1 or more",
    "refine=best refine.distill_images=100": "`refine.distill_images` is 100, but refine=best does not read it",
    "refine.distill_steps=100": "`refine.distill_steps` is 100, but refine=none does not read it",
    "refine.learning_rate=0.01": "`refine.learning_rate` is 0.01, but refine=none does not read it",
    "refine.minutes=1": "`refine.minutes` is 1.0, but refine=none does not read it",
    "refine.mirror=true": "`refine.mirror` is true, but refine=none does not read it",
    "refine.shift=1": "`refine.shift` is 1, but refine=none does not read it",
    "refine.validation_images=100": "`refine.validation_images` is 100, but refine=none does not read it",
    "refine=distill refine.distill_images=1": "`refine.distill_images` is 1; valid are 2 or more",
    "refine=distill refine.distill_steps=0": "`refine.distill_steps` is 0; valid are 1 to 10000000",
    "refine=distill refine.learning_rate=nan": "`refine.learning_rate` is NaN; valid are 1e-06 to 0.1",
    "refine=distill refine.minutes=0": "`refine.minutes` is 0.0; valid are 0.01 to 10000",
    "refine=distill refine.shift=-1": "`refine.shift` is -1; valid are 0 to 100",
    "refine=distill refine.validation_images=0": "`refine.validation_images` is 0; valid are 1 or more",
    # mixed precision
    "allocate=bytes allocate.budget_bytes=null": "`allocate` is bytes, but neither",
    "allocate=bytes quant.reduce_range=true": "`quant.reduce_range` is true, but allocate chooses",
    "allocate=bytes allocate.max_accuracy_drop=0.1": "is 48000 and `allocate.max_accuracy_drop` 0.1",
    "allocate=accuracy allocate.max_accuracy_drop=1": "`allocate.max_accuracy_drop` is 1.0; valid are 0 to 1, a ratio",
    "allocate=accuracy allocate.validation_images=0": "`allocate.validation_images` is 0; valid are 1 or more",
    "allocate=bytes quant=float": "`allocate` is bytes, but quant=float",
    "allocate=bytes quant.format=QOperator": "`quant.format` is QOperator; allocate=bytes needs Q/DQ pairs",
    "allocate=bytes allocate.budget_bytes=0": "`allocate.budget_bytes` is 0; valid are 1 to 2147483647",
    "refine.images=99999999999999999999": "`refine.images` is 99999999999999999999; 64 bits do not hold it",
    "allocate.count=tflite": "`allocate.count` is tflite, but allocate=none chooses no bit widths",
    "allocate=bytes allocate.count=tflite": "`allocate.count` is tflite, but deploy=none writes no .tflite file",
    "allocate=bytes allocate.choices=[]": "`allocate.choices` is []; valid are one or more of 2 to 8 with int8",
    "allocate=bytes allocate.choices=[4,16]": "`allocate.choices` is [4, 16]; valid are one or more of 2 to 8",
    "allocate=bytes allocate.choices=[4,true]": "`allocate.choices` is [4, true]; valid are one or more of 2 to 8",
    "allocate=bytes allocate.choices=[4,null]": "`allocate.choices` is [4, null]; valid are one or more of 2 to 8",
    "allocate=bytes allocate.choices=[4,float32]": '`allocate.choices` is [4, "float32"]; valid are one or more of',
    "allocate=bytes allocate.choices=[4,32]": "`allocate.choices` is [4, 32]; valid are one or more of 2 to 8",
    "allocate=bytes allocate.choices=[4,4.5,nan]": "`allocate.choices` is [4, 4.5, NaN]; valid are one or more of",
    "allocate=bytes 'allocate.choices=[[4],{a: 1}]'": '`allocate.choices` is [[4], {"a": 1}]; valid are one or more',
    "allocate.choices=[float,wide]": '`allocate.choices` is ["float", "wide"]; valid are one or more of 2 to 8',
    "quant=u8s8 quant.weight_type=int4 allocate=bytes allocate.choices=[8,float]": "2 to 4 with int4, and float",
    "allocate=bytes allocate.choices=[4,float] deploy=tflite": '[4, "float"], which keeps layers in float',
    "allocate=bytes allocate.choices=[float] deploy=tflite": "keeps layers in float, with deploy=tflite, whose kernels",
    # deployment
    "deploy.avoid_saturation=true": "`deploy.avoid_saturation` is true, but deploy=none rewrites nothing",
    "deploy.pixel_blocking=true": "`deploy.pixel_blocking` is true, but deploy=none rewrites nothing",
    "deploy.gemm_convolutions=true": "`deploy.gemm_convolutions` is true, but deploy=none rewrites nothing",
    "deploy.input=uint8": "`deploy.input` is uint8, but deploy=none rewrites nothing",
    "deploy.output=label": "`deploy.output` is label, but deploy=none rewrites nothing",
    "deploy=x86 deploy.activation_type=int16": "`deploy.activation_type` is int16; valid are uint8, int8",
    "deploy=x86 quant=float": "`deploy` is x86, but the model has no QuantizeLinear with quant=float",
    "deploy=x86 quant.activation_type=uint16": "`quant.activation_type` is uint16 with deploy=x86, whose integer",
    "deploy=x86 quant.weight_type=int16": "`quant.weight_type` is int16 with deploy=x86: ONNX Runtime's",
    "deploy.verify=10": "`deploy.verify` is 10, but only deploy=tflite does",
    "deploy=x86 deploy.c_array=true": "`deploy.c_array` is true, but only deploy=tflite does",
    "deploy=x86 deploy.c_code=true": "`deploy.c_code` is true, but only deploy=tflite does",
    "deploy=tflite deploy.activation_type=int8": "`deploy.activation_type` is int8 with deploy.runtime=tflite, whose",
    "deploy=x86 deploy.input=int8": "`deploy.input` is int8 with deploy=x86; valid are float32, uint8",
    "deploy=x86 deploy.output=int8": "`deploy.output` is int8 with deploy=x86; valid are same, probabilities",
    "deploy=tflite deploy.output=same": "`deploy.output` is same with deploy=tflite; valid are int8, logits",
    "deploy=tflite deploy.verify=0": "`deploy.verify` is 0; valid are 1 or more",
    "deploy=tflite quant=float": "`deploy` is tflite, but the model has no QuantizeLinear with quant=float",
    "deploy=tflite quant=uint8": "`quant.weight_type` is uint8 with deploy=tflite, whose kernels take int8 or int4",
    "deploy=tflite quant.activation_type=int16": "`quant.activation_type` is int16 with deploy=tflite, whose integer",
    "deploy=tflite quant=w4a4": "`quant.activation_bits` is 4 with deploy=tflite, whose kernels take 8-bit",
    "deploy=tflite quant.format=QOperator": "`quant.format` is QOperator with deploy=tflite, which starts from Q/DQ",
    "deploy=x86 quant.format=QOperator": "`quant.format` is QOperator with deploy=x86, which starts from Q/DQ pairs",
    # inputs
    "model.path=x.onnx": "`model.path` is x.onnx, but model=resnet8 does not read it",
    "model=mlperf_tiny model.path=x.keras": "`model.path` is x.keras, but model=mlperf_tiny does not read it",
    "model.source=x.h5": "`model.source` is x.h5, but model=resnet8 does not read it",
    "data.path=x.npz": "`data.path` is x.npz, but data=cifar10 does not read it",
    "data=sample data.max_bytes=9": "`data.max_bytes` is 9, but data=sample does not read it",
    "data=arrays data.path=x data.max_bytes=0": "`data.max_bytes` is 0; valid are 1 or more",
    "data=sample data.first_label=1": "`data.first_label` is 1, but data=sample does not read it",
    "data=arrays data.path=x data.first_label=2": "`data.first_label` is 2; valid are 0 to 1",
    "data=sample data.test_fraction=0.2": "`data.test_fraction` is 0.2, but data=sample does not read it",
    "data=sample data.size=[8,8]": "`data.size` is [8, 8], but data=sample does not read it",
    "data=sample data.gray=true": "`data.gray` is true, but data=sample does not read it",
    "data=sample data.classes=[a,b]": '`data.classes` is ["a", "b"], but data=sample does not read it',
    "data=sample data.max_broken=0.5": "`data.max_broken` is 0.5, but data=sample does not read it",
    "data=folder data.path=x data.test_fraction=1": "`data.test_fraction` is 1.0; valid are 0.01 to 0.9",
    "data=folder data.path=x data.split_seed=1": "`data.split_seed` is 1, but without data.test_fraction nothing",
    "data=folder data.test_fraction=0.2 data.split_seed=-1": "`data.split_seed` is -1; valid are 0 to 4294967295",
    "data=folder data.path=x data.size=[8]": "`data.size` is [8]; valid are height and width, 1 to 4096",
    "data=folder data.path=x data.size=[0,8]": "`data.size` is [0, 8]; valid are height and width, 1 to 4096",
    "data=folder data.path=x data.resize=pad": "`data.resize` is pad, but without data.size nothing reads it",
    "data=folder data.path=x data.classes=[]": "`data.classes` is []; valid are one or more names",
    "data=folder data.path=x data.max_broken=2": "`data.max_broken` is 2.0; valid are 0 to 1",
    "data=sample data.root=x": "`data.root` is x, but data=sample does not read it",
    "model=onnx model.path=x model.std=[1,0,1]": "`model.std` is [1.0, 0.0, 1.0]; every value must be above 0",
    "model=onnx model.path=x model.std=[1,inf,1]": "`model.std` is [1.0, Infinity, 1.0]; every value must be above 0",
    "model=onnx model.path=x model.mean=[0.4,0.5,0.6] model.std=[0.229,0.224,0.225]": "mean and std are for pixels of",
    "model=onnx model.path=x model.mean=[nan,0,1]": "`model.mean` is [NaN, 0.0, 1.0]; every value must be a finite",
    # tracking
    "tracking.uri=sqlite:///x": "`tracking.uri` is sqlite:///x, but tracking=none does not read it",
    "tracking.experiment=x": "`tracking.experiment` is x, but tracking=none does not read it",
    f"{MLFLOW} tracking.experiment=null": "`tracking.experiment` is null; it needs a name",
    f"{MLFLOW} 'tracking.experiment=\" x\"'": "`tracking.experiment` is ' x'; it needs a name",
    **{
        f"{MLFLOW} tracking.uri={uri}": f"`tracking.uri` is {uri}; valid are sqlite:///FILE"
        for uri in ("null", "sqlite:///", "sqlite://x", "outputs/mlruns", "file:///x", "http://", "httpx://host")
    },
}
PASSES = [
    *(f"calibration={method.name}" for method in Method),
    "calibration=percentile calibration.percentile=100",
    "calibration=percentile calibration.percentile=null",
    "calibration=lp calibration.norm=0.5",
    "calibration=moving_average calibration.averaging_constant=1",
    *(f"calibration={method.name} calibration.bins=null" for method in HISTOGRAM_OPTIONAL),
    "calibration=mse calibration.bins=131072",
    "calibration=entropy calibration.bins=512",
    f"{shlex.join(LISTED)} calibration.allow_test_images=true",
    "quant=float calibration.samples_per_class=1 calibration.bins=1",  # a float model is not calibrated
    "quant.format=QOperator",
    "deploy=x86 quant=u8s8 'quant.layers={stack*: {float: true}, stack1.conv1: {float: false}}' analyze=layers",
    "deploy=x86 deploy.input=uint8 deploy.output=label deploy.gemm_convolutions=true",
    "model=keras model.path=x.keras",
    "quant=float deploy=x86 model=onnx model.path=q.onnx",  # it may hold Q/DQ pairs already
    *(f"allocate=bytes quant=u8s8 deploy={to} allocate.choices=[2,4,8,float]" for to in ("none", "x86", "arm")),
    "allocate=accuracy allocate.choices=[float]",
    "allocate.choices=[4,float] deploy=tflite",  # which nothing reads
    f"{MLFLOW} tracking.uri=http://localhost:5000",
    f"{MLFLOW} tracking.uri=https://host/path",
]


cached_config = cache(lambda *overrides: compose_config(overrides))


def composed(overrides):
    """The config of a command line, composed once; `validate` may change it."""
    return deepcopy(cached_config(*overrides))


def refusal(config):
    with pytest.raises(ExperimentError) as caught:
        validate(config)
    return caught.value


@pytest.mark.parametrize("typed", REFUSED)
def test_a_refusal_names_field_and_value_and_its_remedy_works(typed):
    overrides = shlex.split(typed)
    error = refusal(composed(overrides))
    assert REFUSED[typed] in error.problem
    program, command = error.remedy[: len(COMMAND)], shlex.split(error.remedy[len(COMMAND) :])
    assert program == COMMAND
    validate(composed(command))
    # and the remedy in place of what was typed, beside the rest of it
    merged = {word.partition("=")[0]: word for word in (*overrides, *command)}
    validate(composed(list(merged.values())))


def test_every_rule_of_the_table_is_typed_above():
    problems = [refusal(composed(shlex.split(typed))).problem for typed in REFUSED]
    for rule in RULES:
        sentence = rule.sentence.partition("{")[0]
        assert any(p.startswith(f"`{rule.field}` is ") and sentence in p for p in problems), rule.field + sentence


@pytest.mark.parametrize("typed", PASSES)
def test_what_can_be_done_is_not_refused(typed):
    validate(composed(shlex.split(typed)))


@given(st.sampled_from(Format), st.sampled_from(DType), st.sampled_from(DType))
def test_data_types_are_legal_as_the_table_says(form, activation, weight):
    config = Config(quant=QuantConfig(activation_type=activation, weight_type=weight, format=form))
    if weight in LEGAL[form].get(activation, ()):
        validate(config)
    else:
        assert f"is {activation.name}/{weight.name} with `quant.format` {form.name}: " in refusal(config).problem


@given(st.integers(-3, 20), st.sampled_from(["weight_bits", "activation_bits"]), st.booleans(), st.sampled_from(DType))
def test_bit_widths_are_2_to_those_of_the_type(bits, field, in_layer, dtype):
    types = {"activation_type": DType.uint8, "weight_type": DType.int8} | {field.replace("bits", "type"): dtype}
    if (
        types["weight_type"] not in LEGAL[Format.QDQ].get(types["activation_type"], ())
        or DType.float32 in types.values()
    ):
        return
    quant = replace(QuantConfig(**types), **({"layers": {"dense": {field: bits}}} if in_layer else {field: bits}))
    if 2 <= bits <= min(8, dtype.bits) and not (field == "activation_bits" and dtype.bits > 8):
        validate(Config(quant=quant))
    else:
        assert f"{field}` is {bits}" in refusal(Config(quant=quant)).problem


@given(st.sampled_from(Method), st.sampled_from(["percentile", "norm", "averaging_constant", "bins"]), st.data())
def test_parameters_of_calibration_are_those_of_the_method_within_their_limits(method, name, data):
    value = data.draw(st.integers(0, 200_000) if name == "bins" else st.floats(-1, 200))
    assume(method is not Method.entropy or not 128 <= value < 512)
    config = Config(calibration=replace(CalibrationConfig(method=method), **{name: value}))
    low, high = PARAMETERS[method].get(name, (1, 0))
    if low <= value <= high:
        validate(config)
    else:
        assert f"`calibration.{name}` is {value}" in refusal(config).problem


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (Config(quant=QuantConfig(weight_bits="4")), "`quant.weight_bits` is '4', of type str; valid is int or None"),
        (Config(quant=QuantConfig(per_channel=1)), "`quant.per_channel` is 1, of type int; valid is bool"),
        (Config(seed=1.5), "`seed` is 1.5, of type float; valid is int"),
        (
            Config(allocate=AllocateConfig(choices="float")),
            "`allocate.choices` is 'float', of type str; valid is list[Any]",
        ),
        (Config(model=ModelConfig(mean=125.0)), "`model.mean` is 125.0, of type float; valid is list[float] or None"),
    ],
)
def test_a_value_of_a_wrong_type_in_python(config, problem):
    assert refusal(config).problem == problem


def test_choices_with_float_read_alike_from_yaml_and_from_the_command_line(tmp_path):
    (tmp_path / "allocate").mkdir()
    (tmp_path / "allocate" / "mine.yaml").write_text("budget_bytes: 48000\nchoices: [2, 4, 8, float]\n")
    mine = compose_config(["allocate=mine"], tmp_path)
    typed = compose_config(["allocate=bytes", "allocate.choices=[2,4,8,float]"])
    assert mine.allocate.choices == typed.allocate.choices == [2, 4, 8, "float"]
    validate(mine)


def test_a_preset_name_in_place_of_its_settings():
    with pytest.raises(ExperimentError, match=r"`quant` is 'int8'; it takes a QuantConfig") as caught:
        Config(quant="int8")
    assert caught.value.remedy == 'resnet8_quant.compose("quant=int8")'


def test_a_string_that_was_assigned_is_taken_for_the_member_it_names():
    config = Config()
    config.quant.activation_type = "uint8"
    validate(config)
    assert config.quant.activation_type is DType.uint8
    config.quant.activation_type = "uint9"
    assert refusal(config).remedy == f"{COMMAND} quant.activation_type=uint8"


def test_a_user_name_in_an_address_is_not_repeated():
    error = refusal(composed([MLFLOW, "tracking.uri=https://me:secret@host"]))
    assert "`tracking.uri` holds a user name" in error.problem
    assert "secret" not in str(error)


@given(st.integers(1, 100), st.integers(1, 3000), st.integers(100, 500))
def test_the_remedy_for_a_validation_split_leaves_enough_images(per_class, validation, images_of_a_class):
    def check(config):
        calibrating, total = 10 * config.calibration.samples_per_class, 10 * images_of_a_class
        check_validation_images(config, total - calibrating, calibrating, total, 10)

    config = Config(calibration=CalibrationConfig(samples_per_class=per_class))
    config.allocate.max_accuracy_drop, config.allocate.validation_images = 0.01, validation
    if 10 * images_of_a_class - 10 * per_class >= validation:
        check(config)
        return
    with pytest.raises(ExperimentError, match=r"`allocate\.validation_images` is .*`calibration\.sam") as caught:
        check(config)
    for word in caught.value.remedy.removeprefix(COMMAND).split():
        group, _, setting = word.partition("=")[0].partition(".")
        setattr(getattr(config, group), setting, int(word.partition("=")[2]))
    check(config)
    validate(config)
