"""The bundled sample of CIFAR-10: 100 train and 100 test images of each class, for runs without a network.

In: resources/cifar10_sample.npz and its provenance beside it, written by tools/make_sample.py. Out: a ``Dataset``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.arrays import read_npz
from resnet8_quant.inputs.dataset import Dataset

SAMPLE = Path(__file__).resolve().parents[1] / "resources" / "cifar10_sample.npz"


def load_sample(path: Path = SAMPLE) -> Dataset:
    """Load the bundled sample: images uint8 ``[1000, 32, 32, 3]`` and labels int64 ``[1000]`` in both splits.

    Raises:
        ExperimentError: the file is missing, or is not the one that its provenance records.
    """
    try:
        data = path.read_bytes()
        expected = json.loads(path.with_suffix(".json").read_bytes())["npz_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"the bundled sample {path} cannot be read ({error})", _REMEDY) from error
    found = sha256_bytes(data)
    if found != expected:
        raise ExperimentError(f"the bundled sample {path} has SHA-256 {found}, expected {expected}", _REMEDY)
    return read_npz(io.BytesIO(data), "sample", f"the bundled sample {path}")


_REMEDY = "install the package again, or restore the files: git checkout -- resnet8_quant/resources"
