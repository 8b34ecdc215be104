"""What the page needs to compare any two of its runs: all predictions, unpacked as they were, within a size."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet8_quant.inputs.dataset import Dataset
from resnet8_quant.results import RunResult
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import pair
from resnet8_quant.sweep.report.evidence import gather
from resnet8_quant.sweep.report.page import sections
from resnet8_quant.sweep.report.pair import figures, pack, page_data


def _unpacked(packed: str) -> np.ndarray:
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(2, -1).astype(int)
    return low + 256 * high


def test_predictions_come_back_and_are_small(grid: list[Job], data: Dataset) -> None:
    page, note = page_data(grid, gather(grid))
    labels, reference = (_unpacked(page["images"][0][name]) for name in ("labels", "reference"))
    np.testing.assert_array_equal(labels, data.test.labels)
    assert note == ""
    for job, run in zip(grid, page["runs"], strict=True):
        predictions = _unpacked(page["predictions"][run["predictions"]]) ^ reference
        np.testing.assert_array_equal(predictions, np.load(job.path / "predictions.npy"))
    assert len(json.dumps(page["predictions"])) < len(grid) * len(labels) / 8


@pytest.mark.parametrize("classes", [[], [0], [255, 256, 65_535, 1]])
def test_classes_are_packed(classes: list[int]) -> None:
    np.testing.assert_array_equal(_unpacked(pack(np.array(classes, np.int64))), classes)


def test_equal_predictions_and_layers_are_there_once(
    make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]
) -> None:
    layers = [{"name": "conv", "output": "relu", "weight_bits": 4, "activation_bits": 8}]
    for number in range(3):
        folder = make_run(number, f"quant=int8 deploy=x{number}", 5)
        (folder / "run.json").write_text(json.dumps({"layers": layers, "config": {"data": {"kind": "sample"}}}))
    page, _ = page_data(jobs_of(), gather(jobs_of()))
    assert len(page["predictions"]) == 1
    assert page["layers"] == [("f" * 12 + "…", (("conv", "4, 8 bits"),))]


def test_a_page_that_is_full_says_so(grid: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "MAX_PREDICTION_BYTES", 1)
    page, note = page_data(grid, gather(grid))
    assert [run["predictions"] for run in page["runs"]] == [0, *[-1] * (len(grid) - 1)]
    assert "holds the predictions of the first 1 of 13 runs" in note
    section = next(section for section in sections(grid)[0] if section.key == "pair")
    assert note in section.note


def test_one_finished_run_has_no_other(make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]) -> None:
    make_run(0, "quant=int8", 3)
    make_run(1, "quant=int8", 3, status="failed", error="it broke")
    section = next(section for section in sections(jobs_of())[0] if section.key == "pair")
    assert (section.content, section.missing) == (None, "fewer than two runs have finished")


def test_a_latency_of_milliseconds_is_written_out() -> None:
    slow = RunResult(latency_us_median=1234.5, latency_us_ci_low=1200.0, latency_us_ci_high=1299.6, cpu="a")
    fast = RunResult(latency_us_median=84.21, latency_us_ci_low=83.2, latency_us_ci_high=101.0, cpu="a")
    (row,) = (row for row in figures([Job(0, "0", slow), Job(1, "1", fast)]).rows if row[0] == "Latency")
    assert row[1:] == ("1234 (1200-1300) us", "84.2 (83.2-101) us", "14.66x as fast")
