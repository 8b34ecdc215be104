"""The images that quantization flipped, as thumbnails.

In: `Evidence` and a run. Out: HTML figures, or why there are none.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.evidence import Evidence
from resnet8_quant.sweep.report.markup import escape

MOST = 24
LARGEST_SIDE = 96  # pixels


def flipped(evidence: Evidence, job: Job) -> tuple[str, str]:
    """Figures of the first flips, those to wrong first, and a sentence; figures empty: the sentence says why."""
    labels, images = evidence.labels, evidence.images
    answers = dict(zip(map(id, evidence.jobs), evidence.answers, strict=True)).get(id(job))
    before = evidence.float_answers(job)
    if labels is None or images is None:
        return "", evidence.missing["labels"]
    if answers is None or before is None:
        return "", "the run's or the float model's predictions are missing"
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        return "", f"images of shape {list(images.shape[1:])} cannot be shown"
    to_wrong = np.flatnonzero((before == labels) & (answers != labels))
    to_right = np.flatnonzero((before != labels) & (answers == labels))
    if not len(to_wrong) + len(to_right):
        return "", "no image flipped between right and wrong"
    wrong_shown = max(MOST // 2, MOST - len(to_right))
    chosen = [*to_wrong[:wrong_shown], *to_right[: MOST - min(wrong_shown, len(to_wrong))]]

    def name(label: int) -> str:
        return evidence.classes[label] if label < len(evidence.classes) else str(label)

    figures = []
    for index in chosen:
        truth, old, new = (int(values[index]) for values in (labels, before, answers))
        kind = "wrong" if new != truth else "right"
        change = f"{escape(name(old))} \N{RIGHTWARDS ARROW} {escape(name(new))}"
        true = escape(name(truth))
        figures.append(
            f'<figure class="{kind}"><img src="{data_uri(images[index])}" alt="test image {index}: {true}" width="64" '
            f'height="64"><figcaption><b>{true}</b><br>{change}<br><span>#{index}</span></figcaption></figure>'
        )
    sentence = (
        f"{job.label} ({job.choices}) against its float model: {len(to_wrong)} flipped to wrong, {len(to_right)} to "
        f"right. {'All' if len(chosen) == len(to_wrong) + len(to_right) else f'The first {len(chosen)}'} in the order "
        "of the test set, to wrong first. Each with its true class, then the answer before and after."
    )
    return f'<div class="flips">{"".join(figures)}</div>', sentence


def data_uri(image: NDArray[np.uint8]) -> str:
    """A PNG of an image, uint8 [H, W, C] with C in 1, 3, 4, as an address that holds it."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
