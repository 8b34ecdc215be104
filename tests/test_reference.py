"""On full CIFAR-10: the bundled model and the MLPerf Tiny reference score what the documents say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DataConfig,
    DeployConfig,
    DType,
    ModelConfig,
    ModelKind,
    QuantConfig,
)
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.evaluator.accuracy import predict
from resnet8_quant.experiment import run_experiment
from resnet8_quant.files import sha256_file
from resnet8_quant.inputs.dataset import Dataset, load_dataset
from resnet8_quant.inputs.model import RESOURCES, FloatModel, load_model
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images
from resnet8_quant.quantizer.quantize import quantize

REFERENCE = os.environ.get("RESNET8_QUANT_REFERENCE_H5")
needs_reference = pytest.mark.skipif(
    not (REFERENCE and Path(REFERENCE).is_file()), reason="RESNET8_QUANT_REFERENCE_H5 names no pretrainedResnet.h5"
)


@pytest.fixture(scope="module")
def cifar10(real_cache) -> Dataset:
    return load_dataset(DataConfig(), real_cache)


def right(model: FloatModel, data: Dataset) -> int:
    predictions = predict(model.serialized, model.input_spec, data.test.images, batch_size=500, threads=0)
    return int(np.sum(predictions.labels == data.test.labels))


@pytest.mark.parametrize("kind", [ModelKind.resnet8, ModelKind.mobilenet])
def test_a_bundled_model_scores_what_its_card_says(kind: ModelKind, cifar10: Dataset, tmp_path: Path) -> None:
    record = json.loads((RESOURCES / f"{kind.name}.json").read_text(encoding="utf-8"))
    assert sha256_file(RESOURCES / record["file"]) == record["sha256"]
    model = load_model(ModelConfig(kind), (32, 32, 3), 10, tmp_path)
    # the last images of 10,000 may fall differently with another CPU's rounding
    assert abs(right(model, cifar10) - round(10_000 * record["test_accuracy"])) <= 3


@needs_reference
def test_the_reference_scores_exactly_8719(cifar10: Dataset, tmp_path: Path) -> None:
    model = load_model(ModelConfig(kind=ModelKind.mlperf_tiny, source=REFERENCE), (32, 32, 3), 10, tmp_path)
    assert right(model, cifar10) == 8719


@needs_reference
def test_int8_of_the_reference_is_the_classic_result(cifar10: Dataset, tmp_path: Path) -> None:
    config = Config(quant=QuantConfig(), model=ModelConfig(kind=ModelKind.mlperf_tiny, source=REFERENCE))
    config.latency.runs = 0
    result = run_experiment(config, tmp_path)
    assert result.float_accuracy == 0.8719
    assert result.accuracy is not None
    assert 0.864 <= result.accuracy <= 0.871


@pytest.mark.parametrize("name", ["int8", "u8s8"])
def test_a_deployed_model_answers_as_the_plain_one(cifar10: Dataset, tmp_path: Path, name: str) -> None:
    quants = {"int8": QuantConfig(), "u8s8": QuantConfig("u8s8", DType.uint8, DType.int8, True)}
    model = load_model(ModelConfig(), (32, 32, 3), 10, tmp_path)
    calibration = CalibrationConfig()
    chosen = choose_images(calibration, cifar10.train.labels, len(cifar10.test.labels), 42)
    images = CalibrationImages.of(cifar10.train.images, chosen, "train")
    plain = quantize(model, images, Config(quants[name], calibration)).serialized
    x86 = DeployConfig("x86", DType.uint8, avoid_saturation=True, pixel_blocking=True)
    deployed, input_spec = deploy(plain, x86, model.input_spec)
    predictions = [
        predict(one, input_spec, cifar10.test.images, batch_size=500, threads=0).labels for one in (plain, deployed)
    ]
    assert np.sum(predictions[0] != predictions[1]) <= (
        10 if name == "int8" else 0
    )  # plain int8 is half float: it may round
