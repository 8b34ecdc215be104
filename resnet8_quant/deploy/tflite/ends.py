"""What a .tflite file takes and gives: int8 codes, the images' bytes, or floats; with Softmax or without.

In: a `TfliteModel` whose input and output are int8. Out: the same model with other ends, and how to feed one.
"""

from __future__ import annotations

import numpy as np

from resnet8_quant.deploy.tflite.model import Operator, Tensor, TfliteModel
from resnet8_quant.errors import ExperimentError


def set_input(model: TfliteModel, dtype: str) -> None:
    """Make the model take ``dtype``: a QUANTIZE in front turns it into the int8 codes.

    Args:
        model: changed in place.
        dtype: "int8", "uint8" (the codes plus 128) or "float32".
    """
    if dtype == "int8":
        return
    codes = model.tensors[model.input]
    scale, zero_point = (codes.scale, codes.zero_point + 128) if dtype == "uint8" else (None, 0)
    source = model.add(Tensor(f"{codes.name}_{dtype}", codes.shape, dtype, scale, zero_point))
    model.operators.insert(0, Operator("QUANTIZE", (source,), (model.input,)))
    model.input = source


def set_output(model: TfliteModel, kind: str) -> None:
    """Make the model give ``kind``.

    Args:
        model: changed in place.
        kind: "int8": as it ends; "logits": int8 without the Softmax; "probabilities": float32 behind the Softmax.

    Raises:
        ExperimentError: it does not end in a Softmax.
    """
    if kind == "int8":
        return
    last = model.operators[-1]
    if last.kind != "SOFTMAX":
        raise ExperimentError(
            f"`deploy.output` is {kind}, but the model ends in {last.kind}, not in Softmax",
            "python run.py deploy=tflite deploy.output=int8",
        )
    if kind == "logits":
        model.operators.pop()
        model.output = last.inputs[0]
        return
    result = model.tensors[model.output]
    output = model.add(Tensor("probabilities", result.shape, "float32"))
    model.operators.append(Operator("DEQUANTIZE", (model.output,), (output,)))
    model.output = output


def feed(model: TfliteModel, values: np.ndarray) -> np.ndarray:
    """float32 [N, ...] as the float model takes them, NHWC -> what this model takes; integers rounded half to even.

    ONNX's QuantizeLinear rounds so, too.
    """
    tensor = model.tensors[model.input]
    if tensor.dtype == "float32":
        return values
    assert tensor.scale is not None
    limits = np.iinfo(tensor.dtype)
    return np.asarray(
        np.clip(np.rint(values / tensor.scale[0]) + tensor.zero_point, limits.min, limits.max), tensor.dtype
    )
