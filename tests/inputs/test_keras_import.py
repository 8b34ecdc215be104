"""The Keras importer against a NumPy forward pass of its own, and against files that it must refuse."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet8_quant.config import Layout, ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import keras_import
from resnet8_quant.inputs.keras_import import LAYERS, convert_apart, convert_h5
from resnet8_quant.inputs.model import load_model

# ---------------------------------------------------------------- the oracle: NumPy, NHWC, float64


def windows(x, config, kernel, strides, fill):
    """[N, rows, columns, C, kernel height, kernel width], with padding as TensorFlow documents it."""
    dilation = config.get("dilation_rate", [1, 1])
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if config.get("padding", "valid") == "same":
        pads = [(0, 0)]
        for size, extent, s in zip(x.shape[1:3], extents, strides, strict=True):
            total = max(extent - s, 0) if size % s == 0 else max(extent - size % s, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, extents, (1, 2))
    return view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]


def activate(x, activation):
    if activation == "softmax":
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-x))
    return {"linear": x, "relu": np.maximum(x, 0), "relu6": np.clip(x, 0, 6), "sigmoid": sigmoid}[activation]


def activate_with_bias(c, w, x):
    return activate(x + w.get("bias", 0), c.get("activation", "linear"))


def conv(c, w, x):
    groups, kernel = c.get("groups", 1), w["kernel"].astype(np.float64)
    patches = windows(x, c, c["kernel_size"], c["strides"], 0.0)
    parts = zip(np.split(patches, groups, 3), np.split(kernel, groups, 3), strict=True)
    return activate_with_bias(c, w, np.concatenate([np.einsum("nhwcij,ijco->nhwo", *part) for part in parts], -1))


def depthwise(c, w, x):
    kernel = next(value for name, value in w.items() if "kernel" in name).astype(np.float64)
    y = np.einsum("nhwcij,ijcm->nhwcm", windows(x, c, c["kernel_size"], c["strides"], 0.0), kernel)
    return activate_with_bias(c, w, y.reshape(*y.shape[:3], -1))


def batch_normalization(c, w, x):
    normal = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"].astype(np.float64) + c["epsilon"])
    return normal * w.get("gamma", 1) + w.get("beta", 0)


def pool(function):
    return lambda c, w, x: function(windows(x, c, c["pool_size"], c["strides"] or c["pool_size"], np.nan), (4, 5))


FORWARD = {
    "Conv2D": conv,
    "DepthwiseConv2D": depthwise,
    "BatchNormalization": batch_normalization,
    "Activation": lambda c, w, x: activate(x, c["activation"]),
    "ReLU": lambda c, w, x: np.clip(x, 0, c["max_value"]),
    "Softmax": lambda c, w, x: activate(x, "softmax"),
    "Add": lambda c, w, *xs: sum(xs[1:], xs[0]),
    "AveragePooling2D": pool(np.nanmean),
    "MaxPooling2D": pool(np.nanmax),
    "GlobalAveragePooling2D": lambda c, w, x: x.mean((1, 2), keepdims=c.get("keepdims", False)),
    "Flatten": lambda c, w, x: x.reshape(len(x), -1),
    "Reshape": lambda c, w, x: x.reshape(len(x), *c["target_shape"]),
    "Dropout": lambda c, w, x: x,
    "Dense": lambda c, w, x: activate_with_bias(c, w, x @ w["kernel"]),
    "ZeroPadding2D": lambda c, w, x: np.pad(x, [(0, 0), *c["padding"], (0, 0)]),
}


def forward(layers, weights, images):
    values = {layers[0]["name"]: images.astype(np.float64)}
    for entry in layers[1:]:
        name, config = entry["config"]["name"], entry["config"]
        sources = [values[tensor[0]] for tensor in entry["inbound_nodes"][0]]
        values[name] = FORWARD[entry["class_name"]](config, weights.get(name, {}), *sources)
    return values[name]


# ---------------------------------------------------------------- small Keras files


def layer(class_name, name, *sources, **config):
    nodes = [[[s, 0, 0, {}] for s in sources]] if sources else []
    return {"class_name": class_name, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def image(*shape):
    return layer("InputLayer", "input", batch_input_shape=[None, *shape])


def one_layer(class_name, size=(8, 8, 2), **config):
    return [image(*size), layer(class_name, "odd_one", "input", **config), layer("Flatten", "end", "odd_one")]


def functional(layers):
    first, last = layers[0]["name"], layers[-1]["name"]
    ends = {"input_layers": [[first, 0, 0]], "output_layers": [[last, 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers, **ends}}


def without_arguments(layers):
    """The same functional model as early versions of Keras 2 wrote it."""
    return functional(
        [entry | {"inbound_nodes": [[t[:3] for t in node] for node in entry["inbound_nodes"]]} for entry in layers]
    )


def keras3(layers):
    """The same functional model as Keras 3 writes it."""
    entries = []
    for entry in layers:
        config = {{"batch_input_shape": "batch_shape"}.get(key, key): value for key, value in entry["config"].items()}
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"shape": [], "keras_history": tensor[:3]}}
            for node in entry["inbound_nodes"]
            for tensor in node
        ]
        nodes = [{"args": tensors if len(tensors) == 1 else [tensors], "kwargs": {"mask": None}}] if tensors else []
        entries.append(entry | {"registered_name": None, "config": config, "inbound_nodes": nodes})
    model = functional(entries)
    for end in ("input_layers", "output_layers"):
        model["config"][end] = model["config"][end][0]
    return model


def sequential(layers):
    bare = [{key: value for key, value in entry.items() if key != "inbound_nodes"} for entry in layers]
    return {"class_name": "Sequential", "config": {"name": "model", "layers": bare}}


def old_sequential(layers):
    """A sequential model as Keras before 2.3 wrote it: a list, without an input layer."""
    shape, (first, *others) = layers[0]["config"]["batch_input_shape"], sequential(layers[1:])["config"]["layers"]
    first = first | {"config": first["config"] | {"batch_input_shape": shape}}
    return {"class_name": "Sequential", "config": [first, *others]}


def write(path, model, weights, stored="{layer}/{weight}:0"):
    """``model``: layers, a whole config, or its text."""
    model = functional(model) if isinstance(model, list) else model
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = model if isinstance(model, str) else json.dumps(model)
        root = file.create_group("model_weights")
        for name, values in weights.items():
            group = root.create_group(name)
            names = [stored.format(layer=name, weight=weight) for weight in values]
            group.attrs["weight_names"] = [n.encode() for n in names]
            for stored_name, value in zip(names, values.values(), strict=True):
                group.create_dataset(stored_name, data=value)
    return path


# How Keras 3 calls the group of a class's weights in a .keras archive, and the order in which it numbers them.
GROUPS = {"Conv2D": "conv2d", "DepthwiseConv2D": "depthwise_conv2d", "BatchNormalization": "batch_normalization"}
NUMBERED = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def write_archive(path, layers, weights, compression=zipfile.ZIP_STORED):
    buffer, counts = io.BytesIO(), Counter()
    with h5py.File(buffer, "w") as file:
        for entry in layers:
            class_name, values = entry["class_name"], weights.get(entry["config"]["name"], {})
            group = GROUPS.get(class_name, class_name.lower())
            suffix = f"_{counts[class_name]}" if counts[class_name] else ""
            counts[class_name] += 1
            for i, name in enumerate(sorted(values, key=NUMBERED.index)):
                file[f"layers/{group}{suffix}/vars/{i}"] = values[name]
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(keras3(layers)))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def random_weights(name, shapes):
    rng = np.random.default_rng(7)
    values = {weight: rng.normal(0, 0.5, shape).astype(np.float32) for weight, shape in shapes.items()}
    if "moving_variance" in values:
        values["moving_variance"] = np.abs(values["moving_variance"]) + np.float32(0.1)
    return {name: values} if values else {}


def run(path, images):
    model = convert_h5(path)
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, scores.shape[0]) == ("image", ["batch", *images.shape[1:]], "batch")
    return session.run(["probabilities"], {"image": images})[0]


def check(path, layers, weights, dialect=functional):
    shape = layers[0]["config"]["batch_input_shape"][1:]
    images = np.random.default_rng(1).normal(0, 3, (3, *shape)).astype(np.float32)
    expected = forward(layers, weights, images)
    output = run(write(path, dialect(layers), weights), images)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- every layer

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.mark.parametrize(
    ("class_name", "config", "weights"),
    [
        ("BatchNormalization", {"axis": [3], "epsilon": 0.01}, NORM),
        ("BatchNormalization", {"axis": -1, "epsilon": 0.001, "scale": False, "center": False}, NORM[2:]),
        *(("Activation", {"activation": name}, ()) for name in ("relu", "relu6", "linear", "sigmoid", "softmax")),
        ("ReLU", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, ()),
        ("ReLU", {"max_value": 2.5}, ()),
        ("Softmax", {"axis": -1}, ()),
        ("GlobalAveragePooling2D", {"keepdims": True}, ()),
        ("Dropout", {"rate": 0.5}, ()),
        ("Reshape", {"target_shape": [6, 14, 2]}, ()),
        ("Reshape", {"target_shape": [2, -1, 4]}, ()),
        ("Reshape", {"target_shape": [168]}, ()),
        ("ZeroPadding2D", {"padding": [[0, 1], [2, 3]]}, ()),
    ],
)
def test_layer_equals_numpy(tmp_path, class_name, config, weights):
    shapes = dict.fromkeys(weights, (4,))
    check(tmp_path / "model.h5", one_layer(class_name, (7, 6, 4), **config), random_weights("odd_one", shapes))


PAIRS = st.lists(st.integers(1, 3), min_size=2, max_size=2)
COMMON = {
    "padding": st.sampled_from(["valid", "same"]),
    "use_bias": st.booleans(),
    "activation": st.sampled_from(["linear", "relu", "relu6"]),
}


@pytest.mark.parametrize("class_name", ["Conv2D", "DepthwiseConv2D", "AveragePooling2D", "MaxPooling2D"])
@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(7, 9), st.integers(7, 9), st.just(4)),
    kernel=PAIRS,
    steps=PAIRS,
    strided=st.booleans(),
    groups=st.sampled_from([1, 2]),
    common=st.fixed_dictionaries(COMMON),
)
def test_windows_equal_numpy(class_name, size, kernel, steps, strided, groups, common):
    config = {"kernel_size": kernel, "filters": 6, "groups": groups, "depth_multiplier": groups, **common}
    config |= {"strides": steps} if strided else {"strides": [1, 1], "dilation_rate": steps}
    shapes = {}
    if class_name.endswith("Pooling2D"):
        config = {"pool_size": kernel, "padding": common["padding"], "strides": steps if strided else None}
    elif class_name == "Conv2D":
        shapes = {"kernel": (*kernel, 4 // groups, 6), "bias": (6,)}
    else:
        name = "depthwise_kernel" if strided else "kernel"  # as in Keras 2 and in Keras 3
        shapes = {name: (*kernel, 4, groups), "bias": (4 * groups,)}
    if not common["use_bias"]:
        shapes.pop("bias", None)
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder) / "model.h5", one_layer(class_name, size, **config), random_weights("odd_one", shapes))


def test_every_class_of_the_table_is_tested_and_documented():
    assert set(LAYERS) == set(FORWARD) | {"InputLayer"}
    assert all(class_name in keras_import.__doc__ for class_name in LAYERS)


def residual_net():
    """A net with a skip, layers called like the graph's own tensors, and a dense layer after an image of 4x3."""
    conv_config = {"filters": 5, "kernel_size": [3, 3], "strides": [2, 2], "data_format": "channels_last"}
    layers = [
        image(8, 6, 3),
        layer("Conv2D", "image", "input", padding="same", **conv_config),
        layer("BatchNormalization", "block/bn", "image", axis=[3], epsilon=0.001),
        layer("Activation", "nchw", "block/bn", activation="relu"),
        layer("Add", "add", "nchw", "image", "block/bn"),
        layer("Dropout", "dropout", "add", rate=0.1),
        layer("Flatten", "flatten", "dropout"),
        layer("Dense", "hidden", "flatten", units=7, activation="relu", use_bias=False),
        layer("BatchNormalization", "bn2", "hidden", axis=[1], epsilon=0.001, scale=False),
        layer("Dense", "probabilities", "bn2", units=4, activation="softmax"),
    ]
    weights = {
        **random_weights("image", {"kernel": (3, 3, 3, 5), "bias": (5,)}),
        **random_weights("block/bn", dict.fromkeys(NORM, (5,))),
        **random_weights("hidden", {"kernel": (60, 7)}),
        **random_weights("bn2", dict.fromkeys(NORM[1:], (7,))),
        **random_weights("probabilities", {"kernel": (7, 4), "bias": (4,)}),
    }
    return layers, weights


@pytest.mark.parametrize("dialect", [functional, without_arguments, keras3])
def test_net_equals_numpy_in_every_dialect(tmp_path, dialect):
    layers, weights = residual_net()
    check(tmp_path / "model.h5", layers, weights, dialect)
    model = convert_h5(tmp_path / "model.h5")
    again = write(tmp_path / "again.h5", dialect(layers), weights, "sequential/{layer}/{weight}")  # as in Keras 3
    assert convert_h5(again).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("dialect", [sequential, old_sequential])
def test_sequential_equals_numpy(tmp_path, dialect):
    layers = [
        image(5, 5, 2),
        layer("MaxPooling2D", "pool", "input", pool_size=[2, 2], strides=[2, 2], padding="same"),
        layer("GlobalAveragePooling2D", "gap", "pool"),
        layer("Dense", "dense", "gap", units=3, activation="softmax"),
    ]
    check(tmp_path / "m.h5", layers, random_weights("dense", {"kernel": (2, 3), "bias": (3,)}), dialect)


def separable(name, source, channels, filters, strides=(1, 1)):
    """A depthwise convolution and one of 1x1, each with BatchNormalization and ReLU, and their weights."""
    steps = {"strides": list(strides), "padding": "same"}
    norm = {"axis": [3], "epsilon": 0.001}
    layers = [
        layer("DepthwiseConv2D", f"{name}_d", source, kernel_size=[3, 3], depth_multiplier=1, use_bias=False, **steps),
        layer("BatchNormalization", f"{name}_dn", f"{name}_d", **norm),
        layer("ReLU", f"{name}_dr", f"{name}_dn", max_value=6.0),
        layer("Conv2D", f"{name}_p", f"{name}_dr", filters=filters, kernel_size=[1, 1], strides=[1, 1]),
        layer("BatchNormalization", f"{name}_pn", f"{name}_p", **norm | {"scale": 1}),
        layer("Activation", name, f"{name}_pn", activation="relu"),
    ]
    weights = {
        **random_weights(f"{name}_d", {"depthwise_kernel": (3, 3, channels, 1)}),
        **random_weights(f"{name}_dn", dict.fromkeys(NORM, (channels,))),
        **random_weights(f"{name}_p", {"kernel": (1, 1, channels, filters), "bias": (filters,)}),
        **random_weights(f"{name}_pn", dict.fromkeys(NORM, (filters,))),
    }
    return layers, weights


def wake_words():
    """The topology of MLPerf Tiny's visual wake words: a MobileNet."""
    first, first_weights = separable("one", "input", 3, 8, (2, 2))
    second, second_weights = separable("two", "one", 8, 8)
    tail = [
        layer("AveragePooling2D", "pool", "two", pool_size=[6, 6], strides=[6, 6], padding="valid"),
        layer("Flatten", "flatten", "pool"),
        layer("Dense", "dense", "flatten", units=2, activation="softmax"),
    ]
    weights = random_weights("dense", {"kernel": (8, 2), "bias": (2,)})
    return [image(12, 12, 3), *first, *second, *tail], first_weights | second_weights | weights


def keywords():
    """That of its keyword spotting, a DS-CNN of spectrograms; with the ends of Keras' own MobileNets."""
    block, block_weights = separable("one", "dropout", 6, 6)
    layers = [
        image(49, 10, 1),
        layer("ZeroPadding2D", "pad", "input", padding=[[4, 5], [1, 1]]),
        layer("Conv2D", "conv", "pad", filters=6, kernel_size=[10, 4], strides=[2, 2], activation="relu"),
        layer("Dropout", "dropout", "conv", rate=0.2),
        *block,
        layer("GlobalAveragePooling2D", "gap", "one"),
        layer("Reshape", "to_image", "gap", target_shape=[1, 1, 6]),
        layer("Conv2D", "scores", "to_image", filters=12, kernel_size=[1, 1], strides=[1, 1], padding="same"),
        layer("Reshape", "from_image", "scores", target_shape=[12]),
        layer("Softmax", "softmax", "from_image"),
    ]
    weights = {
        **random_weights("conv", {"kernel": (10, 4, 1, 6), "bias": (6,)}),
        **random_weights("scores", {"kernel": (1, 1, 6, 12), "bias": (12,)}),
    }
    return layers, block_weights | weights


@pytest.mark.parametrize("net", [wake_words, keywords])
def test_depthwise_nets_equal_numpy_from_h5_and_keras_files(tmp_path, net):
    layers, weights = net()
    check(tmp_path / "model.h5", layers, weights)
    archive = write_archive(tmp_path / "model.keras", layers, weights)
    assert convert_h5(archive) == convert_h5(tmp_path / "model.h5")
    assert convert_apart(archive) == convert_h5(archive)


def test_a_keras_file_has_a_name_of_its_own(tmp_path, caplog):
    write(tmp_path / "wake.h5", *wake_words())
    write_archive(tmp_path / "wake.keras", *wake_words())
    models = [
        load_model(ModelConfig(kind=ModelKind.keras, path=str(tmp_path / name)), (12, 12, 3), 2, tmp_path)
        for name in ("wake.h5", "wake.keras")
    ]
    assert models[0].serialized == models[1].serialized
    assert {(model.name, model.input_spec.layout) for model in models} == {("wake", Layout.NHWC)}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for path, problem in ((None, "`model.path` is not set, and model=keras needs it"), ("none.h5", "cannot be read")):
        with pytest.raises(ExperimentError, match=problem) as caught:
            load_model(ModelConfig(kind=ModelKind.keras, path=path), (12, 12, 3), 2, tmp_path)
        assert caught.value.remedy == "python run.py model=keras model.path=FILE.h5"


def test_archives_that_are_no_keras_model(tmp_path):
    layers, weights = wake_words()
    path = write_archive(tmp_path / "packed.keras", layers, weights, zipfile.ZIP_DEFLATED)
    assert "`config.json` in the archive is compressed" in refusal(path).problem
    path = write_archive(tmp_path / "damaged.keras", layers, weights)
    path.write_bytes(path.read_bytes().replace(b"DepthwiseConv2D", b"DepthwiseConv3D"))
    assert "Bad CRC-32" in refusal(path).problem
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("other", "")
    assert "no item named 'config.json'" in refusal(tmp_path / "other.keras").problem
    path = write_archive(tmp_path / "less.keras", layers, weights | {"dense": {}})
    assert "`0` in the group" in refusal(path).problem or "layers/dense" in refusal(path).problem


def test_names_and_bytes_are_always_the_same(tmp_path):
    layers = [image(1, 1, 3), layer("Flatten", "flat", "input"), layer("Dense", "dense", "flat", units=2)]
    weights = random_weights("dense", {"kernel": (3, 2), "bias": (2,)})
    path = write(tmp_path / "model.h5", layers, weights)
    model = convert_h5(path)
    assert model.SerializeToString() == convert_h5(path).SerializeToString()
    assert [node.op_type for node in model.graph.node] == ["Transpose", "Flatten", "Gemm"]  # nothing to reorder at 1x1
    assert [node.name for node in model.graph.node] == ["nchw", "flat", "dense"]
    assert [tensor.name for tensor in model.graph.initializer] == ["dense.weight", "dense.bias"]


# ---------------------------------------------------------------- refusals

CONV = {"filters": 2, "kernel_size": [3, 3], "strides": [1, 1], "padding": "same"}
CONV_WEIGHTS = random_weights("odd_one", {"kernel": (3, 3, 2, 2), "bias": (2,)})
KERNEL = CONV_WEIGHTS["odd_one"]["kernel"]
OTHER = "model_weights/odd_one/odd_one/kernel:0"  # in another h5 file, a kernel that would fit


def write_conv(path, weights=CONV_WEIGHTS):
    return write(path, one_layer("Conv2D", **CONV), weights)


def refusal(path):
    with pytest.raises(ExperimentError) as caught:
        convert_h5(path)
    assert str(path) in caught.value.problem
    assert "\x1b" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("class_name", "config", "problem"),
    [
        ("Lambda", {"function": ["4wEAAAAA", None, None], "function_type": "lambda"}, "not supported"),
        ("LSTM", {"units": 2}, "not supported"),
        ("Conv2D", {**CONV, "data_format": "channels_first"}, "channels_first"),
        ("Conv2D", {**CONV, "activation": "gelu"}, "gelu"),
        ("Conv2D", {**CONV, "padding": "causal"}, "causal"),
        ("Conv2D", {**CONV, "groups": 3}, "`groups` is 3"),
        ("Conv2D", {**CONV, "filters": -1}, "`filters` is -1"),
        ("Conv2D", {**CONV, "filters": 10**30}, "`filters` is 1000"),
        ("Conv2D", {**CONV, "kernel_size": [3, 3, 3]}, "`kernel_size`"),
        ("Conv2D", {**CONV, "strides": [2, 2], "dilation_rate": [2, 2]}, "`dilation_rate`"),
        ("Conv2D", {**CONV, "kernel_size": [5, 5]}, "of shape (3, 3, 2, 2)"),
        ("Conv2D", {**CONV, "kernel_size": [2**20, 2**20], "filters": 2**20}, "of shape (3, 3, 2, 2)"),
        ("Activation", {"activation": "swish"}, "swish"),
        ("Activation", {}, "`activation` is None"),
        ("ReLU", {"negative_slope": 0.3}, "`negative_slope`"),
        ("ReLU", {"max_value": -1.0}, "`max_value`"),
        ("Softmax", {"axis": 1}, "`axis` is 1"),
        ("BatchNormalization", {"axis": [1]}, "`axis` is 1"),
        ("MaxPooling2D", {"pool_size": [9, 9], "padding": "valid"}, "larger than the input"),
        ("ZeroPadding2D", {"padding": [[0, -1], [0, 0]]}, "`padding` is -1"),
        ("Dense", {"units": 3}, "its input is an image"),
        ("Reshape", {"target_shape": [16, 8]}, "expected [features] or [height, width, channels]"),
        ("Reshape", {"target_shape": [5, -1, 2]}, "its input has 128 values"),
        ("Reshape", {"target_shape": [-1, -1, 2]}, "`target_shape` is [-1, -1, 2]"),
    ],
)
def test_refused_by_name(tmp_path, class_name, config, problem):
    error = refusal(write(tmp_path / "model.h5", one_layer(class_name, **config), CONV_WEIGHTS))
    assert f"layer `odd_one` ({class_name})" in error.problem
    assert problem in error.problem
    assert "Conv2D, DepthwiseConv2D" in error.remedy


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


def places(value):
    """All (container, key or index) in nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


@pytest.mark.parametrize("dialect", [functional, sequential, keras3])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_changed_config_is_converted_or_refused(dialect, data):
    """Whatever stands in the place of any value of the config, no other exception leaves the reader."""
    layers, weights = residual_net()
    if dialect is sequential:
        layers = [entry for entry in layers if entry["class_name"] != "Add"]
    model = json.loads(json.dumps(dialect(layers)))
    all_places = places(model)
    container, key = all_places[data.draw(st.integers(0, len(all_places) - 1))]
    container[key] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder, suppress(ExperimentError):
        convert_h5(write(Path(folder) / "model.h5", model, weights))


def test_lambda_is_not_executed(tmp_path):
    witness = tmp_path / "executed"
    code = f"open({str(witness)!r}, 'w')"
    layers = one_layer("Lambda", function=code, module=f"__import__('os');{code}")
    assert "`odd_one` (Lambda)" in refusal(write(tmp_path / "model.h5", layers, {})).problem
    assert not witness.exists()


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c["layers"][1].update(registered_name="mine>ReLU"), "mine>ReLU"),  # the user's own, of a known name
        (lambda c: c["layers"][1].update(inbound_nodes=[[["input", 0, 0, {}]]] * 2), "called once"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["input", 0, 0, {"training": True}]]]), "called with"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["input", 0, 1, {}]]]), "only output"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["c", 0, 0, {}]]]), "a layer before it"),
        (lambda c: c["layers"][1].update(inbound_nodes=[]), "takes 0 inputs"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["a\x1b", 0, 0, {}]]]), "a layer before it"),
        (lambda c: c["layers"][2].update(inbound_nodes=[[["a", 0, 0, {}]]]), "takes 1 inputs"),
        (lambda c: c["layers"][1]["config"].update(name="c"), "3 different names for 4 layers"),
        (lambda c: c["layers"][1]["config"].update(name="a\x1b[2J"), "cannot be printed"),
        (lambda c: c["layers"].insert(0, layer("InputLayer", "other")), "2 input layers"),
        (lambda c: c.update(input_layers=[["input", 0, 0], ["a", 0, 0]]), "exactly one input"),
        (lambda c: c.update(output_layers=[["c", 0, 0], ["a", 0, 0]]), "exactly one output"),
        (lambda c: c.update(output_layers=[["gone", 0, 0]]), "one output layer"),
        (lambda c: c.update(output_layers=[["a", 0, 0]]), "ends in an image"),
        (lambda c: c.update(layers=[]), "no sequential or functional model"),
        (lambda c: c["layers"][0]["config"].update(batch_input_shape=[None, None, None, 3]), "`batch_input_shape`"),
    ],
)
def test_refused_structure(tmp_path, edit, problem):
    layers = [layer("ReLU", "a", "input"), layer("Add", "b", "a", "input"), layer("Flatten", "c", "b")]
    model = functional([image(2, 2, 1), *layers])
    edit(model["config"])
    assert problem in refusal(write(tmp_path / "model.h5", model, {})).problem


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", '{"class_name": "Functional"}', "9" * 5000])
def test_config_that_is_no_model(tmp_path, text):
    assert "`model_config`" in refusal(write(tmp_path / "model.h5", text, {})).problem


def test_files_that_are_no_keras_model(tmp_path):
    for path in (tmp_path / "gone.h5", tmp_path):
        assert "no such file" in refusal(path).problem
    file = write_conv(tmp_path / "file.h5")
    for content in (b"version https://git-lfs.github.com/spec/v1\n", file.read_bytes()[:2000]):
        file.write_bytes(content)
        assert "not a readable HDF5" in refusal(file).problem
    for value in (None, 3, np.zeros((2, 2))):
        with h5py.File(file, "w") as empty:
            if value is not None:
                empty.attrs["model_config"] = value
        assert "holds no text `model_config`" in refusal(file).problem
    with h5py.File(file, "w") as weightless:
        weightless.attrs["model_config"] = json.dumps(functional(one_layer("ReLU")))
    assert "`model_weights` in the group `/` is missing" in refusal(file).problem


def virtual(group, folder):
    layout = h5py.VirtualLayout(shape=(3, 3, 2, 2), dtype="<f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), OTHER, shape=(3, 3, 2, 2))
    group.create_virtual_dataset("kernel:0", layout)


def external_storage(group, folder):
    (folder / "raw.bin").write_bytes(bytes(144))
    group.create_dataset("kernel:0", (3, 3, 2, 2), "<f4", external=[(str(folder / "raw.bin"), 0, 144)])


def stored(**arguments):
    return lambda group, _: group.create_dataset("kernel:0", **arguments)


def link(target):
    return lambda group, folder: group.__setitem__("kernel:0", target(folder))


@pytest.mark.parametrize(
    ("put", "problem"),
    [
        (link(lambda folder: h5py.ExternalLink(str(folder / "other.h5"), OTHER)), "a ExternalLink"),
        (link(lambda folder: h5py.SoftLink("/model_weights/odd_one/odd_one/bias:0")), "a SoftLink"),
        (virtual, "virtual"),
        (external_storage, "external"),
        (stored(data=KERNEL, chunks=True, compression="gzip"), "chunked"),
        (stored(shape=KERNEL.shape, dtype="<f4"), "incomplete"),
        (stored(data=KERNEL[..., :1]), "of shape (3, 3, 2, 1)"),
        (stored(data=KERNEL.astype(np.float64)), "is float64"),
        (stored(data=KERNEL * np.float32(np.nan)), "NaN or infinity"),
        (lambda group, folder: group.create_group("kernel:0"), "not a dataset"),
        (lambda group, folder: None, "missing"),
    ],
)
def test_refused_weight(tmp_path, put, problem):
    write_conv(tmp_path / "other.h5")
    path = write_conv(tmp_path / "model.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights/odd_one/odd_one"]
        del group["kernel:0"]
        put(group, tmp_path)
    error = refusal(path)
    assert "layer `odd_one` (Conv2D)" in error.problem
    assert problem in error.problem


@pytest.mark.parametrize("target", ["model_weights", "model_weights/odd_one"])
def test_external_group_is_not_opened(tmp_path, target):
    path, other = (write_conv(tmp_path / name) for name in ("model.h5", "other.h5"))
    with h5py.File(path, "a") as file:
        del file[target]
        file[target] = h5py.ExternalLink(str(other), target)
    assert "model_weights" in refusal(path).problem


@pytest.mark.parametrize("names", [[], [b"odd_one/bias:0"], [b"../kernel:0"], [b"kernel:0"] * 2, [b"kernel:0"] * 99, 7])
def test_weight_names_that_lead_nowhere(tmp_path, names):
    path = write_conv(tmp_path / "model.h5")
    with h5py.File(path, "a") as file:
        file["model_weights/odd_one"].attrs["weight_names"] = names
    assert "odd_one" in refusal(path).problem


def test_big_endian_weights_are_the_same(tmp_path):
    swapped = {"odd_one": {key: value.astype(">f4") for key, value in CONV_WEIGHTS["odd_one"].items()}}
    little, big = (write_conv(tmp_path / f"{i}.h5", weights) for i, weights in enumerate((CONV_WEIGHTS, swapped)))
    assert convert_h5(little).SerializeToString() == convert_h5(big).SerializeToString()


# ---------------------------------------------------------------- the real file


def test_reference_equals_numpy():
    reference = Path(os.environ.get("RESNET8_QUANT_REFERENCE_H5", ""))
    if not reference.is_file():
        pytest.skip("RESNET8_QUANT_REFERENCE_H5 does not name the MLPerf Tiny pretrainedResnet.h5")
    weights = {}
    with h5py.File(reference, "r") as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        for name in (entry["config"]["name"] for entry in layers):
            values = file[f"model_weights/{name}"].get(name, {})
            weights[name] = {key.removesuffix(":0"): value[()] for key, value in values.items()}
    images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(run(reference, images), forward(layers, weights, images), atol=1e-4)


@pytest.mark.parametrize("scale", [0, 1])
def test_a_whole_number_may_stand_for_a_boolean(tmp_path, scale):
    """As in MLPerf Tiny's streaming wake word."""
    values = {name: np.full(2, 2.0, np.float32) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    models = [
        convert_h5(
            write(tmp_path / f"{flag}.h5", one_layer("BatchNormalization", scale=flag, center=1), {"odd_one": values})
        )
        for flag in (scale, bool(scale))
    ]
    assert models[0] == models[1]
    assert "`scale` is 2" in refusal(write(tmp_path / "2.h5", one_layer("BatchNormalization", scale=2), {})).problem


def test_conversion_in_a_process_of_its_own(tmp_path, monkeypatch):
    path = write_conv(tmp_path / "model.h5")
    assert convert_apart(path) == convert_h5(path)
    (tmp_path / "other.h5").write_bytes(b"no HDF5")
    with pytest.raises(ExperimentError, match=r"other\.h5 is not a readable HDF5 file") as caught:
        convert_apart(tmp_path / "other.h5")
    assert caught.value.remedy == refusal(tmp_path / "other.h5").remedy

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("python", options["timeout"])

    def crash(*arguments, **options):
        return subprocess.CompletedProcess([], -11, b"", b"")

    for run, problem in ((hang, "did not read it in 30 seconds"), (crash, "the HDF5 library crashed")):
        monkeypatch.setattr(keras_import.subprocess, "run", run)
        with pytest.raises(ExperimentError, match=f"model.h5 is damaged: .*{problem}"):
            convert_apart(path)
