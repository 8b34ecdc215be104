"""What one integer convolution of ResNet8 costs in ONNX Runtime, as it is and with blocked pixels.

Builds graphs of one and of nine equal QLinearConv nodes (NHWC, uint8 x int8, random weights), blocks their pixels as
deploy/pixel_blocking.py does, and measures both side by side, batch 1, one thread; the cost of a convolution is an
eighth of the difference. Out: a Markdown table. Its last layer makes the products of stack1.conv1 with a kernel of one
pixel on 144 channels, for which no pointers to columns are written: the difference is what the pointers cost.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resnet8_quant.deploy.pixel_blocking import block_pixels, convolutions, window_of  # noqa: E402
from resnet8_quant.evaluator.latency import measure_calls  # noqa: E402
from resnet8_quant.graphs.graph import MICROSOFT, Graph  # noqa: E402
from resnet8_quant.graphs.session import open_session  # noqa: E402
from resnet8_quant.machine import cpu_description  # noqa: E402
from resnet8_quant.terminal import markdown  # noqa: E402

COPIES = 9
PIXELS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Layer:
    """A convolution: input [1, size, size, channels], square kernel; pads top left bottom right."""

    name: str
    size: int
    channels: int
    outputs: int
    kernel: int
    stride: int
    pads: tuple[int, int, int, int]


LAYERS = (
    Layer("conv", 32, 3, 16, 3, 1, (1, 1, 1, 1)),
    Layer("conv, padded to 4", 32, 4, 16, 3, 1, (1, 1, 1, 1)),  # without what the padding itself takes
    Layer("stack1.conv1, .conv2", 32, 16, 16, 3, 1, (1, 1, 1, 1)),
    Layer("stack2.conv1", 32, 16, 32, 3, 2, (0, 0, 1, 1)),
    Layer("stack2.conv2", 16, 32, 32, 3, 1, (1, 1, 1, 1)),
    Layer("stack2.skip", 32, 16, 32, 1, 2, (0, 0, 0, 0)),
    Layer("stack3.conv1", 16, 32, 64, 3, 2, (0, 0, 1, 1)),
    Layer("stack3.conv2", 8, 64, 64, 3, 1, (1, 1, 1, 1)),
    Layer("stack3.skip", 16, 32, 64, 1, 2, (0, 0, 0, 0)),
    Layer("1x1 on 144 channels", 32, 144, 16, 1, 1, (0, 0, 0, 0)),
)


def model(layer: Layer, copies: int, pixels: int, zero_point: int) -> bytes:
    """``copies`` convolutions of one input, each blocked to ``pixels`` columns."""
    rng = np.random.default_rng(0)
    constants = {"x_s": np.float32(0.02), "x_z": np.uint8(0), "y_s": np.float32(0.5), "y_z": np.uint8(3)}
    nodes, outputs = [], []
    for index in range(copies):
        shape = (layer.outputs, layer.channels, layer.kernel, layer.kernel)
        constants[f"w{index}"] = rng.integers(-127, 128, shape, dtype=np.int8)
        constants[f"s{index}"] = np.full(layer.outputs, 0.01, np.float32)
        constants[f"z{index}"] = np.zeros(layer.outputs, np.int8)
        constants[f"b{index}"] = rng.integers(-1000, 1000, layer.outputs).astype(np.int32)
        inputs = ["x", "x_s", "x_z", f"w{index}", f"s{index}", f"z{index}", "y_s", "y_z", f"b{index}"]
        nodes.append(
            helper.make_node(
                "QLinearConv",
                inputs,
                [f"y{index}"],
                name=f"c{index}",
                domain=MICROSOFT,
                channels_last=1,
                kernel_shape=shape[2:],
                strides=[layer.stride] * 2,
                pads=layer.pads,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.UINT8, None))
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, layer.size, layer.size, layer.channels])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    graph = Graph(
        helper.make_model(helper.make_graph(nodes, "g", [image], outputs, tensors), opset_imports=opsets, ir_version=10)
    )
    if pixels > 1 or zero_point:
        for node in convolutions(graph):
            window = window_of(graph, node, layer.size)
            group = layer.channels if layer.channels % 4 == 0 else layer.stride * pixels * layer.channels
            block_pixels(graph, node, layer.size, window, pixels, group, zero_point=zero_point)
    return bytes(graph.finish().SerializeToString())


def call(serialized: bytes, layer: Layer) -> Callable[[], object]:
    """Run it, one thread; only one output is fetched, so that the copies cost no more than themselves."""
    session = open_session(serialized, 1)
    shape = (1, layer.size, layer.size, layer.channels)
    image = {"x": np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)}
    return lambda: session.run(["y0"], image)


def products(layer: Layer) -> int:
    """Multiplications of the convolution as it is."""
    side = (layer.size + layer.pads[0] + layer.pads[2] - layer.kernel) // layer.stride + 1
    return side * side * layer.kernel**2 * layer.channels * layer.outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, metavar="N", help="timed calls of each graph (default 500)")
    options = parser.parse_args()
    rows = []
    for layer in LAYERS:
        variants = [(pixels, zero_point) for zero_point in (0, -1) for pixels in PIXELS]
        if layer.channels % 4:
            variants = [(pixels, zero_point) for pixels, zero_point in variants if pixels in (1, 4, 8)]
        calls = {
            (*variant, copies): call(model(layer, copies, *variant), layer)
            for variant in variants
            for copies in (1, COPIES)
        }
        measured = measure_calls(calls, runs=options.runs, warmup=20, batch=1)
        us = {
            variant: (measured[*variant, COPIES].median_us - measured[*variant, 1].median_us) / (COPIES - 1)
            for variant in variants
        }
        for zero_point, how in ((0, "direct"), (-1, "product")):
            cells = [f"{us[pixels, zero_point]:.1f}" if (pixels, zero_point) in us else "" for pixels in PIXELS]
            rows.append((layer.name, f"{products(layer) / 1e6:.2f}", how, *cells))
    print(f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"Machine: {cpu_description()}")
    print(f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}")
    print(f"Command: {shlex.join(['python', 'benchmarks/convolution.py', *sys.argv[1:]])}\n")
    print(markdown(("Layer", "M products", "How", *(f"{count} px, us" for count in PIXELS)), rows))


if __name__ == "__main__":
    main()
