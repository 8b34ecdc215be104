"""Runs in MLflow: what is logged, what is refused before a run, and that no failure after it is more than a warning."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant import results, tracking
from resnet8_quant.config import Config, Format, QuantConfig, TrackingConfig, TrackingKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.results import RunResult
from resnet8_quant.tracking import connect, track, tracked_settings

ROOT = Path(__file__).resolve().parents[1]
ROW = RunResult(
    quant_type="int8", accuracy=0.9, model_bytes=94391, per_channel=False, seed=7, started_utc="2026-01-02T03:04:05Z"
)


def mlflow_config(uri: str | None, experiment: str | None = "test") -> TrackingConfig:
    return TrackingConfig(TrackingKind.mlflow, uri, experiment)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store in a new folder."""
    pytest.importorskip("mlflow", reason="needs the extra [mlflow]")
    address = f"sqlite:///{tmp_path_factory.mktemp('store') / 'new' / 'mlflow.db'}"
    connect(mlflow_config(address))
    return address


def tracked(uri: str, name: str = "test") -> list[Any]:
    """The runs of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name(name).experiment_id]))


def run_folder(parent: Path) -> Path:
    folder = parent / "0_quant-int8"
    (folder / ".hydra").mkdir(parents=True)
    for name in ("model.onnx", "run.json", ".lock"):
        (folder / name).write_text(name)
    return folder


def test_settings_are_logged_as_on_the_command_line() -> None:
    config = Config(quant=QuantConfig(format=Format.QOperator, layers={"stack1.*": {"weight_bits": 4}}))
    params = tracked_settings(config)
    assert params["quant.format"] == "QOperator"
    assert params["quant.per_channel"] == "false"
    assert params["quant.layers"] == '{"stack1.*": {"weight_bits": 4}}'
    assert params["calibration.percentile"] == "null"
    assert params["seed"] == "42"
    assert not [name for name in params if name.startswith("tracking")]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking._PACKAGES, "no_such_module", "mlflow-skinny")
    with pytest.raises(ExperimentError, match="is not installed") as caught:
        connect(mlflow_config("sqlite:///x"))
    assert "[mlflow]" in caught.value.remedy


def test_without_tracking_mlflow_is_not_imported() -> None:
    code = (
        "import sys; from resnet8_quant.config import Config; from resnet8_quant.tracking import *; "
        "connect(Config().tracking); sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_run_has_params_metrics_tags_and_artifacts(uri: str, tmp_path: Path) -> None:
    config = Config(tracking=mlflow_config(uri))
    folder = run_folder(tmp_path)
    track(config, folder, ROW)
    (run,) = tracked(uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.name
    assert run.info.start_time == 1767323045000
    assert run.data.params == tracked_settings(config)
    assert run.data.metrics == {"accuracy": 0.9, "model_bytes": 94391, "seed": 7}
    texts = {"quant_type": "int8", "per_channel": "False", "status": "ok", "folder": str(folder)}
    assert texts.items() <= run.data.tags.items()
    from mlflow import MlflowClient

    listed = MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id)
    assert [file.path for file in listed] == ["model.onnx", "run.json"]


def test_a_failed_run_is_failed_and_says_why(uri: str, tmp_path: Path) -> None:
    config = Config(tracking=mlflow_config(uri, "failures"))
    track(config, run_folder(tmp_path), RunResult(status="failed", error="no luck"))
    (run,) = tracked(uri, "failures")
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == "no luck"


def test_failure_in_the_middle_is_a_warning_and_a_failed_run(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(tracking=mlflow_config(uri, "middle"))
    track(config, tmp_path / "absent", ROW)
    assert "not tracked in sqlite:///" in caplog.text
    assert "absent" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    assert [run.info.status for run in tracked(uri, "middle")] == ["FAILED"]


def test_a_damaged_store_is_refused_before_a_run_and_a_warning_after_it(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.db").write_bytes(b"not a database, " * 100)
    config = Config(tracking=mlflow_config(f"sqlite:///{tmp_path / 'm.db'}"))
    with pytest.raises(ExperimentError, match=r"m\.db, which cannot be used"):
        connect(config.tracking)
    track(config, run_folder(tmp_path), ROW)
    assert "not tracked" in caplog.text


def test_a_deleted_experiment_is_refused(uri: str) -> None:
    from mlflow import MlflowClient

    connect(mlflow_config(uri, "gone"))
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(ExperimentError, match=r"`tracking\.experiment` is gone, which was deleted"):
        connect(mlflow_config(uri, "gone"))


def test_a_wrong_address_is_refused_before_the_store_is_opened() -> None:
    with pytest.raises(ExperimentError, match="is outputs/mlruns; valid are"):
        connect(mlflow_config("outputs/mlruns"))


def test_a_sweep_tracks_every_job_and_a_wrong_address_stops_it(uri: str, tmp_path: Path) -> None:
    def start(name: str, address: str) -> subprocess.CompletedProcess[str]:
        overrides = ["-m", "calibration.samples_per_class=5,101", "data=sample", "latency.runs=0", "tracking=mlflow"]
        places = [f"hydra.sweep.dir={tmp_path / name}", f"cache_dir={tmp_path / 'cache'}", f"tracking.uri={address}"]
        command = [sys.executable, "run.py", *overrides, "tracking.experiment=sweep", *places]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    done = start("good", uri)
    assert done.returncode == 1, done.stderr  # one job fails
    runs = {run.info.status: run for run in tracked(uri, "sweep")}
    assert set(runs) == {"FINISHED", "FAILED"}
    assert runs["FINISHED"].data.params["calibration.samples_per_class"] == "5"
    row = results.read(next((tmp_path / "good").glob("00_*")) / "results.csv")
    assert runs["FINISHED"].data.metrics["accuracy"] == row.accuracy
    assert "samples_per_class" in runs["FAILED"].data.tags["error"]
    refused = start("bad", f"sqlite:///{tmp_path}")
    assert refused.returncode == 1
    assert "error: `tracking.uri`" in refused.stderr
    assert not (tmp_path / "bad").exists()
