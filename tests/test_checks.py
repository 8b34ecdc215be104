"""What no run can do is refused by a sentence that names field, value and remedy; what can be done is not."""

from dataclasses import replace

import pytest

from resnet8_quant.checks import HISTOGRAM_OPTIONAL, LEGAL, PARAMETERS, check
from resnet8_quant.config import CalibrationConfig, Config, DType, Format, Method, QuantConfig, Sampling
from resnet8_quant.errors import ExperimentError

GOOD = {
    Method.minmax: CalibrationConfig(),
    Method.moving_average: CalibrationConfig(Method.moving_average, averaging_constant=0.01),
    Method.percentile: CalibrationConfig(Method.percentile, percentile=99.9),
    Method.entropy: CalibrationConfig(Method.entropy),
    Method.mse: CalibrationConfig(Method.mse),
    Method.lp: CalibrationConfig(Method.lp, norm=2.4),
}


def refused(problem, remedy, quant=None, **calibration):
    """Check that a config is refused with these words."""
    config = Config(quant=quant or QuantConfig(), calibration=replace(GOOD[calibration.pop("of")], **calibration))
    with pytest.raises(ExperimentError) as caught:
        check(config)
    for word in problem:
        assert word in caught.value.problem
    assert remedy in caught.value.remedy
    # a float model is not calibrated
    check(replace(config, quant=QuantConfig(activation_type=DType.float32, weight_type=DType.float32)))


@pytest.mark.parametrize("method", Method)
def test_the_plain_methods_pass(method):
    check(Config(calibration=GOOD[method]))
    assert PARAMETERS.keys() == set(Method)


@pytest.mark.parametrize(
    ("method", "field", "value", "valid"),
    [
        (Method.percentile, "percentile", 0.0, "50 to 100"),
        (Method.percentile, "percentile", 49.9, "50 to 100"),
        (Method.percentile, "percentile", 101.0, "50 to 100"),
        (Method.percentile, "percentile", float("nan"), "50 to 100"),
        (Method.lp, "norm", 0.0, "0.5 to 10"),
        (Method.lp, "norm", 10.5, "0.5 to 10"),
        (Method.lp, "norm", float("inf"), "0.5 to 10"),
        (Method.moving_average, "averaging_constant", 0.0, "1e-06 to 1"),
        (Method.moving_average, "averaging_constant", -0.1, "1e-06 to 1"),
        (Method.moving_average, "averaging_constant", 1.5, "1e-06 to 1"),
        *((method, "bins", bins, "128 to 131072") for method in Method for bins in (0, 64, 127, 131073)),
        *((method, "bins", None, "128 to 131072") for method in Method if method not in HISTOGRAM_OPTIONAL),
    ],
)
def test_a_parameter_out_of_range(method, field, value, valid):
    words = (f"`calibration.{field}` is {value}", f"valid are {valid}")
    refused(words, f"calibration={method.name}", of=method, **{field: value})


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        (Method.percentile, "percentile", 50.0),
        (Method.percentile, "percentile", 100.0),
        (Method.lp, "norm", 0.5),
        (Method.lp, "norm", 10.0),
        (Method.moving_average, "averaging_constant", 1.0),
        (Method.percentile, "percentile", None),
        (Method.lp, "norm", None),
        (Method.moving_average, "averaging_constant", None),
        (Method.minmax, "bins", None),
        (Method.moving_average, "bins", None),
        (Method.mse, "bins", 128),
        (Method.mse, "bins", 1 << 17),
    ],
)
def test_the_limits_themselves_and_the_default_are_valid(method, field, value):
    check(Config(calibration=replace(GOOD[method], **{field: value})))


@pytest.mark.parametrize(
    ("method", "field", "user"),
    [
        (Method.minmax, "percentile", "calibration=percentile"),
        (Method.mse, "norm", "calibration=lp"),
        (Method.entropy, "averaging_constant", "calibration=moving_average"),
    ],
)
def test_a_parameter_that_the_method_does_not_read(method, field, user):
    words = (f"`calibration.{field}` is 1.0", f"calibration={method.name} does not read it")
    refused(words, user, of=method, **{field: 1.0})


@pytest.mark.parametrize(
    ("kind", "bins", "enough"),
    [
        (DType.int8, 256, 512),
        (DType.uint8, 511, 512),
        (DType.int16, 2048, 131072),
        (DType.uint16, 65536, 131072),
    ],
)
def test_entropy_wants_more_bins_than_levels(kind, bins, enough):
    quant = QuantConfig(activation_type=kind)
    words = (f"`calibration.bins` is {bins}", f"{2**kind.bits} levels of {kind.name}")
    refused(words, "calibration.bins=", quant, of=Method.entropy, bins=bins)
    check(Config(quant=quant, calibration=replace(GOOD[Method.entropy], bins=enough)))
    check(Config(quant=quant, calibration=replace(GOOD[Method.mse], bins=bins)))  # the others need no more


@pytest.mark.parametrize("kind", [DType.int8, DType.int16])
def test_the_remedy_for_too_few_bins_is_one(kind):
    config = Config(quant=QuantConfig(activation_type=kind), calibration=replace(GOOD[Method.entropy], bins=128))
    with pytest.raises(ExperimentError) as caught:
        check(config)
    config.calibration.bins = int(caught.value.remedy.rpartition("=")[2])
    check(config)


def test_a_list_of_test_images_must_be_wanted():
    listed = {"of": Method.minmax, "sampling": Sampling.mlperf_tiny}
    refused(
        ("`calibration.sampling` is mlperf_tiny", "TEST images", "calibration.allow_test_images is false"),
        "calibration.allow_test_images=true",
        indices=[1, 2],
        **listed,
    )
    refused(("`calibration.sampling` is mlperf_tiny", "neither is set"), "calibration.index_file=", **listed)
    refused(
        ("`calibration.sampling` is mlperf_tiny", "both are set"),
        "calibration.index_file=",
        indices=[1],
        index_file="list.npy",
        **listed,
    )
    for given in ({"indices": [1]}, {"index_file": "list.npy"}):
        check(Config(calibration=CalibrationConfig(sampling=Sampling.mlperf_tiny, allow_test_images=True, **given)))


@pytest.mark.parametrize("sampling", [Sampling.stratified, Sampling.first])
@pytest.mark.parametrize(("field", "value"), [("indices", [1]), ("index_file", "list.npy")])
def test_a_list_that_is_not_read(sampling, field, value):
    words = (f"`calibration.{field}` is set", f"calibration.sampling={sampling.name} does not read it")
    refused(words, "calibration.sampling=mlperf_tiny", of=Method.minmax, sampling=sampling, **{field: value})


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("activation", DType)
@pytest.mark.parametrize("weight", DType)
def test_types_are_legal_as_the_table_says(form, activation, weight):
    config = Config(quant=QuantConfig(activation_type=activation, weight_type=weight, format=form))
    if weight in LEGAL[form].get(activation, ()):
        check(config)
    else:
        with pytest.raises(ExperimentError, match=f"is {activation.name}/{weight.name} with .* {form.name}: "):
            check(config)
