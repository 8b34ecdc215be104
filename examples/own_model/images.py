"""How this network reads its images: the part that training and the application share."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path("outputs/own_model")  # all that the example writes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1, as torchvision's Normalize has them


def files(folder: Path) -> list[tuple[Path, int]]:
    """Paths and classes of FOLDER/CLASS/*.png: the first image of each class, then the second of each."""
    classes = [sorted(place.glob("*.png")) for place in sorted(folder.iterdir())]
    turns = zip_longest(*classes)
    return [(path, label) for turn in turns for label, path in enumerate(turn) if path is not None]


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N,3,32,32], normalised, and their classes as int64 [N]."""
    listed = files(folder)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), np.float32) for path, _ in listed]) / 255
    x = (pixels - np.float32(MEAN)) / np.float32(STD)
    return x.transpose(0, 3, 1, 2), np.array([label for _, label in listed])
