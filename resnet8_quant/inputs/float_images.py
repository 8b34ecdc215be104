"""Float images, as notebooks keep them, back to the pixels that they were made of.

In: float arrays [N,H,W,C], and mean and std of the model. Out: uint8 arrays, from which the model's own normalization
makes the same floats again. All that comes later reads uint8: calibration, deployment to bytes, thumbnails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.files import forget_pages
from resnet8_quant.inputs.input_spec import check_channels, conventions, override, shape_text

log = logging.getLogger(__name__)

PART = 16 << 20  # bytes of floats that are looked at at a time
WHOLE = 0.1  # of a pixel: how far from a whole number float16 may bring it
SLACK = 0.5  # of a pixel below 0 or above 255
SPAN = 200  # pixel values that images span which are no whole numbers, to be believed
SAVE = "save the images' pixels as uint8 [N, H, W, C]"


@dataclass(frozen=True)
class _Reading:
    """Pixels are ``images * std + mean``; arrays of one value for each channel."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def ends(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[float, float]:
        """Lowest and highest pixel of images from ``low`` to ``high``."""
        return float((low * self.std + self.mean).min()), float((high * self.std + self.mean).max())

    def fits(self, low: NDArray[Any], high: NDArray[Any]) -> bool:
        """Whether all pixels are within 0 to 255."""
        first, last = self.ends(low, high)
        return first >= -SLACK and last <= 255 + SLACK


def to_pixels(
    images: Mapping[str, NDArray[Any]],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    where: str,
    most: int,
) -> dict[str, NDArray[np.uint8]]:
    """The uint8 pixels of float images.

    Where the model has a mean or a std, images from 0 to 1 are pixels / 255, and others are what the model's
    normalization makes of pixels; whole numbers from 0 to 255 are the pixels themselves. Anything else is refused.

    Args:
        images: name -> float [N,H,W,C], of one meaning; may be memory-mapped.
        mean: of the model, per channel in pixel units; None: 0.
        std: likewise; None: 1.
        where: the file or folder, for messages.
        most: bytes that the pixels may take.

    Raises:
        ExperimentError: no finite numbers, a range that is not the model's, or too many pixels.
    """
    check_channels(mean, std, next(iter(images.values())).shape[3])
    total = sum(array.size for array in images.values())
    if total > most:
        raise ExperimentError(
            f"{where}: the pixels of its float images take {total:,} bytes, more than `data.max_bytes`, {most:,}",
            f"{COMMAND} data.max_bytes={total}, if the memory is there",
        )
    low, high, whole = _range(images)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ExperimentError(f"{where}: its float images hold NaN or infinite numbers", SAVE)
    reading, certain = _choose(low, high, whole, mean, std)
    if reading is not None:
        pixels, furthest = _converted(images, reading)
        first, last = reading.ends(low, high)
        # Any range fits within another mean and std: images of another normalization would become pale pictures.
        if certain or furthest <= WHOLE or last - first >= SPAN:
            log.info("float images from %.4g to %.4g were read as pixels 0 to 255", low.min(), high.max())
            if furthest > WHOLE:
                log.warning("the float images are no whole pixels: they were rounded, by up to %.2f of 255", furthest)
            return pixels
    raise _refusal(images, low, high, mean, std, where)


def _choose(
    low: NDArray[Any], high: NDArray[Any], whole: bool, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[_Reading | None, bool]:
    """How images from ``low`` to ``high`` are read, if they can be, and whether their range alone says so.

    ``whole``: they are whole numbers.
    """
    zeros, ones = np.zeros(len(low), np.float32), np.ones(len(low), np.float32)
    pixels, unit = _Reading(zeros, ones), _Reading(zeros, 255 * ones)
    if whole and high.max() > 1 and pixels.fits(low, high):
        return pixels, True
    if mean is None and std is None:
        return None, False
    if unit.fits(low, high):
        return unit, True
    own = _reading(mean, std, len(low))
    return (own if own.fits(low, high) else None), False


def _reading(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> _Reading:
    offset, factor = (np.full(channels, plain) if v is None else np.asarray(v) for v, plain in ((mean, 0), (std, 1)))
    return _Reading(offset.astype(np.float32), factor.astype(np.float32))


def _parts(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Some images at a time, as float32, and the index of the first."""
    rows = max(1, PART // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield start, np.asarray(array[start : start + rows], np.float32)
        forget_pages(array)


def _range(images: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Lowest and highest value of each channel, and whether all values are whole numbers."""
    lows, highs, whole = [], [], True
    with np.errstate(all="ignore"):  # float64 may be too large for float32
        for array in images.values():
            for _, part in _parts(array):
                lows.append(part.min(axis=(0, 1, 2)))
                highs.append(part.max(axis=(0, 1, 2)))
                whole = whole and bool((part == np.rint(part)).all())
    return np.min(lows, axis=0).astype(float), np.max(highs, axis=0).astype(float), whole


def _converted(images: Mapping[str, NDArray[Any]], reading: _Reading) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """The pixels, and how far the furthest was from a whole number."""
    furthest, pixels = 0.0, {}
    for name, array in images.items():
        pixels[name] = np.empty(array.shape, np.uint8)
        for start, part in _parts(array):
            exact = part * reading.std + reading.mean
            rounded = np.clip(np.rint(exact), 0, 255)
            furthest = max(furthest, float(np.abs(exact - rounded).max()))
            pixels[name][start : start + len(part)] = rounded
    return pixels, furthest


def _refusal(
    images: Mapping[str, NDArray[Any]],
    low: NDArray[Any],
    high: NDArray[Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    where: str,
) -> ExperimentError:
    """What was found, and the usual normalization that makes whole pixels of it, if one does."""
    arrays = ", ".join(f"{name} {array.dtype} {shape_text(array.shape)}" for name, array in images.items())
    found = f"{where}: {arrays} from {low.min():.4g} to {high.max():.4g}"
    if mean is None and std is None:
        problem = f"{found}, but without `model.mean` and `model.std` the model takes pixels from 0 to 255"
    else:
        own = " to ".join(f"{end:.0f}" for end in _reading(mean, std, len(low)).ends(low, high))
        settings = override(mean, std)
        problem = f"{found}, which {settings} would turn into pixels from {own}; expected those of an 8-bit image"
    few = {name: array[:: max(1, len(array) // 20)] for name, array in images.items()}
    for name, usual_mean, usual_std in conventions(len(low)):
        reading = _reading(usual_mean, usual_std, len(low))
        if reading.fits(low, high) and _converted(few, reading)[1] <= WHOLE:
            ones = ",".join(["1"] * len(low))
            other = f"'model.std=[{ones}]', if it takes pixels from 0 to 255" if reading.std.min() == 255 else SAVE
            return ExperimentError(
                f"{problem}; they are whole pixels when read as {name}",
                f"{override(usual_mean, usual_std)}, if the model takes such images, or {other}",
            )
    return ExperimentError(problem, f"'model.mean=[R,G,B]' 'model.std=[R,G,B]' that they were made with, or {SAVE}")
