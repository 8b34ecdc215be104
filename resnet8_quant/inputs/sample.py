"""The bundled sample of CIFAR-10: 100 train and 100 test images of each class, for runs without a network.

In: resources/cifar10_sample.npz and its provenance beside it, written by tools/make_sample.py. Out: a ``Dataset``.
"""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path

from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.inputs.arrays import read_npz
from resnet8_quant.inputs.splits import Dataset

SAMPLE = Path(__file__).resolve().parents[1] / "resources" / "cifar10_sample.npz"
REMEDY = "install the package again, or restore the files: git checkout -- resnet8_quant/resources"


@lru_cache(maxsize=1)
def load_sample(path: Path = SAMPLE) -> Dataset:
    """Load the bundled sample: images uint8 ``[1000, 32, 32, 3]`` and labels int64 ``[1000]`` in both splits.

    The arrays are read-only: all jobs of a sweep in one process share them.
    """
    try:
        content = path.read_bytes()
        expected = json.loads(path.with_suffix(".json").read_bytes())["npz_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"the bundled sample {path} cannot be read ({error})", REMEDY) from error
    digest = sha256_bytes(content)
    if digest != expected:
        raise ExperimentError(f"the bundled sample {path} has SHA-256 {digest}, expected {expected}", REMEDY)
    sample = read_npz(io.BytesIO(content), "sample", f"the bundled sample {path}")
    for split in (sample.train, sample.test):
        split.images.flags.writeable = split.labels.flags.writeable = False
    return sample
