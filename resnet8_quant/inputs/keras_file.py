"""A Keras file as data: its layers, their attributes, inputs and weights, each checked before it is used.

In: an h5 file that Keras 2 or Keras 3 saved with ``model.save``, or a .keras archive of Keras 3.
Out: its layers in order, and which of them are input and output; numbers, choices and float32 arrays of each layer.

The file is hostile until checked. No code in it is run. A weight is read only if its shape, type and storage are as
expected, and no other file is opened on the way: links other than hard ones, virtual datasets and external storage are
refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# A .keras file is a zip of these; its weights are numbered, in an order that the class of the layer decides.
ARCHIVED_CONFIG, ARCHIVED_WEIGHTS = "config.json", "model.weights.h5"
LARGEST_CONFIG = 16 * 2**20  # bytes
NORM_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
LARGEST_INTEGER = 2**20  # of any size in a config: pixels, channels, strides; products of three still fit an int64
LARGEST_NUMBER = float(np.finfo(np.float32).max)
MOST_TEXTS = 64  # names of weights in one layer
UNREADABLE = (OSError, KeyError, RuntimeError, TypeError, ValueError)  # what h5py raises on a damaged file


class Refused(Exception):
    """Why a file or a layer cannot be converted; whoever catches it adds their names."""


@dataclass(frozen=True)
class Layer:
    """One layer of the config; its methods raise ``Refused`` for an attribute or weight that is not as expected.

    Attributes:
        inbound: the calls of the layer, as Keras 2 writes them: for each a list of [layer, node, tensor, arguments],
            where the arguments may be missing.
        weights: the file's group ``model_weights``; of a .keras archive, all of its weights.
        numbered: the group in ``weights`` whose "0", "1", ... are the layer's weights, in a .keras archive; "": they
            have names.
    """

    name: str
    class_name: str
    config: dict[str, Any]
    inbound: Any
    weights: h5py.Group
    numbered: str = ""

    def integers(self, key: str, count: int, default: Any = None, lowest: int = 1) -> tuple[int, ...]:
        """The attribute ``key``, a list of ``count`` whole numbers; one number stands for ``count`` equal ones."""
        value = self.config.get(key, default)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count:
            raise Refused(f"`{key}` is {shown(value)}; expected {count} whole numbers")
        return tuple(whole(key, number, lowest) for number in values)

    def integer(self, key: str, default: Any = None) -> int:
        """The attribute ``key``, a whole number of at least 1."""
        return whole(key, self.config.get(key, default))

    def number(self, key: str, default: float) -> float:
        """The attribute ``key``, a finite number; ``default`` where it is missing or null."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:
            raise Refused(f"`{key}` is {shown(value)}; expected a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """The attribute ``key``, true or false; some programs write 1 and 0."""
        return bool(self.choice(key, (True, False, 1, 0), default))

    def choice(self, key: str, choices: Collection[Any], default: Any = None) -> Any:
        """The attribute ``key``, one of ``choices``, of the same type: 1 is not true."""
        value = self.config.get(key, default)
        if (type(value), value) not in [(type(choice), choice) for choice in choices]:
            raise Refused(f"`{key}` is {shown(value)}; supported: {', '.join(map(str, choices))}")
        return value

    def inputs(self) -> list[str]:
        """Names of the layers whose outputs this layer takes."""
        match self.inbound:
            case [] | [[*_]]:
                tensors = [tensor for call in self.inbound for tensor in call]
            case _:
                raise Refused(f"`inbound_nodes` is {shown(self.inbound)}; supported: a layer that is called once")
        names = []
        for tensor in tensors:
            match tensor:
                case [str(name), 0, 0] | [str(name), 0, 0, dict()]:
                    names.append(name)
                case _:
                    raise Refused(f"its input {shown(tensor)} is not the only output of a layer")
            for key, value in (tensor[3] if len(tensor) > 3 else {}).items():
                # training=False is what a frozen backbone is called with; training=True would change every prediction
                if value is not None and not (key == "training" and value is False):
                    raise Refused(f"it is called with {shown(key)} = {shown(value)}")
        return names

    def weight(self, shape: tuple[int, ...], *names: str) -> NDArray[np.float32]:
        """The weight that Keras calls by one of ``names`` (versions differ), float32 of ``shape``, all finite."""
        try:
            if self.numbered:
                return _read_dataset(_follow(self.weights, f"{self.numbered}/{self._position(names)}"), shape)
            group = _follow(self.weights, self.name)
            stored = [text for text in _texts(group, "weight_names") if text.split("/")[-1].split(":")[0] in names]
            if len(stored) != 1:
                raise Refused(f"`model_weights` holds {len(stored)} weights `{names[0]}` for it; expected 1")
            return _read_dataset(_follow(group, stored[0]), shape)
        except UNREADABLE as error:
            raise Refused(f"weight `{names[0]}` {error}") from error

    def _position(self, names: tuple[str, ...]) -> int:
        """The number of a weight among those of its layer, in the order in which Keras 3 creates them."""
        if self.class_name != "BatchNormalization":
            return int("bias" in names)  # the kernel comes first
        absent = {name for name, key in (("gamma", "scale"), ("beta", "center")) if not self.flag(key, True)}
        return [name for name in NORM_WEIGHTS if name not in absent].index(names[0])


@contextmanager
def opened(path: Path, folder: Path) -> Iterator[tuple[h5py.File, str | None]]:
    """The h5 file of a model; of a .keras archive the one with its weights, and the text of its config.

    Args:
        path: of an h5 file or a .keras archive.
        folder: where the weights of an archive are written.

    Raises:
        OSError: it is no HDF5 file.
        Refused: it is an archive, but not as Keras writes it.
    """
    if not zipfile.is_zipfile(path):
        with h5py.File(path, "r") as file:
            yield file, None
        return
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, most in ((ARCHIVED_CONFIG, LARGEST_CONFIG), (ARCHIVED_WEIGHTS, os.path.getsize(path))):
                entry = archive.getinfo(name)
                # Keras stores its files as they are: nothing in it is larger than the archive.
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size > most:
                    raise Refused(f"`{name}` in the archive is compressed, encrypted or too large")
                members[name] = archive.read(entry)
        text = members[ARCHIVED_CONFIG].decode()
    except (KeyError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Refused(f"it is an archive that cannot be read as a .keras file: {printable(str(error))}") from error
    weights = folder / ARCHIVED_WEIGHTS
    weights.write_bytes(members[ARCHIVED_WEIGHTS])
    with h5py.File(weights, "r") as file:
        yield file, text


def read_layers(file: h5py.File, archived: str | None = None) -> tuple[list[Layer], str, str]:
    """The layers of a model in the order of its config, and the names of its only input and its only output layer.

    Args:
        file: as ``opened`` gives it.
        archived: the text of the config, of a .keras archive.
    """
    try:
        stored = _texts(file, "model_config") if archived is None else [archived]
        if len(stored) != 1:
            raise Refused("it holds no text `model_config`: perhaps only weights were saved")
        config = json.loads(stored[0], object_hook=_as_keras_2)
        weights = _follow(file, "model_weights") if archived is None else file
    except UNREADABLE as error:
        raise Refused(f"`model_config` or `model_weights` cannot be read: {error}") from error
    match config:
        case {"class_name": "Sequential", "config": {"layers": [_, *_] as entries} | ([_, *_] as entries)}:
            layers = _chained([_read_layer(entry, weights) for entry in entries])
            first, last = layers[0].name, layers[-1].name
        case {
            "class_name": "Functional" | "Model",
            "config": {"layers": [_, *_] as entries, "input_layers": inputs, "output_layers": outputs},
        }:
            layers = [_read_layer(entry, weights) for entry in entries]
            first, last = _only_tensor(inputs, "input"), _only_tensor(outputs, "output")
        case _:
            raise Refused("`model_config` is no sequential or functional model with layers")
    if archived is not None:
        layers = _numbered(layers)
    names = {layer.name for layer in layers}
    input_layers = [layer.name for layer in layers if layer.class_name == "InputLayer"]
    if input_layers != [first] or last not in names or len(names) != len(layers):
        raise Refused(
            f"it has {len(input_layers)} input layers and {len(names)} different names for {len(layers)} layers; "
            "supported: one input layer, one output layer, each name once"
        )
    return layers, first, last


def _as_keras_2(value: dict[str, Any]) -> Any:
    """Write the tensors and calls of Keras 3 as Keras 2 does: [layer, node, tensor, arguments of the call]."""
    match value:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": [layer, node, tensor]}}:
            return [layer, node, tensor, {}]
        case {"args": [[[*_], *_] as tensors] | [*tensors], "kwargs": arguments}:
            return [[*tensor[:3], arguments] if isinstance(tensor, list) else tensor for tensor in tensors]
    return value


def _read_layer(entry: Any, weights: h5py.Group) -> Layer:
    match entry:
        case {"class_name": str(class_name), "config": {"name": str(name)} as config}:
            if not name or printable(name) != name:
                raise Refused(f"the name of layer {shown(name)} is empty or has characters that cannot be printed")
            # A class of the user's own may be called Conv2D too: Keras 3 tells it apart by its registered name.
            class_name = printable(str(entry.get("registered_name") or class_name))
            return Layer(name, class_name, config, entry.get("inbound_nodes"), weights)
    raise Refused(f"`model_config` holds {shown(entry)} where a layer should be")


def _numbered(layers: list[Layer]) -> list[Layer]:
    """The layers of a .keras archive with the groups of their weights, which are named after classes: conv2d_1."""
    count: Counter[str] = Counter()
    numbered = []
    for layer in layers:
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer.class_name)).lower()
        suffix = f"_{count[snake]}" if count[snake] else ""
        count[snake] += 1
        numbered.append(replace(layer, numbered=f"layers/{snake}{suffix}/vars"))
    return numbered


def _chained(layers: list[Layer]) -> list[Layer]:
    """The layers of a sequential model, each called on the one before, with an input layer in front."""
    first = layers[0]
    if first.class_name != "InputLayer" and "batch_input_shape" in first.config:  # as in Keras before 2.3
        layers = [replace(first, name=f"{first.name}_input", class_name="InputLayer"), *layers]
    calls = [replace(layer, inbound=[[[before.name, 0, 0]]]) for before, layer in pairwise(layers)]
    return [replace(layers[0], inbound=[]), *calls]


def _only_tensor(tensors: Any, end: str) -> str:
    match tensors:
        case [[str(name), 0, 0]] | [str(name), 0, 0]:  # Keras 3 writes a single one without the outer list
            return name
    raise Refused(f"`{end}_layers` is {shown(tensors)}; supported: exactly one {end}")


def _follow(group: Any, name: str) -> Any:
    """The object ``name`` in ``group``, reached through hard links only."""
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            problem = "missing" if link is None else f"a {type(link).__name__}; only data in the file itself is read"
            raise Refused(f"`{printable(name)}` in the group `{group.name}` is {problem}")
        group = group[part]
    return group


def _read_dataset(dataset: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The finite float32 values of ``dataset``; a ValueError where it is something else."""
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError("is not a dataset")
    if dataset.shape != shape or dataset.dtype not in (np.dtype("<f4"), np.dtype(">f4")):
        raise ValueError(f"is {dataset.dtype} of shape {shown(dataset.shape)}; the config implies float32 {shape}")
    # Keras stores plain contiguous data: no filter plugin to load, no other file to open, nothing to inflate.
    properties, size = dataset.id.get_create_plist(), 4 * math.prod(shape)
    is_plain = properties.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    is_whole = dataset.id.get_storage_size() == size
    # The stored size is a claim of the file too: memory is set aside for no more than the file has.
    is_possible = size <= os.path.getsize(dataset.file.filename)
    if not (is_plain and is_whole and is_possible) or properties.get_external_count():
        raise ValueError("is chunked, virtual, external or incomplete; only plain storage is read")
    value: NDArray[np.float32] = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(value).all():
        raise ValueError("holds NaN or infinity")
    return value


def _texts(owner: Any, name: str) -> list[str]:
    """The text attribute ``name`` as a list; empty where it is absent, not text, or more than ``MOST_TEXTS`` texts."""
    if name not in owner.attrs:
        return []
    attribute = owner.attrs.get_id(name)
    if h5py.check_string_dtype(attribute.dtype) is None or math.prod(attribute.shape) > MOST_TEXTS:
        return []
    values = np.ravel(np.asarray(owner.attrs[name], dtype=object))
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def whole(key: str, value: Any, lowest: int = 1) -> int:
    """``value`` of the attribute ``key``, if it is a whole number from ``lowest`` to ``LARGEST_INTEGER``."""
    if type(value) is not int or not lowest <= value <= LARGEST_INTEGER:
        raise Refused(f"`{key}` is {shown(value)}; expected whole numbers from {lowest} to {LARGEST_INTEGER}")
    return value


def printable(text: str) -> str:
    """``text`` for an error message: no control characters, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def shown(value: Any) -> str:
    """A value from the file, for an error message."""
    return printable(reprlib.repr(value))  # reprlib bounds depth and length
