"""Run models in ONNX Runtime's default session, on one thread: the part of cpus.py that an emulated CPU executes.

In: file names in threes: MODEL.onnx, INPUT.npy as the model wants it [N, ...], OUTPUT.npy. Out: OUTPUT.npy, the model's
first output for all N. Needs nothing but NumPy and ONNX Runtime, which is all that an Arm root has.
"""

import sys

import numpy as np
import onnxruntime

BATCH = 50


def main() -> None:
    files = sys.argv[1:]
    for model, images, outputs in zip(files[::3], files[1::3], files[2::3], strict=True):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the one setting that is not the default; it chooses no kernel
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name, values = session.get_inputs()[0].name, np.load(images)
        batches = (values[start : start + BATCH] for start in range(0, len(values), BATCH))
        np.save(outputs, np.concatenate([session.run(None, {name: batch})[0] for batch in batches]))


if __name__ == "__main__":
    main()
