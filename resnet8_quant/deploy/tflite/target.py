"""`deploy=tflite`: write the file, run it where the target would, and compare with the exact integers.

In: the quantized ONNX model and the test images. Out: a `Target`: the files, and what LiteRT and TensorFlow Lite Micro
made of them.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from resnet8_quant.config import DeployConfig
from resnet8_quant.deploy.tflite import c_code, ends, file, reference, runtimes
from resnet8_quant.deploy.tflite.convert import convert
from resnet8_quant.graphs.session import open_session, run_batch
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.machine import usable_cores

TESTED = 10  # images in the C self test
BATCH = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A .tflite file and what the runtimes made of the test images.

    Attributes:
        files: name in the run's folder -> content.
        columns: of the row.
    """

    files: dict[str, bytes]
    columns: dict[str, Any]


def export(model: bytes, config: DeployConfig, spec: InputSpec, test: Split, predictions: np.ndarray) -> Target:
    """Convert a Q/DQ model and verify the file.

    Args:
        model: ONNX with names.
        config: of the target.
        spec: of the ONNX model's input.
        test: images and labels.
        predictions: of the exact integers, int64 [N].

    Raises:
        ExperimentError: an operator, a type or a shape without counterpart; the extra [tflite] is not installed.
    """
    core = convert(onnx.load_from_string(model), "resnet8-quant")
    lite = copy.deepcopy(core)
    ends.set_input(lite, config.input.name)
    ends.set_output(lite, config.output.name)
    data = file.write(lite)

    count = min(config.verify or len(test.labels), len(test.labels))
    images, labels, exact = test.images[:count], test.labels[:count], predictions[:count]
    values = spec.prepare(images)
    if values.ndim == 4 and values.shape[1:] != lite.tensors[lite.input].shape[1:]:
        values = values.transpose(0, 2, 3, 1)
    inputs = ends.feed(lite, values)
    on_phone = runtimes.run_litert(data, inputs, 1)
    columns: dict[str, Any] = {
        "tflite_bytes": len(data),
        "verified_images": count,
        "int4_layers": sum(tensor.dtype == "int4" for tensor in lite.tensors),
        **_compared("tflite", on_phone, labels, exact),
    }
    if runtimes.has_tflm():
        micro = runtimes.run_tflm(data, inputs, usable_cores())
        columns |= _compared("tflm", micro.outputs, labels, exact)
        columns["arena_bytes"] = micro.arena_bytes
        columns["tflm_max_step_difference"] = _steps(model, spec, images, lite, micro.outputs)
    else:
        log.warning("TensorFlow Lite Micro is not installed: pip install -c constraints.txt -e '.[tflite]'")
    return Target(_files(config, data, core, ends.feed(core, values[:TESTED])), columns)


def _compared(name: str, outputs: np.ndarray, labels: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    classes = outputs.reshape(len(outputs), -1).argmax(1)
    return {f"{name}_accuracy": float(np.mean(classes == labels)), f"{name}_changed": int(np.sum(classes != exact))}


def _steps(model: bytes, spec: InputSpec, images: np.ndarray, lite: Any, outputs: np.ndarray) -> int | None:
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


def _files(config: DeployConfig, data: bytes, core: Any, inputs: np.ndarray) -> dict[str, bytes]:
    """The .tflite file and, where asked for, its C array and the C code, whose test compares with the reference."""
    texts: dict[str, str] = {}
    if config.c_array:
        texts |= c_code.c_array(data)
    if config.c_code:
        sources = c_code.generate(core) | {"test.c": c_code.test_program(inputs, reference.run(core, inputs))}  # type: ignore[arg-type]
        texts |= {f"c/{name}": text for name, text in sources.items()}
    return {"model.tflite": data} | {name: text.encode() for name, text in texts.items()}
