"""analyze=layers and ``resnet8-quant sensitivity RUN``: files, table, what can be pasted; layers kept in float."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import onnx
import pandas
import pytest
from onnx import numpy_helper

import resnet8_quant as rq
from resnet8_quant import experiment, sensitivity
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError, completed
from resnet8_quant.experiment import prepare
from resnet8_quant.graphs.graph import attributes
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import CalibrationImages, overlapping
from resnet8_quant.quantizer.refine import distill_images
from resnet8_quant.sensitivity import pasted, table, worst_layers
from resnet8_quant.validation import validate

SMALL = ("data=sample", "calibration.samples_per_class=5", "latency.runs=0")
W4A8 = ("quant=w4a8", "calibration=percentile")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """SMALL with 30 images of each class: an analysis takes as long as there are images."""
    path, arrays = tmp_path_factory.mktemp("data") / "few.npz", {}
    for name, split in (("train", load_sample().train), ("test", load_sample().test)):
        chosen = np.concatenate([np.flatnonzero(split.labels == label)[:30] for label in range(10)])
        arrays |= {f"x_{name}": split.images[chosen], f"y_{name}": split.labels[chosen]}
    np.savez(path, **arrays)
    return ("data=arrays", f"data.path={path}", *SMALL[1:])


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    """w4a8, analyzed."""
    folder = tmp_path_factory.mktemp("analyzed")
    rq.run(rq.compose(*W4A8, *few, "analyze=layers"), folder)
    return folder


def command(capsys, *words):
    code = sensitivity.main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_layers_csv_has_a_row_for_each_layer_the_most_harmful_first(run):
    rows = pandas.read_csv(run / "layers.csv")
    layers = [layer["output"] for layer in json.loads((run / "run.json").read_text())["layers"]]
    assert len(rows) == len(layers) + 1
    assert rows.both_kl.is_monotonic_decreasing
    assert set(rows.images) == {250}  # all that do not calibrate
    assert rows.set_index("layer").weight_bits["stack1.conv1"] == 4
    assert rows.set_index("layer").weight_bits["dense"] == 7
    tensors = pandas.read_csv(run / "tensors.csv").set_index("tensor").snr_db
    assert tensors.max() == math.inf  # pixels are integers
    assert tensors["stack1.relu1"] > tensors["stack2.relu1"] > tensors["stack3.relu1"]
    assert rows.set_index("layer").output_snr_db["stack1.conv1"] == tensors["stack1.relu1"]


def test_the_command_finds_the_same_and_also_where_the_file_has_no_names(run, few, tmp_path, capsys):
    words = [f"quant.compact={word}" for word in ("false", "true")]
    for name, word in zip(("named", "compact"), words, strict=True):
        rq.run(rq.compose(*W4A8, *few, word), tmp_path / name)
        assert not (tmp_path / name / "layers.csv").exists()
        code, shown, _ = command(capsys, tmp_path / name)
        assert code == 0
        for file in ("layers.csv", "tensors.csv"):
            assert (tmp_path / name / file).read_bytes() == (run / file).read_bytes()
        lines = [line for line in shown.splitlines() if not line.startswith("  ")]
        assert max(map(len, lines)) <= 80
        assert "On 250 training images" in shown


def test_what_is_pasted_gives_the_worst_layers_more_bits(run, tmp_path, capsys):
    typed = " ".join(["quant=w4a8", "'quant.layers={stack1.conv1: {activation_bits: 7}}'", *SMALL])
    config = rq.compose(*shlex.split(typed))
    rows = [
        {
            name: "" if pandas.isna(value) else str(value)
            for name, value in row.items()  # as csv reads them
        }
        for row in pandas.read_csv(run / "layers.csv", dtype=str).to_dict("records")
    ]
    worst = worst_layers(rows, config)
    assert list(worst) == [row["layer"] for row in rows][:3]
    assert set(map(str, worst.values())) == {"{'weight_bits': 7}"}
    words = shlex.split(pasted(worst, config, typed))
    assert words[:2] == ["python", "run.py"]
    again = rq.compose(*words[2:])
    validate(again)
    rq.run(again, tmp_path)
    bits = {layer["output"]: layer for layer in json.loads((tmp_path / "run.json").read_text())["layers"]}
    by_output = {"stack1.conv1": "stack1.relu1", "stack2.conv1": "stack2.relu1", "stack3.conv1": "stack3.relu1"}
    for name in worst:
        assert bits[by_output.get(name, name)]["weight_bits"] == 7
    assert bits["stack1.relu1"]["activation_bits"] == 7


def test_what_is_pasted_after_an_allocation_keeps_its_bits_but_not_its_budget(few, tmp_path, capsys):
    words = ("quant=w4a8", "allocate=bytes", "allocate.budget_bytes=45000", "allocate.choices=[2,4,7,float]")
    words = (*words, *few, "quant.layers={stack3.*: {float: false}}", "latency.runs=0")
    words = tuple(dict.fromkeys(words))
    result = rq.run(rq.compose(*words), tmp_path / "run")
    assert result.model_bytes <= 45_000
    code, shown, _ = command(capsys, tmp_path / "run")
    assert code == 0
    assert "More for the 3 that hurt most" in shown
    (line,) = (text for text in shown.splitlines() if "python run.py" in text)
    again = rq.compose(*shlex.split(line)[2:])
    validate(again)
    assert again.allocate == Config().allocate
    rq.run(again, tmp_path / "again")
    before, after = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "again"))
    assert before["float_layers"] == after["float_layers"]
    changed = [
        (old["weight_bits"], new["weight_bits"])
        for old, new in zip(before["layers"], after["layers"], strict=True)
        if old != new
    ]
    assert len(changed) == 3
    assert {new for _, new in changed} == {7}


@pytest.mark.parametrize("typed", ["", "experiment=smallest seed=3 refine=none"])
def test_what_is_pasted_names_no_experiment_and_holds_what_python_set(typed, few):
    own = ("data=sample", "calibration.samples_per_class=5", "quant.layers={conv: {weight_bits: 7}}")
    config = rq.compose("experiment=smallest", "seed=3", "refine=none", *own)
    words = shlex.split(pasted({"dense": {"float": True}}, config, typed))[2:]
    assert words[0] == "quant=w4a8"
    assert {"calibration=mse", "allocate=bytes", "seed=3", "latency.runs=0", "quant.compact=true"} < {*words}
    again = rq.compose(*words)
    assert again.quant.layers == {"conv": {"weight_bits": 7}, "dense": {"float": True}}
    again.quant.layers = config.quant.layers
    assert again == config


def test_what_is_pasted_is_float_where_there_are_no_more_bits_and_survives_names_of_other_tools():
    row = {"weight_bits": "8", "activation_bits": "8", "weights_kl": "1", "activations_kl": "0"}
    config = rq.compose("quant=u8s8")
    worst = worst_layers([row | {"layer": "/features/0:[a, b]={x} (y)"}], config)
    words = shlex.split(pasted(worst, config, ""))
    assert rq.compose(*words[2:]).quant.layers == {"/features/0??a??b???x???y?": {"float": True}}
    for name, pattern in {"191": "?91", "1e5": "?e5", "true": "?rue", "caf\u00e9": "caf?"}.items():
        words = shlex.split(pasted({name: {"float": True}}, config, ""))
        assert rq.compose(*words[2:]).quant.layers == {pattern: {"float": True}}
    assert worst_layers([row | {"layer": "a"}], rq.compose("quant=tflite_int8", "deploy=tflite")) == {}
    inputs = row | {"layer": "a", "activation_bits": "4", "activations_kl": "2"}
    assert worst_layers([inputs], config) == {"a": {"activation_bits": 8}}


def test_a_wide_model_still_fits_80_columns():
    row = dict.fromkeys(("weights_kl", "activations_kl", "both_kl", "kept_float_kl"), "12.3456") | {
        "weight_bits": "8",
        "activation_bits": "16",
        "both_flips": "1000",
        "output_snr_db": "-inf",
    }
    text = table([row | {"layer": f"features/{number}/block/expand/convolution"} for number in range(3)])
    assert max(map(len, text.splitlines())) <= 80


def test_a_finished_run_is_not_quantized_again_and_its_model_has_its_digest(run, few, tmp_path, capsys):
    rq.run(rq.compose(*W4A8, *few, "deploy=x86"), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["files"]["qdq.onnx"]
    assert (tmp_path / "qdq.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    assert not (run / "qdq.onnx").exists()
    (tmp_path / "model.onnx").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet8_quant.quantizer.quantize.quantize", None)
        assert command(capsys, tmp_path)[0] == 0
    assert (tmp_path / "layers.csv").read_bytes() == (run / "layers.csv").read_bytes()

    (tmp_path / "layers.csv").unlink()
    (tmp_path / "qdq.onnx").write_bytes((run / "model.onnx").read_bytes() + b" ")
    code, _, error = command(capsys, tmp_path)
    assert code == 1
    assert "qdq.onnx is not the one of the run any more" in error
    assert not (tmp_path / "layers.csv").exists()
    (tmp_path / "qdq.onnx").unlink()
    code, _, error = command(capsys, tmp_path)
    assert "qdq.onnx cannot be read (No such file" in error
    assert "python run.py quant=w4a8 calibration=percentile" in error
    assert "deploy=x86" in error
    assert code == 1


def test_a_model_of_another_run_is_refused(run, few, tmp_path, capsys):
    rq.run(rq.compose("quant=u8s7", *few), tmp_path)
    (tmp_path / "model.onnx").write_bytes((run / "model.onnx").read_bytes())
    code, _, error = command(capsys, tmp_path)
    assert code == 1
    assert "model.onnx is not the one of the run any more" in error


def test_a_distilled_run_is_analyzed_without_torch(run, tmp_path, capsys, monkeypatch):
    for name in ("model.onnx", "run.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    record = json.loads((run / "run.json").read_text())
    record["config"]["refine"] |= {"distill": True, "validation_images": 200}
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("resnet8_quant.experiment.find_spec", lambda name: None)
    code, _, error = command(capsys, tmp_path)
    assert (code, error) == (0, "")
    assert set(pandas.read_csv(tmp_path / "layers.csv").images) == {200}


def test_after_a_distillation_the_images_are_those_that_it_held_out(monkeypatch):
    config = rq.compose(*W4A8, "data=sample", "refine=distill", "calibration.samples_per_class=20")
    config.refine.validation_images = 150
    prepared, seen = prepare(config, quantizes=False), []
    monkeypatch.setattr(experiment, "analyze", lambda *arguments: seen.append(arguments[-1]))
    named = prepared.model.serialized
    experiment.analyze_layers(config, prepared, named, 100)
    experiment.analyze_layers(config, prepared, named)
    train, images = prepared.data.train, prepared.images
    learned, held_out = distill_images.split(CalibrationImages.of(train.images), images, config)
    assert [len(part.labels) for part in seen] == [100, 150]
    np.testing.assert_array_equal(seen[1].images, train.images[held_out])
    np.testing.assert_array_equal(seen[1].labels, train.labels[held_out])
    assert not overlapping(train.images, learned, seen[0].images).any()


def test_the_remedy_for_other_operators_keeps_the_command_of_the_run(run, tmp_path, capsys):
    record = json.loads((run / "run.json").read_text())
    record["config"]["quant"] |= {"format": "QOperator", "weight_bits": None, "keep_first_last": None}
    record["result"]["overrides"] = "quant=u8s8 quant.format=QOperator data=sample seed=3"
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, _, error = command(capsys, tmp_path)
    assert code == 1
    assert "`quant.format` is QOperator" in error
    assert error.endswith("python run.py quant=u8s8 quant.format=QDQ data=sample seed=3 analyze=layers")


@pytest.mark.parametrize("kind", ["float", "none", "moved", "other"])
def test_a_float_run_a_missing_run_and_other_data_are_sentences(kind, run, tmp_path, capsys):
    if kind == "float":
        rq.run(rq.compose("quant=float", *SMALL), tmp_path)
    elif kind != "none":
        record = json.loads((run / "run.json").read_text())
        record["result"]["data_sha256"] = "0" * 64
        if kind == "other":
            record["config"]["quant"]["gone"] = 1
        (tmp_path / "run.json").write_text(json.dumps(record))
    code, _, error = command(capsys, tmp_path)
    expected = {
        "float": "is a float run, which has nothing quantized to analyze",
        "none": "holds no finished run",
        "moved": "the data is not the one of the run any more",
        "other": "another version wrote run.json",
    }
    assert code == 1
    assert expected[kind] in error


def test_an_analysis_without_images_is_refused_before_the_work(tmp_path, capsys):
    """Of a run and of a finished run; the remedy is the whole command."""
    words = ("quant=w4a8", "data=sample", "latency.runs=0")
    with pytest.raises(ExperimentError, match="all 1000 training images calibrate") as caught:
        prepare(rq.compose(*words, "analyze=layers"))
    remedy = completed(caught.value, [*words, "analyze=layers"]).remedy
    prepare(rq.compose(*shlex.split(remedy)[2:]))

    rq.run(rq.compose(*words, "evaluation.threads=1"), tmp_path)
    code, _, error = command(capsys, tmp_path)
    assert code == 1
    assert "all 1000 training images calibrate" in error
    typed = error.partition("python run.py ")[2]
    assert typed
    again = rq.compose(*shlex.split(typed))
    prepare(again)
    assert (again.quant.weight_bits, again.analyze.name, again.calibration.samples_per_class) == (4, "layers", 50)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("quant=int8",), ["conv", "dense"]),
        (("quant=u8s8",), ["stack2.conv1"]),
        (("quant=w4a4", "refine=gptq"), ["stack1.conv1", "stack1.conv2"]),
        (("quant=w4a8", "quant.per_channel=false"), ["conv"]),
        (("quant=u8s8", "deploy=x86"), ["stack2.conv1"]),
    ],
)
def test_a_layer_stays_in_float(words, kept, tmp_path):
    """Its weight is the float model's to the bit; kernels and bytes tell."""
    float_kernels = {"dense"} if words == ("quant=int8",) else set()  # float to ONNX Runtime anyway
    layers = ", ".join(f"{name}: {{float: true}}" for name in kept)
    plain = rq.run(rq.compose(*words, *SMALL), tmp_path / "plain")
    config = rq.compose(*words, *SMALL, f"quant.layers={{{layers}}}")
    result = rq.run(config, tmp_path / "kept")
    proto = rq.load_model(config).proto()
    floating = {node.output[0]: node for node in proto.graph.node}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    written = onnx.load(tmp_path / "kept" / "model.onnx")
    stored = [numpy_helper.to_array(tensor) for tensor in written.graph.initializer if tensor.data_type == 1]
    size = 0
    for name in kept:
        weight = weights[floating[name].input[1]]
        assert any(values.size == weight.size and np.isin(weight, values).all() for values in stored), name
        channels = weight.shape[0 if floating[name].op_type == "Conv" or attributes(floating[name]) else 1]
        bits = next(
            4 if "w4" in word and name not in ("conv", "dense") else 8 for word in words if word[:6] == "quant="
        )
        scales = 4 * channels if plain.per_channel else 4
        size += 4 * weight.size - (weight.size * bits + 7) // 8 - scales
    assert len(json.loads((tmp_path / "kept" / "run.json").read_text())["layers"]) == 10 - len(kept)
    assert result.float_ops > plain.float_ops
    assert result.conv_gemm_integer == plain.conv_gemm_integer - len(set(kept) - float_kernels)
    assert result.weights_bytes - plain.weights_bytes == size
    assert result.model_bytes > plain.model_bytes
    assert result.peak_activation_bytes is None


def test_all_layers_in_float_leave_the_rest_quantized(tmp_path):
    result = rq.run(rq.compose("quant=u8s8", *SMALL, "quant.layers={*: {float: true}}"), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["layers"] == []
    assert result.quantized_ops > 0
    assert result.accuracy_delta == pytest.approx(0, abs=0.01)


def test_allocation_leaves_a_float_layer_alone(tmp_path):
    words = ("quant=w4a8", "allocate=bytes", "allocate.budget_bytes=80000", "quant.layers={conv: {float: true}}")
    rq.run(rq.compose(*words, *SMALL), tmp_path)
    layers = json.loads((tmp_path / "run.json").read_text())["layers"]
    assert len(layers) == 9
    assert layers[-1]["weight_bits"] == 7  # the last layer, held to keep_first_last
    assert Config().quant.layers == {}
    assert Path(tmp_path / "model.onnx").stat().st_size <= 80000


@pytest.mark.parametrize("deploy", ["none", "x86"])
def test_allocation_may_choose_float(deploy, few, tmp_path, capsys, caplog):
    """The file is the one that was measured; row, record, log, analysis and comparison say which layers are float."""
    caplog.set_level("INFO")
    budget = ("allocate=bytes", "allocate.budget_bytes=120000", f"deploy={deploy}", "quant.compact=true")
    words = ("quant=w4a8", *budget, "allocate.choices=[2,4,float]", *few)
    config = rq.compose(*words, "analyze=layers")
    result = rq.run(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    kept, size = record["float_layers"], (tmp_path / "run" / "model.onnx").stat().st_size
    assert {"conv", "dense"} < set(kept)
    assert len(kept) + len(record["layers"]) == 10
    assert 100_000 < size <= 120_000
    assert result.model_bytes == size
    assert record["config"]["allocate"]["choices"] == [2, 4, "float"]
    line = next(text for text in caplog.messages if text.startswith("allocated bits: "))
    assert {part.split()[0] for part in line[16:].split(", ") if part.endswith(" float")} == {*kept}

    # float32 weights stand in the file, and the row counts them
    assert "float32" in result.weight_type.split("+")
    assert {"int2", "int4"} & {*result.weight_type.split("+")}
    assert result.weight_bits == (32 if len(kept) >= 5 else 4)
    assert result.conv_gemm_integer <= result.conv_gemm_total - len(kept)
    proto = rq.load_model(config).proto()
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    layers = {node.output[0]: node.input for node in proto.graph.node if len(node.input) == 3}
    counts = {name: [math.prod(shapes[read]) for read in inputs[1:]] for name, inputs in layers.items()}
    floats = sum(4 * weights + 4 * biases for name, (weights, biases) in counts.items() if name in kept)
    integers = sum(weights // 2 + 8 * biases for name, (weights, biases) in counts.items() if name not in kept)
    assert result.weights_bytes == floats + integers

    # what is written about layers
    assert {*pandas.read_csv(tmp_path / "run" / "layers.csv").layer} == {*counts} - {*kept} | {"(others)"}
    rq.run(rq.compose("quant=w4a8", f"deploy={deploy}", *few), tmp_path / "all")
    from resnet8_quant import comparison

    assert comparison.main([str(tmp_path / "run"), str(tmp_path / "all")]) == 0
    shown = capsys.readouterr().out
    assert "allocate.choices" in shown
    assert sum("float" in row and "bits" in row for row in shown.splitlines()) == len(kept)
