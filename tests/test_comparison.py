"""``python run.py compare``: two runs side by side, refused where they saw different images."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest

import resnet8_quant as rq
from resnet8_quant import comparison
from resnet8_quant.inputs.sample import load_sample

SMALL = ("data=sample", "calibration.samples_per_class=5", "latency.runs=0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """int8 and w4a8 on the sample."""
    folder = tmp_path_factory.mktemp("runs")
    rq.run(rq.compose("quant=int8", *SMALL), folder / "int8")
    rq.run(rq.compose("quant=w4a8", "calibration=percentile", *SMALL), folder / "w4a8")
    return [folder / "int8", folder / "w4a8"]


def compare(capsys, *words):
    """Exit code and what was printed, in one line each."""
    code = comparison.main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_the_paired_test_is_that_of_the_predictions(runs, capsys):
    code, shown, _ = compare(capsys, *runs)
    labels = load_sample().test.labels
    right = [np.load(folder / "predictions.npy") == labels for folder in runs]
    lost, gained = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = binomtest(lost, lost + gained).pvalue
    sentence = " ".join(shown.split())
    assert code == 0
    assert (
        f"{lost} that A gets right, {gained} that A gets wrong. McNemar p = {p:.3g}, real at the 5 % level" in sentence
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_tables_hold_settings_figures_classes_and_bits(runs, tmp_path, capsys):
    assert compare(capsys, *runs, "--csv", tmp_path / "pair.csv")[0] == 0
    with (tmp_path / "pair.csv").open() as file:
        rows = {(row["table"], row["name"]): row for row in csv.DictReader(file)}
    assert rows["setting", "config.calibration.method"]["b"] == "percentile"
    numbers = {
        key: tuple(float(row[column] or "nan") for column in ("a", "b", "difference"))
        for key, row in rows.items()
        if key[0] != "setting" and key[1] not in ("quant_type", "kernels")
    }
    assert numbers["weight_bits", "stack1.conv1"] == (8, 4, -4)
    sizes = [(folder / "model.onnx").stat().st_size for folder in runs]
    assert numbers["figure", "model_bytes"] == (*sizes, sizes[1] - sizes[0])
    labels, predictions = load_sample().test.labels, [np.load(folder / "predictions.npy") for folder in runs]
    right = [found == labels for found in predictions]
    lost, gained = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert numbers["test", "right_alone"] == (lost, gained, gained - lost)
    assert numbers["test", "mcnemar_p"][2] == pytest.approx(binomtest(lost, lost + gained).pvalue)
    assert numbers["test", "changed_predictions"][2] == (predictions[0] != predictions[1]).sum()
    assert numbers["figure", "accuracy"] == pytest.approx((right[0].mean(), right[1].mean(), (gained - lost) / 1000))
    classes = np.array([row for (table, _), row in numbers.items() if table == "class"])
    assert classes.sum(axis=0).tolist() == [lost, gained, gained - lost]


def test_a_run_with_itself_differs_in_nothing(runs, capsys):
    code, shown, _ = compare(capsys, runs[0], runs[0])
    assert code == 0
    assert "B predicts 0 otherwise than A" in " ".join(shown.split())
    assert "Setting" not in shown
    assert "Layer" not in shown


def test_layers_have_the_names_of_quant_layers_whatever_is_fused_into_them(runs, model, tmp_path, capsys):
    """A Relu stays apart with symmetric activations, and in the format QOperator."""
    first, *middle, last = [node.output[0] for node in model.proto().graph.node if node.op_type in ("Conv", "Gemm")]
    keep = f"quant.layers={{{last}: {{float: true}}}}"
    symmetric, qoperator = tmp_path / "symmetric", tmp_path / "qoperator"
    rq.run(rq.compose("quant=int8", "quant.activation_symmetric=true", keep, *SMALL), symmetric)
    rq.run(rq.compose("quant=u8s8", "quant.format=QOperator", *SMALL), qoperator)
    narrower = dict.fromkeys(middle, ("8", "4")) | dict.fromkeys((first, last), ("8", "7"))
    of_float = dict.fromkeys((first, *middle), ("8", "8")) | {last: ("32", "8")}
    for folders, expected in (
        ((qoperator, runs[0]), {}),
        ((qoperator, runs[1]), narrower),
        ((symmetric, runs[0]), of_float),
    ):
        code, shown, _ = compare(capsys, *folders, "--csv", tmp_path / "pair.csv")
        with (tmp_path / "pair.csv").open() as file:
            bits = {row["name"]: (row["a"], row["b"]) for row in csv.DictReader(file) if row["table"] == "weight_bits"}
        assert (code, bits) == (0, expected)
        assert bool(re.search(rf"{last} +\| +float ", shown)) == (expected == of_float)


def test_layers_without_names_of_the_float_model_are_not_said_to_be_float(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "old")
    record = json.loads((tmp_path / "old" / "run.json").read_text())
    for layer in record["layers"]:
        del layer["name"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    code, shown, _ = compare(capsys, runs[0], tmp_path / "old")
    bits = {row[1]: row[2:4] for line in shown.splitlines() if len(row := re.split(r" *\| *", line)) > 4}
    assert (code, bits["stack1.relu1"], bits["stack1.conv1"]) == (0, ["-", "4, 8 bits"], ["8, 8 bits", "-"])
    assert "B: its run.json is of an earlier version" in " ".join(shown.split())


def test_a_run_json_may_say_anything_about_layers(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "copy")
    hostile = [{"name": "\ud800|", "weight_bits": [8], "activation_bits": 4}, {"weight_bits": 1e999}, 7, {"name": {}}]
    (tmp_path / "copy" / "run.json").write_text(json.dumps({"layers": hostile}))
    code, shown, _ = compare(capsys, runs[0], tmp_path / "copy", "--csv", tmp_path / "pair.csv")
    assert code == 0
    assert re.search(r"\?\? +\| +- \| +None, 4 bits ", shown)
    assert "activation_bits,\\ud800|,,4,\n" in (tmp_path / "pair.csv").read_text()


def test_without_predictions_there_is_no_paired_test(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "copy")
    (tmp_path / "copy" / "predictions.npy").write_bytes(b"no array")
    code, shown, _ = compare(capsys, runs[0], tmp_path / "copy")
    assert code == 0
    assert "No paired test: 1 of 2 runs have no predictions.npy that agrees" in " ".join(shown.split())


def test_runs_of_other_images_are_refused(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "copy")
    table = tmp_path / "copy" / "results.csv"
    with table.open() as file:
        header, values = csv.reader(file)
    values[header.index("eval_images")] = "999"
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, values])
    code, _, error = compare(capsys, runs[0], tmp_path / "copy")
    assert code == 1
    assert "were evaluated on different images: `eval_images` is 1,000 and 999" in error


def test_what_is_no_pair_of_runs_is_a_sentence(runs, tmp_path, capsys):
    code, _, error = compare(capsys, runs[0].parent, runs[0])
    assert (code, "holds 2 runs, not one" in error) == (1, True)
    assert compare(capsys, tmp_path, runs[0])[0] == 1
    assert compare(capsys, runs[0])[2].endswith("RUN_B")
