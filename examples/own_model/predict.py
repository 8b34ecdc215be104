"""Use a model.onnx as an application does, with Pillow and onnxruntime, and compare with the run that made it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
from images import FOLDER, read


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model", type=Path, help="model.onnx in the folder of its run")
    model = options.parse_args().model
    images, labels = read(FOLDER / "images" / "test")
    session = ort.InferenceSession(model)
    predictions = session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)
    different = int((predictions != np.load(model.with_name("predictions.npy"))).sum())
    print(f"{len(labels):,} test images: top-1 {100 * (predictions == labels).mean():.2f} %", end="; ")
    print(f"{different} predictions differ from the run's")
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
