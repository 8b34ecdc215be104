"""What a classifier expects at its input, and how images are brought to it.

In: uint8 NHWC images. Out: arrays in the layout, type and range that the model expects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import Layout


@dataclass(frozen=True)
class InputSpec:
    """What a classifier expects at its input.

    Attributes:
        name: of the graph's input.
        layout: NHWC or NCHW, never auto.
        shape: height, width, channels.
        batch: the fixed batch size; None where it is free.
        classes: width of the output.
        mean: per channel, in pixel units 0..255; None: nothing is subtracted.
        std: per channel, in pixel units; None: nothing is divided.
        raw: the input is the images' bytes, uint8; mean and std, where set, are part of the graph.
    """

    name: str
    layout: Layout
    shape: tuple[int, int, int]
    batch: int | None
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    raw: bool = False

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N,H,W,C] -> float32, (image - mean) / std where these are set, or uint8; in the model's layout."""
        x = images
        if not self.raw:
            x = images.astype(np.float32)
            if self.mean is not None:
                x -= np.asarray(self.mean, np.float32)
            if self.std is not None:
                x /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if self.layout is Layout.NCHW else x
