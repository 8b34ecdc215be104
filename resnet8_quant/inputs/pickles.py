"""The pickles of CIFAR-10's python version, read without running anything that they name.

In: the bytes of a batch file (protocol 2, written by Python 2). Out: plain dictionaries, lists, bytes, numbers and
NumPy arrays. A pickle may name any function of any module and have it called. Here the few names that a NumPy array
needs lead to a stand-in that only stores what it is given, and every other name is refused. NumPy itself sees checked
bytes only.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError

REMEDY = "use an unmodified official copy, or leave data.root out to fetch one"


def load_batch(content: bytes, where: str) -> dict[Any, Any]:
    """Unpickle a dictionary of plain containers, bytes (where Python 2 had str), numbers and uint8 arrays.

    Raises:
        ExperimentError: the pickle names a class or function that no array needs, or is damaged.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"holds a {type(batch).__name__}, expected a dict")
        return {key: _array(value) if isinstance(value, _StandIn) else value for key, value in batch.items()}
    except ExperimentError as error:
        raise ExperimentError(f"{where} {error.problem}", REMEDY) from error
    except Exception as error:  # a damaged pickle may raise anything at all
        raise ExperimentError(f"{where} is a damaged pickle ({type(error).__name__}: {error})", REMEDY) from error


class _StandIn:
    """Stands in for what NumPy makes of a pickle: stores the arguments and the state, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(stored: _StandIn) -> NDArray[np.uint8]:
    """The array whose state (version, shape, dtype, is_fortran, bytes) a pickle holds."""
    _, shape, dtype, is_fortran, raw = stored.state
    name = dtype.arguments[0] if isinstance(dtype, _StandIn) else dtype
    if name not in (b"u1", "u1"):
        raise ValueError(f"an array of {name!r}, expected uint8")
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} without its bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in protocol 2: always as latin1."""
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn,  # the module's name before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _StandIn,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _StandIn,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ExperimentError(f"is refused: it asks for {module}.{name}, which no array needs", REMEDY)
        return _STAND_INS[module, name]
