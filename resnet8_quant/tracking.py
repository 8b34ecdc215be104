"""Runs in a tracker beside their files: tracking=mlflow logs each to an MLflow database or server.

In: a `Config`, a run's folder and its `RunResult`. Out: an MLflow run with the config as params, the row's numbers as
metrics, its words as tags and the folder's files as artifacts. MLflow is imported only when it is used. A wrong config
is refused before the run; whatever fails after it is a warning, because the results are in the folder already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import sqlite3
import textwrap
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from resnet8_quant.config import Config, TrackingConfig, TrackingKind
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import locked
from resnet8_quant.results import RunResult

_SQLITE = "sqlite:///"
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


def check_tracking(tracking: TrackingConfig) -> None:
    """Refuse what cannot be tracked, without a look at the store itself.

    Raises:
        ExperimentError: a field that nothing reads, or an address of no store.
    """
    if tracking.kind is TrackingKind.none:
        for name in ("uri", "experiment"):
            if getattr(tracking, name) is not None:
                raise ExperimentError(
                    f"`tracking.{name}` is {getattr(tracking, name)}, but tracking=none does not read it",
                    f"python run.py tracking=mlflow tracking.{name}={getattr(tracking, name)}",
                )
        return
    if not tracking.experiment or tracking.experiment != tracking.experiment.strip():
        raise ExperimentError(
            f"`tracking.experiment` is {tracking.experiment!r}; it needs a name without space around it",
            "tracking.experiment=resnet8-quant",
        )
    uri = tracking.uri or ""
    server = urlsplit(uri)
    if server.scheme in ("http", "https") and server.username is not None:
        raise ExperimentError(
            "`tracking.uri` holds a user name, which would be written into every run's record",
            "export MLFLOW_TRACKING_USERNAME=NAME MLFLOW_TRACKING_PASSWORD=PASSWORD",
        )
    is_server = server.scheme in ("http", "https") and bool(server.hostname)
    if not is_server and not (uri.startswith(_SQLITE) and uri.removeprefix(_SQLITE).strip("/")):
        raise ExperimentError(
            f"`tracking.uri` is {tracking.uri}; valid are sqlite:///FILE, http://HOST:PORT, https://HOST:PORT (MLflow "
            "no longer writes to folders of files)",
            "tracking.uri=sqlite:///outputs/mlflow/mlflow.db",
        )


def connect(tracking: TrackingConfig) -> None:
    """Open the store and find or make the experiment, so that a wrong address is refused before the work begins.

    Raises:
        ExperimentError: a package is missing, the store cannot be reached, or the experiment cannot be used.
    """
    check_tracking(tracking)
    if tracking.kind is TrackingKind.none:
        return
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise missing_extra(package, "mlflow")
    try:
        with _alone(tracking):
            _experiment_id(tracking)
    except ExperimentError:
        raise
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's
        raise ExperimentError(
            f"`tracking.uri` is {tracking.uri}, which cannot be used: {_first_line(error)}",
            "another tracking.uri, or tracking=none",
        ) from error


def track(config: Config, folder: Path, row: RunResult) -> None:
    """Log a run that has ended, well or badly; a failure to do so is a warning.

    Args:
        config: of the run; tracking=none logs nothing.
        folder: of the run; its files are the artifacts.
        row: of the run; ``status`` failed makes a FAILED run.
    """
    if config.tracking.kind is TrackingKind.none:
        return
    try:
        with _alone(config.tracking):
            _log_run(config, folder, row)
    except Exception as error:
        log.warning("not tracked in %s (the results are in %s): %s", config.tracking.uri, folder, _first_line(error))


@contextlib.contextmanager
def _alone(tracking: TrackingConfig) -> Iterator[None]:
    """One process at a time in a SQLite file, after a look that it is one; a server sees to that itself."""
    path = _database(tracking)
    with locked(path.with_suffix(".lock")) if path else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's are for its developers
        if path is not None:  # MLflow itself would try for two minutes
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("pragma schema_version")
        yield


def _database(tracking: TrackingConfig) -> Path | None:
    uri = tracking.uri or ""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment_id(tracking: TrackingConfig) -> str:
    """Of the experiment, made if there is none; its artifacts lie beside a SQLite file, or where the server says."""
    client, name, path = _client(str(tracking.uri)), str(tracking.experiment), _database(tracking)
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if path is None else path.resolve().with_name("artifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=place))
    if found.lifecycle_stage != "active":
        raise ExperimentError(
            f"`tracking.experiment` is {name}, which was deleted in {tracking.uri}",
            f"tracking.experiment=NAME, or mlflow experiments restore --experiment-id {found.experiment_id}",
        )
    return str(found.experiment_id)


def _log_run(config: Config, folder: Path, row: RunResult) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client = _client(str(config.tracking.uri))
    now = int(time.time() * 1000)
    started = int(datetime.fromisoformat(row.started_utc).timestamp() * 1000) if row.started_utc else now
    values = {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
    del values["schema_version"], values["settings"]  # the params have them
    numbers = {n: v for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    words = {name: str(value) for name, value in values.items() if name not in numbers} | {"folder": str(folder)}
    if row.error is not None:
        words["mlflow.note.content"] = row.error
    params = [Param(name, value[:_LONGEST]) for name, value in flattened(config).items()]
    tags = [RunTag(name, value[:_LONGEST]) for name, value in words.items()]
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
        status = "FINISHED" if row.status == "ok" else "FAILED"
    finally:
        client.set_terminated(run, status)


def flattened(config: Config) -> dict[str, str]:
    """{"quant.per_channel": "true", ...}: each field of a config but those of tracking, lists and dicts as JSON."""

    def walk(part: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{field.name}.")
            elif isinstance(value, Enum):
                yield prefix + field.name, value.name
            else:
                yield prefix + field.name, value if isinstance(value, str) else json.dumps(value)

    return {name: value for name, value in walk(config, "") if not name.startswith("tracking.")}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten((str(error).splitlines() or [''])[0], 200, placeholder=' ...')}"
