"""docs/networks.md: what works on networks that nobody here wrote, judged on a small random one of each class.

In: nothing. Out: the page, on stdout: ``python tools/networks.py > docs/networks.md``. tests/test_networks.py keeps it
true. Only what runs is judged, not accuracy: the weights are random.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import resnet8_quant as rq
from resnet8_quant.config import Config, ModelConfig, ModelKind, Rounding, Runtime
from resnet8_quant.deploy.deploy import deploy
from resnet8_quant.deploy.tflite.target import flash_bytes
from resnet8_quant.errors import ExperimentError
from resnet8_quant.evaluator.kernels import kernel_report
from resnet8_quant.inputs.model import FloatModel, load_model
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.quantize import quantize

SIZE, CLASSES, IMAGES, LOW = 16, 4, 16, 4
# Column -> the settings of its run; weights of 7 bits are exact on every x86 CPU.
RUNS = {
    "8 bit": ["quant=u8s7"],
    "4 bit, refine=gptq": ["quant=w4a8", "refine=gptq"],
    "deploy=x86": ["quant=u8s7", "deploy=x86"],
    "deploy=tflite": ["quant=tflite_int8", "deploy=tflite"],
}

PAGE = """# Networks

What works on networks of other kinds than ResNet8: one small network of each, with random weights, 16x16 images and
four classes. Made by `python tools/networks.py > docs/networks.md`; tests/test_networks.py makes every row again. The
weights are random, so the table says what runs and in which kernels, nothing about accuracy.

{table}

- "8 bit" is `quant=u8s7`, also with `deploy=x86`: `kernels` of the row, then `quantized_ops` + `float_ops`, read from
  the graph that ONNX Runtime runs ([`outputs.md`](outputs.md)). "mixed": operators in float between integer ones.
- "4 bit" is `quant=w4a8`: how many layers have 4-bit weights; the first and the last keep 8.
- `deploy=tflite` is with `quant=tflite_int8`: the bytes of model.tflite, or what has no counterpart there. A network
  that is refused there runs with the others.
- BatchNorm behind a Conv, or beside a Gemm, is folded into it; one of images elsewhere, as in DenseNet, becomes a
  depthwise 1x1 Conv.
- A binary classifier with one output, a logit z or its Sigmoid, gets the logits 0 and z, or their Softmax, when it is
  loaded: class 1 is where z is above 0, or the Sigmoid above 0.5, as before. Its last layer must be a Gemm, MatMul or
  Conv with constant weights, with at most a mean, a Sigmoid and changes of shape behind it. The quantized and the
  deployed model have two outputs, of which the second is the model's own. Outputs [N,C,1,1] get a Flatten.
- Wherever a row says "mixed", `python -m resnet8_quant.profile model.onnx` shows what runs in float, and
  `non_integer_time_share` of a run says what it costs.
"""


class Net:
    """Appends operators to an ONNX graph; every method takes and returns the name of a tensor, NCHW."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.rng = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """One operator of one output."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def constant(self, values: object) -> str:
        """An initializer: float32, or int64 where ``values`` are whole numbers."""
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        self.tensors.append(numpy_helper.from_array(array, f"constant{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def random(self, *shape: int) -> str:
        """Weights that keep the size of activations."""
        return self.constant(self.rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        """A convolution with a bias, padded so that a stride of 1 keeps the size."""
        weights = self.random(outputs, inputs // group, kernel, kernel), self.random(outputs)
        return self.op("Conv", x, *weights, pads=[kernel // 2] * 4, strides=[stride] * 2, group=group)

    def norm(self, x: str, channels: int) -> str:
        """BatchNormalization."""
        low_high = ((0.5, 2.0), (-1.0, 1.0), (-1.0, 1.0), (0.5, 2.0))
        return self.op(
            "BatchNormalization", x, *(self.constant(self.rng.uniform(*ends, channels)) for ends in low_high)
        )

    def relu6(self, x: str) -> str:
        """A Clip from 0 to 6."""
        return self.op("Clip", x, self.constant(0.0), self.constant(6.0))

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """A Gemm with a bias."""
        return self.op("Gemm", x, self.random(inputs, outputs), self.random(outputs))

    def head(self, x: str, channels: int) -> str:
        """The mean of each channel, and a Gemm."""
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, CLASSES)


def mobilenet_v2(n: Net) -> str:
    """An inverted residual block: 1x1, depthwise, 1x1, ReLU6, BatchNorm behind every Conv."""
    x = n.relu6(n.norm(n.conv("image", 3, 8, stride=2), 8))
    y = n.relu6(n.norm(n.conv(x, 8, 16, 1), 16))
    y = n.relu6(n.norm(n.conv(y, 16, 16, group=16), 16))
    return n.head(n.op("Add", n.norm(n.conv(y, 16, 8, 1), 8), x), 8)


def densenet(n: Net) -> str:
    """Concatenations, and BatchNorm in front of the Convs."""
    x = n.op("MaxPool", n.conv("image", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    for channels in (8, 12):
        y = n.conv(n.op("Relu", n.norm(x, channels)), channels, 4)
        x = n.op("Concat", x, y, axis=1)
    return n.head(n.op("Relu", n.norm(x, 16)), 16)


def _squeeze_excite(n: Net, x: str, channels: int, gate: Callable[[str], str]) -> str:
    y = n.op("Relu", n.conv(n.op("GlobalAveragePool", x), channels, 4, 1))
    return n.op("Mul", x, gate(n.conv(y, 4, channels, 1)))


def silu(n: Net) -> str:
    """SiLU and squeeze-excite with Sigmoid, as in EfficientNet."""
    x = n.conv("image", 3, 8, stride=2)
    x = n.op("Mul", x, n.op("Sigmoid", x))
    return n.head(n.conv(_squeeze_excite(n, x, 8, lambda y: n.op("Sigmoid", y)), 8, 8, 1), 8)


def hard_swish(n: Net) -> str:
    """HardSwish and squeeze-excite with HardSigmoid, as in MobileNetV3."""
    x = n.op("HardSwish", n.conv("image", 3, 8, stride=2))
    return n.head(n.conv(_squeeze_excite(n, x, 8, lambda y: n.op("HardSigmoid", y, alpha=1 / 6)), 8, 8, 1), 8)


def shufflenet(n: Net) -> str:
    """Group convolutions, and the channel shuffle as Reshape, Transpose, Reshape."""
    x = n.op("Relu", n.conv("image", 3, 8, stride=2))
    y = n.op("Relu", n.conv(x, 8, 8, 1, group=2))
    y = n.op("Reshape", y, n.constant([-1, 2, 4, SIZE // 2, SIZE // 2]))
    y = n.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = n.op("Reshape", y, n.constant([-1, 8, SIZE // 2, SIZE // 2]))
    y = n.conv(n.conv(y, 8, 8, group=8), 8, 8, 1, group=2)
    return n.head(n.op("Relu", n.op("Add", x, y)), 8)


def vgg(n: Net) -> str:
    """Convs, MaxPool, Flatten, two Gemms, softmax."""
    x = "image"
    for inputs, outputs in ((3, 8), (8, 8)):
        x = n.op("MaxPool", n.op("Relu", n.conv(x, inputs, outputs)), kernel_shape=[2, 2], strides=[2, 2])
    x = n.op("Relu", n.dense(n.op("Flatten", x), 8 * (SIZE // 4) ** 2, 16))
    return n.op("Softmax", n.dense(x, 16, CLASSES), axis=1)


def linear_norm(n: Net) -> str:
    """BatchNorm of features between two Gemms."""
    x = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", n.conv("image", 3, 8, stride=2))))
    return n.dense(n.op("Relu", n.norm(n.dense(x, 8, 16), 16)), 16, CLASSES)


def upsampling(n: Net) -> str:
    """ConvTranspose and Resize, as in the second half of an autoencoder."""
    x = n.op("Relu", n.conv("image", 3, 8, stride=2))
    x = n.op("Relu", n.op("ConvTranspose", x, n.random(8, 8, 2, 2), n.random(8), strides=[2, 2]))
    x = n.op("Resize", x, "", n.constant([1.0, 1.0, 0.5, 0.5]), mode="nearest")
    return n.head(n.op("Relu", n.conv(x, 8, 8)), 8)


def mlp(n: Net) -> str:
    """Gemms alone."""
    x = n.op("Relu", n.dense(n.op("Flatten", "image"), 3 * SIZE**2, 16))
    return n.dense(x, 16, CLASSES)


def vit(n: Net) -> str:
    """One transformer block: patches, LayerNorm, attention, GELU."""
    width, patches = 16, (SIZE // 8) ** 2
    x = n.op("Conv", "image", n.random(width, 3, 8, 8), strides=[8, 8])
    x = n.op("Transpose", n.op("Reshape", x, n.constant([-1, width, patches])), perm=[0, 2, 1])

    def layer_norm(x: str) -> str:
        return n.op("LayerNormalization", x, n.constant(np.ones(width)), n.constant(np.zeros(width)))

    y = layer_norm(x)
    query, key, value = (n.op("MatMul", y, n.random(width, width)) for _ in range(3))
    scores = n.op("MatMul", query, n.op("Transpose", key, perm=[0, 2, 1]))
    x = n.op("Add", x, n.op("MatMul", n.op("Softmax", scores, axis=-1), value))
    y = n.op("Gelu", n.op("MatMul", layer_norm(x), n.random(width, 2 * width)))
    x = n.op("Add", x, n.op("MatMul", y, n.random(2 * width, width)))
    return n.dense(n.op("ReduceMean", x, n.constant([1]), keepdims=0), width, CLASSES)


def one_logit(n: Net) -> str:
    """A binary classifier with one output, the sigmoid of a logit."""
    x = n.op("Relu", n.conv("image", 3, 8, stride=2))
    x = n.dense(n.op("Flatten", n.op("GlobalAveragePool", x)), 8, 1)
    return n.op("Sigmoid", x)


def conv_head(n: Net) -> str:
    """A 1x1 Conv in place of a Gemm, and no Flatten: the output has four axes."""
    x = n.op("Relu", n.conv("image", 3, 8, stride=2))
    return n.conv(n.op("GlobalAveragePool", x), 8, CLASSES, 1)


NETWORKS: dict[str, Callable[[Net], str]] = {
    "MobileNetV2, ReLU6": mobilenet_v2,
    "DenseNet": densenet,
    "SiLU, squeeze-excite": silu,
    "HardSwish, squeeze-excite": hard_swish,
    "ShuffleNet": shufflenet,
    "VGG": vgg,
    "Linear, BatchNorm": linear_norm,
    "ConvTranspose, Resize": upsampling,
    "MLP": mlp,
    "ViT": vit,
    "One logit, Sigmoid": one_logit,
    "Conv at the end, [N,C,1,1]": conv_head,
}
# Shapes of outputs without the batch, of all others [CLASSES].
OUTPUTS = {"One logit, Sigmoid": [1], "Conv at the end, [N,C,1,1]": [CLASSES, 1, 1]}


def build(name: str) -> onnx.ModelProto:
    """The network of that name, with weights from a fixed seed: [batch, 3, 16, 16] to OUTPUTS."""
    net = Net()
    last = NETWORKS[name](net)
    net.nodes[-1].output[0] = "scores"
    assert last == net.nodes[-1].name
    ends = {"image": ["batch", 3, SIZE, SIZE], "scores": ["batch", *OUTPUTS.get(name, [CLASSES])]}
    values = [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape) for end, shape in ends.items()]
    graph = helper.make_graph(net.nodes, "net", values[:1], values[1:], net.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@lru_cache
def _config(*overrides: str) -> Config:
    return rq.compose(*overrides, "evaluation.threads=1", f"calibration.samples_per_class={IMAGES // CLASSES}")


def row(name: str) -> list[str]:
    """The cells of a network's row: its name, whether it loads, and what each of RUNS says of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(build(name), path)
        source = ModelConfig(kind=ModelKind.onnx, path=str(path), std=[64.0] * 3)
        try:
            classes = max(2, OUTPUTS.get(name, [CLASSES])[0])
            model = load_model(source, (SIZE, SIZE, 3), classes, Path(folder))
        except ExperimentError as error:
            return [name, f"no: {error.problem}", *("" for _ in RUNS)]
    return [name, "yes", *(_cell(model, _config(*overrides)) for overrides in RUNS.values())]


def _cell(model: FloatModel, config: Config) -> str:
    """What one run comes to: its kernels, or why not."""
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    try:
        quantized = quantize(model, CalibrationImages.of(pixels, np.arange(IMAGES), "random"), config)
        if config.deploy.runtime is Runtime.tflite:
            return f"yes, {flash_bytes(quantized.named, config.deploy):,} bytes"
        if config.refine.rounding is Rounding.gptq:
            layers = quantized.summary.layers
            return f"yes, {sum(layer.weight_bits == LOW for layer in layers)} of {len(layers)} layers"
        serialized = quantized.serialized
        if config.deploy.activation_type is not None:
            serialized, _ = deploy(quantized.named, config.deploy, model.input_spec)
        report = kernel_report(serialized, 1)
    except ExperimentError as error:
        return f"no: {error.problem}"
    return f"{report.kernels}, {report.quantized_ops} + {report.float_ops}"


def main() -> int:
    """Print the page."""
    logging.disable(logging.WARNING)
    columns = ["Network", "Loads", *RUNS]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *map(row, NETWORKS))]
    print(PAGE.format(table="\n".join(lines)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
