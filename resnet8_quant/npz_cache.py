"""A cache of arrays on disk: one .npz file for each key, written atomically; zip's checksums tell a damaged one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resnet8_quant.files import locked, open_regular, replacing, sha256_bytes

log = logging.getLogger(__name__)

Value = TypeVar("Value")


def cache_key(facts: Mapping[str, Any]) -> str:
    """Hexadecimal digest of ``facts``, all that a cached value depends on; they must be JSON."""
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def cached(
    folder: Path,
    key: str,
    compute: Callable[[], Value],
    to_arrays: Callable[[Value], dict[str, np.ndarray]],
    from_arrays: Callable[[dict[str, np.ndarray]], Value],
) -> tuple[Value, bool]:
    """Read the value of ``key`` from ``folder``, or compute and store it.

    Of parallel processes that ask for the same key, one computes and the others wait. An entry that is damaged,
    belongs to another key or does not pass ``from_arrays`` is computed anew, with a warning.

    Args:
        folder: of the entries; made if needed.
        key: from `cache_key`.
        compute: makes the value.
        to_arrays: the value as {name: array}.
        from_arrays: its inverse; raises any exception where the arrays do not hold together.

    Returns:
        The value, and whether it came from the cache.
    """
    path = folder / f"{key}.npz"
    with locked(path.with_suffix(".lock")):
        if path.exists():
            try:
                value = from_arrays(_read(path, key))
                log.debug("from the cache: %s", path)
                return value, True
            except Exception as error:  # damage has many shapes, and the answer to each is to compute anew
                log.warning("unusable cache entry is replaced: %s (%s)", path, error)
        value = compute()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), **to_arrays(value))  # type: ignore[arg-type]
    return value, False


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays at ``path``; an exception of any kind where it is not what `cached` stored for ``key``."""
    with open_regular(path) as file, np.load(file, allow_pickle=False) as entry:
        arrays = {name: entry[name] for name in entry.files}
    if (stored := arrays.pop("key").item()) != key:
        raise ValueError(f"it belongs to key {stored!r:.80}")
    return arrays
