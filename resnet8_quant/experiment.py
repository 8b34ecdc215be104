"""One run: data, model, float baseline, calibration, quantization, deployment, comparison, latency, results.

In: a `Config` and an output folder. Out: a `RunResult`, and in the folder results.csv, per_class.csv, predictions.npy,
float_predictions.npy, model.onnx and run.json. Nothing here knows Hydra: a notebook calls
`run_experiment(Config(), Path("out"))`.
"""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from resnet8_quant.config import Analysis, Config, DType, ModelKind, Runtime, Sampling
from resnet8_quant.deploy.deploy import deploy, target_size
from resnet8_quant.deploy.memory import measure
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.evaluator.accuracy import Evaluation, evaluate
from resnet8_quant.evaluator.chance import explain_chance
from resnet8_quant.evaluator.kernels import check_runtime
from resnet8_quant.evaluator.sensitivity import Sensitivity, analyze
from resnet8_quant.evaluator.speed import measure_speed
from resnet8_quant.evaluator.statistics import compare
from resnet8_quant.files import cache_folder, claimed, sha256_bytes
from resnet8_quant.graphs.runtime import set_time_limit
from resnet8_quant.graphs.session import check_providers
from resnet8_quant.inputs.dataset import Dataset, Split, load_dataset
from resnet8_quant.inputs.model import FloatModel, is_quantized, load_model_for, refuse_quantized
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images, overlapping
from resnet8_quant.quantizer.plan import layer_bits
from resnet8_quant.record import FinalModel, FinishedRun, Prepared, failed_row, result_of, write_outputs
from resnet8_quant.results import RunResult
from resnet8_quant.validation import check_analyzed_images, check_validation_images, validate
from resnet8_quant.validation_split import accuracy_drop, draw_validation, training_images

if TYPE_CHECKING:
    from resnet8_quant.deploy.tflite.target import Target
    from resnet8_quant.quantizer.quantize import QuantizedModel

__all__ = ["Prepared", "failed_row", "prepare", "run_experiment"]

log = logging.getLogger(__name__)

ANALYZED = 1000  # training images that analyze=layers looks at
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def prepare(config: Config, *, quantizes: bool = True) -> Prepared:
    """Validate the config; load data and model; choose the calibration images.

    Args:
        quantizes: False: the run is finished, so that nothing is asked for that only its quantization needs.

    Raises:
        ExperimentError: the config, the data, the model or the number of calibration images.
    """
    validate(config)
    set_time_limit(config.evaluation.timeout)
    check_providers(config.evaluation.providers)
    if quantizes and config.refine.distill and find_spec("torch") is None:
        raise missing_extra("torch", "distill")
    cache = cache_folder(config.cache_dir)
    data = load_dataset(config.data, cache, config.model)
    model = load_model_for(data, config.model, cache)
    images = None
    if config.quant.activation_type is not DType.float32:
        if config.model.kind is ModelKind.onnx:
            refuse_quantized(model)
        if config.quant.layers:
            layer_bits(model.proto().graph, config.quant)  # refuses a name that matches no layer
        chosen = choose_images(config.calibration, data.train.labels, len(data.test.labels), config.seed)
        split = "test" if config.calibration.sampling is Sampling.mlperf_tiny else "train"
        calibrating, total = len(chosen) if split == "train" else 0, len(data.train.labels)
        classes = len(np.unique(data.train.labels))
        check_validation_images(config, total - calibrating, calibrating, total, classes)
        check_analyzed_images(config, total - calibrating, total, classes)
        images = CalibrationImages.of(getattr(data, split).images, chosen, f"{split} split of {data.digest}")
    return Prepared(data, model, images, cache)


def run_experiment(config: Config, folder: Path, overrides: str = "", prepared: Prepared | None = None) -> RunResult:
    """Run one experiment and write its results to ``folder``.

    Args:
        config: validated here.
        folder: for the outputs; two runs never share one.
        overrides: of the command line, for the record.
        prepared: of the same config, by ``prepare``; None: it is prepared here.

    Raises:
        ExperimentError: anything that the user can fix.
    """
    started = datetime.now(UTC)
    with claimed(folder):
        prepared = prepared or prepare(config)
        data, model = prepared.data, prepared.model
        test, overlap = _evaluation_images(config, data, prepared.images)
        evaluate_test = partial(evaluate, split=test, config=config.evaluation, class_names=_class_names(data, model))

        # The float predictions are the same in all jobs of a sweep, so they come from the cache after the first.
        digest = None if overlap else f"test split of {data.digest}"
        baseline = evaluate_test(model, cache=prepared.cache, images_digest=digest, description="evaluating float")
        log.info("float model: %.2f %% top-1 on %d images", 100 * baseline.accuracy, len(test.labels))
        _check_baseline(config, model, baseline, test)

        quantized = _quantize(config, prepared)
        final = _deploy(config, model, quantized)
        unchanged = final.serialized is model.serialized
        evaluation = dataclasses.replace(baseline, seconds=0.0)
        if not unchanged:
            evaluation = evaluate_test(final, description="evaluating quantized")

        target = _export(config, model, quantized, final, test)

        run = FinishedRun(
            config=config,
            overrides=overrides,
            started=started,
            prepared=prepared,
            overlap=overlap,
            quantized=quantized,
            final=final,
            baseline=baseline,
            evaluation=evaluation,
            comparison=compare(evaluation, baseline),
            runtime=check_runtime(final, test, evaluation, config.evaluation, config.latency.threads),
            speed=measure_speed(model, None if unchanged else final, test.images, config),
            memory=measure(model.proto()),
            target=target,
            sensitivity=analyze_layers(config, prepared, quantized.named)
            if quantized is not None and config.analyze is Analysis.layers
            else None,
        )
        result = result_of(run)
        write_outputs(folder, run, result)
    return result


def _check_baseline(config: Config, model: FloatModel, baseline: Evaluation, test: Split) -> None:
    """Stop before a float model that is no better than chance is quantized; a float run says so and goes on."""
    if config.evaluation.allow_chance:
        return
    error = explain_chance(model, baseline, test, config)
    if error is None:
        return
    if config.quant.activation_type is not DType.float32:
        raise error
    log.warning("%s. Try: %s", error.problem, error.remedy)


def _class_names(data: Dataset, model: FloatModel) -> tuple[str, ...]:
    """The names that the data has, CIFAR-10's among them, and for outputs without one their numbers."""
    classes, names = model.input_spec.classes, data.class_names
    if data.name in ("cifar10", "sample") and classes == len(CIFAR10_CLASSES):
        names = CIFAR10_CLASSES
    if data.name == "folder" and len(names) < classes:
        log.warning(
            "`data.path`: %d classes, and the model has %d outputs: are class folders missing? data.classes=[...] "
            "lists the classes in the order of the outputs",
            *(len(names), classes),
        )
    return (*names, *(str(label) for label in range(len(names), classes)))


def _evaluation_images(config: Config, data: Dataset, images: CalibrationImages | None) -> tuple[Split, int | None]:
    """The test split without images that calibration uses, and how many that left out."""
    if images is None:
        return data.test, None
    log.info("calibration: %d images (%s), seed %d", len(images), config.calibration.sampling.name, config.seed)
    seen = overlapping(images.images, images.chosen, data.test.images)
    learned = training_images(data.train, images, config, data.digest)
    if learned is not None and (both := overlapping(learned.images, learned.chosen, data.test.images)).any():
        raise ExperimentError(
            f"`data`: {both.sum()} of {len(both)} test images are also training images, which refine=distill uses",
            "remove them from the training images, or refine=best",
        )
    overlap = int(seen.sum())
    if overlap == 0:
        return data.test, 0
    if not config.calibration.allow_test_images:
        raise ExperimentError(
            f"`data`: {overlap} of {len(seen)} test images are also among the {len(images)} calibration images, which "
            "would make the accuracy look better than it is",
            "remove them from the training images, or leave them out of the evaluation: "
            "calibration.allow_test_images=true",
        )
    if overlap == len(seen):
        raise ExperimentError("`data`: every test image is used for calibration", "give other test images")
    log.warning("%d test images were used for calibration: the evaluation leaves them out", overlap)
    return Split(data.test.images[~seen], data.test.labels[~seen]), overlap


def _quantize(config: Config, prepared: Prepared) -> QuantizedModel | None:
    """Calibrate, quantize and refine; None where the config asks for no quantization."""
    if prepared.images is None:
        return None
    from resnet8_quant.quantizer.quantize import quantize

    return quantize(
        prepared.model,
        prepared.images,
        config,
        accuracy_drop=accuracy_drop(prepared.data.train, prepared.model, prepared.images, config),
        target_size=target_size(config, prepared.model.input_spec),
        training=training_images(prepared.data.train, prepared.images, config, prepared.data.digest),
        cache=prepared.cache,
    )


def analyze_layers(config: Config, prepared: Prepared, named: bytes, count: int = ANALYZED) -> Sensitivity:
    """Which layer hurts, on TRAIN images that do not calibrate and that no distillation learned from.

    Args:
        config: of the run.
        prepared: of the same config.
        named: the Q/DQ model with names.
        count: of images; all that are left where there are fewer.

    Raises:
        ExperimentError: the model is not one made of the run's float model.
    """
    from resnet8_quant.quantizer.refine.distill_images import split
    from resnet8_quant.quantizer.refine.equalize import equalize

    assert prepared.images is not None  # validate refuses an analysis of a float run
    model = equalize(prepared.model) if config.refine.equalize else prepared.model
    train, images = prepared.data.train, prepared.images
    if (training := training_images(train, images, config, prepared.data.digest)) is not None:
        _, validation = split(training, images, config)
        train = Split(train.images[validation], train.labels[validation])
    return analyze(
        model.proto(),
        onnx.load_from_string(named),
        model.input_spec,
        draw_validation(train, images, count, config.seed),
    )


def _export(
    config: Config, model: FloatModel, quantized: QuantizedModel | None, final: FinalModel, test: Split
) -> Target | None:
    """The model for a microcontroller or a phone, verified; None without deploy=tflite."""
    if config.deploy.runtime is not Runtime.tflite:
        return None
    from resnet8_quant.deploy.tflite.target import export

    named = quantized.named if quantized else model.serialized
    try:
        return export(named, config.deploy, model.input_spec, test.images, sha256_bytes(final.serialized))
    except ExperimentError as error:
        if quantized is None and is_quantized(model):  # by somebody else, so that no setting of ours would help
            remedy = "quantize the float model that it was made of with quant=tflite_int8 deploy=tflite"
            raise ExperimentError(error.problem, remedy) from error
        raise


def _deploy(config: Config, model: FloatModel, quantized: QuantizedModel | None) -> FinalModel:
    """Rewrite the model for its target; as it is where the config names none."""
    from resnet8_quant.graphs.quantization_summary import summarize

    serialized, input_spec = quantized.serialized if quantized else model.serialized, model.input_spec
    summary = quantized.summary if quantized else None
    if config.deploy.activation_type is not None:
        named = quantized.named if quantized else model.serialized
        serialized, input_spec = deploy(named, config.deploy, input_spec, small=config.quant.compact)
        summary = None  # of another graph now
    summary = summary or summarize(onnx.load_from_string(serialized))
    return FinalModel(serialized, input_spec, summary, (quantized.summary if quantized else summary).layers)
