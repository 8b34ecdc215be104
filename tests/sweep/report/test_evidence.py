"""What the runs left to compare, and that nothing is used which does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet8_quant.config import DataConfig, DataKind, Resize
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.arrays import load_arrays
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.evidence import _load, gather

MakeRun = Callable[..., Path]
Read = Callable[[], list[Job]]


def test_predictions_that_do_not_fit_the_row_are_not_used(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=int8", 3)
    np.save(make_run(1, "quant=uint8", 3) / "predictions.npy", np.zeros(1000, np.int64))
    (make_run(2, "quant=u8s8", 3) / "predictions.npy").write_bytes(b"\x93NUMPY broken")
    np.save(make_run(3, "quant=w4a8", 3) / "predictions.npy", np.zeros(999, np.int64))
    np.save(make_run(4, "quant=w4a4", 3) / "predictions.npy", np.array([{}] * 1000), allow_pickle=True)
    (make_run(5, "quant=w3a8", 3) / "predictions.npy").unlink()
    evidence = gather(jobs_of())
    assert [predictions is None for predictions in evidence.predictions] == [False, True, True, True, True, True]
    assert "5 of 6 runs have no predictions.npy" in evidence.notes[0]


def test_of_runs_on_other_images_those_on_the_most_are_compared(make_run: MakeRun, jobs_of: Read) -> None:
    for number in range(3):
        make_run(number, "quant=int8", 3, data_sha256="other", eval_images=200, data="small")
    make_run(3, "quant=uint8", 3)
    evidence = gather(jobs_of())
    assert [job.number for job in evidence.jobs] == [3]
    assert "1,000 images of sample; 3 of 4 finished runs, on other images, are in the table only" in evidence.notes[0]
    make_run(4, "quant=u8s8", 3, data_sha256="third")
    make_run(5, "quant=w4a8", 3)
    assert {job.number for job in gather(jobs_of()).jobs} == {3, 5}  # of equally many images, what more runs have seen


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"data_sha256": "other"}, "digest"), ({"calibration_overlap": 7}, "not known"), ({"eval_images": 5}, "number")],
)
def test_labels_of_other_images_are_not_used(
    changes: dict[str, object], said: str, make_run: MakeRun, jobs_of: Read
) -> None:
    make_run(0, "quant=int8", 3, **changes)
    evidence = gather(jobs_of())
    assert evidence.labels is None
    assert said in evidence.no_labels


def test_cifar10_is_never_fetched(
    make_run: MakeRun, jobs_of: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet8_quant.inputs import download

    def fetch(*_: object) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setenv("RESNET8_QUANT_CACHE", str(tmp_path / "cache"))
    folder = make_run(0, "quant=int8", 3)
    for content in ('{"config": {"data": {"kind": "cifar10"}, "cache_dir": "/nowhere"}}', '{"config": 3}', "{", "[]"):
        (folder / "run.json").write_text(content)
        loaded = gather(jobs_of())
        assert (loaded.labels is None) == ("cifar10" in content)
    (folder / "run.json").write_text('{"config": {"data": {"kind": "cifar10"}}}')
    assert "not in the cache" in gather(jobs_of()).no_labels


def test_float_predictions_of_the_folder_or_of_the_float_run(make_run: MakeRun, jobs_of: Read) -> None:
    make_run(0, "quant=float", 0)
    (make_run(1, "quant=int8", 3) / "float_predictions.npy").unlink()
    other = make_run(2, "quant=int8 model=other", 3, float_model_sha256="0" * 64)
    (other / "float_predictions.npy").unlink()
    evidence = gather(jobs_of())
    by_number = {job.number: evidence.float_predictions(job) for job in evidence.jobs}
    assert np.array_equal(by_number[1], by_number[0])  # type: ignore[arg-type]
    assert by_number[2] is None


def test_arrays_are_read_as_the_run_read_them(tmp_path: Path) -> None:
    """Labels from 1, and floats that the model's std turns into pixels; what run.json says else is not believed."""
    x, y = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3) * 5, np.array([1, 2, 2, 1])
    np.savez(tmp_path / "a.npz", x_train=x / 255, y_train=y, x_test=x / 255, y_test=y)
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y - 1, x_test=x, y_test=y - 1)
    digest = load_arrays(str(tmp_path / "b.npz")).digest
    data = {"kind": "arrays", "path": str(tmp_path / "a.npz"), "first_label": 1}
    job: Any = SimpleNamespace(path=tmp_path, row=SimpleNamespace(data="arrays"))
    record = {"config": {"data": data, "model": {"std": [255.0] * 3}, "cache_dir": str(tmp_path)}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert _load(job, digest).test.labels.tolist() == [0, 1, 1, 0]
    record["config"]["model"] = {"std": ["255"] * 3, "mean": 1}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ExperimentError, match=r"`model\.mean` is 1, of type int"):
        _load(job, digest)


@pytest.mark.parametrize("folders", [True, False])
def test_images_of_folders_are_read_as_the_run_read_them(folders: bool, tmp_path: Path) -> None:
    """Divided, resized, gray, with classes in the model's order; settings that the run.json lacks are default."""
    draw = np.random.default_rng(0)
    for name in ("dog", "cat"):
        for number in range(10):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)
    table = tmp_path / "images" / "all.csv"
    lines = [f"{name}/{number}.png,{name}" for name in ("dog", "cat") for number in range(10)]
    table.write_text("\n".join(["path,label", *lines]))
    config = DataConfig(DataKind.folder, path=str(tmp_path / "images" if folders else table), test_fraction=0.3)
    if folders:
        config = replace(config, split_seed=3, size=[5, 4], resize=Resize.crop, gray=True, classes=["dog", "cat"])
    data = load_dataset(config, tmp_path)
    written = {"kind": "folder", "path": config.path, "test_fraction": 0.3, "later": "version"}
    if folders:
        written |= {"split_seed": 3, "size": [5, 4], "resize": "crop", "gray": True, "classes": ["dog", "cat"]}
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": written, "cache_dir": str(tmp_path)}}))
    job: Any = SimpleNamespace(path=tmp_path, row=SimpleNamespace(data="folder"))
    loaded = _load(job, data.digest)
    np.testing.assert_array_equal(loaded.test.labels, data.test.labels)
    np.testing.assert_array_equal(loaded.test.images, data.test.images)
    for changes in ({"size": "huge"}, {"size": [10**9, 1]}, {"resize": "x"}, {"split_seed": -1}, {"kind": ["folder"]}):
        (tmp_path / "run.json").write_text(json.dumps({"config": {"data": written | changes}}))
        with pytest.raises(ExperimentError, match=f"`data.{next(iter(changes))}`"):
            _load(job, data.digest)
