"""What a model answers: the predicted class of every image, computed or taken from the cache.

In: a serialized model, its input spec, uint8 images. Out: predicted classes and the number of ties.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import locked, replacing, sha256_bytes
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import open_session, run_batch
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.machine import cpu_description, usable_cores
from resnet8_quant.progress import progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """The answers of a model.

    Attributes:
        labels: int64 [N], the class with the largest output; of equal ones the first.
        ties: number of images whose largest output is shared by several classes; None where a model gives its
            answer only.
    """

    labels: np.ndarray
    ties: int | None


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
            number moves no answer; another provider gets it as its own number of threads.
        providers: execution providers, first choice first.
        exact: let no kernel saturate; False: as an application opens the model.
        description: shown beside the progress bar.

    Raises:
        ExperimentError: the model cannot be loaded or run, has another number of classes, or answers NaN.
    """
    alone = tuple(providers) == CPU  # what is known of it: calls may overlap, and one thread each is the fastest
    workers = (threads or usable_cores()) if alone else 1
    session = open_session(model, 1 if alone else threads, exact=exact, providers=providers)
    size = input_spec.batch or batch_size
    answer = partial(_answer, session, input_spec, images, size)
    labels: list[np.ndarray] = []
    ties: int | None = 0
    with progress(description, len(images), "images") as advance, ExitStack() as stack:
        each = map if workers == 1 else stack.enter_context(ThreadPoolExecutor(workers)).map
        for predicted, shared in each(answer, range(0, len(images), size)):
            labels.append(predicted)
            ties = None if ties is None or shared is None else ties + shared
            advance(len(predicted))
    return Predictions(np.concatenate(labels) if labels else np.empty(0, np.int64), ties)


def _answer(
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


def cached_predictions(
    model: bytes,
    input_spec: InputSpec,
    images: np.ndarray,
    *,
    batch_size: int,
    threads: int,
    cache: Path,
    providers: Sequence[str] = CPU,
    images_digest: str | None = None,
    description: str = "evaluating",
) -> tuple[Predictions, float]:
    """``predict`` through a cache; of parallel jobs that ask the same, one computes and the others wait.

    The key covers all that can move an answer: the bytes of the model and of the images, how they are fed, ONNX
    Runtime, the CPU. An entry that is damaged or belongs to another key is computed anew and replaced.

    Args:
        cache: the cache folder; entries are ``predictions/<key>.npz`` in it.
        images_digest: names the content of ``images`` where the caller knows it; None: they are hashed.

    Returns:
        The predictions and the seconds spent on computing them: 0.0 when they came from the cache.

    Raises:
        ExperimentError: as ``predict``; or the cache cannot be written.
    """
    images_digest = images_digest or sha256_bytes(np.ascontiguousarray(images).reshape(-1).data)
    key = _key(model, input_spec, images.shape, images_digest, batch_size, threads, providers)
    path = cache / "predictions" / f"{key}.npz"
    with locked(path.with_suffix(".lock")):
        stored = _read_entry(path, key, len(images), input_spec.classes)
        if stored is not None:
            log.debug("predictions from the cache: %s", path)
            return stored, 0.0
        start = time.perf_counter()
        predictions = predict(
            model,
            input_spec,
            images,
            batch_size=batch_size,
            threads=threads,
            providers=providers,
            description=description,
        )
        seconds = time.perf_counter() - start
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), labels=predictions.labels, ties=np.int64(predictions.ties or 0))
    return predictions, seconds


def _key(
    model: bytes,
    input_spec: InputSpec,
    shape: tuple[int, ...],
    images_digest: str,
    batch_size: int,
    threads: int,
    providers: Sequence[str],
) -> str:
    import onnxruntime

    facts = {
        "entry": 3,  # count up when predict or the entry's content changes
        "model": sha256_bytes(model),
        "images": images_digest,
        "shape": shape,
        "layout": input_spec.layout.value,
        "mean": input_spec.mean,
        "std": input_spec.std,
        "classes": input_spec.classes,
        "batch": input_spec.batch or batch_size,
        "threads": None if tuple(providers) == CPU else threads,
        "providers": list(providers),
        "onnxruntime": onnxruntime.__version__,
        "cpu": cpu_description(),
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _read_entry(path: Path, key: str, count: int, classes: int) -> Predictions | None:
    """The entry at ``path``; None if there is none or it is not what ``cached_predictions`` wrote for ``key``."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            stored_key, labels, ties = entry["key"].item(), entry["labels"], int(entry["ties"])
        if stored_key != key:
            raise ValueError("it belongs to another key")
        if labels.shape != (count,) or labels.dtype != np.int64 or not 0 <= ties <= count:
            raise ValueError(f"{labels.dtype} labels of shape {labels.shape}, {ties} ties")
        if count and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels outside 0..{classes - 1}")
    except Exception as error:  # damage has many shapes, and the answer to each is to compute anew
        log.warning("unusable cache entry is replaced: %s (%s)", path, error)
        return None
    return Predictions(labels, ties)
