"""Label-free distillation: weights, biases, scales and zero points tuned together, by gradient.

The quantized model (the student) learns to give the class probabilities of the float model (the teacher) on training
images; no label is read. Every weight and activation is quantized in the forward pass as it will be in the file, with
straight-through gradients (LSQ: Esser et al., arXiv 1902.08153; zero points: LSQ+, Bhalgat et al., arXiv 2004.09576).
The student is the emitted Q/DQ graph itself, so that both compute the same.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from resnet8_quant import __version__
from resnet8_quant.config import Config
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import replacing, sha256_bytes
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import usable_cores
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit, float_name
from resnet8_quant.quantizer.plan import LAYERS, LayerBits, LayerPlan, Plan
from resnet8_quant.quantizer.quant_params import QuantParams, QuantScheme, is_signed
from resnet8_quant.quantizer.refine.activations import MOVING
from resnet8_quant.quantizer.refine.torch_graph import Inputs, TorchGraph

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    raise missing_extra("torch", "distill") from error

log = logging.getLogger(__name__)

BATCH = 64  # images in a step
VALIDATIONS = 12  # in a whole run
SCALE_RATE = 1 / 3  # rate of scales and zero points, relative to that of weights
CHUNK = 500  # images in a call without gradients
CHECKED = 32  # images on which PyTorch is compared with ONNX Runtime
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order, not another model


@dataclass(frozen=True)
class Distillation:
    """How a distillation went.

    Attributes:
        images: training images that it learned from.
        steps: done, of ``BATCH`` images each.
        loss: mean KL divergence on the held-out images: before, after.
        agreement: share of the held-out images on which student and teacher name the same class: before, after.
    """

    images: int
    steps: int
    loss: tuple[float, float]
    agreement: tuple[float, float]


class FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
    """QuantizeLinear and DequantizeLinear, with the gradients of LSQ and LSQ+.

    With v = x / scale: inside the bounds dy/dx = 1, dy/dscale = round(v) - v, dy/dzero_point = 0; outside dy/dx = 0,
    dy/dscale = bound - zero_point, dy/dzero_point = -scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        qmin: int,
        qmax: int,
        axis: int | None = None,
    ) -> torch.Tensor:
        """Quantize ``x``, float32, with float32 scales and integral zero points, [] or [channels] along ``axis``."""
        if axis is None:
            levels = scale.item(), int(zero_point.item()), qmin, qmax
            y = torch.fake_quantize_per_tensor_affine(x, *levels)
        else:
            y = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, qmin, qmax)
        shape = [1] * x.ndim if axis is None else [-1 if i == axis else 1 for i in range(x.ndim)]
        low, high = ((bound - zero_point) * scale for bound in (qmin, qmax))
        # Not rounded first, which would let half a step below zero pass where the quantizer is a ReLU, too.
        inside = (x >= low.reshape(shape)) & (x <= high.reshape(shape))
        ctx.save_for_backward(x, y, inside, scale)
        ctx.axis = axis
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of x, scale and zero point; the levels have none."""
        x, y, inside, scale = ctx.saved_tensors
        others = [i for i in range(x.ndim) if i != ctx.axis]
        passed = gradient * inside

        def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.tensordot(a, b, x.ndim) if ctx.axis is None else (a * b).sum(others)

        # In terms of y: dy/dscale is (y - x) / scale inside, y / scale outside.
        to_scale = (dot(gradient, y) - dot(passed, x)) / scale
        to_zero_point = (passed - gradient).sum(others) * scale if ctx.needs_input_grad[2] else None
        return passed, to_scale, to_zero_point, None, None, None


class _RoundThrough(torch.autograd.Function):  # type: ignore[misc]
    """Rounding whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


fake_quantize, round_through = FakeQuantize.apply, _RoundThrough.apply

# An activation that is stored (its name), or read by a layer with fewer bits than it is stored with.
Key = str | tuple[str, QuantParams]


class Student:
    """A `Plan` whose numbers are parameters, and the emitted graph that computes with them.

    Attributes:
        parameters: {what it is: the parameter}; scales as their logarithms, so that a step is relative to each of them.
        rates: {what it is: its step size, relative to the learning rate}.
    """

    def __init__(
        self, emitted: onnx.ModelProto, plan: Plan, bits: dict[str, LayerBits], config: Config, model: onnx.ModelProto
    ) -> None:
        """Start from ``plan``, which ``emitted`` holds.

        Args:
            bits: of each layer.
            config: ``quant`` is read.
            model: the float model.
        """
        self.plan, self.graph = plan, TorchGraph(emitted, also=["QuantizeLinear"])
        self.logits = self.graph.logits()
        quant = config.quant
        symmetric = is_signed(quant.weight_type) if quant.weight_symmetric is None else quant.weight_symmetric
        self._schemes = {
            layer.output: QuantScheme.of_weight(quant.weight_type, symmetric, bits[layer.output].weight)
            for layer in plan.layers
        }
        self._moved_from = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in MOVING}
        self.parameters: dict[str, torch.Tensor] = {}
        self.rates: dict[str, float] = {}
        self._find_sites(emitted)
        for layer in plan.layers:
            self._add_layer(layer)
        for key, params in self._activations.items():
            self._add_activation(key, params)

    def _find_sites(self, emitted: onnx.ModelProto) -> None:
        """Which node is which layer, and which QuantizeLinear has which parameters."""
        producers = {node.output[0]: node for node in emitted.graph.node}
        by_weight = {layer.weight.name: layer for layer in self.plan.layers}
        self._layers: dict[str, LayerPlan] = {}  # {output of the node: its layer}
        self._keys: dict[str, Key] = {}  # {output of the QuantizeLinear: its parameters}
        self._integers: set[str] = set()  # outputs of QuantizeLinear and of the Clip behind it

        def stored(name: str) -> str:
            while name in producers and producers[name].op_type in ("DequantizeLinear", "Cast"):
                name = producers[name].input[0]
            return name.removesuffix(TENSOR_NAME_QUANT_SUFFIX)

        for node in emitted.graph.node:
            if node.op_type == "QuantizeLinear":
                self._keys.setdefault(node.output[0], self._key(float_name(node)))
                self._integers.add(node.output[0])
            elif node.op_type == "Clip" and node.input[0] in self._integers:
                self._integers.add(node.output[0])
            elif node.op_type in LAYERS and (layer := by_weight.get(stored(node.input[1]))) is not None:
                self._layers[node.output[0]] = layer
                quantize = producers[node.input[0]]
                while quantize.op_type != "QuantizeLinear":
                    quantize = producers[quantize.input[0]]
                self._keys[quantize.output[0]] = self._read_key(layer)
        keys = {*self._keys.values()}
        self._activations = {key: self.plan.tensors[key] if isinstance(key, str) else key[1] for key in keys}

    def _key(self, name: str) -> str:
        """The tensor whose parameters ``name`` has: operators that move values hand theirs on."""
        tensors = self.plan.tensors
        while name in self._moved_from and tensors.get(self._moved_from[name]) == tensors.get(name):
            name = self._moved_from[name]
        return name

    def _read_key(self, layer: LayerPlan) -> Key:
        stored = layer.input_params == self.plan.tensors[layer.input]
        return self._key(layer.input) if stored else (layer.input, layer.input_params)

    def _add(self, name: str, value: np.ndarray | np.generic, rate: float) -> None:
        self.parameters[name] = torch.tensor(value, dtype=torch.float32, requires_grad=True)
        self.rates[name] = rate

    def _add_layer(self, layer: LayerPlan) -> None:
        weight, name = layer.weight, layer.output
        # In the middle of the codes' cells. Drawn towards the float weights, they would lie at the edges of cells, and
        # the first steps undo the refinement's rounding: the loss of W4A4 then rises from 0.04 to 0.14.
        start = weight.dequantized()
        self._add(f"weight {name}", start, float(np.abs(start).mean()))
        self._add(f"weight scale {name}", np.log(weight.scale), SCALE_RATE)
        if layer.bias is not None:
            step = float(layer.input_params.scale) * float(weight.scale.mean())
            self._add(f"bias {name}", layer.bias, max(float(np.abs(layer.bias).mean()), step))

    def _add_activation(self, key: Key, params: QuantParams) -> None:
        if key == self.graph.input and params.bit_width >= 8:
            return  # pixels are exact as they are, whatever takes them as bytes relies on it
        self._add(f"activation scale {key}", np.log(np.float64(params.scale)), SCALE_RATE)
        # A range that starts or ends at zero goes on doing so: a ReLU's lower half holds nothing.
        if params.qmin < params.zero_point < params.qmax and params.zero_point * 2 != params.qmin + params.qmax:
            self._add(f"zero point {key}", np.float64(params.zero_point), SCALE_RATE * params.levels / 2)

    def _shape(self, layer: LayerPlan) -> list[int]:
        """The shape in which a layer's scale broadcasts with its weight."""
        if layer.weight.axis is None:
            return [1] * layer.weight.codes.ndim
        return [-1 if i == layer.weight.axis else 1 for i in range(layer.weight.codes.ndim)]

    def _weight_scale(self, layer: LayerPlan) -> torch.Tensor:
        return torch.exp(self.parameters[f"weight scale {layer.output}"])

    def _scale(self, key: Key) -> torch.Tensor:
        learned = self.parameters.get(f"activation scale {key}")
        return torch.tensor(self._activations[key].scale) if learned is None else torch.exp(learned)

    def _zero_point(self, key: Key) -> torch.Tensor:
        params = self._activations[key]
        if (learned := self.parameters.get(f"zero point {key}")) is None:
            return torch.tensor(float(params.zero_point))
        return round_through(torch.clamp(learned, params.qmin, params.qmax))

    def _levels(self, key: Key) -> tuple[int, int]:
        """Smallest and largest code: those of the type, unless a Clip leaves fewer."""
        params = self._activations[key]
        if params.bit_width < self.plan.activation_type.bits:
            return params.qmin, params.qmax
        scheme = QuantScheme.of_activation(self.plan.activation_type, symmetric=False)
        return scheme.qmin, scheme.qmax

    def _weight(self, layer: LayerPlan) -> torch.Tensor:
        scheme, zero_point = self._schemes[layer.output], torch.from_numpy(layer.weight.zero_point.astype(np.int32))
        operands = self.parameters[f"weight {layer.output}"], self._weight_scale(layer), zero_point
        return fake_quantize(*operands, scheme.qmin, scheme.qmax, layer.weight.axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of inputs, float32."""

        def compute(node: onnx.NodeProto, inputs: Inputs) -> Any:
            if node.op_type == "QuantizeLinear":
                key = self._keys[node.output[0]]
                return fake_quantize(inputs[0], self._scale(key), self._zero_point(key), *self._levels(key))
            if node.op_type in ("Clip", "DequantizeLinear") and node.input[0] in self._integers:
                return inputs[0]  # the codes are already values, and within their bounds
            if node.output[0] not in self._layers:
                return None
            layer = self._layers[node.output[0]]
            operands = [inputs[0], self._weight(layer)]
            if (bias := self.parameters.get(f"bias {layer.output}")) is not None:
                step = self._scale(self._read_key(layer)) * self._weight_scale(layer)
                operands.append(round_through(bias / step) * step)
            return self.graph.operator(node, operands)

        logits = self.graph.run(x, self.logits, compute)
        return logits.reshape(len(logits), -1)

    def to_plan(self) -> Plan:
        """The plan with the parameters as they are now."""
        with torch.no_grad():
            new = {key: self._params(key) for key in self._activations}
            layers = []
            for layer in self.plan.layers:
                scheme, scale = self._schemes[layer.output], self._weight_scale(layer)
                values = self._weight(layer) / scale.reshape(self._shape(layer))
                codes = np.rint(values.numpy()) + layer.weight.zero_point.reshape(self._shape(layer))
                codes = np.clip(codes, scheme.qmin, scheme.qmax).astype(layer.weight.codes.dtype)
                weight = dataclasses.replace(layer.weight, codes=codes, scale=scale.numpy().copy())
                bias = self.parameters.get(f"bias {layer.output}")
                bias = None if bias is None else bias.numpy().astype(np.float64)
                read = new[self._read_key(layer)]
                layers.append(dataclasses.replace(layer, input_params=read, weight=weight, bias=bias))
        tensors = {name: new.get(self._key(name), params) for name, params in self.plan.tensors.items()}
        return Plan(tuple(layers), tensors, self.plan.activation_type)

    def _params(self, key: Key) -> QuantParams:
        scale, zero_point = np.float32(self._scale(key).item()), int(self._zero_point(key).item())
        return dataclasses.replace(self._activations[key], scale=scale, zero_point=zero_point)


def split(training: CalibrationImages, calibrating: CalibrationImages, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to learn from and of the held-out ones.

    The calibration images are the first to learn from; the held-out ones never calibrated.
    """
    refine, same = config.refine, training.images is calibrating.images
    used = np.intersect1d(calibrating.chosen, training.chosen) if same else np.empty(0, np.int64)
    # The number keeps this draw apart from others of the same seed.
    free = np.random.default_rng([config.seed, 2]).permutation(np.setdiff1d(training.chosen, used))
    held_out, others = free[: refine.validation_images], free[refine.validation_images :]
    rows = np.concatenate([used, others])[: refine.distill_images]
    if len(held_out) < refine.validation_images or not len(rows):
        remedy = f"refine.validation_images={len(free) // 2}"
        if len(free) < 4:  # calibrate on half of the images, hold out a quarter
            calibrating_each = max(1, config.calibration.samples_per_class // 2)
            remedy = f"calibration.samples_per_class={calibrating_each} refine.validation_images={len(training) // 4}"
        raise ExperimentError(
            f"`refine.validation_images` is {refine.validation_images}, but of {len(training)} training images "
            f"{len(used)} calibrate, which leaves {len(free)} to hold out and to learn from",
            remedy if len(training) > 3 else "refine=best",
        )
    return np.sort(rows), np.sort(held_out)


class Distiller:
    """Tunes a plan until the quantized model's class probabilities are those of the float model.

    Attributes:
        rows, held_out: indices of the images to learn from, and of those that choose the best state.
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
            cache: folder for a checkpoint, from which the same work goes on after it was interrupted; None: none.

        Raises:
            ExperimentError: too few images; an operator or attribute that PyTorch has no translation for.
        """
        self.model, self.images, self.config, self._cache = model, training.images, config, cache
        self.rows, self.held_out = split(training, calibrating, config)
        self._teacher = TorchGraph(model.proto())
        self._check_translation()

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

    def _check_translation(self) -> None:
        """Refuse a float model that PyTorch computes otherwise than ONNX Runtime."""
        size = self.model.input_spec.batch or min(len(self.rows), CHECKED)
        feed = self._inputs(np.resize(self.rows, size))
        session = new_session(self.model.serialized, level="none")
        expected = session.run([self._teacher.output], {self._teacher.input: feed.numpy()})[0]
        with torch.inference_mode():
            computed = self._teacher.run(feed).numpy()
        if computed.shape != expected.shape or np.abs(computed - expected).max() > TOLERANCE * np.abs(expected).max():
            raise ExperimentError(
                "`refine.distill`: PyTorch computes another output of the float model than ONNX Runtime, so an "
                "attribute of one of its operators has no translation",
                "refine=best",
            )

    def _inputs(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.model.input_spec.prepare(self.images[rows]))

    def _teach(self, rows: np.ndarray) -> torch.Tensor:
        """The float model's log-probabilities, float32 [n, classes]."""
        name = self._teacher.logits()
        with torch.no_grad():
            parts = [self._teacher.run(self._inputs(part), name) for part in _parts(rows)]
            return F.log_softmax(torch.cat([part.reshape(len(part), -1) for part in parts]), 1)

    def _validate(self, student: Student, targets: torch.Tensor) -> tuple[float, float]:
        """Minus the loss on the held-out images, and the agreement: larger is better.

        The loss is what chooses: an agreement on 2,000 images is only known to about half a percent.
        """
        with torch.no_grad():
            logits = torch.cat([student.forward(self._inputs(part)) for part in _parts(self.held_out)])
            agreement = (logits.argmax(1) == targets.argmax(1)).float().mean().item()
            return -_loss(logits, targets).item(), agreement

    def _tune(self, student: Student, emitted: onnx.ModelProto) -> tuple[Plan, Distillation]:
        refine, rows = self.config.refine, self.rows
        targets, held_targets = self._teach(rows), self._teach(self.held_out)
        groups = [
            {"params": [parameter], "lr": 0.0, "rate": refine.learning_rate * student.rates[name]}
            for name, parameter in student.parameters.items()
        ]
        optimizer = torch.optim.Adam(groups)
        batch, order = min(BATCH, len(rows)), np.empty(0, np.int64)
        before = best = self._validate(student, held_targets)
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
        with progress(shown, refine.distill_steps, "steps") as advance:
            advance(step)
            while share < 1.0:
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * share))
                epoch, place = divmod(step, len(rows) // batch)
                if place == 0 or not len(order):
                    order = np.random.default_rng([self.config.seed, 3, epoch]).permutation(len(rows))
                chosen = order[place * batch : (place + 1) * batch]
                loss = _loss(student.forward(self._inputs(rows[chosen])), targets[chosen])
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
                    now = self._validate(student, held_targets)
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
            "the agreement with the float model %.2f %%, before %.2f %%",
            *(len(rows), step, batch, len(self.held_out), -best[0], -before[0], 100 * best[1], 100 * before[1]),
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
        settings = repr((config.refine, config.seed, versions, names, self.held_out.tolist()))
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


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student's class probabilities from the teacher's, mean over images."""
    return F.kl_div(F.log_softmax(logits, 1), targets, reduction="batchmean", log_target=True)


def _copy(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
