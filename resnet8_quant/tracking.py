"""Experiment tracking: tracking=mlflow logs each run to an MLflow database or server, besides its own folder.

In: a `Config`, a run's folder and its `RunResult`. Out: an MLflow run with the config as params, the result's numbers
as metrics, its texts as tags and the folder's files as artifacts. MLflow is imported only when it is used. A wrong
config is refused before the run; what fails after it is a warning, because the results are in the folder already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import sqlite3
import textwrap
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from resnet8_quant.config import Config, TrackingConfig, TrackingKind
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import locked
from resnet8_quant.results import RunResult
from resnet8_quant.settings import flatten
from resnet8_quant.validation import SQLITE, validate

_PACKAGES = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}
_BATCH = 100  # params or tags that MLflow takes in one call
_LONGEST = 6000  # characters that MLflow takes as a value
# What MLflow reads from the environment when it is imported; the user's own values go first. A server that does not
# answer holds a run up for half a minute, not for the ten that MLflow waits by itself.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

log = logging.getLogger(__name__)


def connect(tracking: TrackingConfig) -> None:
    """Open the store and its experiment, so that a wrong address is refused before the work begins.

    Raises:
        ExperimentError: a package is missing, the store cannot be reached, or the experiment cannot be used.
    """
    validate(Config(tracking=tracking))
    if tracking.kind is TrackingKind.none:
        return
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise missing_extra(package, "mlflow")
    try:
        with _exclusive(tracking):
            _experiment_id(tracking)
    except ExperimentError:
        raise
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's
        raise ExperimentError(
            f"`tracking.uri` is {tracking.uri}, which cannot be used: {_first_line(error)}",
            "another tracking.uri, or tracking=none",
        ) from error


def track(config: Config, folder: Path, result: RunResult) -> None:
    """Log a finished or failed run, whose folder's files are the artifacts; a failure to do so is a warning."""
    if config.tracking.kind is TrackingKind.none:
        return
    try:
        with _exclusive(config.tracking):
            _log_run(config, folder, result)
    except Exception as error:
        log.warning("not tracked in %s (the results are in %s): %s", config.tracking.uri, folder, _first_line(error))


@contextlib.contextmanager
def _exclusive(tracking: TrackingConfig) -> Iterator[None]:
    """Lock a SQLite file against other processes and check that it is one; a server does both itself."""
    path = _database(tracking)
    with locked(path.with_suffix(".lock")) if path else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's warnings are for its developers
        if path is not None:  # MLflow itself would try for two minutes
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("pragma schema_version")
        yield


def _database(tracking: TrackingConfig) -> Path | None:
    uri = tracking.uri or ""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment_id(tracking: TrackingConfig) -> str:
    """Id of the experiment, created if needed; its artifacts lie beside a SQLite file, or where the server says."""
    client, name, path = _client(str(tracking.uri)), str(tracking.experiment), _database(tracking)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = None if path is None else path.resolve().with_name("artifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=artifacts))
    identifier = str(experiment.experiment_id)
    if experiment.lifecycle_stage != "active":
        raise ExperimentError(
            f"`tracking.experiment` is {name}, which was deleted in {tracking.uri}",
            f"tracking.experiment=NAME, or mlflow experiments restore --experiment-id {identifier}",
        )
    return identifier


def _log_run(config: Config, folder: Path, result: RunResult) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client = _client(str(config.tracking.uri))
    now = int(time.time() * 1000)
    started = int(datetime.fromisoformat(result.started_utc).timestamp() * 1000) if result.started_utc else now
    values = {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
    del values["schema_version"], values["settings"]  # the params have them
    numbers = {n: v for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    texts = {name: str(value) for name, value in values.items() if name not in numbers} | {"folder": str(folder)}
    if result.error is not None:
        texts["mlflow.note.content"] = result.error
    params = [Param(name, value[:_LONGEST]) for name, value in tracked_settings(config).items()]
    tags = [RunTag(name, value[:_LONGEST]) for name, value in texts.items()]
    run = client.create_run(_experiment_id(config.tracking), start_time=started, run_name=folder.name).info.run_id
    status = "FAILED"
    try:
        client.log_batch(run, metrics=[Metric(name, float(value), now, 0) for name, value in numbers.items()])
        for start in range(0, max(len(params), len(tags)), _BATCH // 2):
            part = slice(start, start + _BATCH // 2)
            client.log_batch(run, params=params[part], tags=tags[part])
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                client.log_artifact(run, str(path))
        status = "FINISHED" if result.status == "ok" else "FAILED"
    finally:
        client.set_terminated(run, status)


def tracked_settings(config: Config) -> dict[str, str]:
    """{"quant.per_channel": "true", ...}: each setting but those of tracking."""
    return {name: value for name, value in flatten(config).items() if not name.startswith("tracking.")}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten((str(error).splitlines() or [''])[0], 200, placeholder=' ...')}"
