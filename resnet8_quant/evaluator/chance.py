"""Is the float model any better than guessing, and if not: what was it fed, and which usual input would it rather have?

In: a float model and its evaluation. Out: an `ExperimentError` that says so, or None. Most models that fail here are
good ones that are fed another range, other channels or other labels than in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.config import Config, DataKind, EvaluationConfig, ModelKind
from resnet8_quant.errors import ExperimentError, typed_setting
from resnet8_quant.evaluator.accuracy import Classifier, Evaluation, predict
from resnet8_quant.evaluator.statistics import wilson_interval
from resnet8_quant.inputs.input_spec import InputSpec, conventions, override
from resnet8_quant.inputs.splits import Split

TRIED = 200  # images that each convention is tried on
CONFIDENCE = 0.9999  # a dozen conventions are tried, and the best of them must not be luck
FITTED = 0.6  # top-1 with the classes in the best order, which fits a little by luck
MOST_CLASSES = 1000  # whose order is looked at
RGB = 3
ALLOW = "evaluation.allow_chance=true"


def chance_level(predictions: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> float:
    """Accuracy of guessing: of predictions as frequent as these that know nothing of the image, or 1/classes.

    A model that always predicts one class reaches that class's share of the labels.

    Args:
        predictions: int64 [N].
        labels: int64 [N].
        classes: that the model tells apart.
    """
    shares = [np.bincount(values, minlength=classes) / len(values) for values in (predictions, labels)]
    blind = float(shares[0] @ shares[1]) if shares[1].max() < 1 else 0.0  # labels of one class cannot show anything
    return max(1 / classes, blind)


def is_chance(predictions: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> bool:
    """Whether top-1 may be that of guessing, or is below it: its 95 % interval does not lie above `chance_level`.

    With a handful of images it hardly ever does; so a model that gets a quarter of the way from guessing to all right
    is left alone.
    """
    level = chance_level(predictions, labels, classes)
    near = float(np.mean(predictions == labels)) < level + (1 - level) / 4
    return near and not _above_chance(predictions, labels, classes, 0.95)


def _above_chance(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], classes: int, confidence: float = CONFIDENCE
) -> bool:
    """Whether the Wilson interval of top-1 lies above `chance_level`."""
    low, _ = wilson_interval(int((predictions == labels).sum()), len(labels), confidence)
    return low > chance_level(predictions, labels, classes)


def explain_chance(model: Classifier, evaluation: Evaluation, split: Split, config: Config) -> ExperimentError | None:
    """What to say of a float model that is no better than chance; None for all others.

    Args:
        model: the float model.
        evaluation: its predictions on ``split``.
        split: uint8 images [N,H,W,C] with labels.
        config: of the run. Only for a model of the user's own are the usual values of ``model.mean`` and ``model.std``
            tried.
    """
    spec, labels = model.input_spec, evaluation.labels
    if len(labels) == 0 or not is_chance(evaluation.predictions, labels, spec.classes):
        return None
    low, high = evaluation.accuracy_interval
    level = chance_level(evaluation.predictions, labels, spec.classes)
    problem = (
        f"the float model is no better than chance: top-1 {100 * evaluation.accuracy:.2f} % of {len(labels):,} images "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %), where guessing gets {100 * level:.2f} %; it was fed "
        f"{_fed(spec, split)}"
    )
    normalizes = config.model.kind in (ModelKind.onnx, ModelKind.keras)
    if found := _other_labels(evaluation, config.data.kind):
        return ExperimentError(f"{problem}; {found[0]}", found[1])
    if normalizes and (found := _other_input(model, split, config.evaluation)):
        return ExperimentError(f"{problem}; {found[0]}", found[1])
    tried = ", ".join(name for name, *_ in conventions(spec.shape[2]))
    nothing = f"; none of the usual inputs ({tried}) does better" if normalizes else ""
    return ExperimentError(
        f"{problem}{nothing}",
        f"check the input's range and layout and the order of the classes; for an untrained network: {ALLOW}",
    )


def _fed(spec: InputSpec, split: Split) -> str:
    """Layout, range and moments of what the model got."""
    some = split.images[_spread(len(split.images))]
    batch = spec.prepare(some)
    return (
        f"{batch.dtype} {spec.layout.name} from {batch.min():.4g} to {batch.max():.4g}, mean {batch.mean():.4g} and "
        f"standard deviation {batch.std():.4g} (pixels {some.min()} to {some.max()}, {override(spec.mean, spec.std)})"
    )


def _spread(count: int) -> NDArray[np.int64]:
    """Indices of at most TRIED of ``count`` images, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(TRIED, count)).astype(np.int64))


def _other_labels(evaluation: Evaluation, kind: DataKind) -> tuple[str, str] | None:
    """Labels that the predictions would fit, and what to type: from 1, or of classes in another order."""
    predictions, labels, classes = evaluation.predictions, evaluation.labels, len(evaluation.class_names)
    if kind is DataKind.arrays and labels.min() == 1 and _above_chance(predictions, labels - 1, classes):
        accuracy = np.mean(predictions == labels - 1)
        return f"with labels that begin at 1 top-1 is {100 * accuracy:.2f} %", "data.first_label=1"
    if classes > MOST_CLASSES:
        return None
    # counts[p, l]: images with label l that are predicted as p
    counts = np.bincount(predictions * classes + labels, minlength=classes**2).reshape(classes, classes)
    order = counts.argmax(axis=1)
    accuracy = float(np.mean(order[predictions] == labels))
    if len(set(order.tolist())) < classes or accuracy < FITTED:
        return None
    names = [evaluation.class_names[label] for label in order]
    return (
        f"with the classes in the order {','.join(names)} top-1 is {100 * accuracy:.2f} %",
        typed_setting("data.classes", names) if kind is DataKind.folder else "renumber the labels in that order",
    )


def _other_input(model: Classifier, split: Split, config: EvaluationConfig) -> tuple[str, str] | None:
    """The usual input with which the model does best, and what to type; None where none is better than chance."""
    spec, indices = model.input_spec, _spread(len(split.labels))
    images, labels = split.images[indices], split.labels[indices]
    best, found = 0.0, None
    for name, mean, std in conventions(spec.shape[2]):
        other = dataclasses.replace(spec, mean=mean, std=std)
        for colors, pixels in _orders(images):
            predictions = predict(
                model.serialized,
                other,
                pixels,
                batch_size=config.batch_size,
                threads=config.threads,
                providers=config.providers,
                description=f"trying {name} {colors}",
            ).labels
            accuracy = float(np.mean(predictions == labels))
            if accuracy > best and _above_chance(predictions, labels, spec.classes):
                typed = override(mean, std)
                swapped = f"{typed}, and images with channels in the order BGR: images[..., ::-1]"
                best, found = accuracy, (f"{name} {colors}".strip(), swapped if colors == "BGR" else typed)
    if found is None:
        return None
    return f"with input of {found[0]} it gets {100 * best:.2f} % of {len(labels)} of them", found[1]


def _orders(images: NDArray[np.uint8]) -> Sequence[tuple[str, NDArray[np.uint8]]]:
    return (("", images), ("BGR", images[..., ::-1])) if images.shape[3] == RGB else (("", images),)
