"""One run, the whole story: data, model, float baseline, calibration, quantization, comparison, latency, results.

In: a `Config` and an output folder. Out: a `RunResult`, and in the folder results.csv, per_class.csv, predictions.npy,
float_predictions.npy, model.onnx and run.json. Nothing here knows Hydra: a notebook calls
`run_experiment(Config(), Path("out"))`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from resnet8_quant import __version__, results
from resnet8_quant.checks import check
from resnet8_quant.config import Config, DType, ModelKind, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.accuracy import Predictions, cached_predictions, predict
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.evaluator.latency import BenchmarkModel
from resnet8_quant.evaluator.speed import speed_columns
from resnet8_quant.evaluator.statistics import Comparison, compare
from resnet8_quant.files import cache_folder, claimed, sha256_bytes
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.graphs.session import check_providers, differs_by_default
from resnet8_quant.inputs.dataset import Dataset, Split, load_dataset
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import FloatModel, load_model, refuse_quantized
from resnet8_quant.low_bit import refine_word
from resnet8_quant.machine import cpu_description, peak_rss_mb, runtime_version
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images, overlapping
from resnet8_quant.quantizer.plan import layer_bits
from resnet8_quant.record import calibration_columns, contents_columns, write_outputs
from resnet8_quant.results import RunResult
from resnet8_quant.validation_split import accuracy_drop

if TYPE_CHECKING:
    from resnet8_quant.quantizer.quantize import QuantizedModel

log = logging.getLogger(__name__)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Prepared:
    """What a run starts from: dataset, float model, calibration images (None: no calibration), cache folder."""

    data: Dataset
    model: FloatModel
    images: CalibrationImages | None
    cache: Path


def prepare(config: Config) -> Prepared:
    """Everything that can be refused before the work begins; a sweep tries it before its first job.

    Raises:
        ExperimentError: the config, the data, the model or the number of calibration images.
    """
    check(config)
    check_providers(config.evaluation.providers)
    cache = cache_folder(config.cache_dir)
    data = load_dataset(config.data, cache)
    height, width, channels = data.test.images.shape[1:]
    model = load_model(config.model, (height, width, channels), data.classes, cache)
    images = None
    if config.quant.activation_type is not DType.float32:
        if config.model.kind is ModelKind.onnx:
            refuse_quantized(model)
        if config.quant.layers:
            layer_bits(model.proto().graph, config.quant)  # a name that matches no layer
        chosen = choose_images(config.calibration, data.train.labels, len(data.test.labels), config.seed)
        split = "test" if config.calibration.sampling is Sampling.mlperf_tiny else "train"
        images = CalibrationImages.of(getattr(data, split).images, chosen, f"{split} split of {data.digest}")
    return Prepared(data, model, images, cache)


def run_experiment(config: Config, folder: Path, overrides: str = "", prepared: Prepared | None = None) -> RunResult:
    """Run one experiment and write its results to ``folder``.

    Args:
        config: of the run; checked here.
        folder: for the outputs; two runs never share one.
        overrides: the command line's words, for the record.
        prepared: of the same config, by ``prepare``; None: it is prepared here.

    Raises:
        ExperimentError: anything that the user can fix.
    """
    started = datetime.now(UTC)
    with claimed(folder):
        prepared = prepared or prepare(config)
        data, model = prepared.data, prepared.model
        test, overlap = _evaluation_images(config, data, prepared.images)
        evaluation = config.evaluation
        evaluate = partial(
            predict,
            batch_size=evaluation.batch_size,
            threads=evaluation.threads,
            providers=evaluation.providers,
        )
        float_predictions, float_seconds = cached_predictions(
            model.serialized,
            model.input_spec,
            test.images,
            batch_size=evaluation.batch_size,
            threads=evaluation.threads,
            providers=evaluation.providers,
            cache=prepared.cache,
            images_digest=None if overlap else f"test split of {data.digest}",
            description="evaluating float",
        )
        float_accuracy = np.mean(float_predictions.labels == test.labels)
        log.info("float model: %.2f %% top-1 on %d images", 100 * float_accuracy, len(test.labels))

        made = _made(config, prepared)
        clock = time.perf_counter()
        predictions = float_predictions
        if made.serialized is not model.serialized:
            predictions = evaluate(made.serialized, made.input_spec, test.images, description="evaluating quantized")
        evaluation_seconds = time.perf_counter() - clock
        layers = saturating_layers(made.serialized)
        default_columns = _default_session(evaluate, made, test, predictions) if layers else {}
        comparison = compare(
            predictions, float_predictions, test.labels, model.input_spec.classes, _class_names(data, model)
        )
        kernels = kernel_report(made.serialized, config.latency.threads, evaluation.providers)
        speed = speed_columns(
            BenchmarkModel(model.serialized, model.input_spec),
            None if made.serialized is model.serialized else BenchmarkModel(made.serialized, made.input_spec),
            test.images,
            config.latency,
            evaluation.providers,
            config.seed,
        )

        result = RunResult(
            **made.columns,
            **{name: getattr(comparison, name) for name in _shared_fields(Comparison)},
            **speed,
            **default_columns,
            portable=not layers,
            quant_type=config.quant.name,
            refine=refine_word(config.refine),
            deploy=config.deploy.name,
            deploy_input=config.deploy.input.name,
            deploy_output=config.deploy.output.name,
            model=model.name,
            data=data.name,
            seed=config.seed,
            calibration_overlap=overlap,
            eval_images=len(test.labels),
            classes=model.input_spec.classes,
            model_bytes=len(made.serialized),
            float_model_bytes=len(model.serialized),
            kernels=kernels.kernels,
            conv_gemm_integer=kernels.integer,
            conv_gemm_total=kernels.total,
            provider="+".join(name.removesuffix("ExecutionProvider") for name in evaluation.providers),
            evaluation_seconds=round(evaluation_seconds, 4),
            float_evaluation_seconds=round(float_seconds, 4),
            peak_rss_mb=peak_rss_mb(),
            model_sha256=sha256_bytes(made.serialized),
            float_model_sha256=model.digest,
            data_sha256=data.digest,
            onnxruntime_version=runtime_version(),
            package_version=__version__,
            cpu=cpu_description(),
            overrides=overrides or None,
            started_utc=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        answers = {"predictions": predictions, "float_predictions": float_predictions}
        per_class, file = comparison.per_class, made.serialized
        details = made.details | {"saturating_layers": list(layers)}
        write_outputs(folder, config, result, per_class, answers, file, kernels, made.quantized, details)
    return result


def failed_row(config: Config, error: Exception, overrides: str) -> RunResult:
    """The row of a job that could not run: what was asked for, and why not."""
    problem = error.problem if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
    return RunResult(
        status="failed",
        error=" ".join(problem.split()),
        quant_type=config.quant.name,
        calibration_method=config.calibration.method.name,
        samples_per_class=config.calibration.samples_per_class,
        refine=refine_word(config.refine),
        deploy=config.deploy.name,
        deploy_input=config.deploy.input.name,
        deploy_output=config.deploy.output.name,
        model=config.model.kind.name,
        data=config.data.kind.name,
        seed=config.seed,
        onnxruntime_version=runtime_version(),
        package_version=__version__,
        cpu=cpu_description(),
        overrides=overrides or None,
        started_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _evaluation_images(config: Config, data: Dataset, images: CalibrationImages | None) -> tuple[Split, int | None]:
    """The test split without images that calibration uses, and how many that left out."""
    if images is None:
        return data.test, None
    log.info("calibration: %d images (%s), seed %d", len(images), config.calibration.sampling.name, config.seed)
    seen = overlapping(images.images, images.chosen, data.test.images)
    overlap = int(seen.sum())
    if overlap == 0:
        return data.test, 0
    if not config.calibration.allow_test_images:
        raise ExperimentError(
            f"`data`: {overlap} of {len(seen)} test images are also among the {len(images)} calibration images, which "
            "would make the accuracy look better than it is",
            "remove them from x_train, or leave them out of the evaluation: calibration.allow_test_images=true",
        )
    if overlap == len(seen):
        raise ExperimentError("`data`: every test image is used for calibration", "give other test images")
    log.warning("%d test images were used for calibration: the evaluation leaves them out", overlap)
    return Split(data.test.images[~seen], data.test.labels[~seen]), overlap


def _default_session(
    evaluate: Callable[..., Predictions], made: _Made, test: Split, predictions: Predictions
) -> dict[str, Any]:
    """What a session with ONNX Runtime's default options makes of a model on this CPU; empty if it is the exact one.

    Args:
        evaluate: ``predict`` with the settings of the run.
        made: the model.
        test: what it is evaluated on.
        predictions: of the exact session.
    """
    if not differs_by_default(made.serialized):
        return {}
    description = "evaluating in the default session"
    default = evaluate(made.serialized, made.input_spec, test.images, exact=False, description=description)
    return {
        "default_session_accuracy": float(np.mean(default.labels == test.labels)),
        "default_session_changed": int(np.sum(default.labels != predictions.labels)),
    }


@dataclass(frozen=True)
class _Made:
    """The model that is judged, how it is fed, and what the row and run.json say of how it came about."""

    serialized: bytes
    input_spec: InputSpec
    columns: dict[str, Any]
    details: dict[str, Any]
    quantized: QuantizedModel | None


def _made(config: Config, prepared: Prepared) -> _Made:
    """Quantize and deploy, as far as the config asks for it."""
    from resnet8_quant.graphs.quantization_summary import summarize

    model, images, quantized = prepared.model, prepared.images, None
    columns: dict[str, Any] = {}
    details: dict[str, Any] = {}
    serialized, named = model.serialized, model.serialized
    if images is not None:
        from resnet8_quant.quantizer.quantize import quantize

        drop = _drop(config, prepared, images)
        quantized = quantize(model, images, config, accuracy_drop=drop, cache=prepared.cache)
        serialized, named = quantized.serialized, quantized.named
        details["calibration_indices_sha256"] = sha256_bytes(images.chosen.astype("<i8").tobytes())
        columns = calibration_columns(config, quantized, len(images))
    input_spec = model.input_spec
    if config.deploy.activation_type is not None:
        from resnet8_quant.deploy.deploy import deploy

        serialized, input_spec = deploy(named, config.deploy, input_spec, small=config.quant.compact)
        if len(serialized) > (config.allocate.budget_bytes or len(serialized)):
            log.warning("the deployed file has %d bytes, more than allocate.budget_bytes", len(serialized))
    if quantized is not None and serialized is quantized.serialized:
        contents = quantized.contents
    else:
        contents = summarize(onnx.load_from_string(serialized))
    layers = (quantized.contents if quantized else contents).layers
    columns |= contents_columns(contents, layers)
    details |= {"operators": contents.operators, "layers": [dataclasses.asdict(layer) for layer in layers]}
    return _Made(serialized, input_spec, columns, details, quantized)


def _drop(config: Config, prepared: Prepared, images: CalibrationImages) -> Callable[[bytes], float] | None:
    """What allocate=accuracy measures by, if it is asked for."""
    if config.allocate.max_accuracy_drop is None:
        return None
    return accuracy_drop(prepared.data, prepared.model, images, config.allocate, config.evaluation, config.seed)


def _class_names(data: Dataset, model: FloatModel) -> tuple[str, ...]:
    if data.name in ("cifar10", "sample") and model.input_spec.classes == len(CIFAR10_CLASSES):
        return CIFAR10_CLASSES
    return tuple(str(label) for label in range(model.input_spec.classes))


def _shared_fields(kind: type) -> list[str]:
    """Fields that a dataclass shares with the row."""
    return [field.name for field in dataclasses.fields(kind) if field.name in results.COLUMNS]
