"""Train the bundled ResNet8 from scratch and export it to ONNX.

In:  CIFAR-10 (found or fetched by the package), a seed.
Out: ``resnet8.onnx`` (raw 0..255 float32 NHWC input, softmax output, BatchNorm folded) and ``resnet8.json``
     (recipe, seed, held-out accuracy, versions) in ``--out``.

    pip install -c constraints.txt -e '.[train]'
    python tools/train_resnet8.py --out outputs/train

The network is the one of MLPerf Tiny image classification (He et al., arXiv 1512.03385, three residual stacks of
16, 32 and 64 channels; Banbury et al., arXiv 2106.07597). The only normalisation is a division by 64, which is
folded into the first convolution: the exported graph takes raw pixels, and a uint8 quantization of its input is exact.

Nothing is selected on the test set, which this script never reads: 200 training images of each class are held out, and
they decide between the last weights and their moving average. A checkpoint after every fifth epoch makes an
interrupted run resumable with the same command. On two cores with AMX a run of 180 epochs takes about an hour.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import missing_extra
from resnet8_quant.files import cache_folder
from resnet8_quant.inputs.dataset import load_dataset

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    raise SystemExit(str(missing_extra("torch", "train"))) from error

log = logging.getLogger("train_resnet8")

PIXEL_SCALE = 64.0
HELD_OUT_PER_CLASS = 200


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, next to the data and the library versions."""

    epochs: int = 180
    batch: int = 256
    peak_lr: float = 0.4
    warmup_fraction: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2.5e-4
    average_decay: float = 0.999
    crop_padding: int = 4
    seed: int = 42
    dtype: str = "bfloat16 autocast, float32 weights"
    optimizer: str = "SGD, Nesterov; no decay on BatchNorm and biases"
    schedule: str = "linear warm-up, then cosine to zero"
    augmentation: str = "a random crop of the reflect-padded image and a horizontal flip, drawn per image"


class SameConv(nn.Conv2d):
    """Convolution with Keras' "same" padding: what is odd goes to the bottom and the right."""

    def pads(self, size: int) -> tuple[int, int]:
        """Padding (before, after) of one axis of ``size`` pixels."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.pads(x.shape[2])
        if before == after:
            return F.conv2d(x, self.weight, self.bias, self.stride, before)
        return F.conv2d(F.pad(x, (before, after, before, after)), self.weight, self.bias, self.stride)


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv(channels_in, channels_out, 3, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = SameConv(channels_out, channels_out, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.skip = SameConv(channels_in, channels_out, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


class ResNet8(nn.Module):
    """Pixels / 64 [N,3,32,32] -> logits [N,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SameConv(3, 16, 3, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stacks = nn.ModuleList([Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)])
        self.dense = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for stack in self.stacks:
            x = stack(x)
        return self.dense(x.mean((2, 3)))


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (training, held out), stratified."""
    rng = np.random.default_rng(seed)
    held = [rng.choice(np.flatnonzero(labels == c), HELD_OUT_PER_CLASS, replace=False) for c in range(10)]
    validation_images = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation_images), validation_images


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 of ``model`` in float32 on pixels uint8 [N,3,32,32]."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(x.float() / PIXEL_SCALE).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    model.train()
    return right / len(labels)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = recipe.warmup_fraction * steps
    if step < warmup:
        return recipe.peak_lr * (step + 1) / warmup
    return recipe.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(images: np.ndarray, labels: np.ndarray, recipe: Recipe, checkpoint: Path) -> tuple[ResNet8, dict[str, float]]:
    """Train on uint8 NHWC ``images``; return the model that did better on the held-out part, and both accuracies."""
    torch.manual_seed(recipe.seed)
    model = ResNet8().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.peak_lr,
        momentum=recipe.momentum,
        nesterov=True,
    )
    rows, validation_images = split(labels, recipe.seed)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels.astype(np.int64))
    pad = recipe.crop_padding
    padded = torch.from_numpy(np.pad(images[rows], ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect"))
    crops = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # a view [N, 2*pad+1, 2*pad+1, 3, 32, 32]
    train_targets = targets[rows]
    steps_per_epoch = len(rows) // recipe.batch
    steps = recipe.epochs * steps_per_epoch

    first_epoch = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SystemExit(f"{checkpoint} is of another recipe: remove it or choose another --out")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
        log.info("resumed after epoch %d", first_epoch)

    for epoch in range(first_epoch, recipe.epochs):
        started, losses = time.perf_counter(), 0.0
        rng = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(rows), generator=rng)
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, recipe)
            index = order[i * recipe.batch : (i + 1) * recipe.batch]
            dy, dx = torch.randint(0, 2 * pad + 1, (2, recipe.batch), generator=rng)
            x = crops[index, dy, dx]
            flip = torch.rand(recipe.batch, generator=rng) < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
            x = (x.float() / PIXEL_SCALE).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), train_targets[index])
            loss.backward()
            optimizer.step()
            losses += loss.item()
            with torch.no_grad():
                for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    if mean.dtype.is_floating_point:
                        mean.lerp_(value, 1 - recipe.average_decay)
        log.info("epoch %3d: loss %.4f, %.1f s", epoch + 1, losses / steps_per_epoch, time.perf_counter() - started)
        if (epoch + 1) % 5 == 0 or epoch + 1 == recipe.epochs:
            scores = {
                "last": accuracy(model, pixels[validation_images], targets[validation_images]),
                "average": accuracy(average, pixels[validation_images], targets[validation_images]),
            }
            log.info("held out: last %.4f, average %.4f", scores["last"], scores["average"])
            temporary = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "recipe": asdict(recipe),
                    "epoch": epoch + 1,
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                temporary,
            )
            os.replace(temporary, checkpoint)
    scores = {
        "last": accuracy(model, pixels[validation_images], targets[validation_images]),
        "average": accuracy(average, pixels[validation_images], targets[validation_images]),
    }
    return (average if scores["average"] >= scores["last"] else model), scores


def to_onnx(model: ResNet8) -> onnx.ModelProto:
    """ONNX graph of ``model``: input [N,32,32,3] raw pixels, BatchNorm and the pixel scale folded in float64."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(x: str, name: str, layer: SameConv, bn: nn.BatchNorm2d | None, size: int, scale: float = 1.0) -> str:
        weight = layer.weight.detach().double().numpy() * scale
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
        if bn is not None:
            gain = (bn.weight.detach().double() / torch.sqrt(bn.running_var.double() + bn.eps)).numpy()
            weight = weight * gain[:, None, None, None]
            bias = (bias - bn.running_mean.double().numpy()) * gain + bn.bias.detach().double().numpy()
        before, after = layer.pads(size)
        w = constant(f"{name}.weight", weight.astype(np.float32))
        b = constant(f"{name}.bias", bias.astype(np.float32))
        return node(
            "Conv",
            [x, w, b],
            name,
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[before, before, after, after],
        )

    x = node("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2])
    x = node("Relu", [conv(x, "conv", model.conv, model.bn, 32, 1 / PIXEL_SCALE)], "relu")
    size = 32
    for i, block in enumerate(model.stacks, 1):
        assert isinstance(block, Residual)
        inside = size // block.conv1.stride[0]
        y = node("Relu", [conv(x, f"stack{i}.conv1", block.conv1, block.bn1, size)], f"stack{i}.relu1")
        y = conv(y, f"stack{i}.conv2", block.conv2, block.bn2, inside)
        skip = x if block.skip is None else conv(x, f"stack{i}.skip", block.skip, None, size)
        x = node("Relu", [node("Add", [y, skip], f"stack{i}.add")], f"stack{i}.relu2")
        size = inside
    x = node("AveragePool", [x], "pool", kernel_shape=[size, size])
    x = node("Flatten", [x], "flatten")
    w = constant("dense.weight", model.dense.weight.detach().float().numpy().T)
    b = constant("dense.bias", model.dense.bias.detach().float().numpy())
    node("Softmax", [node("Gemm", [x, w, b], "dense")], "probabilities", axis=-1)
    graph = helper.make_graph(
        nodes,
        "resnet8",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    exported = helper.make_model(
        graph, producer_name="resnet8-quant", opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(exported, full_check=True)
    return exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its record and the checkpoint")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)

    images, labels = training_set()
    started = time.perf_counter()
    model, scores = train(images, labels, recipe, arguments.out / "checkpoint.pt")
    (arguments.out / "resnet8.onnx").write_bytes(to_onnx(model).SerializeToString())
    record = {
        "recipe": asdict(recipe),
        "held_out_images": 10 * HELD_OUT_PER_CLASS,
        "held_out_accuracy": scores,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (arguments.out / "resnet8.json").write_text(json.dumps(record, indent=2) + "\n")
    log.info("wrote %s: %s", arguments.out / "resnet8.onnx", scores)


def training_set() -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [50000,32,32,3] and labels."""
    train = load_dataset(DataConfig(), cache_folder()).train
    return np.asarray(train.images), train.labels


if __name__ == "__main__":
    main()
