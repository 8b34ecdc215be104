"""A Keras h5 file, opened as data and nothing else.

In:  the path of an h5 file that Keras 2 or Keras 3 saved with ``model.save``, and the layer classes to admit.
Out: its layers in order, and which of them are input and output.

The file is hostile until checked. No code in it is run: a Lambda layer is refused like any unknown class.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.keras_layer import UNREADABLE, Layer, printable, shown, texts

RESAVE = "save the whole model, architecture and weights, with Keras: model.save('model.h5')"


@dataclass(frozen=True)
class KerasModel:
    """An open file: its layers in the order of the config, each name once; the input layer and the output layer."""

    layers: list[Layer]
    input: Layer
    output: Layer


@contextmanager
def open_keras(path: Path, supported: Collection[str]) -> Iterator[KerasModel]:
    """Open the h5 file ``path``; weights can be read until the context ends.

    Args:
        path: file written by ``model.save('model.h5')``: functional or sequential, one input, one output.
        supported: names of the layer classes to admit.

    Raises:
        ExperimentError: the file is not such a model, or holds a layer of another class.
    """
    if not path.is_file():
        raise ExperimentError(f"{path}: no such file", "give the path of a Keras h5 file: model.source=FILE")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ExperimentError(f"{path} is not a readable HDF5 file: {error}", RESAVE) from error
    with file:
        yield _read_model(file, path, supported)


def _read_model(file: h5py.File, path: Path, supported: Collection[str]) -> KerasModel:
    config = _read_config(file, path)
    ends: tuple[Any, Any] | None = None
    match config:
        case {"class_name": "Sequential", "config": {"layers": [_, *_] as entries} | ([_, *_] as entries)}:
            entries = _chained(entries)
        case {
            "class_name": "Functional" | "Model",
            "config": {"layers": [_, *_] as entries, "input_layers": inputs, "output_layers": outputs},
        }:
            ends = (inputs, outputs)
        case _:
            raise ExperimentError(f"{path}: `model_config` is no sequential or functional model with layers", RESAVE)
    weights = _weights_group(file, path)
    layers = [_read_layer(entry, path, weights, supported) for entry in entries]
    by_name = {layer.name: layer for layer in layers}
    first, last = layers[0].name, layers[-1].name
    if ends is not None:
        first, last = _only_end(ends[0], path, "input"), _only_end(ends[1], path, "output")
    input_layers = [layer.name for layer in layers if layer.class_name == "InputLayer"]
    if input_layers != [first] or last not in by_name or len(by_name) != len(layers):
        raise ExperimentError(
            f"{path}: {len(input_layers)} input layers, {len(by_name)} different names for {len(layers)} layers; "
            "supported: one input layer, one output layer, each name once",
            RESAVE,
        )
    return KerasModel(layers, by_name[first], by_name[last])


def _read_config(file: h5py.File, path: Path) -> Any:
    try:
        found = texts(file, "model_config", 1)
    except UNREADABLE as error:
        raise ExperimentError(f"{path}: `model_config` cannot be read: {error}", RESAVE) from error
    if not found:
        raise ExperimentError(f"{path} holds no text `model_config`: perhaps only weights were saved", RESAVE)
    try:
        return json.loads(found[0])
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{path}: `model_config` is not JSON: {error}", RESAVE) from error


def _weights_group(file: h5py.File, path: Path) -> h5py.Group:
    try:
        if isinstance(file.get("model_weights", getlink=True), h5py.HardLink):
            group = file["model_weights"]
            if isinstance(group, h5py.Group):
                return group
    except UNREADABLE as error:
        raise ExperimentError(f"{path}: `model_weights` cannot be read: {error}", RESAVE) from error
    raise ExperimentError(f"{path} holds no group `model_weights` of its own", RESAVE)


def _read_layer(entry: Any, path: Path, weights: h5py.Group, supported: Collection[str]) -> Layer:
    match entry:
        case {"class_name": str(class_name), "config": {"name": str(name)} as config}:
            # a class of the user's own may be called Conv2D too: Keras 3 tells it apart by its registered name
            class_name = printable(str(entry.get("registered_name") or class_name))
        case _:
            raise ExperimentError(f"{path}: `model_config` holds {shown(entry)} where a layer should be", RESAVE)
    layer = Layer(path, printable(name), class_name, config, entry.get("inbound_nodes"), weights, supported)
    if class_name not in supported:
        raise layer.refused("this class is not supported")
    if layer.name != name or not name:
        raise layer.refused("its name has characters that cannot be printed, or none")
    return layer


def _chained(entries: list[Any]) -> list[Any]:
    """Entries of a sequential model with the inbound nodes of a functional one, and an input layer in front."""
    match entries[0]:
        case {"class_name": str(class_name), "config": {"name": str(name), "batch_input_shape": shape}} if (
            class_name != "InputLayer"
        ):  # Keras before 2.3 left the input layer out
            first = {"class_name": "InputLayer", "config": {"name": f"{name}_input", "batch_input_shape": shape}}
            entries = [first, *entries]
    chained: list[Any] = []
    inbound: list[Any] = []
    for entry in entries:
        match entry:
            case {"config": {"name": str(name)}}:
                chained.append({**entry, "inbound_nodes": inbound})
                inbound = [[[name, 0, 0, {}]]]
            case _:
                chained.append(entry)  # refused by _read_layer
    return chained


def _only_end(tensors: Any, path: Path, end: str) -> str:
    match tensors:
        case [[str(name), 0, 0]] | [str(name), 0, 0]:  # Keras 3 writes a single one without the outer list
            return name
        case _:
            found = f"`{end}_layers` is {shown(tensors)}"
            raise ExperimentError(f"{path}: {found}; supported: exactly one {end}", RESAVE)
