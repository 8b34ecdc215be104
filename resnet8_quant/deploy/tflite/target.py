"""`deploy=tflite`: write the file, run it where the target would, and compare with the exact integers.

In: the quantized ONNX model and the test images. Out: a `Target`: the files, and what LiteRT and TensorFlow Lite Micro
made of the images.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from resnet8_quant import __version__
from resnet8_quant.config import DeployConfig, Layout
from resnet8_quant.deploy.tflite import c_code, ends, file, reference, runtimes
from resnet8_quant.deploy.tflite.convert import convert
from resnet8_quant.deploy.tflite.model import TfliteModel
from resnet8_quant.graphs.session import open_session, run_batch
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.machine import usable_cores

TESTED = 100  # images in the C self test
BATCH = 50
DIGEST = "resnet8_quant.model_sha256"  # metadata: which run's model.onnx has these integers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A .tflite file and what the runtimes made of the test images.

    Attributes:
        files: name in the run's folder -> content.
        columns: of the row.
        predictions: "tflite" and, where it is installed, "tflm" -> class of each verified image, int64 [N].
    """

    files: dict[str, bytes]
    columns: dict[str, Any]
    predictions: dict[str, np.ndarray]


def build(model: bytes, config: DeployConfig, digest: str) -> tuple[TfliteModel, TfliteModel, bytes]:
    """Convert a Q/DQ model.

    Args:
        model: ONNX with names.
        config: of the target.
        digest: SHA-256 of the run's model.onnx, for the metadata.

    Returns:
        The model with int8 ends, the one with the ends that ``config`` asks for, and the latter as a .tflite file.

    Raises:
        ExperimentError: an operator, a type or a shape without counterpart; the extra [tflite] is not installed.
    """
    core = convert(onnx.load_from_string(model), f"resnet8-quant {__version__}")
    lite = copy.deepcopy(core)
    ends.set_input(lite, config.input.name)
    ends.set_output(lite, config.output.name)
    lite.metadata[DIGEST] = digest.encode()
    return core, lite, file.write(lite)


def flash_bytes(model: bytes, config: DeployConfig) -> int:
    """Size of the .tflite file of a Q/DQ model, for ``allocate.count=tflite``."""
    return len(build(model, config, "0" * 64)[2])


def export(model: bytes, config: DeployConfig, spec: InputSpec, images: np.ndarray, digest: str) -> Target:
    """Convert a Q/DQ model and run the file.

    Args:
        model: ONNX with names.
        config: of the target.
        spec: of the ONNX model's input.
        images: of the test set.
        digest: SHA-256 of the run's model.onnx.

    Raises:
        ExperimentError: an operator, a type or a shape without counterpart; the extra [tflite] is not installed.
    """
    core, lite, data = build(model, config, digest)
    images = images[: config.verify]
    values = spec.prepare(images)
    if spec.layout is Layout.NCHW:
        values = values.transpose(0, 2, 3, 1)
    inputs = ends.feed(lite, values)
    predictions = {"tflite": _classes(runtimes.run_litert(data, inputs, 1))}
    columns: dict[str, Any] = {
        "tflite_bytes": len(data),
        "verified_images": len(images),
        "int4_layers": sum(tensor.dtype == "int4" for tensor in lite.tensors),
    }
    if runtimes.has_tflm():
        micro = runtimes.run_tflm(data, inputs, usable_cores())
        predictions["tflm"] = _classes(micro.outputs)
        columns["arena_bytes"] = micro.arena_bytes
        columns["tflm_max_step_difference"] = _steps(model, spec, images, lite, micro.outputs)
    else:
        log.warning("TensorFlow Lite Micro is not installed: pip install -c constraints.txt -e '.[tflite]'")
    return Target(_files(config, data, core, ends.feed(core, values[:TESTED])), columns, predictions)


def _classes(outputs: np.ndarray) -> np.ndarray:
    return np.asarray(outputs.reshape(len(outputs), -1).argmax(1))


def _steps(model: bytes, spec: InputSpec, images: np.ndarray, lite: TfliteModel, outputs: np.ndarray) -> int | None:
    """Largest difference from the exact integers' output, in steps of the file's; None where that has no Softmax."""
    tensor = lite.tensors[lite.output]
    if tensor.scale is None or lite.operators[-1].kind != "SOFTMAX":
        return None
    session = open_session(model, 0)
    size = spec.batch or BATCH
    starts = range(0, len(images) - len(images) % size if spec.batch else len(images), size)
    parts = [run_batch(session, spec.name, spec.prepare(images[start : start + size])) for start in starts]
    if not parts:
        return None
    codes = np.clip(np.rint(np.concatenate(parts) / tensor.scale[0]) + tensor.zero_point, -128, 127)
    return int(np.abs(codes - outputs[: len(codes)].reshape(codes.shape)).max())


def _files(config: DeployConfig, data: bytes, core: TfliteModel, inputs: np.ndarray) -> dict[str, bytes]:
    """The .tflite file and, where asked for, its C array and the C code, whose test compares with the reference."""
    texts: dict[str, str] = {}
    if config.c_array:
        texts |= c_code.c_array(data)
    if config.c_code:
        sources = c_code.generate(core) | {"test.c": c_code.test_program(inputs, reference.run(core, inputs))}  # type: ignore[arg-type]
        texts |= {f"c/{name}": text for name, text in sources.items()}
    return {"model.tflite": data} | {name: text.encode() for name, text in texts.items()}
