"""What cannot be deployed is refused before any work, by field, value, choices and a command that works."""

import pytest

from resnet8_quant.checks import check
from resnet8_quant.config import (
    Config,
    DeployConfig,
    DeployInput,
    DeployOutput,
    DType,
    Format,
    ModelConfig,
    ModelKind,
    QuantConfig,
)
from resnet8_quant.errors import ExperimentError

X86 = {"name": "x86", "activation_type": DType.uint8}
FLOAT = QuantConfig("float", DType.float32, DType.float32)


def refused(problem, remedy, deploy, quant=None):
    """Check that a config is refused with these words."""
    with pytest.raises(ExperimentError) as caught:
        check(Config(quant=quant or QuantConfig(), deploy=DeployConfig(**deploy)))
    for word in problem:
        assert word in caught.value.problem
    assert caught.value.remedy.startswith("python run.py ")
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("kind", [DType.uint8, DType.int8])
@pytest.mark.parametrize("quantized", [DType.uint8, DType.int8])
def test_8_bits_to_8_bits(kind, quantized):
    quant = QuantConfig(activation_type=quantized)
    for options in ({}, {"pixel_blocking": True, "gemm_convolutions": True}):
        check(Config(quant=quant, deploy=DeployConfig("target", kind, **options)))


@pytest.mark.parametrize("wanted", DeployOutput)
@pytest.mark.parametrize("taken", DeployInput)
def test_ends_of_a_deployed_model(taken, wanted):
    check(Config(deploy=DeployConfig(**X86, input=taken, output=wanted)))


def test_a_float_model_may_hold_pairs_already():
    """One's own: whether it does is seen when it is deployed. The others are known not to."""
    own = ModelConfig(kind=ModelKind.onnx, path="q.onnx")
    check(Config(quant=FLOAT, deploy=DeployConfig(**X86), model=own))
    with pytest.raises(ExperimentError, match="no QuantizeLinear with quant=float"):
        check(Config(quant=FLOAT, deploy=DeployConfig(**X86)))


@pytest.mark.parametrize("quant", [QuantConfig(), FLOAT])
@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("input", DeployInput.uint8, "uint8"),
        ("output", DeployOutput.logits, "logits"),
        ("output", DeployOutput.probabilities, "probabilities"),
        ("output", DeployOutput.label, "label"),
        ("pixel_blocking", True, "true"),
        ("gemm_convolutions", True, "true"),
    ],
)
def test_a_field_that_nothing_reads(field, value, word, quant):
    words = (f"`deploy.{field}` is {word}", "deploy=none rewrites nothing")
    refused(words, f"deploy=x86 deploy.{field}={word}", {field: value}, quant)
    check(Config(deploy=DeployConfig(**X86 | {field: value})))


@pytest.mark.parametrize("kind", sorted(set(DType) - {DType.uint8, DType.int8}, key=lambda k: k.name))
def test_activations_that_no_kernel_takes(kind):
    words = (f"`deploy.activation_type` is {kind.name}", "valid are uint8, int8")
    refused(words, "deploy=x86", X86 | {"activation_type": kind})


@pytest.mark.parametrize("kind", [DType.int16, DType.uint16])
def test_activations_of_16_bits(kind):
    words = (f"`quant.activation_type` is {kind.name}", "deploy=x86", "8-bit activations, uint8 or int8")
    refused(words, "quant=u8s8 deploy=x86", X86, QuantConfig(activation_type=kind))


def test_integer_operators():
    words = ("`quant.format` is QOperator", "deploy=x86", "Q/DQ")
    refused(words, "quant.format=QDQ deploy=x86", X86, QuantConfig(format=Format.QOperator))
    check(Config(quant=QuantConfig(format=Format.QOperator)))
