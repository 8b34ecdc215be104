"""Label-free distillation: weights, biases, scales and zero points tuned together, by gradient.

The quantized model (the student) learns to give the class probabilities of the float model (the teacher) on training
images; no label is read. With ``refine.mirror`` and ``refine.shift`` the teacher's probabilities are averaged over
views of each image, which makes it a better classifier, and the student learns them from random views. The student is
the emitted Q/DQ graph itself, with every weight and activation quantized as it will be in the file.
"""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx

from resnet8_quant import __version__
from resnet8_quant.config import Config
from resnet8_quant.errors import missing_extra
from resnet8_quant.files import replacing, sha256_bytes
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.plan import LayerBits, Plan
from resnet8_quant.quantizer.refine.distill_images import split
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
ROUNDING = 1e-9  # of the share of the work that is done


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


@dataclass
class _State:
    """Where a distillation is, which is what a checkpoint holds.

    Attributes:
        best: minus the smallest loss on the held-out images so far, and the agreement there: larger is better.
        parameters: those of ``best``.
        step: that were taken.
        elapsed: seconds.
    """

    best: tuple[float, float]
    parameters: dict[str, torch.Tensor]
    step: int = 0
    elapsed: float = 0.0

    @classmethod
    def resumed(cls, path: Path | None, student: Student, optimizer: torch.optim.Optimizer) -> _State | None:
        """What an interrupted run left, also in ``student`` and ``optimizer``; None where nothing can be read."""
        if path is None or not path.exists():
            return None
        try:
            stored = torch.load(path, weights_only=True)
            current, state = stored.pop("current"), stored.pop("optimizer")
            resumed = cls(**stored)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s): the distillation starts anew", path, error)
            return None
        optimizer.load_state_dict(state)
        with torch.no_grad():
            for name, parameter in student.parameters.items():
                parameter.copy_(current[name])
        log.info("distillation goes on after step %d, from %s", resumed.step, path)
        return resumed

    def save(self, path: Path, student: Student, optimizer: torch.optim.Optimizer) -> None:
        with replacing(path) as temporary:
            stored = {field.name: getattr(self, field.name) for field in fields(self)}
            torch.save(stored | {"current": student.parameters, "optimizer": optimizer.state_dict()}, temporary)

    def shown(self, score: tuple[float, float]) -> str:
        """A score at this step, for the progress bar and the log."""
        text = f"distilling, loss {-score[0]:.4f}, agreement {score[1]:.4f}"
        log.debug("step %d: %s", self.step, text)
        return text


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
        self.model, self.config, self._training, self._cache = model, config, training, cache
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
                rows = self._training.chosen  # whatever is held out or calibrates, so that another seed finds it
            taught = self.teacher.cached_log_probabilities(rows, self._training.digest, self._cache / "teachers")
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
        refine, rows, started = self.config.refine, self.rows, time.monotonic()
        targets, validation_targets = self.targets()
        groups = [
            {"params": [parameter], "lr": 0.0, "rate": refine.learning_rate * student.rates[name]}
            for name, parameter in student.parameters.items()
        ]
        optimizer = torch.optim.Adam(groups)
        before = self._validate(student, validation_targets)
        checkpoint = self._checkpoint(emitted, targets, [*student.parameters])
        state = _State.resumed(checkpoint, student, optimizer) or _State(before, _copy(student.parameters))
        self._descend(student, optimizer, state, targets, validation_targets, checkpoint, started)
        log.info(
            "distilled on %d training images in %d steps of %d; on %d held-out ones the loss is %.4f, before %.4f, and "
            "the agreement with the float model%s %.2f %%, before %.2f %%",
            *(len(rows), state.step, min(BATCH, len(rows)), len(self.validation), -state.best[0], -before[0]),
            " averaged over views" if refine.mirror or refine.shift else "",
            *(100 * state.best[1], 100 * before[1]),
        )
        if state.best != before:
            student.parameters = state.parameters
        plan = student.to_plan() if state.best != before else student.plan
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        loss, agreement = (-before[0], -state.best[0]), (before[1], state.best[1])
        return plan, Distillation(len(rows), state.step, loss, agreement)

    def _descend(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        state: _State,
        targets: torch.Tensor,
        validation_targets: torch.Tensor,
        checkpoint: Path | None,
        started: float,
    ) -> None:
        """Take all steps that ``state`` has not taken yet, and keep the best parameters in it.

        The teacher's time counts: ``started`` is when it was asked.
        """
        refine, batches = self.config.refine, self._batches(state.step)
        longest = None if refine.minutes is None else 60 * refine.minutes
        started -= state.elapsed

        def share() -> float:
            """Of the work that is done; with a time limit the rates reach zero when the time is up."""
            state.elapsed = time.monotonic() - started
            steps = state.step / refine.distill_steps
            return steps if longest is None else max(steps, state.elapsed / longest)

        done, shown = share(), state.shown(state.best)
        begin = 0.0 if state.step else done  # what the teacher took of the time limit is no part of the cosine
        if begin > 0.5:
            log.warning("distillation: the teacher took %.0f %% of refine.minutes", 100 * min(1, begin))
        with progress(shown, refine.distill_steps, "steps", longest) as advance:
            advance(state.step)
            while done < 1:
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * (done - begin) / (1 - begin)))
                chosen, views = next(batches)
                loss = _loss(student.forward(self.teacher.inputs(self.rows[chosen], views)), targets[chosen])
                if not torch.isfinite(loss):
                    log.warning("distillation: the loss is %s in step %d; it stops", loss.item(), state.step + 1)
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step += 1
                before, done = done, share()
                if int(done * VALIDATIONS + ROUNDING) > int(before * VALIDATIONS + ROUNDING):
                    now = self._validate(student, validation_targets)
                    shown = state.shown(now)
                    if now > state.best:
                        state.best, state.parameters = now, _copy(student.parameters)
                    if checkpoint is not None:
                        state.save(checkpoint, student, optimizer)
                advance(1, shown)

    def _batches(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """From ``step`` on: which of ``rows`` the step learns from, and their views; each epoch in a new order."""
        count, refine = min(BATCH, len(self.rows)), self.config.refine
        for epoch in itertools.count(step // (len(self.rows) // count)):
            rng = np.random.default_rng([self.config.seed, 3, epoch])
            order = rng.permutation(len(self.rows))
            views = draw(rng, len(self.rows), refine.mirror, refine.shift)
            for place in range(step % (len(self.rows) // count), len(self.rows) // count):
                chosen = order[place * count : (place + 1) * count]
                yield chosen, views[chosen]
            step = 0

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


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student's class probabilities from the teacher's, mean over images."""
    return F.kl_div(F.log_softmax(logits, 1), targets, reduction="batchmean", log_target=True)


def _copy(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
