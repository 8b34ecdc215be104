"""Which images calibrate: a draw that depends on the seed alone, the first ones, or a list of test images.

In: labels, the `calibration` part of the config, a seed. Out: sorted indices, the same for every quant type and method.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnet8_quant.config import CalibrationConfig, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import forget_pages

LARGEST_LIST = 10 << 20  # bytes of an index file


def choose_images(config: CalibrationConfig, train_labels: np.ndarray, test_count: int, seed: int) -> np.ndarray:
    """The calibration images that ``config`` asks for.

    Args:
        config: sampling strategy, number of images or list.
        train_labels: int64 [N].
        test_count: number of test images.
        seed: of a local Generator; nothing else is random.

    Returns:
        int64, ascending: indices of training images, or with ``sampling=mlperf_tiny`` of TEST images.

    Raises:
        ExperimentError: a class has fewer images; the list cannot be read or names images that do not exist.
    """
    if config.sampling is Sampling.mlperf_tiny:
        return _listed(config, test_count)
    rng = np.random.default_rng(seed)
    count, chosen = config.samples_per_class, []
    for label in np.unique(train_labels):
        members = np.flatnonzero(train_labels == label)
        if len(members) < count:
            raise ExperimentError(
                f"`calibration.samples_per_class` is {count}, but class {label} has only "
                f"{len(members)} training images",
                f"choose 1 to {len(members)}: calibration.samples_per_class={len(members)}",
            )
        first = config.sampling is Sampling.first
        chosen.append(members[:count] if first else rng.choice(members, count, replace=False))
    return np.sort(np.concatenate(chosen))


def overlapping(calibration: np.ndarray, chosen: np.ndarray, test: np.ndarray) -> np.ndarray:
    """bool [len(test)]: which test images are, pixel for pixel, among the ``chosen`` calibration images.

    Args:
        calibration, test: uint8 [N,H,W,C].
        chosen: indices into ``calibration``.
    """
    places: dict[int, list[int]] = {}
    for place, image in enumerate(test):
        places.setdefault(hash(image.tobytes()), []).append(place)
    seen = np.zeros(len(test), bool)
    for index in chosen:  # hashes, not copies: the whole training set would be 150 MB
        for place in places.get(hash(calibration[index].tobytes()), ()):
            seen[place] |= bool((test[place] == calibration[index]).all())
    forget_pages(calibration)
    return seen


def _listed(config: CalibrationConfig, count: int) -> np.ndarray:
    """The test images that ``config`` lists."""
    name = "calibration.index_file" if config.index_file is not None else "calibration.indices"
    found = (
        np.asarray(config.indices) if config.index_file is None else _read_list(Path(config.index_file).expanduser())
    )
    remedy = f"give whole numbers from 0 to {count - 1}, each once"
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise ExperimentError(f"`{name}` holds {found.dtype} values of shape {list(found.shape)}", remedy)
    chosen, times = np.unique(found.astype(np.int64), return_counts=True)
    wrong = next((int(index) for index in chosen if not 0 <= index < count), None)
    if wrong is not None:
        raise ExperimentError(f"`{name}` lists image {wrong}, but there are {count} test images", remedy)
    if (times > 1).any():
        raise ExperimentError(f"`{name}` lists image {chosen[times.argmax()]} more than once", remedy)
    return chosen


def _read_list(path: Path) -> np.ndarray:
    """Indices from a .npy file, or from a text file with one in each line."""
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise ValueError(f"larger than {LARGEST_LIST} bytes")
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.array([int(line) for line in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExperimentError(
            f"`calibration.index_file`: {path} cannot be read as a list of indices ({reason})",
            "give a .npy file, or text with one index in each line",
        ) from error
