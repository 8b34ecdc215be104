"""The pickles of CIFAR-10's python version, read without running anything that they name.

In: the bytes of a batch file (protocol 2, written by Python 2). Out: plain dictionaries, lists, bytes, numbers and
NumPy arrays. A pickle may name any function of any module and have it called. Here the few names that a NumPy array
needs lead to stand-ins that only store their arguments, and every other name is refused. NumPy itself sees checked
bytes only, never the file's state of an array.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError

REMEDY = "use an unmodified official copy, or leave data.root out to fetch one"


def load_batch(content: bytes, where: str) -> dict[Any, Any]:
    """Unpickle a dictionary whose values are plain containers, bytes, numbers and uint8 arrays.

    Args:
        content: the pickle.
        where: the file, as messages name it.

    Returns:
        The dictionary, with bytes where Python 2 had str; arrays are uint8 ``NDArray``.

    Raises:
        ExperimentError: the pickle names a class or function that no array needs, or is damaged.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), where).load()
        if not isinstance(batch, dict):
            raise ValueError(f"holds a {type(batch).__name__}, expected a dict")
        return {key: value.array() if isinstance(value, _Array) else value for key, value in batch.items()}
    except ExperimentError:
        raise
    except Exception as error:  # a damaged pickle may raise anything at all
        raise ExperimentError(f"{where} is a damaged pickle ({type(error).__name__}: {error})", REMEDY) from error


class _Dtype:
    """Stands in for numpy.dtype: stores its name."""

    def __init__(self, name: str | bytes = "", *_: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, without meaning for single bytes."""


class _Array:
    """Stands in for numpy.ndarray: stores its state (version, shape, dtype, is_fortran, bytes)."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "|u1", "uint8"):
            raise ValueError(f"an array of {getattr(dtype, 'name', dtype)}, expected uint8")
        if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} without its bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """Stands in for the function with which NumPy makes an empty array, whose state follows."""
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding}, expected latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # the module's name before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, where: str) -> None:
        super().__init__(file, encoding="bytes")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise ExperimentError(
                f"{self._where} is refused: it asks for {module}.{name}, which no array needs", REMEDY
            ) from None

    def persistent_load(self, _: object) -> NoReturn:
        raise ExperimentError(f"{self._where} is refused: it refers to objects outside the file", REMEDY)
