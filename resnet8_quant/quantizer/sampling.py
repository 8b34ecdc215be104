"""Which training images calibrate: a stratified draw that depends on the seed alone.

In: labels, a number per class, a seed. Out: sorted indices, the same for every quant type and method.
"""

from __future__ import annotations

import numpy as np

from resnet8_quant.errors import ExperimentError


def draw_stratified(labels: np.ndarray, samples_per_class: int, seed: int) -> np.ndarray:
    """Draw ``samples_per_class`` images of each class without replacement.

    Args:
        labels: int64 [N] of the training images.
        samples_per_class: at least 1.
        seed: of a local Generator; nothing else is random.

    Returns:
        int64 [classes * samples_per_class], ascending.

    Raises:
        ExperimentError: a class has fewer images.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < samples_per_class:
            raise ExperimentError(
                f"`calibration.samples_per_class` is {samples_per_class}, but class {label} has only "
                f"{len(members)} training images",
                f"choose 1 to {len(members)}: calibration.samples_per_class={len(members)}",
            )
        chosen.append(rng.choice(members, samples_per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def overlapping(calibration: np.ndarray, test: np.ndarray) -> np.ndarray:
    """bool [len(test)]: which test images are, pixel for pixel, among the calibration images (both uint8 [N,H,W,C])."""
    used = {image.tobytes() for image in calibration}
    return np.fromiter((image.tobytes() in used for image in test), bool, len(test))
