"""Accuracy: the predicted class of every image, computed or taken from the cache, against the labels.

In: a serialized model, its input spec, uint8 images and their labels. Out: an `Evaluation`: predictions, accuracy, the
accuracy of each class, and the number of ties.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from resnet8_quant import npz_cache
from resnet8_quant.config import EvaluationConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.statistics import wilson_interval
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import open_session, run_batch
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.machine import cpu_description, usable_cores
from resnet8_quant.progress import progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)


class Classifier(Protocol):
    """What can be evaluated: a `FloatModel`, or any other object with these two."""

    @property
    def serialized(self) -> bytes:
        """The model as ONNX bytes."""

    @property
    def input_spec(self) -> InputSpec:
        """What it expects at its input."""


@dataclass(frozen=True)
class Predictions:
    """The predicted classes of a model.

    Attributes:
        labels: int64 [N], the class with the largest output; of equal ones the first.
        ties: number of images whose largest output is shared by several classes; None where a model outputs nothing
            but the class.
    """

    labels: np.ndarray
    ties: int | None


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A model's predictions on labelled images.

    Attributes:
        predictions: int64 [N], the predicted class of each image.
        labels: int64 [N], the true one, 0..classes-1.
        class_names: one for each class.
        ties: as in `Predictions`.
        seconds: that the predictions took; 0.0 where they came from the cache.
    """

    predictions: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ties: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.labels):
            raise ValueError(f"{len(self.predictions)} predictions, {len(self.labels)} labels")

    def __repr__(self) -> str:
        return f"Evaluation(accuracy={self.accuracy:.4f}, images={len(self.labels)}, ties={self.ties})"

    @property
    def correct(self) -> np.ndarray:
        """bool [N]: whether the prediction is the label."""
        return np.asarray(self.predictions == self.labels)

    @property
    def accuracy(self) -> float:
        """Top-1, a ratio; NaN without images."""
        return int(self.correct.sum()) / len(self.labels) if len(self.labels) else float("nan")

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson_interval(int(self.correct.sum()), len(self.labels))

    @property
    def per_class(self) -> dict[str, float]:
        """Class name -> accuracy, in the order of ``class_names``; NaN where the data has no image of a class."""
        rows = zip(self.class_names, *self.counts(), strict=True)
        return {name: correct / images if images else float("nan") for name, images, correct in rows}

    def counts(self) -> tuple[list[int], list[int]]:
        """Images of each class, and how many of them are predicted correctly."""
        size = len(self.class_names)
        return (
            np.bincount(self.labels, minlength=size).tolist(),
            np.bincount(self.labels[self.correct], minlength=size).tolist(),
        )


def evaluate(
    model: Classifier,
    split: Split,
    config: EvaluationConfig | None = None,
    *,
    class_names: Sequence[str] | None = None,
    exact: bool = True,
    cache: Path | None = None,
    images_digest: str | None = None,
    description: str = "evaluating",
) -> Evaluation:
    """Predict the class of every image of a split.

    Args:
        model: float or quantized.
        split: uint8 images [N, H, W, C] and their labels.
        config: batch size, threads and execution providers; None: the defaults.
        class_names: one for each class; None: their numbers.
        exact: let no kernel saturate; False: as an application opens the model, without the cache.
        cache: the cache folder. An entry ``predictions/<key>.npz`` there serves all that ask for the same predictions;
            of parallel jobs one computes them. None: they are computed.
        images_digest: for the cache: names the content of the images; None: they are hashed.
        description: shown beside the progress bar.

    Raises:
        ExperimentError: as ``predict``; or the cache cannot be written.
    """
    config = config or EvaluationConfig()
    seconds = 0.0

    def compute() -> Predictions:
        nonlocal seconds
        start = time.perf_counter()
        predictions = predict(
            model.serialized,
            model.input_spec,
            split.images,
            batch_size=config.batch_size,
            threads=config.threads,
            providers=config.providers,
            exact=exact,
            description=description,
        )
        seconds = time.perf_counter() - start
        return predictions

    if cache is None or not exact:
        predictions = compute()
    else:
        predictions, _ = npz_cache.cached(
            cache / "predictions",
            _key(model, split.images, config, images_digest),
            compute,
            lambda computed: {
                "labels": computed.labels,
                "ties": np.array([] if computed.ties is None else [computed.ties], np.int64),
            },
            lambda arrays: _from_arrays(arrays, len(split.images), model.input_spec.classes),
        )
    names = tuple(class_names or map(str, range(model.input_spec.classes)))
    return Evaluation(predictions.labels, split.labels, names, predictions.ties, seconds)


def predict(
    model: bytes,
    input_spec: InputSpec,
    images: np.ndarray,
    *,
    batch_size: int,
    threads: int,
    providers: Sequence[str] = CPU,
    exact: bool = True,
    description: str = "evaluating",
) -> Predictions:
    """Run a model on images.

    Args:
        model: serialized ModelProto; its first output is [N, classes], or int64 [N]: the class itself.
        input_spec: what the model expects at its input; a fixed batch there overrules ``batch_size``.
        images: uint8 [N, H, W, C].
        batch_size: images per call.
        threads: 0: as many as there are cores. On the CPU provider each takes batches of its own, so that their
            number changes no prediction; another provider gets it as its own number of threads.
        providers: execution providers, first choice first.
        exact: let no kernel saturate; False: as an application opens the model.
        description: shown beside the progress bar.

    Raises:
        ExperimentError: the model cannot be loaded or run, has another number of classes, or outputs NaN.
    """
    # Calls of one session may overlap on the CPU provider, and one thread for each of them is the fastest there.
    cpu_only = tuple(providers) == CPU
    workers = (threads or usable_cores()) if cpu_only else 1
    session = open_session(model, 1 if cpu_only else threads, exact=exact, providers=providers)
    size = input_spec.batch or batch_size
    predict_from = partial(_predict_batch, session, input_spec, images, size)
    labels: list[np.ndarray] = []
    ties: int | None = 0
    with progress(description, len(images), "images") as advance, ExitStack() as stack:
        map_batches = map if workers == 1 else stack.enter_context(ThreadPoolExecutor(workers)).map
        for batch_labels, batch_ties in map_batches(predict_from, range(0, len(images), size)):
            labels.append(batch_labels)
            ties = None if ties is None or batch_ties is None else ties + batch_ties
            advance(len(batch_labels))
    return Predictions(np.concatenate(labels) if labels else np.empty(0, np.int64), ties)


def _predict_batch(
    session: InferenceSession, input_spec: InputSpec, images: np.ndarray, size: int, start: int
) -> tuple[np.ndarray, int | None]:
    """The classes and the number of ties of the batch that begins at image ``start``."""
    batch = input_spec.prepare(images[start : start + size])
    count = len(batch)
    if input_spec.batch is not None and count < size:
        # Repeating an image leaves the range of the batch alone, which dynamic quantization looks at.
        batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
    output = run_batch(session, input_spec.name, batch)
    if output.dtype == np.int64 and output.shape == (len(batch),):
        return output[:count], None
    if output.shape != (len(batch), input_spec.classes):
        raise ExperimentError(
            f"the model's first output has shape {list(output.shape)} for a batch of {len(batch)}, "
            f"expected [{len(batch)}, {input_spec.classes}]",
            "choose a classifier with one output per class: model.path=MODEL.onnx",
        )
    output = output[:count]
    bad = np.isnan(output).any(axis=1)
    if bad.any():
        raise ExperimentError(
            f"the model's output is NaN for image {start + int(bad.argmax())}",
            "check the weights and the input range: model.mean=[R,G,B] model.std=[R,G,B], in pixels 0..255",
        )
    ties = (output == output.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return output.argmax(axis=1).astype(np.int64), int(ties.sum())


def _key(model: Classifier, images: np.ndarray, config: EvaluationConfig, images_digest: str | None) -> str:
    """Key of a cache entry: all that can change a prediction."""
    import onnxruntime

    input_spec, providers = model.input_spec, tuple(config.providers)
    return npz_cache.cache_key(
        {
            "entry": 5,  # count up when predict or the entry's content changes
            "model": sha256_bytes(model.serialized),
            "images": images_digest or sha256_bytes(np.ascontiguousarray(images).reshape(-1).data),
            "shape": images.shape,
            "layout": input_spec.layout.value,
            "mean": input_spec.mean,
            "std": input_spec.std,
            "classes": input_spec.classes,
            "batch": input_spec.batch or config.batch_size,
            "threads": None if providers == CPU else config.threads,
            "providers": providers,
            "onnxruntime": onnxruntime.__version__,
            "cpu": cpu_description(),
        }
    )


def _from_arrays(arrays: dict[str, np.ndarray], count: int, classes: int) -> Predictions:
    """Predictions from the arrays of an entry; ValueError or KeyError where they do not hold together."""
    labels, ties = arrays["labels"], arrays["ties"].tolist()  # the list is empty for a model without scores
    if (
        labels.shape != (count,)
        or labels.dtype != np.int64
        or len(ties) > 1
        or not all(0 <= tie <= count for tie in ties)
    ):
        raise ValueError(f"{labels.dtype} labels of shape {labels.shape}, {ties} ties")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels outside 0..{classes - 1}")
    return Predictions(labels, ties[0] if ties else None)
