"""The pickles of the CIFAR python version, read without running anything that they ask for.

In: the bytes of a batch file (protocol 2, written by Python 2). Out: plain dictionaries, lists, bytes, numbers and
numpy arrays. A pickle may name any function of any module and have it called; here the few names that a numpy array
needs lead to inert stand-ins of this module, and every other name is refused. Not even numpy's own ``__setstate__``
sees the file: the arrays are built from checked bytes afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError

REMEDY = (
    "use the unmodified official files; the binary version, data.root=FOLDER/cifar-10-binary.tar.gz, has no pickles"
)


def load_batch(data: bytes, where: str) -> dict[Any, Any]:
    """Unpickle a dictionary whose values are plain containers, bytes, numbers and uint8 arrays.

    Args:
        data: the pickle.
        where: how messages name the file.

    Returns:
        The dictionary, with bytes where Python 2 had str; arrays are uint8 ``NDArray``.

    Raises:
        ExperimentError: the pickle names a class or function that no array needs, or is damaged.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(data), where).load()
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}, expected a dict")
        return {key: value.array() if isinstance(value, _Array) else value for key, value in content.items()}
    except ExperimentError:
        raise
    except Exception as error:  # a damaged pickle may raise anything at all
        raise ExperimentError(f"{where} is a damaged pickle ({type(error).__name__}: {error})", REMEDY) from error


class _Dtype:
    """Stands for numpy.dtype: remembers its name."""

    def __init__(self, name: str | bytes = "", *_: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, without meaning for single bytes."""


class _Array:
    """Stands for numpy.ndarray: remembers its state (version, shape, dtype, is_fortran, bytes)."""

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
    """Stands for numpy's maker of empty arrays, whose state follows."""
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding}, expected latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # the module's name before numpy 2
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
        raise ExperimentError(f"{self._where} is refused: it refers to objects outside of the file", REMEDY)
