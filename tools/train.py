"""Train a bundled network from scratch and export it to ONNX.

In:  CIFAR-10 (found or fetched by the package), a network, a seed.
Out: ``NETWORK.onnx`` (raw 0..255 float32 NHWC input, softmax output, BatchNorm folded) and ``NETWORK.json``
     (recipe, seed, held-out accuracy, versions) in ``--out``.

    pip install -c constraints.txt -e '.[train]'
    python tools/train.py resnet8 --out outputs/train

resnet8 is the network of MLPerf Tiny image classification (He et al., arXiv 1512.03385, three residual stacks of 16, 32
and 64 channels; Banbury et al., arXiv 2106.07597). mobilenet is that of its visual wake words, MobileNetV1 x 0.25
(Howard et al., arXiv 1704.04861), for 32x32 pixels: the first convolution and that to 128 channels keep the size, and
of 128 and 256 channels there are two and one block fewer. The only normalisation is a division by 64, which is folded
into the first convolution: the exported graph takes raw pixels, and a uint8 quantization of its input is exact.

Nothing is selected on the test set, which this script never reads: 200 training images of each class are held out, and
they decide between the last weights and their moving average. A checkpoint after every fifth epoch makes an
interrupted run resumable with the same command. On two cores with AMX resnet8 takes about an hour.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet8_quant.config import DataConfig
from resnet8_quant.errors import missing_extra
from resnet8_quant.files import cache_folder
from resnet8_quant.inputs.dataset import load_dataset
from resnet8_quant.machine import cpu_description

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
except ImportError as error:
    raise SystemExit(str(missing_extra("torch", "train"))) from error

log = logging.getLogger("train")

PIXEL_SCALE = 64.0
HELD_OUT_PER_CLASS = 200


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, next to the data, the device and the library versions."""

    network: str = "resnet8"
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
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        return F.conv2d(x, self.weight, self.bias, self.stride, before, groups=self.groups)


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

    def export(self, graph: OnnxGraph, x: str, name: str) -> str:
        y = graph.relu(graph.conv(x, f"{name}.conv1", self.conv1, self.bn1), f"{name}.relu1")
        y = graph.conv(y, f"{name}.conv2", self.conv2, self.bn2)
        skip = x if self.skip is None else graph.conv(x, f"{name}.skip", self.skip)
        return graph.relu(graph.node("Add", [y, skip], f"{name}.add"), f"{name}.relu2")


class Separable(nn.Module):
    """A 3x3 convolution of each channel, and a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = SameConv(channels_in, channels_in, 3, stride, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.pointwise = SameConv(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))

    def export(self, graph: OnnxGraph, x: str, name: str) -> str:
        y = graph.relu(graph.conv(x, f"{name}.depthwise", self.depthwise, self.bn1), f"{name}.relu1")
        return graph.relu(graph.conv(y, f"{name}.pointwise", self.pointwise, self.bn2), f"{name}.relu2")


class Network(nn.Module):
    """A 3x3 convolution, blocks, an average over all pixels and a dense layer: pixels / 64 [N,3,32,32] -> [N,10]."""

    def __init__(self, channels: int, blocks: list[Residual] | list[Separable], features: int) -> None:
        super().__init__()
        self.conv = SameConv(3, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(blocks)
        self.dense = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean((2, 3)))


def resnet8() -> Network:
    return Network(16, [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)], 64)


def mobilenet() -> Network:
    shapes = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 1), (128, 1), (128, 1), (128, 1), (256, 2)]
    channels = [8, *(channels for channels, _ in shapes)]
    return Network(8, [Separable(channels[i], *shape) for i, shape in enumerate(shapes)], 256)


NETWORKS = {"resnet8": resnet8, "mobilenet": mobilenet}
RECIPES = {
    "resnet8": Recipe(),
    "mobilenet": Recipe(network="mobilenet", epochs=200, batch=512),
}


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (training, held out), stratified."""
    rng = np.random.default_rng(seed)
    held = [rng.choice(np.flatnonzero(labels == c), HELD_OUT_PER_CLASS, replace=False) for c in range(10)]
    validation_images = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation_images), validation_images


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 of ``model`` in float32 on pixels uint8 [N,3,32,32], all on one device."""
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


def train(
    images: np.ndarray, labels: np.ndarray, recipe: Recipe, checkpoint: Path, device: str
) -> tuple[Network, dict[str, float]]:
    """Train on uint8 NHWC ``images``; return the model that did better on the held-out part, and both accuracies."""
    torch.manual_seed(recipe.seed)
    model = NETWORKS[recipe.network]().to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay), use_buffers=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.peak_lr,
        momentum=recipe.momentum,
        nesterov=True,
    )
    rows, validation_images = split(labels, recipe.seed)
    validation = torch.from_numpy(images[validation_images]).permute(0, 3, 1, 2).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    validation_targets, train_targets = targets[validation_images], targets[rows]
    pad = recipe.crop_padding
    padded = torch.from_numpy(np.pad(images[rows], ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect")).to(device)
    crops = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # a view [N, 2*pad+1, 2*pad+1, 3, 32, 32]
    steps_per_epoch = len(rows) // recipe.batch
    steps = recipe.epochs * steps_per_epoch

    def score() -> dict[str, float]:
        each = {"last": model, "average": average.module}
        return {name: accuracy(one, validation, validation_targets) for name, one in each.items()}

    first_epoch = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["recipe"] != asdict(recipe):
            raise SystemExit(f"{checkpoint} is of another recipe: remove it or choose another --out")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
        log.info("resumed after epoch %d", first_epoch)

    for epoch in range(first_epoch, recipe.epochs):
        started, losses = time.perf_counter(), torch.zeros((), device=device)
        # Drawn on the CPU, whatever computes.
        rng = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(rows), generator=rng).to(device)
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, recipe)
            index = order[i * recipe.batch : (i + 1) * recipe.batch]
            dy, dx = torch.randint(0, 2 * pad + 1, (2, recipe.batch), generator=rng).to(device)
            x = crops[index, dy, dx]
            flip = (torch.rand(recipe.batch, generator=rng) < 0.5).to(device)
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
            x = (x.float() / PIXEL_SCALE).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(model(x), train_targets[index])
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            losses += loss.detach()
        seconds = time.perf_counter() - started
        log.info("epoch %3d: loss %.4f, %.1f s", epoch + 1, losses.item() / steps_per_epoch, seconds)
        if (epoch + 1) % 5 == 0 or epoch + 1 == recipe.epochs:
            scores = score()
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
    scores = score()
    return (average.module if scores["average"] >= scores["last"] else model), scores


class OnnxGraph:
    """Nodes and weights of a graph as it is written, BatchNorm folded in float64."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.sizes: dict[str, int] = {}  # {tensor: its height and width}

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.sizes[name] = self.sizes[inputs[0]]
        return name

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], name)

    def conv(self, x: str, name: str, layer: SameConv, bn: nn.BatchNorm2d | None = None, scale: float = 1.0) -> str:
        """A convolution of ``scale`` times ``x``."""
        weight = layer.weight.detach().double().cpu().numpy() * scale
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu().numpy()
        if bn is not None:
            gain = (bn.weight.detach().double() / torch.sqrt(bn.running_var.double() + bn.eps)).cpu().numpy()
            weight = weight * gain[:, None, None, None]
            bias = (bias - bn.running_mean.double().cpu().numpy()) * gain + bn.bias.detach().double().cpu().numpy()
        before, after = layer.pads(self.sizes[x])
        constants = [
            self.constant(f"{name}.weight", weight.astype(np.float32)),
            self.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        attributes = {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "pads": [before, before, after, after],
        }
        if layer.groups > 1:
            attributes["group"] = layer.groups  # type: ignore[assignment]
        y = self.node("Conv", [x, *constants], name, **attributes)
        self.sizes[y] = math.ceil(self.sizes[x] / layer.stride[0])
        return y


def to_onnx(model: Network, name: str) -> onnx.ModelProto:
    """ONNX graph of ``model``: input [N,32,32,3] raw pixels, BatchNorm and the pixel scale folded in float64."""
    graph = OnnxGraph()
    graph.sizes["image"] = 32
    x = graph.node("Transpose", ["image"], "nchw", perm=[0, 3, 1, 2])
    x = graph.relu(graph.conv(x, "conv", model.conv, model.bn, 1 / PIXEL_SCALE), "relu")
    kind = "stack" if isinstance(model.blocks[0], Residual) else "block"
    for i, block in enumerate(model.blocks, 1):
        assert isinstance(block, Residual | Separable)
        x = block.export(graph, x, f"{kind}{i}")
    size = graph.sizes[x]
    x = graph.node("AveragePool", [x], "pool", kernel_shape=[size, size])
    x = graph.node("Flatten", [x], "flatten")
    w = graph.constant("dense.weight", model.dense.weight.detach().float().cpu().numpy().T)
    b = graph.constant("dense.bias", model.dense.bias.detach().float().cpu().numpy())
    graph.node("Softmax", [graph.node("Gemm", [x, w, b], "dense")], "probabilities", axis=-1)
    proto = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        graph.weights,
    )
    exported = helper.make_model(
        proto, producer_name="resnet8-quant", opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(exported, full_check=True)
    return exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its record and the checkpoint")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the network's recipe")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    name = arguments.network
    recipe = replace(RECIPES[name], epochs=arguments.epochs or RECIPES[name].epochs, seed=arguments.seed)

    images, labels = training_set()
    started = time.perf_counter()
    model, scores = train(images, labels, recipe, arguments.out / f"{name}.checkpoint.pt", arguments.device)
    (arguments.out / f"{name}.onnx").write_bytes(to_onnx(model, name).SerializeToString())
    record = {
        "recipe": asdict(recipe),
        "held_out_images": 10 * HELD_OUT_PER_CLASS,
        "held_out_accuracy": scores,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_description(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    log.info("wrote %s: %s", arguments.out / f"{name}.onnx", scores)


def training_set() -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [50000,32,32,3] and labels."""
    train = load_dataset(DataConfig(), cache_folder()).train
    return np.asarray(train.images), train.labels


if __name__ == "__main__":
    main()
