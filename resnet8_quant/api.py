"""The public functions and what they return; ``import resnet8_quant as rq`` reaches them without loading this module.

In: a `Config`, images and labels. Out: models, accuracies and comparisons whose repr fits a terminal. Each function
validates the config that it is given and refuses what the command line refuses, in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_quant.config import Config
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.evaluator import accuracy, statistics
from resnet8_quant.evaluator.accuracy import Evaluation
from resnet8_quant.evaluator.statistics import Comparison
from resnet8_quant.files import cache_folder, replacing
from resnet8_quant.graphs.runtime import set_time_limit
from resnet8_quant.inputs.dataset import Dataset, Split
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.options import quant_name
from resnet8_quant.results import RunResult
from resnet8_quant.validation import check_validation_images, is_float, validate

if TYPE_CHECKING:
    from resnet8_quant.quantizer.calibration.images import CalibrationImages


@dataclass(frozen=True)
class Calibration:
    """Activation ranges.

    Attributes:
        ranges: {tensor: (lowest, highest)}.
        method: of calibration.
        images: how many images calibrated.
    """

    ranges: dict[str, tuple[float, float]] = field(repr=False)
    method: str
    images: int


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized, perhaps deployed, model.

    Attributes:
        name: of its quantization, as in the results.
        serialized: the ONNX file.
        input_spec: what it expects at its input.
        size: bytes of the file.
    """

    name: str
    serialized: bytes = field(repr=False)
    input_spec: InputSpec = field(repr=False)
    size: int

    def save(self, path: str | Path) -> Path:
        """Write the ONNX file; it appears whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(self.serialized)
        return Path(path)


def compose(*overrides: str, config_dir: str | Path | None = None) -> Config:
    """The config of a command line.

    Args:
        overrides: as typed after ``python run.py``: ``"quant=u8s8"``, ``"calibration.samples_per_class=10"``.
        config_dir: a folder with option files of one's own, as Hydra's ``--config-dir``.

    Raises:
        ExperimentError: what the command line refuses.
    """
    from resnet8_quant.sweep.compose import compose_config

    if config_dir is not None and not Path(config_dir).is_dir():
        raise ExperimentError(
            f"`config_dir` is {config_dir}, which is not a folder", "give one that holds quant/NAME.yaml"
        )
    config = compose_config(overrides, None if config_dir is None else Path(config_dir))
    validate(config)
    return config


def load_dataset(config: Config) -> Dataset:
    """Load ``config.data``, downloaded and verified if need be: ``.train`` and ``.test`` with images and labels.

    Raises:
        ExperimentError: the data cannot be found, fetched, decoded or verified.
    """
    from resnet8_quant.inputs import dataset

    _check(config)
    return dataset.load_dataset(config.data, cache_folder(config.cache_dir), config.model)


def load_model(config: Config) -> FloatModel:
    """Load the float model ``config.model`` with BatchNorm folded, checked against the data of ``config.data``.

    Raises:
        ExperimentError: no such file, not an ONNX or Keras model, or one that does not fit the data.
    """
    from resnet8_quant.inputs import model

    return model.load_model_for(load_dataset(config), config.model, cache_folder(config.cache_dir))


def calibrate(model: FloatModel, images: Split, config: Config) -> Calibration:
    """Estimate the ranges of activations; ``quantize`` does so itself.

    Args:
        model: from ``load_model``.
        images: ``data.train``; with ``calibration.sampling=mlperf_tiny`` ``data.test``.
        config: ``quant``, ``calibration``, ``evaluation`` and ``seed`` are read.

    Raises:
        ExperimentError: too few images, or NaN in an activation.
    """
    from resnet8_quant.quantizer.calibration.calibrate import calibrate

    chosen = _calibration_images(images, config)
    result = calibrate(model, chosen, config, cache=cache_folder(config.cache_dir))
    ranges = {name: (float(low), float(high)) for name, (low, high) in result.ranges.items()}
    return Calibration(ranges, config.calibration.method.name, len(chosen))


def quantize(model: FloatModel, images: Split, config: Config) -> QuantizedModel:
    """Calibrate, refine, quantize and, with ``deploy``, rewrite a model for its target.

    Args:
        model: from ``load_model``.
        images: as in ``calibrate``.
        config: ``quant``, ``calibration``, ``refine``, ``allocate``, ``deploy``, ``evaluation``, ``seed`` are read.

    Raises:
        ExperimentError: too few images, NaN in an activation, or nothing in the graph could be quantized.
    """
    from resnet8_quant.deploy.deploy import deploy, target_size
    from resnet8_quant.quantizer import quantize as quantizer
    from resnet8_quant.validation_split import accuracy_drop, training_images

    chosen = _calibration_images(images, config)
    result = quantizer.quantize(
        model,
        chosen,
        config,
        accuracy_drop=accuracy_drop(images, model, chosen, config),
        target_size=target_size(config, model.input_spec),
        training=training_images(images, chosen, config),
        cache=cache_folder(config.cache_dir),
    )
    serialized, input_spec = result.serialized, model.input_spec
    if config.deploy.activation_type is not None:
        serialized, input_spec = deploy(result.named, config.deploy, input_spec, small=config.quant.compact)
    return QuantizedModel(quant_name(config.quant), serialized, input_spec, len(serialized))


def evaluate(model: QuantizedModel | FloatModel, images: Split, config: Config | None = None) -> Evaluation:
    """Predict the class of each image in exact integer arithmetic.

    Args:
        model: quantized or float.
        images: ``data.test``.
        config: ``evaluation`` is read; None: its defaults.

    Raises:
        ExperimentError: the model cannot be run, or its output is NaN.
    """
    _check_images(images)
    if config is not None:
        _check(config)
    return accuracy.evaluate(model, images, None if config is None else config.evaluation)


def compare(result: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare a model with a baseline: is the difference real? ``print`` it for a sentence.

    Args:
        result: of the model.
        baseline: of the float model, for example, on the same images.

    Raises:
        ExperimentError: the images are not the same.
    """
    if not np.array_equal(result.labels, baseline.labels):
        raise ExperimentError(
            f"`baseline` was evaluated on {len(baseline.labels)} images, `result` on {len(result.labels)} others",
            "evaluate both on data.test",
        )
    return statistics.compare(result, baseline)


def run(config: Config, folder: str | Path) -> RunResult:
    """Run one experiment, as ``python run.py`` does: quantize, evaluate, compare, measure, and write the results.

    Args:
        config: of the run.
        folder: for results.csv, model.onnx and the other files.

    Returns:
        The row of results.csv.

    Raises:
        ExperimentError: anything that the user can fix.
    """
    from resnet8_quant.experiment import run_experiment
    from resnet8_quant.tracking import connect, track

    _check(config)
    connect(config.tracking)
    result = run_experiment(config, Path(folder))
    track(config, Path(folder), result)
    return result


def _check(config: Config) -> None:
    if not isinstance(config, Config):
        raise ExperimentError(
            f"`config` is a {type(config).__name__}; it takes a Config", 'config = resnet8_quant.compose("quant=int8")'
        )
    validate(config)
    set_time_limit(config.evaluation.timeout)


def _check_images(images: Split) -> None:
    if not isinstance(images, Split):
        raise ExperimentError(
            f"`images` is a {type(images).__name__}; it takes images with labels",
            "data.train or data.test of load_dataset, or resnet8_quant.Split(images, labels)",
        )


def _calibration_images(images: Split, config: Config) -> CalibrationImages:
    """The images that calibrate, as a run draws them."""
    from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images

    _check(config)
    _check_images(images)
    if is_float(config):
        raise ExperimentError("`quant` is float, which quantizes nothing", f"{COMMAND} quant=int8")
    total = len(images.labels)
    chosen = choose_images(config.calibration, images.labels, total, config.seed)
    check_validation_images(config, total - len(chosen), len(chosen), total, len(np.unique(images.labels)))
    return CalibrationImages.of(images.images, chosen)
