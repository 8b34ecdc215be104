"""The jobs of a sweep before they start: their overrides, and what Hydra and the checks say to them.

In: the config of a sweep as Hydra composes it, with the node `hydra`. Out: overrides of each job of a grid; the
`Config` of a job; the name of a job's folder, by the resolver that `hydra.sweep.subdir` calls.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from resnet8_quant.config import Config
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.files import sha256_bytes
from resnet8_quant.sweep import folders, plan
from resnet8_quant.sweep.compose import UNCOMPOSED, explain, to_config, without_hydra

if TYPE_CHECKING:
    from resnet8_quant.experiment import Prepared

SUBDIR = "${job_folder:}"
MOST_JOBS = 100_000
MOST_COMPOSED = 200  # jobs before the first starts, some 15 seconds; a wrong value after them is a failed row

log = logging.getLogger(__name__)


def register_sweeps() -> None:
    """Tell Hydra how job folders are named, and where the search is.

    Hydra takes a sweeper only from the namespace package `hydra_plugins`, whose parts may lie in any folder of
    sys.path; ours is put there. To have setuptools map it to site-packages would not do: in an editable install
    setuptools' finder lists no modules, so that Hydra's scan misses it, and a plain checkout has no mapping.
    """
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    # Hydra copies its sources of configs, and with them the whole store, for each group of --help and each job that it
    # composes. The store does not change after the start: what it hands out is a copy already.
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 (a method, to a type checker)
    plugins = str(Path(__file__).with_name("search_plugin"))
    if plugins not in sys.path:
        sys.path.append(plugins)


def job_folder(*, _root_: DictConfig) -> str:
    """The name of the folder of the job that ``_root_`` is the config of; the folder is there afterwards."""
    from resnet8_quant.sweep.digest import digest_of

    hydra = _root_.hydra
    if OmegaConf.is_missing(hydra.job, "num"):
        return "NUMBER_CHOICES_DIGEST"
    sweep = Path(str(hydra.sweep.dir))
    overrides = plan.command_overrides(typed_overrides(hydra.overrides.task))
    try:
        digest = digest_of(to_config(without_hydra(copy.deepcopy(_root_)), overrides))
    except ExperimentError:  # the job's row will say it
        digest = sha256_bytes("\n".join(overrides).encode())
    started = plan.read_plan(sweep) or plan.Plan(overrides, None, 0)
    return folders.find_or_make(sweep, started, int(hydra.job.num), overrides, digest, hydra.runtime.choices)


def check_subdir(config: DictConfig) -> None:
    """Refuse other names of job folders."""
    typed = dict(config.hydra.sweep.items_ex(resolve=False))["subdir"]
    if typed != SUBDIR:
        raise ExperimentError(
            f"`hydra.sweep.subdir` is {typed}; valid is {SUBDIR} alone: jobs are known by the names of their folders",
            "leave it out; the sweep's own folder may be chosen: hydra.sweep.dir=FOLDER",
        )


def typed_overrides(overrides: ListConfig | list[str]) -> list[str]:
    """Overrides as they were typed: reading them one by one would resolve the interpolations in them."""
    plain = OmegaConf.to_container(overrides, resolve=False) if isinstance(overrides, ListConfig) else overrides
    assert isinstance(plain, list)
    return plain


def read_grid(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a grid; None where the sweeper decides as it goes."""
    if not str(config.hydra.sweeper._target_).endswith(BasicSweeper.__name__):
        return None
    params: dict[str, Any] = dict(config.hydra.sweeper.params or {})
    overrides = [f"{key}={value}" for key, value in params.items()] + typed_overrides(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(overrides)
    _check_count(parsed)
    return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]


def _check_count(overrides: Sequence[Override]) -> None:
    """Refuse a range without end, and more jobs than anybody waits for, before Hydra lists them."""
    count = 1
    for override in overrides:
        values = override.value()
        if isinstance(values, RangeSweep):
            first, last, step = (number or 0 for number in (values.start, values.stop, values.step))
            if step == 0:
                raise ExperimentError(
                    f"{override.input_line} has step 0 and never ends", f"{override.key_or_group}=range({first},{last})"
                )
            length = (last - first) / step
            count *= max(0, math.ceil(min(length, MOST_JOBS + 1)))
        elif override.is_discrete_sweep():
            count *= len([*override.sweep_string_iterator()])
    if count > MOST_JOBS:
        raise ExperimentError(
            f"the grid has more than {MOST_JOBS:,} jobs, the most that a sweep takes",
            f"several sweeps with fewer values each, or a search: {COMMAND} experiment=search",
        )


def varied_keys(jobs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Keys of the overrides whose values are not the same in all jobs."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            key, _, value = override.lstrip("+~").partition("=")
            values.setdefault(key, set()).add(value)
    return tuple(key for key, different in values.items() if len(different) > 1)


def compose_job(config: DictConfig, overrides: Sequence[str], loader: ConfigLoader) -> Config:
    """The config of a job with ``overrides`` in the sweep of ``config``.

    Raises:
        ExperimentError: an option, a field or a value that there is not.
    """
    return to_config(without_hydra(_compose(loader, config, overrides)), overrides)


def check_grid(config: DictConfig, jobs: Sequence[Sequence[str]], serial: bool) -> tuple[Config, Prepared]:
    """Refuse a grid before anything is made, where a name in it is unknown, or none of its jobs can run.

    Composing a job takes some 80 ms. As many are composed as it takes to see each value once; Hydra need not validate
    all of them, as it would, before the first starts. A serial sweep keeps them until they start.

    Returns:
        The first job that can run, and what it starts from.

    Raises:
        ExperimentError: an unknown name, or the reason of the first job where no job can run. What stops only some of
            them becomes their row.
    """
    from resnet8_quant.experiment import prepare
    from resnet8_quant.tracking import connect

    if not jobs:
        raise ExperimentError(
            "the grid has no jobs: a setting in it has no values", "give each one at least one: seed=0,1"
        )
    loader: Any = GlobalHydra.instance().config_loader()
    # Hydra loads its plugins as modules of their own: the class to change is the one that it made its sweeper of.
    sweeper = Plugins.instance().class_name_to_class[str(config.hydra.sweeper._target_)]
    setattr(sweeper, "validate_batch_is_legal", lambda *_: None)  # noqa: B010 (a method, to a type checker)
    seen: set[str] = set()
    composed: dict[tuple[str, ...], DictConfig] = {}
    if len(jobs) > MOST_COMPOSED:
        log.info("%d jobs: the first %d are checked before the first starts", len(jobs), MOST_COMPOSED)
    for job in jobs:
        if not seen.issuperset(job) and len(composed) < MOST_COMPOSED:
            seen.update(job)
            composed[tuple(job)] = _compose(loader, config, job)
    configs = {job: to_config(without_hydra(copy.deepcopy(node)), job) for job, node in composed.items()}
    loader.__class__ = JobLoader
    loader.composed = composed if serial else {}
    first: ExperimentError | None = None
    for job in [*configs, *(job for job in map(tuple, jobs) if job not in configs)]:
        try:
            candidate = configs.get(job) or compose_job(config, job, loader)
            prepared = prepare(candidate)
            connect(candidate.tracking)
            return candidate, prepared
        except ExperimentError as error:
            first = first or error
    assert first is not None
    raise first


class JobLoader(ConfigLoaderImpl):
    """Hydra's loader of configs as `check_grid` leaves it; each worker has a copy.

    What is composed already it hands out, once. A job that cannot be composed, because its values do not go together,
    gets a config that says so, for its row: the exception would end the sweep.
    """

    composed: dict[tuple[str, ...], DictConfig]

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = self.composed.pop(tuple(sweep_overrides), None)
        if config is not None:
            with read_write(config), open_dict(config):  # the folder was chosen in between
                config.hydra.sweep.dir = master_config.hydra.sweep.dir
                config.hydra.overrides.hydra = master_config.hydra.overrides.hydra
            return config
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        except Exception as error:
            known = explain(error)
            if known is None:
                raise
            config = super().load_sweep_config(master_config, [])
            with read_write(config), open_dict(config):
                config.hydra.overrides.task = sweep_overrides
                config[UNCOMPOSED] = [known.problem, known.remedy]
            return config


def _compose(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of a job with the node `hydra`."""
    try:
        return loader.load_sweep_config(config, list(overrides))
    except Exception as error:
        raise explain(error) or error from error
