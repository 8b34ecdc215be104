"""The calibration images: a choice out of the training set that is never copied as a whole.

In: uint8 images and indices. Out: batches of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.files import forget_pages, sha256_bytes


@dataclass(frozen=True)
class CalibrationImages:
    """Images that calibrate.

    Attributes:
        images: uint8 [N,H,W,C], for example all training images.
        chosen: int64 [n], indices of those that calibrate.
        digest: names their pixels, in their order.
    """

    images: np.ndarray
    chosen: np.ndarray
    digest: str

    @classmethod
    def of(cls, images: np.ndarray, chosen: np.ndarray | None = None, digest: str | None = None) -> CalibrationImages:
        """All of ``images``, or the ``chosen`` ones.

        Args:
            images: uint8 [N,H,W,C].
            chosen: int64 [n]; None: all.
            digest: names the content of ``images`` where the caller knows it; None: they are hashed.
        """
        chosen = np.arange(len(images)) if chosen is None else np.asarray(chosen, np.int64)
        content = digest or sha256_bytes(np.ascontiguousarray(images).reshape(-1).data)
        return cls(images, chosen, sha256_bytes(content.encode(), chosen.astype("<i8").tobytes()))

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, start: int, size: int) -> np.ndarray:
        """uint8 [size,H,W,C] from ``start``; the last batch is filled up with its last image."""
        indices = self.chosen[start : start + size]
        found = np.asarray(self.images[np.pad(indices, (0, size - len(indices)), mode="edge")])
        forget_pages(self.images)
        return found
