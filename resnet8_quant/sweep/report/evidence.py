"""What the runs left to compare: answers on the same images, the true labels, the images, the float model's answers.

In: the jobs of a table. Out: `Evidence`. What is missing is None, and ``missing`` says why: nothing is fetched, and
nothing that a run's folder holds is trusted before it agrees with the run's row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError
from resnet8_quant.sweep.collect import Job

if TYPE_CHECKING:
    from resnet8_quant.inputs.dataset import Dataset

log = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of a ratio that was written and read back
HEADER = 4096  # bytes, more than that of any .npy file that a run writes
Labels = NDArray[np.int64]


@dataclass
class Evidence:
    """What can be compared.

    Attributes:
        jobs: distinct runs that were evaluated on the same images, all with an accuracy, in the order of the table.
        answers: for each of them the predicted classes, int16 [N]; None where the file is missing or does not fit.
        labels: int64 [N], the true classes.
        images: uint8 [N, H, W, C], the evaluated images.
        classes: names of the classes, from per_class.csv.
        missing: what could not be had -> why, in a sentence.
        notes: which runs are left out of comparisons, in sentences.
    """

    jobs: list[Job]
    answers: list[NDArray[np.int16] | None] = field(default_factory=list)
    labels: Labels | None = None
    images: NDArray[np.uint8] | None = None
    classes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def float_answers(self, job: Job) -> NDArray[np.int16] | None:
        """What the float original of ``job`` answers: from its folder, else from a run of quant=float."""
        row = job.row
        own = read_answers(job.path / "float_predictions.npy", row.eval_images or 0)
        if own is not None and self._fits(own, row.float_accuracy):
            return own
        for other, answers in zip(self.jobs, self.answers, strict=True):
            original = other.row.activation_type == "float32" and other.row.model_sha256 == row.float_model_sha256
            if original and answers is not None:
                return answers
        return None

    def _fits(self, answers: NDArray[np.int16], accuracy: float | None) -> bool:
        if self.labels is None or accuracy is None:
            return self.labels is None
        return abs(float(np.mean(answers == self.labels)) - accuracy) < TOLERANCE


def gather(jobs: Sequence[Job]) -> Evidence:
    """Everything that the runs in ``jobs`` can be compared by."""
    candidates = [job for job in jobs if job.ok and not job.twin and job.row.accuracy is not None]
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in candidates:
        groups.setdefault((job.row.data_sha256, job.row.eval_images, job.row.calibration_overlap or 0), []).append(job)
    if not groups:
        return Evidence([])
    (digest, count, overlap), chosen = max(groups.items(), key=lambda group: len(group[1]))
    evidence = Evidence(chosen)
    if len(groups) > 1:
        evidence.notes.append(
            f"Runs on other images cannot be compared with these: {len(candidates) - len(chosen)} of {len(candidates)} "
            "finished runs are in the table only."
        )
    evidence.classes = _class_names(chosen[0].path)
    if overlap:
        evidence.missing["labels"] = "calibration used some of the test images, so the evaluated ones are not known"
    else:
        try:
            data = _load(chosen, str(digest))
            if len(data.test.labels) != count:
                raise ExperimentError("its number of test images is another one", "")
            evidence.labels, evidence.images = data.test.labels, data.test.images
        except ExperimentError as error:
            evidence.missing["labels"] = f"the test images and their labels could not be loaded: {error.problem}"
    evidence.answers = [read_answers(job.path / "predictions.npy", count or 0) for job in chosen]
    if evidence.labels is not None:
        evidence.answers = [
            answers if answers is not None and evidence._fits(answers, job.row.accuracy) else None
            for job, answers in zip(chosen, evidence.answers, strict=True)
        ]
    absent = sum(answers is None for answers in evidence.answers)
    if absent:
        evidence.notes.append(
            f"{absent} of {len(chosen)} runs have no predictions.npy that agrees with their row: no paired test."
        )
    return evidence


def read_answers(path: Path, count: int) -> NDArray[np.int16] | None:
    """The classes in an .npy file of ``count`` integers; None where it is missing, damaged or another array."""
    try:
        if path.stat().st_size > 8 * count + HEADER:
            return None
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    if not isinstance(array, np.ndarray) or array.shape != (count,) or array.dtype.kind not in "iu":
        return None
    if count and not 0 <= int(array.min()) <= int(array.max()) < np.iinfo(np.int16).max:
        return None
    return array.astype(np.int16)


def read_record(path: Path) -> dict[str, Any]:
    """A run's run.json; empty where it is missing or damaged."""
    try:
        content = json.loads((path / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _load(jobs: Sequence[Job], digest: str) -> Dataset:
    """The dataset of the runs, from the bundle, the cache or the file that they named; never from the network.

    Raises:
        ExperimentError: it is not there, or it is another one.
    """
    from resnet8_quant.config import DataConfig, DataKind
    from resnet8_quant.files import cache_folder
    from resnet8_quant.inputs.cifar10 import is_cached
    from resnet8_quant.inputs.dataset import load_dataset

    config = read_record(jobs[0].path).get("config")
    config = config if isinstance(config, dict) else {}
    data = config.get("data")
    data = data if isinstance(data, dict) else {"kind": jobs[0].row.data}
    try:
        kind = DataKind(data.get("kind"))
    except ValueError as error:
        raise ExperimentError(f"`data` is {data.get('kind')!r}", "") from error
    configured = config.get("cache_dir")
    usable = isinstance(configured, str) and Path(configured).is_dir()
    cache = cache_folder(str(configured) if usable else None)
    if kind is DataKind.cifar10 and not is_cached(cache):
        raise ExperimentError(f"CIFAR-10 is not in the cache {cache}", "")
    path = data.get("path") if kind is DataKind.arrays else None
    loaded = load_dataset(DataConfig(kind=kind, path=path if isinstance(path, str) else None), cache)
    if loaded.digest != digest:
        raise ExperimentError(f"the data has the digest {loaded.digest[:12]}, the runs' had {digest[:12]}", "")
    return loaded


def _class_names(path: Path) -> list[str]:
    from resnet8_quant.sweep.report.files import read_table

    return [row["class_name"] for row in read_table(path / "per_class.csv", ("class_name", "images"))]
