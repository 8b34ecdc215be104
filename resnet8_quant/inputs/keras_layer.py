"""One layer of a Keras file: its attributes, its inputs and its weights, each checked before it is used.

In:  the layer's part of the config and the file's group of weights.
Out: numbers, choices, names and float32 arrays; an `ExperimentError` that names file and layer for anything else.

A weight is read only if its shape, type and storage are as expected. No other file is opened on the way: links other
than hard ones, virtual datasets and external storage are refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from resnet8_quant.errors import ExperimentError

LARGEST_INTEGER = 2**20  # of any size in a config: pixels, channels, strides; products of three still fit an int64
LARGEST_NUMBER = float(np.finfo(np.float32).max)
MOST_WEIGHTS = 64  # in one layer
UNREADABLE = (OSError, KeyError, RuntimeError, TypeError, ValueError)  # what h5py raises on a damaged file


@dataclass(frozen=True)
class Layer:
    """One layer of the config. Its methods read an attribute or a weight and refuse what is not as expected."""

    path: Path
    name: str
    class_name: str
    config: dict[str, Any]
    inbound: Any
    weights: h5py.Group
    supported: Collection[str]

    def refused(self, problem: str) -> ExperimentError:
        """The error for a layer that cannot be converted."""
        return ExperimentError(
            f"{self.path}: layer `{self.name}` ({self.class_name}): {problem}",
            f"supported layers: {', '.join(self.supported)}; "
            "for anything else export the model to ONNX with tf2onnx and run with model=onnx model.path=FILE",
        )

    def inputs(self) -> list[str]:
        """Names of the layers whose outputs this layer takes.

        Raises:
            ExperimentError: the layer is called more than once, with arguments that change its meaning, or on
                something that is not the only output of another layer.
        """
        match self.inbound:
            case []:
                return []
            case [[*tensors]]:  # Keras 2: [name, node, tensor, arguments]
                calls = [tensor[3] for tensor in tensors if isinstance(tensor, list) and len(tensor) == 4]
                histories = [tensor[:3] if isinstance(tensor, list) else tensor for tensor in tensors]
            case [{"args": [*arguments], "kwargs": call}]:  # Keras 3
                calls = [call]
                flat = [tensor for a in arguments for tensor in (a if isinstance(a, list) else [a])]
                histories = [_keras_history(tensor) for tensor in flat]
            case [_, _, *_]:
                raise self.refused(f"it is shared, called {len(self.inbound)} times; only layers called once")
            case _:
                raise self.refused(f"`inbound_nodes` is {shown(self.inbound)}")
        for call in calls:
            self._check_call(call)
        names = []
        for history in histories:
            match history:
                case [str(name), 0, 0]:
                    names.append(name)
                case _:
                    raise self.refused(f"its input {shown(history)} is not the only output of a layer")
        return names

    def _check_call(self, call: Any) -> None:
        if not isinstance(call, dict):
            raise self.refused(f"`inbound_nodes` holds {shown(call)}")
        for key, value in call.items():
            # training=False is what a frozen backbone is called with; training=True would change every prediction
            if value is not None and not (key == "training" and value is False):
                raise self.refused(f"it is called with {shown(key)} = {shown(value)}")

    def integer(self, key: str, lowest: int = 1, default: Any = None) -> int:
        """The attribute ``key``, a whole number from ``lowest`` to `LARGEST_INTEGER`."""
        return self.whole(key, self.config.get(key, default), lowest)

    def integers(self, key: str, count: int, default: Any = None, lowest: int = 1) -> tuple[int, ...]:
        """The attribute ``key``, a list of ``count`` whole numbers; one number stands for ``count`` equal ones."""
        value = self.config.get(key, default)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count:
            raise self.refused(f"`{key}` is {shown(value)}; expected {count} whole numbers")
        return tuple(self.whole(key, v, lowest) for v in values)

    def whole(self, key: str, value: Any, lowest: int = 1) -> int:
        """``value``, found in the attribute ``key``: a whole number from ``lowest`` to `LARGEST_INTEGER`."""
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= LARGEST_INTEGER:
            raise self.refused(f"`{key}` is {shown(value)}; expected whole numbers from {lowest} to {LARGEST_INTEGER}")
        return value

    def number(self, key: str, default: float) -> float:
        """The attribute ``key``, a finite number; ``default`` where it is missing or null."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            raise self.refused(f"`{key}` is {shown(value)}; expected a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """The attribute ``key``, true or false."""
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise self.refused(f"`{key}` is {shown(value)}; expected true or false")
        return value

    def choice(self, key: str, choices: Collection[Any], default: Any = None) -> Any:
        """The attribute ``key``, one of ``choices``."""
        value = self.config.get(key, default)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise self.refused(f"`{key}` is {shown(value)}; supported: {', '.join(map(str, choices))}")

    def weight(self, shape: tuple[int, ...], *names: str) -> NDArray[np.float32]:
        """The weight that Keras calls by one of ``names`` (versions differ), float32 of ``shape``.

        Raises:
            ExperimentError: it is missing, of another shape or type, not stored in the file itself, or not finite.
        """
        try:
            dataset = self._dataset(names)
            self._check_dataset(dataset, names[0], shape)
            value: NDArray[np.float32] = np.asarray(dataset[()], dtype=np.float32)
        except UNREADABLE as error:
            raise self.refused(f"weight `{names[0]}` cannot be read: {error}") from error
        if not np.isfinite(value).all():
            raise self.refused(f"weight `{names[0]}` holds NaN or infinity")
        return value

    def _dataset(self, names: tuple[str, ...]) -> Any:
        group = self._follow(self.weights, self.name)
        stored = texts(group, "weight_names", MOST_WEIGHTS)
        found = [s for s in stored if s.rsplit("/", 1)[-1].removesuffix(":0") in names]
        if len(found) != 1:
            raise self.refused(f"`model_weights` holds {len(found)} weights `{names[0]}` for it; expected 1")
        return self._follow(group, found[0])

    def _follow(self, group: Any, name: str) -> Any:
        """What ``name`` in ``group`` is, reached through hard links only."""
        for part in filter(None, name.split("/")):
            if not isinstance(group, h5py.Group):
                raise self.refused(f"`{printable(name)}` is not inside a group")
            link = group.get(part, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = "missing" if link is None else f"a {type(link).__name__}; only data in the file itself is read"
                raise self.refused(f"`{printable(name)}` in `model_weights` is {kind}")
            group = group[part]
        return group

    def _check_dataset(self, dataset: Any, name: str, shape: tuple[int, ...]) -> None:
        if not isinstance(dataset, h5py.Dataset):
            raise self.refused(f"weight `{name}` is not a dataset")
        if dataset.shape != shape:
            raise self.refused(f"weight `{name}` has shape {shown(dataset.shape)}; the config implies {shape}")
        if dataset.dtype not in (np.dtype("<f4"), np.dtype(">f4")):
            raise self.refused(f"weight `{name}` is of type {dataset.dtype}; expected float32")
        plist, size = dataset.id.get_create_plist(), 4 * math.prod(shape)
        # Keras stores plain contiguous data: no filter plugin to load, no other file to open, nothing to inflate
        plain = plist.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) and plist.get_external_count() == 0
        if not plain:
            raise self.refused(f"weight `{name}` is chunked, virtual or external; only plain storage is read")
        if dataset.id.get_storage_size() != size or size > self.path.stat().st_size:
            raise self.refused(f"weight `{name}` is not stored in full: expected {size} bytes")


def _keras_history(tensor: Any) -> Any:
    match tensor:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": history}}:
            return history
        case _:
            return tensor


def texts(owner: Any, name: str, most: int) -> list[str]:
    """The text attribute ``name``, as a list; empty where it is absent, not text, or more than ``most`` texts."""
    if name not in owner.attrs:
        return []
    attribute = owner.attrs.get_id(name)
    is_text = h5py.check_string_dtype(attribute.dtype) is not None
    if not is_text or len(attribute.shape) > 1 or math.prod(attribute.shape) > most:
        return []
    value = owner.attrs[name]
    return [v.decode() if isinstance(v, bytes) else str(v) for v in (value if attribute.shape else [value])]


def printable(text: str) -> str:
    """``text`` for an error message: no control characters, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def shown(value: Any) -> str:
    """A value from the file, for an error message."""
    return printable(reprlib.repr(value))  # reprlib bounds depth and length
