"""Small networks as .tflite files and as C: the integers of the ONNX model, computed as TensorFlow Lite Micro does."""

import shutil
import subprocess

import numpy as np
import onnx
import pytest
from deployed import NETS, build, cut_at_logits, integers, pictures, plain, predictions

from resnet8_quant.deploy.tflite import c_code, ends, file, reference
from resnet8_quant.deploy.tflite.convert import convert
from resnet8_quant.errors import ExperimentError

REFUSED = {
    "groups": "groups of 8 channels",
    "dilated": "dilated convolution",
    "leaky": "no counterpart for LeakyRelu",
    "sigmoid": "no counterpart for Sigmoid",
    "fixed batch": None,
}
MOST_STEPS = 2  # fixed-point multipliers round otherwise than float32 ones, once in each layer


def converted(name, types="int8", per_channel=True, cut=False):
    model = build(**NETS[name])
    serialized = plain(model, types, per_channel)
    if cut:
        serialized, *_ = cut_at_logits(serialized)
    return model, convert(onnx.load_from_string(serialized))


def floats(model):
    """Pictures as the float model takes them, NHWC."""
    return pictures(model).astype(np.float32)


@pytest.mark.parametrize("types", ["int8", "u8s8"])
@pytest.mark.parametrize("name", [name for name in NETS if not REFUSED.get(name)])
def test_codes_are_those_of_the_integers(name, types):
    model, lite = converted(name, types, cut=True)
    serialized, scale, zero_point = cut_at_logits(plain(model, types, True))
    expected = integers(predictions(serialized, model.input_spec, pictures(model)), scale, zero_point)
    codes = reference.run(lite, ends.feed(lite, floats(model))).astype(np.int64) + (128 if types == "u8s8" else 0)
    assert np.abs(codes - expected).max() <= MOST_STEPS
    assert len(np.unique(codes)) > 8


@pytest.mark.parametrize("name", [name for name in NETS if not REFUSED.get(name)])
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
@pytest.mark.parametrize("name", ["residual", "depthwise", "asymmetric pads", "no pool", "parts averaged"])
def test_c_computes_the_reference(name, tmp_path):
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
