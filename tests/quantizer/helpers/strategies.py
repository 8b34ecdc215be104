"""Hypothesis strategies that the tests share, and the settings of every property: deterministic, without a deadline."""

from hypothesis import settings
from hypothesis import strategies as st

from resnet8_quant.config import DType
from resnet8_quant.quantizer.quant_params import QuantScheme

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40, database=None)

TYPES = st.sampled_from([DType.int8, DType.uint8])
ACTIVATION_SCHEMES = st.builds(QuantScheme.of_activation, TYPES, st.booleans(), st.integers(2, 8))
# onnxruntime makes no symmetric unsigned weights
WEIGHT_SCHEMES = st.one_of(
    st.builds(QuantScheme.of_weight, st.just(DType.int8), st.booleans(), st.integers(2, 8)),
    st.builds(QuantScheme.of_weight, st.just(DType.uint8), st.just(False), st.integers(2, 8)),
)
SEEDS = st.integers(0, 10_000)
