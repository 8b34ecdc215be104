"""The MLPerf Tiny reference weights: from a path, the cache or the network.

In: ``model.source`` (a path) or nothing. Out: a name for the table and the path of a Keras h5 file.
The network: Banbury et al., MLPerf Tiny Benchmark, arXiv 2106.07597.
"""

from __future__ import annotations

import logging
from pathlib import Path

from resnet8_quant.errors import ExperimentError, typed_setting
from resnet8_quant.files import locked, sha256_file

log = logging.getLogger(__name__)

FILE_NAME = "pretrainedResnet.h5"
FILE_SHA256 = "5f938a8eea605438cc7360aa13c987bc6d7bd0c8d931b2917361ae7ae4eeda2f"
FILE_BYTES = 1_116_712
URL = (
    "https://raw.githubusercontent.com/mlcommons/tiny/master/"
    f"benchmark/training/image_classification/trained_models/{FILE_NAME}"
)


def reference_weights(source: str | None, cache: Path) -> tuple[str, Path]:
    """Name and h5 file of the reference model, or of another Keras model where ``source`` holds one."""
    if source is None:
        return "mlperf_tiny", _fetch(cache / "models")
    path = Path(source).expanduser()
    if not path.is_file():
        raise ExperimentError(
            f"`model.source`: {path} is not a file",
            f"give the path of {FILE_NAME}: python run.py model=mlperf_tiny model.source=FILE.h5",
        )
    digest = sha256_file(path)
    if digest == FILE_SHA256:
        return "mlperf_tiny", path
    name = f"keras:{path.stem}"
    log.warning(
        "%s is not the MLPerf Tiny reference (its SHA-256 is %s): shown as %s; model=keras %s loads it under its own "
        "name",
        *(path, digest, name, typed_setting("model.path", str(path))),
    )
    return name, path


def _fetch(folder: Path) -> Path:
    """The reference file in ``folder``, downloaded where it is not there yet."""
    path = folder / FILE_NAME
    with locked(folder / "fetch.lock"):
        if path.is_file() and sha256_file(path) == FILE_SHA256:
            return path
        from resnet8_quant.inputs import download

        try:
            download.fetch(URL, path, f"sha256:{FILE_SHA256}", FILE_BYTES)
        except download.FetchError as error:
            raise ExperimentError(
                f"the MLPerf Tiny reference cannot be fetched: {error}",
                f"get {FILE_NAME} from the repository mlcommons/tiny "
                "(benchmark/training/image_classification/trained_models), then: "
                "python run.py model=mlperf_tiny model.source=FILE.h5; or use the bundled weights: model=resnet8",
            ) from error
    return path
