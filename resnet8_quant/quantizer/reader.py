"""Calibration images as onnxruntime's quantizer reads them.

In: uint8 images and the model's input contract. Out: feeds of equal batches.
"""

from __future__ import annotations

import numpy as np
from onnxruntime.quantization import CalibrationDataReader

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.contract import InputContract

LARGEST_BATCH = 50  # images; keeps the activations of ResNet8 near 50 MB


class ImageReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds ``images`` in equal batches; read once, then `rewind`.

    Attributes:
        batch: images in each feed; divides the number of images evenly.
    """

    def __init__(self, images: np.ndarray, contract: InputContract) -> None:
        """Args: images: uint8 [N,H,W,C]; contract: of the model that is fed."""
        self.images = images
        self.contract = contract
        self.batch = contract.batch or even_batch(len(images))
        if len(images) % self.batch:
            raise ExperimentError(
                f"`calibration.samples_per_class` gives {len(images)} images, which do not fill the model's fixed "
                f"batches of {self.batch}",
                f"choose a number that makes a multiple of {self.batch}: calibration.samples_per_class={self.batch}",
            )
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed {input name: float32 batch}, or None at the end."""
        if self._next >= len(self.images):
            return None
        images = self.images[self._next : self._next + self.batch]
        self._next += self.batch
        return {self.contract.name: self.contract.prepare(images)}

    def rewind(self) -> None:
        """Start again from the first image."""
        self._next = 0

    def __len__(self) -> int:
        return len(self.images) // self.batch


def even_batch(count: int) -> int:
    """The largest batch size up to ``LARGEST_BATCH`` that divides ``count`` evenly."""
    return next(size for size in range(min(count, LARGEST_BATCH), 0, -1) if count % size == 0)
