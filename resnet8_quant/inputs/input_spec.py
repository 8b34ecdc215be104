"""What a classifier expects at its input, and how images are brought to it.

In: uint8 NHWC images. Out: arrays in the layout, type and range that the model expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet8_quant.config import Layout
from resnet8_quant.errors import ExperimentError

# How images usually enter a network: (what one calls it, mean, std), in pixel units; one value serves each channel.
CONVENTIONS: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("0 to 255", (0.0,), (1.0,)),
    ("0 to 1", (0.0,), (255.0,)),
    ("-1 to 1", (127.5,), (127.5,)),
    ("ImageNet's mean and std", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ("ImageNet's mean", (123.68, 116.779, 103.939), (1.0,)),
    ("CIFAR-10's mean and std", (125.307, 122.961, 113.8575), (62.9932, 62.0887, 66.7048)),
    ("MNIST's mean and std", (33.3285,), (78.5655,)),
)


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


def conventions(channels: int) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """Those of `CONVENTIONS` that images of so many channels can have, with a value for each channel."""
    return [
        (name, mean * (channels // len(mean)), std * (channels // len(std)))
        for name, mean, std in CONVENTIONS
        if {len(mean), len(std)} <= {1, channels}
    ]


def check_channels(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Refuse a mean or a std without one value for each channel."""
    for field, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and len(numbers) != channels:
            raise ExperimentError(
                f"`model.{field}` has {len(numbers)} values, the images have {channels} channels",
                f"give one value per channel in pixel units, for example "
                f"'model.{field}=[{','.join(['127.5'] * channels)}]'",
            )


def override(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """The words of the command line that set ``model.mean`` and ``model.std``."""
    shown = [None if values is None or not any(values) else values for values in (mean, std)]
    texts = ("null" if values is None else f"[{','.join(f'{value:g}' for value in values)}]" for values in shown)
    return "model.mean={} model.std={}".format(*texts)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as messages write it: ``[4, 8, 6, 3]``."""
    return f"[{', '.join(map(str, shape))}]"
