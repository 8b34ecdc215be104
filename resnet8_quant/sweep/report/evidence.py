"""What the runs left to compare: predictions for the same images, true labels, images, the float model's predictions.

In: the jobs of a table. Out: `Evidence`. What is missing is None: nothing is fetched, and nothing that a run's folder
holds is trusted before it agrees with the run's results.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.config import Config, DataConfig, DataKind, ModelConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import read_json, read_regular
from resnet8_quant.inputs.arrays import UNREADABLE, read_npy
from resnet8_quant.sweep.collect import Job
from resnet8_quant.validation import validate

if TYPE_CHECKING:
    from resnet8_quant.inputs.dataset import Dataset

TOLERANCE = 1e-9  # of a ratio that was written and read back
MAX_HEADER_BYTES = 4096  # more than that of any .npy file that a run writes
MAX_TABLE_BYTES = 4_000_000
Labels = NDArray[np.int64]
Predictions = NDArray[np.int16]
T = TypeVar("T", DataConfig, ModelConfig)


@dataclass
class Evidence:
    """What can be compared.

    Attributes:
        jobs: runs that were evaluated on the same images, all with an accuracy, in the order of the table.
        predictions: for each of them the predicted classes, int16 [N]; None where the file is missing or does not fit.
        labels, images: int64 [N], the true classes, and uint8 [N, H, W, C].
        classes: their names, from per_class.csv.
        no_labels: why there are none, in a sentence.
        notes: which runs are left out of comparisons, in sentences.
    """

    jobs: list[Job]
    predictions: list[Predictions | None] = field(default_factory=list)
    labels: Labels | None = None
    images: NDArray[np.uint8] | None = None
    classes: list[str] = field(default_factory=list)
    no_labels: str = ""
    notes: list[str] = field(default_factory=list)

    def predictions_of(self, job: Job) -> Predictions | None:
        """The predicted classes of one of ``jobs``."""
        pairs = zip(self.jobs, self.predictions, strict=True)
        return next((predictions for other, predictions in pairs if other is job), None)

    def float_predictions(self, job: Job) -> Predictions | None:
        """What the float original of ``job`` predicts: from its folder, else from a run of quant=float."""
        own = self.read(job.path / "float_predictions.npy", job.row.eval_images or 0, job.row.float_accuracy)
        if own is not None:
            return own
        for other, predictions in zip(self.jobs, self.predictions, strict=True):
            original = other.row.activation_type == "float32" and other.row.model_sha256 == job.row.float_model_sha256
            if original and predictions is not None:
                return predictions
        return None

    def read(self, path: Path, count: int, accuracy: float | None) -> Predictions | None:
        """The ``count`` predictions in a file, if they have this accuracy; without labels that cannot be checked.

        None where the file is missing, damaged or another array.
        """
        try:
            content = read_regular(path, 8 * count + MAX_HEADER_BYTES)
            array = read_npy(io.BytesIO(content), len(content))
        except (OSError, *UNREADABLE):
            return None
        if array.shape != (count,) or array.dtype.kind not in "iu":
            return None
        if count and not 0 <= int(array.min()) <= int(array.max()) < np.iinfo(np.int16).max:
            return None
        if self.labels is None:
            return array.astype(np.int16)
        agrees = accuracy is not None and abs(float(np.mean(array == self.labels)) - accuracy) < TOLERANCE
        return array.astype(np.int16) if agrees else None


def gather(jobs: Sequence[Job]) -> Evidence:
    """Everything that the runs in ``jobs`` can be compared by; of runs on other images, those on the most images."""
    finished = [job for job in jobs if job.ok and job.row.accuracy is not None]
    groups: dict[tuple[str | None, int, int], list[Job]] = {}
    for job in finished:
        key = (job.row.data_sha256, job.row.eval_images or 0, job.row.calibration_overlap or 0)
        groups.setdefault(key, []).append(job)
    if not groups:
        return Evidence([])
    # More test images decide more; of equally many, the images that more runs have seen.
    (digest, count, overlap), compared = max(groups.items(), key=lambda group: (group[0][1], len(group[1])))
    tables = read_table(compared[0].path / "per_class.csv", ("class_name", "images"))
    evidence = Evidence(compared, classes=[row["class_name"] for row in tables])
    if len(groups) > 1:
        evidence.notes.append(
            f"Only runs on the same images can be compared: these are the ones on {count:,} images of "
            f"{compared[0].row.data or 'one data set'}; {len(finished) - len(compared)} of {len(finished)} finished "
            "runs, on other images, are in the table only."
        )
    if overlap:
        evidence.no_labels = "calibration used some of the test images, so the evaluated ones are not known"
    else:
        try:
            data = _load(compared[0], str(digest))
            if len(data.test.labels) != count:
                raise ExperimentError("it has another number of test images", "")
            evidence.labels, evidence.images = data.test.labels, data.test.images
        except ExperimentError as error:
            evidence.no_labels = f"the test images and their labels could not be loaded: {error.problem}"
    evidence.predictions = [evidence.read(job.path / "predictions.npy", count, job.row.accuracy) for job in compared]
    absent = sum(predictions is None for predictions in evidence.predictions)
    if absent:
        evidence.notes.append(
            f"{absent} of {len(compared)} runs have no predictions.npy that agrees with their results: no paired test."
        )
    return evidence


def _load(job: Job, digest: str) -> Dataset:
    """The dataset of a run, from the bundle, the cache or the file that it named; never from the network.

    Raises:
        ExperimentError: it is not there, or it is another one.
    """
    from resnet8_quant.files import cache_folder
    from resnet8_quant.inputs.cifar10 import is_cached
    from resnet8_quant.inputs.dataset import load_dataset

    written = read_json(job.path / "run.json").get("config")
    written = written if isinstance(written, dict) else {"data": {"kind": job.row.data}}
    data, model = _known(DataConfig, written.get("data")), _known(ModelConfig, written.get("model"))
    # What the images are; of the model only what float images are read by. CIFAR-10 is in the cache or nowhere.
    config = Config(data=replace(data, root=None), model=ModelConfig(mean=model.mean, std=model.std))
    validate(config)
    folder = written.get("cache_dir")
    cache = cache_folder(folder if isinstance(folder, str) and Path(folder).is_dir() else None)
    if config.data.kind is DataKind.cifar10 and not is_cached(cache):
        raise ExperimentError(f"CIFAR-10 is not in the cache {cache}", "")
    loaded = load_dataset(config.data, cache, config.model)
    if loaded.digest != digest:
        raise ExperimentError(f"the data has the digest {loaded.digest[:12]}, the runs' had {digest[:12]}", "")
    return loaded


def _known(group: type[T], written: object) -> T:
    """The settings in a run.json that this version has too; those that the run's version lacked have their defaults."""
    values = written if isinstance(written, dict) else {}
    return group(**{each.name: values[each.name] for each in fields(group) if each.name in values})


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV that has ``columns`` and perhaps more; empty where it cannot be read or lacks one."""
    try:
        content = read_regular(path, MAX_TABLE_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return rows if all(isinstance(row.get(name), str) for row in rows for name in columns) else []


def number(text: str) -> float | None:
    """The finite number that ``text`` is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
