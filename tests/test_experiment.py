"""A whole run without the command line: which images are evaluated, what is reproducible, what the row says."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resnet8_quant import experiment, results
from resnet8_quant.config import (
    CalibrationConfig,
    Config,
    DataConfig,
    DataKind,
    DType,
    LatencyConfig,
    Method,
    ModelConfig,
    ModelKind,
    QuantConfig,
    Sampling,
)
from resnet8_quant.errors import ExperimentError
from resnet8_quant.experiment import failed_row, prepare, run_experiment
from resnet8_quant.graphs import session
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.images import overlapping
from resnet8_quant.sweep.folders import is_whole

LISTED = list(range(3, 1000, 50))  # 20 test images


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(
        calibration=CalibrationConfig(samples_per_class=3),
        data=DataConfig(kind=DataKind.sample),
        latency=LatencyConfig(runs=0),
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )


def test_listed_test_images_calibrate_and_are_not_evaluated(config: Config, tmp_path: Path) -> None:
    listed = CalibrationConfig(sampling=Sampling.mlperf_tiny, indices=LISTED, allow_test_images=True)
    row = run_experiment(replace(config, calibration=listed), tmp_path)
    test = load_sample().test
    used = overlapping(test.images, np.array(LISTED), test.images)  # with their duplicates
    assert used[LISTED].all()
    assert row.calibration_overlap == used.sum()
    assert row.eval_images == 1000 - used.sum()
    assert (row.calibration_sampling, row.samples_per_class, row.calibration_images) == ("mlperf_tiny", None, 20)
    assert results.read(tmp_path / "results.csv") == row
    predictions = np.load(tmp_path / "predictions.npy")
    assert np.mean(predictions == test.labels[~used]) == row.accuracy
    before = np.load(tmp_path / "float_predictions.npy")
    assert before.dtype == np.int64
    assert np.mean(before == test.labels[~used]) == row.float_accuracy
    with (tmp_path / "ranges.csv").open(newline="", encoding="utf-8") as file:
        lowest = {line["tensor"]: (float(line["min"] or 0), float(line["max"] or 0)) for line in csv.DictReader(file)}
    pixels = test.images[LISTED]
    assert lowest["nchw"] == (pixels.min(), pixels.max())
    with np.load(tmp_path / "histograms.npz", allow_pickle=False) as file:
        image = file["tensors"].tolist().index("image")
        assert file[f"counts_{image}"].sum() + file[f"edges_{image}"][2] == pixels.size


def test_a_file_with_the_list_is_the_list(config: Config, tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array(LISTED[::-1]))
    listed = CalibrationConfig(sampling=Sampling.mlperf_tiny, allow_test_images=True)
    lists = ({"indices": LISTED}, {"index_file": str(tmp_path / "list.npy")})
    rows = [
        run_experiment(replace(config, calibration=replace(listed, **changes)), tmp_path / str(i))
        for i, changes in enumerate(lists)
    ]
    assert rows[0].model_sha256 == rows[1].model_sha256
    assert rows[1].calibration_cached


def test_the_same_config_gives_the_same_bytes_from_the_cache(config: Config, tmp_path: Path) -> None:
    config = replace(config, cache_dir=str(tmp_path / "cache"))
    rows = [run_experiment(config, tmp_path / name) for name in ("first", "second")]
    assert [row.calibration_cached for row in rows] == [False, True]
    for name in ("model.onnx", "predictions.npy", "ranges.csv", "histograms.npz", "per_class.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    first = rows[0]
    assert (first.calibration_sampling, first.samples_per_class, first.calibration_overlap) == ("stratified", 3, 0)
    other = run_experiment(replace(config, seed=43), tmp_path / "third")
    assert not other.calibration_cached
    assert other.model_sha256 != rows[0].model_sha256


def test_only_the_draw_depends_on_the_seed(config: Config) -> None:
    for sampling, equal in ((Sampling.stratified, False), (Sampling.first, True)):
        calibration = replace(config.calibration, sampling=sampling)
        images = [prepare(replace(config, calibration=calibration, seed=seed)).images for seed in (1, 2)]
        assert np.array_equal(*[one.chosen for one in images if one is not None]) == equal


def test_the_row_has_the_settings_that_differ(config: Config, tmp_path: Path) -> None:
    settings = {"data.kind": "sample", "latency.runs": "0", "quant.weight_bits": "7"}
    config = replace(config, quant=QuantConfig(weight_bits=7))
    row = run_experiment(config, tmp_path)
    assert {name: row.settings[f"config.{name}"] for name in settings} == settings
    assert not [name for name in row.settings if "cache" in name]
    assert results.read(tmp_path / "results.csv") == row
    failed = failed_row(config, ExperimentError("a problem\nof two lines", "a remedy"), "quant.weight_bits=7")
    assert (failed.status, failed.error, failed.settings) == ("failed", "a problem of two lines", row.settings)
    assert failed_row(config, KeyError("x"), "").error == "KeyError: 'x'"


def test_without_bins_there_is_no_file_of_histograms(config: Config, tmp_path: Path) -> None:
    row = run_experiment(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == (
        {*results.FILES, results.RECORD, results.FILE_NAME} - {results.QDQ, "model.tflite"}
    )
    assert is_whole(tmp_path, row)
    row = run_experiment(replace(config, calibration=replace(config.calibration, bins=None)), tmp_path)
    assert is_whole(tmp_path, row)  # resuming does not wait for a file that the run does not make
    assert (tmp_path / "ranges.csv").exists()
    assert not (tmp_path / "histograms.npz").exists()  # of the run before


def test_a_float_run_is_not_calibrated(config: Config, tmp_path: Path) -> None:
    quant = QuantConfig("float", DType.float32, DType.float32)
    row = run_experiment(replace(config, quant=quant), tmp_path)
    assert {row.calibration_method, row.calibration_sampling, row.calibration_cached, row.calibration_overlap} == {None}
    assert not (tmp_path / "ranges.csv").exists()
    assert is_whole(tmp_path, row)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({"sampling": Sampling.mlperf_tiny, "indices": LISTED}, "allow_test_images is false"),
        ({"sampling": Sampling.mlperf_tiny, "indices": [1000], "allow_test_images": True}, "lists image 1000"),
        (
            {"sampling": Sampling.mlperf_tiny, "indices": list(range(1000)), "allow_test_images": True},
            "every test image is used",
        ),
        ({"method": Method.percentile, "percentile": 101.0}, "`calibration.percentile` is 101"),
        ({"samples_per_class": 101}, "`calibration.samples_per_class` is 101"),
    ],
)
def test_refusals_leave_no_results(config: Config, tmp_path: Path, calibration: dict, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        run_experiment(replace(config, calibration=CalibrationConfig(**calibration)), tmp_path)
    assert words in caught.value.problem
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_the_model_lacks_is_refused_before_any_work(config: Config) -> None:
    quant = QuantConfig(layers={"stack1.convl": {"weight_bits": 4}})
    with pytest.raises(ExperimentError, match=r"'stack1.convl', which matches no layer; the model has .*stack1.conv1"):
        prepare(replace(config, quant=quant))
    assert prepare(replace(config, quant=QuantConfig(layers={"stack1.*": {"weight_bits": 4}}))).images is not None


def test_where_kernels_saturate_the_default_session_stands_beside(config: Config, tmp_path, monkeypatch) -> None:
    u8s8 = replace(config, quant=QuantConfig("u8s8", DType.uint8, DType.int8, True))
    rows = {}
    for saturates in (session.kernels_saturate(), True):  # as it is, and as another CPU would tell
        monkeypatch.setattr(session, "kernels_saturate", lambda saturates=saturates: saturates)
        rows[saturates] = run_experiment(u8s8, tmp_path / str(saturates))
        layers = json.loads((tmp_path / str(saturates) / "run.json").read_text(encoding="utf-8"))["saturating_layers"]
        assert "dense" in " ".join(layers)
    assert all(row.portable is False for row in rows.values())
    assert len({row.accuracy for row in rows.values()}) == 1
    assert rows[True].default_session_accuracy is not None
    assert rows[True].default_session_changed is not None
    if False in rows:  # the kernels of this CPU are exact, whatever they were called
        assert rows[False].default_session_accuracy is None
        assert rows[True].default_session_changed == 0
    else:
        assert rows[True].default_session_changed > 0


def test_seven_bits_are_portable(config: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(session, "kernels_saturate", lambda: True)
    u8s7 = QuantConfig("u8s7", DType.uint8, DType.int8, True, weight_bits=7)
    row = run_experiment(replace(config, quant=u8s7), tmp_path)
    assert (row.portable, row.default_session_accuracy, row.default_session_changed) == (True, None, None)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["saturating_layers"] == []


def test_bytes_of_weights_are_those_of_the_layers_that_have_fewer_bits(config: Config, tmp_path: Path) -> None:
    """onnxruntime lists the branches of a residual block in another order than the float model."""
    u8s8 = QuantConfig("u8s8", DType.uint8, DType.int8, True)
    plain = run_experiment(replace(config, quant=u8s8), tmp_path / "plain").weights_bytes
    assert plain is not None
    for name, weights in {"stack2.skip": 16 * 32, "stack2.conv2": 9 * 32 * 32}.items():
        quant = replace(u8s8, layers={name: {"weight_bits": 4}})
        row = run_experiment(replace(config, quant=quant), tmp_path / name)
        assert row.weights_bytes == plain - weights // 2
    given = ModelConfig(ModelKind.onnx, path=str(tmp_path / "stack2.skip" / "model.onnx"))
    row = run_experiment(
        replace(config, model=given, quant=QuantConfig("float", DType.float32, DType.float32)), tmp_path / "given"
    )
    assert row.weights_bytes == plain - 16 * 32 // 2
    assert (row.model_bytes or 0) <= (tmp_path / "stack2.skip" / "model.onnx").stat().st_size  # 4-bit integers stay


@pytest.mark.parametrize("outputs", [2, 3])
def test_fewer_folders_of_classes_than_outputs_are_noted(outputs: int, caplog: pytest.LogCaptureFixture) -> None:
    data = replace(load_sample(), name="folder", class_names=("a", "b"))
    model = SimpleNamespace(input_spec=SimpleNamespace(classes=outputs))
    assert experiment._class_names(data, model) == ("a", "b", "2")[:outputs]
    assert ("2 classes, and the model has 3 outputs" in caplog.text) is (outputs == 3)
