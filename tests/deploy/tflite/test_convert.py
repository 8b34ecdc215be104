"""Small networks as .tflite files and as C: the integers of the ONNX model, computed as TensorFlow Lite Micro does."""

import functools
import shutil
import subprocess
from collections import Counter

import numpy as np
import onnx
import pytest
from deployed import NETS, build, cut_at_logits, integers, layer, pictures, plain, predictions, quantized
from float_models import float_model
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet8_quant.config import Layout
from resnet8_quant.deploy.tflite import c_code, ends, file, reference, runtimes
from resnet8_quant.deploy.tflite.convert import convert
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.input_spec import InputSpec

REFUSED = {"dilated": "dilated convolution", "leaky": "no counterpart for LeakyRelu", "fixed batch": None}
MOST_STEPS = 2  # fixed-point multipliers round otherwise than float32 ones, once in each layer


def mobile():
    """Squeeze and excite, HardSwish, SiLU, groups, a shortcut that pads channels, Relu6 behind Concat, constants."""
    rng = np.random.default_rng(7)

    def conv(inputs, outputs, size, group=1):
        return rng.normal(size=(outputs, inputs // group, size, size)) / np.sqrt(inputs / group * size**2)

    weights = {
        "w1": conv(3, 8, 3) / 60, "w2": conv(8, 8, 1), "w3": conv(8, 8, 1), "w4": conv(8, 12, 3, group=4),
        "b2": rng.normal(size=8), "scale": rng.uniform(0.5, 2, (12, 1, 1)), "offset": rng.normal(size=(1, 12, 1, 1)),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]), "low": np.array(0.0), "high": np.array(6.0),
        "w": rng.normal(size=(32, 5)) / 5, "b": rng.normal(size=5),
    }  # fmt: skip
    nodes = [
        layer("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2]),
        layer("Conv", ["nchw", "w1"], "c1", pads=[1, 1, 1, 1]),
        layer("MaxPool", ["c1"], "p1", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        layer("HardSwish", ["p1"], "h1"),
        layer("GlobalAveragePool", ["h1"], "squeezed"),
        layer("Conv", ["squeezed", "w2", "b2"], "c2"),
        layer("Relu", ["c2"], "r2"),
        layer("Conv", ["r2", "w3"], "c3"),
        layer("Sigmoid", ["c3"], "gate"),
        layer("Mul", ["h1", "gate"], "excited"),
        layer("Conv", ["excited", "w4"], "c4", pads=[1, 1, 1, 1], group=4),
        layer("Sigmoid", ["c4"], "s4"),
        layer("Mul", ["c4", "s4"], "silu"),
        layer("Mul", ["silu", "scale"], "scaled"),
        layer("Add", ["scaled", "offset"], "moved"),
        layer("Pad", ["excited", "pads"], "padded"),
        layer("Add", ["padded", "moved"], "sum"),
        layer("Concat", ["sum", "excited", "padded"], "joined", axis=1),
        layer("Clip", ["joined", "low", "high"], "clipped"),
        layer("ReduceMean", ["clipped"], "mean", axes=[2, 3], keepdims=0),
        layer("Gemm", ["mean", "w", "b"], "logits"),
    ]
    spec = InputSpec("image", Layout.NHWC, (8, 8, 3), None, 5)
    return float_model(nodes, weights, spec, {"logits": (5,)}, 17)


def net(name):
    return mobile() if name == "mobile" else build(**NETS[name])


CONVERTED = ["mobile", *(name for name in NETS if not REFUSED.get(name))]


def converted(name, types="int8", per_channel=True, cut=False):
    model = net(name)
    serialized = plain(model, types, per_channel)
    if cut:
        serialized, *_ = cut_at_logits(serialized)
    return model, convert(onnx.load_from_string(serialized))


def floats(model):
    """Pictures as the float model takes them, NHWC."""
    return pictures(model).astype(np.float32)


@pytest.mark.parametrize("types", ["int8", "u8s8"])
@pytest.mark.parametrize("name", CONVERTED)
def test_codes_are_those_of_the_integers(name, types):
    model, lite = converted(name, types, cut=True)
    serialized, scale, zero_point = cut_at_logits(plain(model, types, True))
    expected = integers(predictions(serialized, model.input_spec, pictures(model)), scale, zero_point)
    codes = reference.run(lite, ends.feed(lite, floats(model))).astype(np.int64) + (128 if types == "u8s8" else 0)
    assert np.abs(codes - expected).max() <= MOST_STEPS
    assert len(np.unique(codes)) > 8


@pytest.mark.parametrize("name", CONVERTED)
def test_the_runtime_computes_the_reference(name):
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="needs TensorFlow Lite Micro")
    model, lite = converted(name)
    data = file.write(lite)
    inputs = ends.feed(lite, floats(model))
    interpreter = runtime.Interpreter.from_bytes(data)
    outputs = []
    for i in range(len(inputs)):
        interpreter.set_input(inputs[i : i + 1], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0].copy())
    np.testing.assert_array_equal(reference.run(file.read(data), inputs), outputs)
    assert file.write(lite) == data


def test_mobilenet_on_a_microcontroller(mobilenet, sample):
    """The bundled network: each of its depthwise convolutions, to the integer."""
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="needs TensorFlow Lite Micro")
    lite = convert(onnx.load_from_string(quantized(mobilenet, "int8", True, images=sample[:50])))
    assert Counter(operator.kind for operator in lite.operators)["DEPTHWISE_CONV_2D"] == 10
    inputs = ends.feed(lite, sample[-5:].astype(np.float32))
    interpreter, outputs = runtime.Interpreter.from_bytes(file.write(lite)), []
    for i in range(len(inputs)):
        interpreter.set_input(inputs[i : i + 1], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0].copy())
    np.testing.assert_array_equal(reference.run(lite, inputs), outputs)


@pytest.mark.parametrize("name", CONVERTED)
def test_the_phone_runs_the_file(name):
    """As far as the logits: a Softmax makes more of a step."""
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    model, lite = converted(name, cut=True)
    inputs = ends.feed(lite, floats(model))
    outputs = runtimes.run_litert(file.write(lite), inputs, 1)
    assert np.abs(outputs.astype(int) - reference.run(lite, inputs)).max() <= MOST_STEPS


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "asymmetric pads", "no pool", "parts averaged", "mobile", "packed"]
)
def test_c_computes_the_reference(name, tmp_path):
    """packed: int4 in every convolution, also where 3 input channels begin a filter in the middle of a byte."""
    if name == "packed":
        model = net("residual")
        lite = convert(onnx.load_from_string(plain(model, "int8", True, weight_bits=4)))
        for operator in lite.operators:
            if operator.kind == "CONV_2D":
                lite.tensors[operator.inputs[1]].dtype = "int4"
    else:
        model, lite = converted(name)
    inputs = ends.feed(lite, floats(model))
    sources = c_code.generate(lite) | {"test.c": c_code.test_program(inputs, reference.run(lite, inputs))}
    for file_name, text in sources.items():
        (tmp_path / file_name).write_text(text)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run(["cc", *flags, "-o", "test", "model.c", "test.c"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "test"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"0 of {len(inputs)} images differ\n"), done.stderr


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, reason in REFUSED.items() if reason])
def test_what_has_no_counterpart_is_refused_by_name(name, reason):
    with pytest.raises(ExperimentError, match=f"`deploy` is tflite, but .*{reason}"):
        converted(name)


def test_types_that_do_not_fit_are_refused():
    with pytest.raises(ExperimentError, match=r"uint8 with zero points .*takes int8 around 0"):
        converted("residual", "uint8", per_channel=False)
    model = build(**NETS["residual"])
    with pytest.raises(ExperimentError, match="fewer than 8 bits"):
        convert(onnx.load_from_string(plain(model, "int8", True, activation_bits=4)))
    with pytest.raises(ExperimentError, match="is not quantized"):
        convert(model.proto())


def test_a_size_that_is_not_fixed_is_refused():
    model = onnx.load_from_string(plain(build(**NETS["residual"]), "int8", True))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    with pytest.raises(ExperimentError, match="the shape of the input image is not fixed"):
        convert(model)


def test_four_bit_weights_are_packed_where_that_costs_no_memory():
    model = build(**NETS["residual"])
    lite = convert(onnx.load_from_string(plain(model, "int8", True, weight_bits=4)))
    stored = [lite.tensors[operator.inputs[1]].dtype for operator in lite.operators if operator.kind == "CONV_2D"]
    assert "int4" in stored
    live = lite.live_bytes()
    for step, operator in enumerate(lite.operators):
        if operator.kind == "CONV_2D" and lite.tensors[operator.inputs[1]].dtype == "int4":
            assert live[step] + np.prod(lite.tensors[operator.inputs[1]].shape) <= max(live)


@pytest.mark.parametrize("length", [0, 7, 100, 1000])
def test_a_damaged_file_is_a_sentence(length):
    data = file.write(converted("residual")[1])
    with pytest.raises(ExperimentError, match=r"the \.tflite file cannot be read"):
        file.read(data[:length])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_hostile_files_are_read_or_refused(data):
    """Bytes of a valid file changed: the figures can be computed, or a sentence says why not."""
    file_bytes = bytearray(valid_file())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(file_bytes) - 1))
        file_bytes[place] = data.draw(st.integers(0, 255))
    try:
        model = file.read(bytes(file_bytes))
    except ExperimentError:
        return
    model.memory()


@functools.cache
def valid_file():
    return file.write(converted("residual")[1])


def test_arena_has_no_overlaps():
    for name in ("residual", "depthwise", "no pool"):
        lite = converted(name)[1]
        arena, spans = c_code.plan(lite), lite.lifetimes()
        for i in spans:
            for j in spans:
                alive = spans[i][0] <= spans[j][1] and spans[j][0] <= spans[i][1]
                apart = (
                    arena.offsets[i] + lite.tensors[i].bytes <= arena.offsets[j]
                    or arena.offsets[j] + lite.tensors[j].bytes <= arena.offsets[i]
                )
                assert i == j or not alive or apart
        assert arena.size >= max(lite.live_bytes())
