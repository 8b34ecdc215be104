"""Accuracy on a validation split: TRAIN images that do not calibrate. Choices are made on it, never on the test images.

In: a dataset, a float model, the calibration images. Out: a function from a model to its loss of accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet8_quant.config import AllocateConfig, EvaluationConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.accuracy import predict
from resnet8_quant.inputs.dataset import Dataset
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages


def accuracy_drop(
    data: Dataset,
    model: FloatModel,
    images: CalibrationImages,
    config: AllocateConfig,
    evaluation: EvaluationConfig,
    seed: int,
) -> Callable[[bytes], float]:
    """Draw a validation split, and return the function from a serialized model to its accuracy drop there.

    The drop is float accuracy minus the model's, a ratio; negative where the model is better.

    Args:
        data: with the training images.
        model: the float model.
        images: those that calibrate; where they are training images, none of them validates.
        config: size of the validation split.
        evaluation: batch size and threads.
        seed: of the draw.

    Raises:
        ExperimentError: too few training images are left.
    """
    count = len(data.train.labels)
    used = images.chosen if images.images is data.train.images else np.empty(0, np.int64)
    free = np.setdiff1d(np.arange(count), used)
    if len(free) < config.validation_images:
        raise ExperimentError(
            f"`allocate.validation_images` is {config.validation_images}, but {len(used)} of {count} training images "
            "calibrate",
            f"allocate.validation_images={len(free)}" if len(free) else "a smaller calibration.samples_per_class",
        )
    # The second number keeps this draw apart from that of the calibration images, which has the same seed.
    chosen = np.sort(np.random.default_rng([seed, 1]).choice(free, config.validation_images, replace=False))
    validation, labels = data.train.images[chosen], data.train.labels[chosen]

    def accuracy(serialized: bytes) -> float:
        predictions = predict(
            serialized,
            model.input_spec,
            validation,
            batch_size=evaluation.batch_size,
            threads=evaluation.threads,
            providers=evaluation.providers,
            description="validation images",
        )
        return float(np.mean(predictions.labels == labels))

    float_accuracy = accuracy(model.serialized)
    return lambda serialized: float_accuracy - accuracy(serialized)
