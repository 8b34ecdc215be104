"""From a float model and its calibration images to a range for every tensor that onnxruntime wants one for.

In: `FloatModel`, `CalibrationImages`, the `quant` and `calibration` parts of the config. Out: a `Calibration`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet8_quant.config import CalibrationConfig, QuantConfig
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.quantizer.calibration.cache import cached_observations
from resnet8_quant.quantizer.calibration.grid import Grid, Levels
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.calibration.methods import METHODS, Range
from resnet8_quant.quantizer.calibration.observer import Observation
from resnet8_quant.quantizer.calibration.stream import observe
from resnet8_quant.quantizer.calibration.tensors import calibrated_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        ranges: {tensor: (low, high)} for every tensor that onnxruntime wants a range for.
        observations: {tensor: what was seen of it}; not for tensors whose range follows from another's.
        grids: {tensor: scale and zero point} that onnxruntime makes of ``ranges``.
        cached: whether the observations came from the cache.
        seconds: wall time.
        refined: tensors whose range a refinement chose.
    """

    ranges: dict[str, Range]
    observations: dict[str, Observation]
    grids: dict[str, Grid]
    cached: bool
    seconds: float
    refined: frozenset[str] = frozenset()

    def regridded(self, grids: dict[str, Grid], *, refined: bool) -> Calibration:
        """The same with other ``grids``, of fewer bits; ``refined``: a refinement chose their ranges."""
        changed = {name: grid for name, grid in grids.items() if grid != self.grids.get(name)}
        ranges = {name: (np.float32(grid.low), np.float32(grid.high)) for name, grid in changed.items()}
        return dataclasses.replace(
            self, grids=self.grids | changed, ranges=self.ranges | ranges, refined=frozenset(changed if refined else ())
        )


def calibrate(
    model: FloatModel,
    images: CalibrationImages,
    quant: QuantConfig,
    config: CalibrationConfig,
    operators: list[str],
    *,
    threads: int = 0,
    cache: Path | None = None,
) -> Calibration:
    """Find a range for each float tensor at one of ``operators``.

    Args:
        model: float, BatchNorm folded.
        images: calibration images from the training set.
        quant: its activation type decides about entropy, mse and lp.
        config: method and parameters.
        operators: ONNX operator types that will be quantized.
        threads: that run side by side; 0: one for each core.
        cache: folder for observations; None: no cache.

    Raises:
        ExperimentError: an activation is NaN or infinite; the cache cannot be written.
    """
    started = time.perf_counter()
    tensors = calibrated_tensors(model.proto(), operators)
    if cache is None:
        observations, cached = observe(model, tensors.observed, images, config.bins, threads), False
    else:
        observations, cached = cached_observations(
            model, tensors.observed, images, config.bins, threads=threads, cache=cache
        )
    levels = Levels.of(quant.activation_type, quant.activation_symmetric)
    choose = METHODS[config.method]
    ranges = {name: choose(observed, config, levels) for name, observed in observations.items()} | tensors.fixed
    constant = [name for name, observed in observations.items() if observed.low == observed.high]
    if constant:
        log.warning("the same value in every calibration image: %s", ", ".join(constant))
    # a follower may follow another one: Relu after Clip
    for name, leader in reversed(tensors.followers.items()):
        ranges[name] = ranges[leader]
    grids = {name: Grid.of(*found, levels) for name, found in ranges.items()}
    return Calibration(ranges, observations, grids, cached, time.perf_counter() - started)
