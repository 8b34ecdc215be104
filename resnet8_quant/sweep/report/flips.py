"""The images that quantization flipped, as thumbnails.

In: `Evidence` and a run. Out: the images with their classes, or why there are none.
"""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.evidence import Evidence

MAX_IMAGES = 24
MAX_SIDE = 96  # pixels


class Flip(NamedTuple):
    """An image that only one of the two models gets right: its place in the test set, its classes, and a PNG of it."""

    place: int
    true: str
    before: str
    after: str
    wrong: bool
    picture: str


def flipped(evidence: Evidence, job: Job) -> tuple[list[Flip], str]:
    """The first flips, those to wrong first, and a sentence about them; without flips it says why there are none."""
    labels, images = evidence.labels, evidence.images
    after, before = evidence.predictions_of(job), evidence.float_predictions(job)
    if labels is None or images is None:
        return [], evidence.missing["labels"]
    if after is None or before is None:
        return [], "the run's or the float model's predictions are missing"
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        return [], f"images of shape {list(images.shape[1:])} cannot be shown"
    to_wrong = np.flatnonzero((before == labels) & (after != labels))
    to_right = np.flatnonzero((before != labels) & (after == labels))
    if not len(to_wrong) + len(to_right):
        return [], "no image flipped between right and wrong"
    # Half of the places each, and what the one kind leaves goes to the other.
    shown_wrong = max(MAX_IMAGES // 2, MAX_IMAGES - len(to_right))
    chosen = [*to_wrong[:shown_wrong], *to_right[: MAX_IMAGES - min(shown_wrong, len(to_wrong))]]
    names = dict(enumerate(evidence.classes))
    flips = []
    for index in map(int, chosen):
        true, old, new = (
            names.get(label, str(label)) for label in map(int, (labels[index], before[index], after[index]))
        )
        flips.append(Flip(index, true, old, new, bool(after[index] != labels[index]), data_uri(images[index])))
    shown = "All" if len(chosen) == len(to_wrong) + len(to_right) else f"The first {len(chosen)}"
    sentence = (
        f"{job.label} ({job.choices}) against its float model: {len(to_wrong)} flipped to wrong, {len(to_right)} to "
        f"right. {shown} in the order of the test set, to wrong first. Each with its true class, then the prediction "
        "before and after."
    )
    return flips, sentence


def data_uri(image: NDArray[np.uint8]) -> str:
    """A PNG of an image, uint8 [H, W, C] with C in 1, 3, 4, as an address that holds it."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
