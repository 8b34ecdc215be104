"""Make the bundled sample of CIFAR-10: 100 train and 100 test images of each class.

In:  the verified CIFAR-10 (found or fetched by the package), a seed.
Out: ``cifar10_sample.npz`` and ``cifar10_sample.json`` (origin, digests, seed, indices) in ``--out``; the same bytes
     every time, on the same zlib.

    python tools/make_sample.py
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.config import DataConfig
from resnet8_quant.files import cache_folder, replacing, sha256_file
from resnet8_quant.inputs.cifar10 import ARRAYS
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.inputs.sample import SAMPLE

SEED = 42
PER_CLASS = 100
ORIGIN = (
    "CIFAR-10 was collected by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton; Alex Krizhevsky, Learning Multiple "
    "Layers of Features from Tiny Images, technical report, University of Toronto, 2009, "
    "https://www.cs.toronto.edu/~kriz/cifar.html. It is a labelled subset of 80 Million Tiny Images, gathered from "
    "the web; its authors state no licence and ask for this citation. The package's licence does not cover the images."
)


def draw(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Ascending indices of ``PER_CLASS`` images of each class, without replacement."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([generator.choice(indices, PER_CLASS, replace=False) for indices in classes]))


def write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """np.savez_compressed, but with fixed timestamps and the best compression."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, wherever this runs
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(info, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    """Draw, write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SAMPLE.parent)
    out = parser.parse_args().out
    dataset = load_dataset(DataConfig(), cache_folder())
    generator = np.random.default_rng(SEED)
    arrays: dict[str, NDArray[np.generic]] = {}
    indices = {}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        chosen = draw(split.labels, generator)
        indices[name] = chosen.tolist()
        arrays[f"x_{name}"] = split.images[chosen]
        arrays[f"y_{name}"] = split.labels[chosen].astype(np.uint8)
    npz = out / SAMPLE.name
    write_npz(npz, arrays)
    provenance = {
        "source": "CIFAR-10, official order (data_batch_1 to 5, test_batch), uint8 [N, 32, 32, 3]",
        "origin": ORIGIN,
        "source_sha256": {name: digest for name, (_, digest) in ARRAYS.items()},
        "made_by": "python tools/make_sample.py",
        "seed": SEED,
        "images_per_class": PER_CLASS,
        "npz_sha256": sha256_file(npz),
        "train_indices": indices["train"],
        "test_indices": indices["test"],
    }
    lists = json.dumps(provenance, indent=1)
    for chosen in indices.values():  # one line per list of indices, not one per index
        lists = lists.replace(json.dumps(chosen, indent=1).replace("\n", "\n "), json.dumps(chosen))
    with replacing(npz.with_suffix(".json")) as temporary:
        temporary.write_text(lists + "\n", encoding="utf-8")
    print(f"{npz}: {npz.stat().st_size:,} bytes, SHA-256 {provenance['npz_sha256']}")


if __name__ == "__main__":
    main()
