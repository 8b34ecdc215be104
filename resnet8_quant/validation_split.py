"""Which TRAIN images decide beside those that calibrate: a validation split, and what distillation learns from.

In: the training images, a float model, the calibration images. Out: a function from a model to its loss of accuracy on
the split, and images without labels. Test images decide nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from resnet8_quant.config import Config
from resnet8_quant.evaluator.accuracy import evaluate
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.images import CalibrationImages


def training_images(
    train: Split, images: CalibrationImages, config: Config, digest: str | None = None
) -> CalibrationImages | None:
    """The images that ``refine.distill`` may learn from: all of ``train`` but the validation split of `accuracy_drop`.

    No label goes with them. None where the config does not distil. ``digest`` names the content of ``train`` where the
    caller knows it.
    """
    if not config.refine.distill:
        return None
    rows = np.arange(len(train.labels))
    if config.allocate.max_accuracy_drop is not None:
        rows = np.setdiff1d(rows, _validation_rows(train, images, config.allocate.validation_images, config.seed))
    return CalibrationImages.of(train.images, rows, digest)


def draw_validation(train: Split, images: CalibrationImages, count: int, seed: int) -> Split:
    """Training images that do not calibrate: ``count`` of them, or all where there are fewer."""
    chosen = _validation_rows(train, images, count, seed)
    return Split(train.images[chosen], train.labels[chosen])


def _validation_rows(train: Split, images: CalibrationImages, count: int, seed: int) -> np.ndarray:
    """Indices of the images of `draw_validation`, ascending."""
    used = images.chosen if images.images is train.images else np.empty(0, np.int64)
    free = np.setdiff1d(np.arange(len(train.labels)), used)
    # The second number keeps this draw apart from that of the calibration images, which has the same seed.
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.choice(free, min(count, len(free)), replace=False))


def accuracy_drop(
    train: Split, model: FloatModel, images: CalibrationImages, config: Config
) -> Callable[[bytes], float] | None:
    """Draw a validation split, and return the function from a serialized model to its accuracy drop there.

    The drop is float accuracy minus the model's, a ratio; negative where the model is better.

    Args:
        train: the training images.
        model: the float model.
        images: those that calibrate; where they are training images, none of them validates.
        config: ``allocate``, ``evaluation`` and ``seed`` are read.

    Returns:
        None where ``allocate.max_accuracy_drop`` is not set. ``validation.check_validation_images`` has seen to it that
        enough training images are left.
    """
    if config.allocate.max_accuracy_drop is None:
        return None
    validation = draw_validation(train, images, config.allocate.validation_images, config.seed)

    def accuracy(serialized: bytes) -> float:
        candidate = dataclasses.replace(model, serialized=serialized)
        return evaluate(candidate, validation, config.evaluation, description="validation images").accuracy

    float_accuracy = accuracy(model.serialized)
    return lambda serialized: float_accuracy - accuracy(serialized)
