"""Views of an image in which its class stays the same: mirrored, and shifted by a few pixels.

In: uint8 images [n,H,W,C]. Out: the same shape. A classifier's average over such views is the better classifier
(Krizhevsky et al., NeurIPS 2012, section 4.1).
"""

from __future__ import annotations

import itertools

import numpy as np

# A view is (mirrored, down, right): 0 or 1, and pixels by which the content moves.
PLAIN = (0, 0, 0)


def averaged(mirror: bool, shift: int) -> list[tuple[int, int, int]]:
    """The views that an average is taken over: as it is and a step to each side, each also mirrored."""
    steps = [(0, 0), (-shift, 0), (shift, 0), (0, -shift), (0, shift)] if shift else [(0, 0)]
    return [(mirrored, *step) for mirrored, step in itertools.product((0, 1) if mirror else (0,), steps)]


def draw(rng: np.random.Generator, count: int, mirror: bool, shift: int) -> np.ndarray:
    """A random view for each of ``count`` images, int64 [count,3]: any shift of up to ``shift`` pixels."""
    mirrored = rng.integers(0, 1 + mirror, (count, 1))
    return np.concatenate([mirrored, rng.integers(-shift, shift + 1, (count, 2))], axis=1)


def look(images: np.ndarray, views: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    """The images in the ``views``, one for all or [n,3]; at a border the last pixels are repeated.

    Args:
        images: uint8 [n,H,W,C].
    """
    mirrored, down, right = np.broadcast_to(np.asarray(views), (len(images), 3)).T
    height, width = images.shape[1:3]
    places = np.arange(width)
    rows = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    columns = np.clip(np.where(mirrored[:, None], places[::-1], places) - right[:, None], 0, width - 1)
    seen: np.ndarray = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return seen
