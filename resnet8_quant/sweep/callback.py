"""The Hydra callback of a sweep: nothing starts that cannot work, and the summary is written whatever failed.

In: Hydra's events. Out: summary.csv, summary.md and a table on the terminal; exit code 1 when a job failed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from resnet8_quant.errors import ExperimentError

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Before the first job: would every job fail? After the last: the summary.

    SystemExit is the only exception that Hydra lets out of a callback.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        """Args: columns: of the table, see sweep/summary.py."""
        self.columns = tuple(columns)
        self.jobs: int | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from resnet8_quant.experiment import prepare
        from resnet8_quant.sweep.compose import explain, grid
        from resnet8_quant.sweep.summary import check_columns
        from resnet8_quant.terminal import show_error

        try:
            check_columns(self.columns)
            planned = grid(config)
            if planned is None:
                return
            self.jobs, jobs = planned
            first: ExperimentError | None = None
            for job in jobs:
                try:
                    if isinstance(job, ExperimentError):
                        raise job
                    prepare(job)
                    return  # one job can run: what stops others becomes their row
                except ExperimentError as error:
                    first = first or error
            assert first is not None
            raise first
        except Exception as error:
            known = error if isinstance(error, ExperimentError) else explain(error)
            if known is None:
                log.exception("the sweep cannot start")
            else:
                show_error(known)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from resnet8_quant.sweep.summary import summarize
        from resnet8_quant.terminal import show_error

        try:
            failed = summarize(Path(config.hydra.sweep.dir), self.columns, self.jobs)
        except ExperimentError as error:
            show_error(error)
            sys.exit(1)
        if failed:
            sys.exit(1)
