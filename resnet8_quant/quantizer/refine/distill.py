"""Label-free distillation: weights, biases, scales and zero points tuned together, by gradient.

The quantized model (the student) learns to give the class probabilities of the float model (the teacher) on training
images; no label is read. With ``refine.mirror`` and ``refine.shift`` the teacher's probabilities are averaged over
views of each image, which makes it a better classifier, and the student learns them from random views. The student is
the emitted Q/DQ graph itself, with every weight and activation quantized as it will be in the file.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from resnet8_quant import __version__
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import replacing, sha256_bytes
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerBits, Plan
from resnet8_quant.quantizer.refine.student import Student
from resnet8_quant.quantizer.refine.teacher import Teacher, parts
from resnet8_quant.quantizer.refine.views import draw

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    raise missing_extra("torch", "distill") from error

log = logging.getLogger(__name__)

BATCH = 64  # images in a step
VALIDATIONS = 12  # in a whole run


@dataclass(frozen=True)
class Distillation:
    """How a distillation went.

    Attributes:
        images: training images that it learned from.
        steps: done, of ``BATCH`` images each.
        loss: mean KL divergence from the teacher on the held-out images: before, after.
        agreement: share of the held-out images on which student and teacher name the same class: before, after.
    """

    images: int
    steps: int
    loss: tuple[float, float]
    agreement: tuple[float, float]


def split(training: CalibrationImages, calibrating: CalibrationImages, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to learn from and of the held-out ones.

    The calibration images are the first to learn from; the held-out ones never calibrated.
    """
    refine, same = config.refine, training.images is calibrating.images
    used = np.intersect1d(calibrating.chosen, training.chosen) if same else np.empty(0, np.int64)
    # The number keeps this draw apart from others of the same seed.
    free = np.random.default_rng([config.seed, 2]).permutation(np.setdiff1d(training.chosen, used))
    validation, others = free[: refine.validation_images], free[refine.validation_images :]
    rows = np.concatenate([used, others])[: refine.distill_images]
    if len(validation) < refine.validation_images or not len(rows):
        remedy = f"refine.validation_images={len(free) // 2}"
        if len(free) < 4:  # calibrate on half of the images, hold out a quarter
            calibrating_each = max(1, config.calibration.samples_per_class // 2)
            remedy = f"calibration.samples_per_class={calibrating_each} refine.validation_images={len(training) // 4}"
        raise ExperimentError(
            f"`refine.validation_images` is {refine.validation_images}, but of {len(training)} training images "
            f"{len(used)} calibrate, which leaves {len(free)} to hold out and to learn from",
            remedy if len(training) > 3 else "refine=best",
        )
    return np.sort(rows), np.sort(validation)


class Distiller:
    """Tunes a plan until the quantized model's class probabilities are those of the float model.

    Attributes:
        rows, validation: indices of the images to learn from, and of those that choose the best state.
    """

    def __init__(
        self,
        model: FloatModel,
        training: CalibrationImages,
        calibrating: CalibrationImages,
        config: Config,
        cache: Path | None = None,
    ) -> None:
        """Prepare for a float model; seconds, so that it can be done before anything that takes minutes.

        Args:
            training: images that may be used.
            calibrating: those that calibrate.
            config: ``refine``, ``quant``, ``evaluation.threads`` and ``seed`` are read.
            cache: folder for what the teacher says, which other seeds and bit widths ask for, too, and for a
                checkpoint, from which the same work goes on after it was interrupted; None: neither.

        Raises:
            ExperimentError: too few images; what `Teacher` refuses.
        """
        self.model, self.config, self._training, self._cache = model, config, training.chosen, cache
        self.rows, self.validation = split(training, calibrating, config)
        self.teacher = Teacher(model, training.images, config.refine, self.validation)

    def run(self, quantized: onnx.ModelProto, plan: Plan, bits: dict[str, LayerBits]) -> tuple[Plan, Distillation]:
        """Tune ``plan``.

        Args:
            quantized: what quantize_static made of the float model.
            plan: where to start.
            bits: of each layer.

        Returns:
            The plan with the smallest loss on held-out images, ``plan`` itself among the candidates; what was done.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.config.evaluation.threads or usable_cores())
        try:
            emitted = emit(quantized, plan)
            student = Student(emitted, plan, bits, self.config, self.model.proto())
            return self._tune(student, emitted)
        finally:
            torch.set_num_threads(threads)

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the teacher says of the images to learn from, and of those held out."""
        rows = np.union1d(self.rows, self.validation)
        if self._cache is None:
            taught = self.teacher.log_probabilities(rows)
        else:
            if self.config.refine.distill_images is None:
                rows = self._training  # whatever is held out or calibrates, so that another seed finds it
            taught = self.teacher.cached_log_probabilities(rows, self._cache / "teachers")
        return taught[np.searchsorted(rows, self.rows)], taught[np.searchsorted(rows, self.validation)]

    def _validate(self, student: Student, targets: torch.Tensor) -> tuple[float, float]:
        """Minus the loss on the held-out images, and the agreement: larger is better.

        The loss is what chooses: an agreement on 2,000 images is only known to about half a percent.
        """
        with torch.no_grad():
            logits = torch.cat([student.forward(self.teacher.inputs(part)) for part in parts(self.validation)])
            agreement = (logits.argmax(1) == targets.argmax(1)).float().mean().item()
            return -_loss(logits, targets).item(), agreement

    def _tune(self, student: Student, emitted: onnx.ModelProto) -> tuple[Plan, Distillation]:
        refine, rows = self.config.refine, self.rows
        targets, validation_targets = self.targets()
        groups = [
            {"params": [parameter], "lr": 0.0, "rate": refine.learning_rate * student.rates[name]}
            for name, parameter in student.parameters.items()
        ]
        optimizer = torch.optim.Adam(groups)
        batch, order, views = min(BATCH, len(rows)), np.empty(0, np.int64), np.empty((0, 3), np.int64)
        before = best = self._validate(student, validation_targets)
        step, share, elapsed, best_parameters = 0, 0.0, 0.0, _copy(student.parameters)
        every = max(1, refine.distill_steps // VALIDATIONS)
        checkpoint = self._checkpoint(emitted, targets, [*student.parameters])
        if (state := _load(checkpoint)) is not None:
            step, elapsed, best, best_parameters = (state[name] for name in ("step", "elapsed", "best", "parameters"))
            optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                for name, parameter in student.parameters.items():
                    parameter.copy_(state["current"][name])
            share = step / refine.distill_steps
            log.info("distillation goes on after step %d, from %s", step, checkpoint)
        started, shown = time.monotonic() - elapsed, f"distilling, loss {-best[0]:.4f}, agreement {best[1]:.4f}"
        log.debug("step %d: %s", step, shown)
        longest = None if refine.minutes is None else 60 * refine.minutes
        with progress(shown, refine.distill_steps, "steps", longest) as advance:
            advance(step)
            while share < 1.0:
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * share))
                epoch, place = divmod(step, len(rows) // batch)
                if place == 0 or not len(order):
                    rng = np.random.default_rng([self.config.seed, 3, epoch])
                    order, views = rng.permutation(len(rows)), draw(rng, len(rows), refine.mirror, refine.shift)
                chosen = order[place * batch : (place + 1) * batch]
                loss = _loss(student.forward(self.teacher.inputs(rows[chosen], views[chosen])), targets[chosen])
                if not torch.isfinite(loss):
                    log.warning("distillation: the loss is %s in step %d; it stops", loss.item(), step + 1)
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                share, elapsed = step / refine.distill_steps, time.monotonic() - started
                if refine.minutes is not None:  # the rates reach zero when the time is up
                    share = max(share, elapsed / (60 * refine.minutes))
                if step % every == 0 or share >= 1.0:
                    now = self._validate(student, validation_targets)
                    shown = f"distilling, loss {-now[0]:.4f}, agreement {now[1]:.4f}"
                    log.debug("step %d: %s", step, shown)
                    if now > best:
                        best, best_parameters = now, _copy(student.parameters)
                    if checkpoint is not None:
                        state = {"step": step, "elapsed": elapsed, "best": best, "parameters": best_parameters}
                        state |= {"current": _copy(student.parameters), "optimizer": optimizer.state_dict()}
                        with replacing(checkpoint) as temporary:
                            torch.save(state, temporary)
                advance(1, shown)
        log.info(
            "distilled on %d training images in %d steps of %d; on %d held-out ones the loss is %.4f, before %.4f, and "
            "the agreement with the float model%s %.2f %%, before %.2f %%",
            *(len(rows), step, batch, len(self.validation), -best[0], -before[0]),
            " averaged over views" if refine.mirror or refine.shift else "",
            *(100 * best[1], 100 * before[1]),
        )
        if best != before:
            student.parameters = best_parameters
        plan = student.to_plan() if best != before else student.plan
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return plan, Distillation(len(rows), step, (-before[0], -best[0]), (before[1], best[1]))

    def _checkpoint(self, emitted: onnx.ModelProto, targets: torch.Tensor, names: list[str]) -> Path | None:
        """The file of this very work: same start, same images as the teacher sees them, same settings and versions."""
        if self._cache is None:
            return None
        config = self.config
        versions = __version__, torch.__version__, torch.get_num_threads()
        settings = repr((config.refine, config.seed, versions, names, self.validation.tolist()))
        start = emitted.SerializeToString(deterministic=True)
        folder = self._cache / "distillation"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{sha256_bytes(start, targets.numpy().tobytes(), settings.encode())}.pt"


def _load(checkpoint: Path | None) -> dict[str, Any] | None:
    """What an interrupted run left; None where it left nothing that can be read."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        state = torch.load(checkpoint, weights_only=True)
        return dict(state) if {"step", "current", "optimizer"} <= state.keys() else None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        log.warning("%s cannot be read (%s): the distillation starts anew", checkpoint, error)
        return None


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student's class probabilities from the teacher's, mean over images."""
    return F.kl_div(F.log_softmax(logits, 1), targets, reduction="batchmean", log_target=True)


def _copy(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
