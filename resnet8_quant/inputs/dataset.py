"""Load the dataset that the config names.

In: a ``DataConfig`` and the cache folder. Out: a ``Dataset`` of two splits. A dataset that is already in the cache is
memory-mapped, so loading it costs milliseconds; modules that decode or download are imported only where they are used.
"""

from __future__ import annotations

from pathlib import Path

from resnet8_quant.config import DataConfig, DataKind, ModelConfig
from resnet8_quant.inputs.splits import Dataset, Split

__all__ = ["Dataset", "Split", "load_dataset"]


def load_dataset(config: DataConfig, cache: Path, model: ModelConfig | None = None) -> Dataset:
    """Load the dataset that ``config.kind`` names; cifar10 and folder write to the folder ``cache``.

    Args:
        config: of the dataset.
        cache: the cache folder.
        model: says by ``mean`` and ``std`` what float images of data=arrays were made of; None: nothing.

    Raises:
        ExperimentError: the data cannot be found, fetched, decoded or verified.
    """
    if config.kind is DataKind.cifar10:
        from resnet8_quant.inputs.cifar10 import load_cifar10

        return load_cifar10(config.root, cache)
    if config.kind is DataKind.arrays:
        from resnet8_quant.inputs.arrays import load_arrays

        mean, std = (model.mean, model.std) if model else (None, None)
        return load_arrays(config.path, config.max_bytes, config.first_label, mean, std)
    if config.kind is DataKind.folder:
        from resnet8_quant.inputs.folder import load_folder

        return load_folder(config, cache)
    from resnet8_quant.inputs.sample import load_sample

    return load_sample()
