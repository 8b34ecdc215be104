"""im2col patches of a layer's input, and their first and second moments.

A convolution is a matrix product of its weight with the patches of its input that the kernel covers. All that the
choice of a layer's codes needs to know of its input are the moments of these patches: their mean, their covariance
(the Hessian H of the layer's squared output error, up to a factor 2), and their cross-covariance with the patches of
the float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from resnet8_quant.graphs.graph import attributes

CHUNK = 32  # images
MOST_PATCHES = 1 << 18  # of a layer; more of them no longer move the moments, but cost time


@dataclass(frozen=True)
class Geometry:
    """How a layer's weight is applied; a Gemm or MatMul is a convolution of one pixel.

    Attributes:
        kernel, strides, dilations: (height, width).
        pads: top, left, bottom, right.
        group: of the channels.
        spatial: whether the last two axes of four are height and width; not so for a MatMul.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    spatial: bool = True

    @classmethod
    def of(cls, node: onnx.NodeProto, weight: np.ndarray, input_shape: tuple[int, ...]) -> Geometry:
        """The geometry of a 2-D Conv node; of any other node that of a single pixel.

        Args:
            input_shape: of its input, for auto_pad.
        """
        if node.op_type != "Conv":
            return cls(spatial=False)
        values, kernel = attributes(node), weight.shape[2:]
        strides = tuple(values.get("strides", (1, 1)))
        dilations = tuple(values.get("dilations", (1, 1)))
        pads = explicit_pads(values, kernel, strides, dilations, input_shape)
        return cls(kernel, strides, dilations, pads, int(values.get("group", 1)))


def explicit_pads(
    values: Mapping[str, Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    input_shape: Sequence[int],
) -> tuple[int, int, int, int]:
    """Pads (top, left, bottom, right) of a 2-D convolution or pool, its auto_pad worked out.

    Args:
        values: the node's attributes.
        input_shape: [N, C, H, W] of its input.
    """
    top, left, bottom, right = values.get("pads", (0, 0, 0, 0))
    auto = values.get("auto_pad", b"NOTSET").decode()
    if not auto.startswith("SAME"):
        return top, left, bottom, right
    # ceil(size / stride) outputs; an odd number of padded lines puts the extra one at the end or the start.
    totals = [
        max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        for size, s, k, d in zip(input_shape[2:], strides, kernel, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    first, last = (small, large) if auto == "SAME_UPPER" else (large, small)
    return first[0], first[1], last[0], last[1]


def im2col(x: np.ndarray, geometry: Geometry, step: int = 1, offset: int = 0) -> np.ndarray:
    """The patches of ``x`` that the kernel covers.

    Args:
        x: float32 [N, C, H, W], or [..., K] for one pixel.
        geometry: of the layer.
        step, offset: take each ``step``-th line of the output, from ``offset`` on.

    Returns:
        float32 [patches, group, K], K = channels of a group * kernel height * kernel width, in the order of the
        weight's axes.
    """
    if x.ndim != 4 or not geometry.spatial:
        return x.reshape(-1, 1, x.shape[-1])
    top, left, bottom, right = geometry.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))

    # A view of all windows of the dilated kernel's size, [N, C, H', W', window height, window width]: strides pick
    # windows, dilations pick pixels within them. Nothing is copied until the reshape.
    (kh, kw), (dh, dw), (sh, sw) = geometry.kernel, geometry.dilations, geometry.strides
    windows = np.lib.stride_tricks.sliding_window_view(padded, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw][:, :, offset::step]

    # Output positions first, then channel, row and column of the kernel: the channels of a group lie side by side.
    channels = x.shape[1] // geometry.group
    patches = windows.transpose(0, 2, 3, 1, 4, 5)
    return patches.reshape(-1, geometry.group, channels * kh * kw)


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's patches, for each group of channels.

    Attributes:
        mean: float64 [group, K], of the quantized model's input.
        float_mean: the same of the float model's input.
        covariance: float64 [group, K, K], of the quantized model's input.
        cross: float64 [group, K, K], of the float model's input (first axis) with the quantized model's (second).
    """

    mean: np.ndarray
    float_mean: np.ndarray
    covariance: np.ndarray
    cross: np.ndarray

    def about_zero(self) -> Moments:
        """The second moments about zero in place of those about the means."""
        across = self.float_mean[:, :, None] * self.mean[:, None, :]
        within = self.mean[:, :, None] * self.mean[:, None, :]
        return Moments(self.mean, self.float_mean, self.covariance + within, self.cross + across)


def moments(quantized: np.ndarray, floating: np.ndarray, geometry: Geometry) -> Moments:
    """Moments of a layer's input in the quantized and in the float model.

    Args:
        quantized, floating: float32 [N, ...], the same images in the same order.
        geometry: of the layer.
    """
    patches = im2col(quantized[:1], geometry)
    step = max(1, len(patches) * len(quantized) // MOST_PATCHES) if geometry.spatial and quantized.ndim == 4 else 1
    group, size = patches.shape[1:]

    # E[(x - m)(x - m)^T] in one pass, with m the mean of the first image's patches. Without the shift, float32
    # products of values far from zero would drown a small covariance.
    shift = patches.mean(axis=0)
    second, cross = np.zeros((group, size, size)), np.zeros((group, size, size))
    first, float_first, count = np.zeros((group, size)), np.zeros((group, size)), 0
    for chunk, start in enumerate(range(0, len(quantized), CHUNK)):
        part = slice(start, start + CHUNK)
        a, b = (im2col(x[part], geometry, step, chunk % step) - shift for x in (quantized, floating))
        for g in range(group):
            second[g] += a[:, g].T @ a[:, g]
            cross[g] += b[:, g].T @ a[:, g]
        first += a.sum(axis=0, dtype=np.float64)
        float_first += b.sum(axis=0, dtype=np.float64)
        count += len(a)

    # cov(x, y) = E[x y^T] - E[x] E[y]^T; the shift does not change it, and is added back to the means.
    mean, float_mean = first / count, float_first / count
    return Moments(
        mean + shift,
        float_mean + shift,
        second / count - mean[:, :, None] * mean[:, None, :],
        cross / count - float_mean[:, :, None] * mean[:, None, :],
    )
