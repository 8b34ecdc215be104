"""ranges.csv and histograms.npz say what is stored in the model and what was seen of each tensor."""

import csv
from dataclasses import replace

import numpy as np
import onnx
import pytest

from resnet8_quant.config import Config, DType, Format, Method, QuantConfig, RefineConfig
from resnet8_quant.quantizer.calibration.report import COLUMNS, stored_params, write_histograms, write_ranges
from resnet8_quant.quantizer.quantize import quantize


@pytest.fixture(scope="module")
def written(model, images, cache, configs, tmp_path_factory):
    """(method, format, bins) -> Calibration, ModelProto, rows of ranges.csv."""

    def make(method=Method.minmax, form=Format.QDQ, bins=2048):
        config = replace(configs[method], bins=bins)
        quantized = quantize(model, images, Config(QuantConfig(format=form), config), cache=cache)
        path = tmp_path_factory.mktemp("out") / "ranges.csv"
        proto = onnx.load_from_string(quantized.serialized)
        write_ranges(quantized.calibration, proto, path)
        with path.open(newline="", encoding="utf-8") as file:
            return quantized.calibration, proto, list(csv.DictReader(file))

    return make


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("method", [Method.minmax, Method.mse])
def test_one_row_for_each_stored_tensor(written, method, form):
    calibration, proto, rows = written(method, form)
    assert tuple(rows[0]) == COLUMNS
    stored = stored_params(proto)
    assert [row["tensor"] for row in rows] == list(stored)
    for row in rows:
        name = row["tensor"]
        assert (np.float32(row["scale"]), int(row["zero_point"])) == stored[name]
        assert (np.float32(row["low"]), np.float32(row["high"])) == calibration.ranges[name]
        other = form is Format.QOperator and name == "probabilities"
        assert row["decided_by"] == ("onnxruntime" if other else "calibration")
        if name in calibration.stats:
            observed = calibration.stats[name]
            assert (np.float32(row["min"]), np.float32(row["max"])) == (observed.low, observed.high)
            assert 20 < float(row["snr_db"]) < 90
            assert 0 <= float(row["clipped_fraction"]) < 0.05
        else:
            assert {row[column] for column in ("min", "max", "snr_db", "clipped_fraction")} == {""}


def test_percentile_clips_and_minmax_does_not(written):
    cut = [float(row["clipped_fraction"] or 0) for row in written(Method.percentile)[2]]  # 0.5 % at each end
    assert max(cut) <= 0.015  # the stored zero point is rounded
    assert sum(share > 0.003 for share in cut) > len(cut) / 2
    assert {row["clipped_fraction"] for row in written()[2]} <= {"0", ""}


def test_without_a_histogram(written, tmp_path):
    calibration, _, rows = written(bins=None)
    assert calibration.ranges["image"] == (0, 255)
    assert {(row["snr_db"], row["clipped_fraction"]) for row in rows} <= {("", "0"), ("", "")}
    assert rows[0]["clipped_fraction"] == "0"
    assert not write_histograms(calibration, tmp_path / "histograms.npz")
    assert list(tmp_path.iterdir()) == []
    assert any(row["clipped_fraction"] == "" for row in written(Method.moving_average, bins=None)[2])


def test_histograms_are_those_of_the_statistics(written, tmp_path):
    stats = written()[0].stats
    assert write_histograms(written()[0], tmp_path / "histograms.npz")
    with np.load(tmp_path / "histograms.npz", allow_pickle=False) as file:
        assert file["tensors"].tolist() == list(stats)
        assert len(file.files) == 1 + 2 * len(stats)
        for i, tensor in enumerate(stats.values()):
            counts, (first, width, zeros) = file[f"counts_{i}"], file[f"edges_{i}"]
            np.testing.assert_array_equal(counts, tensor.histogram.counts)
            np.testing.assert_array_equal(first + width * np.arange(len(counts) + 1), tensor.histogram.edges)
            assert zeros == tensor.histogram.zeros


def test_a_refined_range_is_named_so(model, images, tmp_path):
    quant = QuantConfig(activation_type=DType.uint8, per_channel=True, activation_bits=4, keep_first_last=8)
    refined = RefineConfig("ranges", activation_ranges=True)
    result = quantize(model, images, Config(quant, refine=refined))
    write_ranges(result.calibration, onnx.load_from_string(result.serialized), tmp_path / "ranges.csv")
    with (tmp_path / "ranges.csv").open() as file:
        rows = {row["tensor"]: row for row in csv.DictReader(file)}
    row = rows["stack1.relu1"]
    assert row["decided_by"] == "refinement"
    assert rows["relu"]["decided_by"] == "calibration"  # an Add reads it too
    assert float(row["high"]) == pytest.approx(15 * float(row["scale"]))
    assert 5 < float(row["snr_db"]) < 30 < float(rows["relu"]["snr_db"])
