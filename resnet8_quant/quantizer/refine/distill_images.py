"""Which training images a distillation learns from, and which it holds out; without PyTorch, so that others may ask."""

from __future__ import annotations

import numpy as np

from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.calibration.images import CalibrationImages


def split(training: CalibrationImages, calibrating: CalibrationImages, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to learn from and of the held-out ones.

    The calibration images are the first to learn from; the held-out ones never calibrated.
    """
    refine, same = config.refine, training.images is calibrating.images
    used = np.intersect1d(calibrating.chosen, training.chosen) if same else np.empty(0, np.int64)
    # The number keeps this draw apart from others of the same seed.
    free = np.random.default_rng([config.seed, 2]).permutation(np.setdiff1d(training.chosen, used))
    validation, others = free[: refine.validation_images], free[refine.validation_images :]
    rows = np.concatenate([used, others])[: refine.distill_images]
    if len(validation) < refine.validation_images or not len(rows):
        remedy = f"refine.validation_images={len(free) // 2}"
        if len(free) < 4:  # calibrate on half of the images, hold out a quarter
            calibrating_each = max(1, config.calibration.samples_per_class // 2)
            remedy = f"calibration.samples_per_class={calibrating_each} refine.validation_images={len(training) // 4}"
        raise ExperimentError(
            f"`refine.validation_images` is {refine.validation_images}, but of {len(training)} training images "
            f"{len(used)} calibrate, which leaves {len(free)} to hold out and to learn from",
            remedy if len(training) > 3 else "refine=best",
        )
    return np.sort(rows), np.sort(validation)
