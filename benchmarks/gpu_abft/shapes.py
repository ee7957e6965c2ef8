"""Layers of the networks of the paper's table (SC'21), and of language models, by their shapes.

CNNs are built from their definitions, so strides, borders and groups are the real ones; the
paper's own tables hold matrix sizes only. HD is 1080 x 1920.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

HD = (1080, 1920)


@dataclass(frozen=True)
class Shape:
    """A linear layer (`kernel` 0: rows x channels to outputs) or a convolution."""

    rows: int  # of a linear layer; else the batch
    channels: int
    outputs: int
    high: int = 1
    wide: int = 1
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        if not self.kernel:
            return 1, 1
        high, wide = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1
            for size in (self.high, self.wide)
        )
        return high, wide

    @property
    def product(self) -> tuple[int, int, int]:
        """M, N, K of one group's matrix product."""
        high, wide = self.out_size
        taps = max(1, self.kernel) ** 2
        groups = self.groups
        return (
            self.rows * high * wide, self.outputs // groups, self.channels // groups * taps,
        )  # fmt: skip

    @property
    def flops(self) -> int:
        return 2 * self.groups * math.prod(self.product)

    @property
    def intensity(self) -> float:
        """FLOPs per byte of half types; a convolution's input is read once, not per tap."""
        rows, outputs, inner = self.product
        read = self.rows * self.channels * self.high * self.wide
        moved = read + outputs * inner * self.groups + rows * outputs * self.groups
        return self.flops / (2 * moved)

    def __str__(self) -> str:
        rows, outputs, inner = self.product
        text = f"{rows}x{outputs}x{inner}"
        if self.kernel:
            text += f" conv{self.kernel}x{self.kernel}"
            text += f"/{self.stride}" if self.stride > 1 else ""
            text += f" groups={self.groups}" if self.groups > 1 else ""
        return text


@dataclass(frozen=True)
class Layer:
    """`count` times in `network`."""

    network: str
    name: str
    shape: Shape
    count: int = 1


class _Builder:
    """Follows channels and sizes through a network."""

    def __init__(self, network: str, size: tuple[int, int], batch: int = 1) -> None:
        self.network, self.batch, self.channels = network, batch, 3
        self.high, self.wide = size
        self.layers: list[Layer] = []

    def conv(
        self, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, aside: bool = False,
        pad: int | None = None,
    ) -> None:  # fmt: skip
        """A convolution; `aside`: beside the main path, whose sizes stay."""
        padding = kernel // 2 if pad is None else pad
        shape = Shape(
            self.batch, self.channels, outputs, self.high, self.wide, kernel, stride, padding,
            groups,
        )  # fmt: skip
        self._add("conv", shape)
        if not aside:
            self.high, self.wide = shape.out_size
            self.channels = outputs

    def linear(self, inputs: int, outputs: int) -> None:
        self._add("fc", Shape(self.batch, inputs, outputs))

    def pool(self, kernel: int, stride: int, padding: int = 0, *, up: bool = False) -> None:
        rounded = math.ceil if up else math.floor
        self.high, self.wide = (
            rounded((size + 2 * padding - kernel) / stride) + 1 for size in (self.high, self.wide)
        )

    def _add(self, kind: str, shape: Shape) -> None:
        self.layers.append(Layer(self.network, f"{kind}{len(self.layers) + 1}", shape))


def resnet50(name: str, width: int, size: tuple[int, int] = HD, batch: int = 1) -> list[Layer]:
    net = _Builder(name, size, batch)
    net.conv(64, 7, 2)
    net.pool(3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outer = 64 * width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if not block:
                net.conv(outer, 1, stride, aside=True)
            net.conv(inner, 1)
            net.conv(inner, 3, stride)
            net.conv(outer, 1)
    net.linear(2048, 1000)
    return net.layers


def vgg16(size: tuple[int, int] = HD) -> list[Layer]:
    net = _Builder("VGG-16", size)
    for outputs, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convs):
            net.conv(outputs, 3)
        net.pool(2, 2)
    for inputs, outputs in ((25088, 4096), (4096, 4096), (4096, 1000)):
        net.linear(inputs, outputs)
    return net.layers


def alexnet(size: tuple[int, int] = HD) -> list[Layer]:
    net = _Builder("AlexNet", size)
    net.conv(64, 11, 4, pad=2)
    net.pool(3, 2)
    net.conv(192, 5)
    net.pool(3, 2)
    for outputs in (384, 256, 256):
        net.conv(outputs, 3)
    for inputs, outputs in ((9216, 4096), (4096, 4096), (4096, 1000)):
        net.linear(inputs, outputs)
    return net.layers


def squeezenet(size: tuple[int, int] = HD) -> list[Layer]:
    net = _Builder("SqueezeNet", size)
    net.conv(96, 7, 2, pad=0)
    fires = (0, 16, 16, 32, 0, 32, 48, 48, 64, 0, 64)  # 0: pooling
    for squeeze in fires:
        if not squeeze:
            net.pool(3, 2, up=True)
            continue
        net.conv(squeeze, 1)
        net.conv(4 * squeeze, 1, aside=True)
        net.conv(4 * squeeze, 3, aside=True)
        net.channels = 8 * squeeze
    net.conv(1000, 1)
    return net.layers


def densenet161(size: tuple[int, int] = HD) -> list[Layer]:
    net = _Builder("DenseNet-161", size)
    net.conv(96, 7, 2)
    net.pool(3, 2, 1)
    for stage, blocks in enumerate((6, 12, 36, 24)):
        if stage:
            net.conv(net.channels // 2, 1)
            net.pool(2, 2)
        for _ in range(blocks):
            before = net.channels
            net.conv(192, 1)
            net.conv(48, 3)
            net.channels = before + 48
    net.linear(2208, 1000)
    return net.layers


def shufflenet(size: tuple[int, int] = HD) -> list[Layer]:
    """V2, twice as wide."""
    net = _Builder("ShuffleNet", size)
    net.conv(24, 3, 2)
    net.pool(3, 2, 1)
    for outputs, units in ((244, 4), (488, 8), (976, 4)):
        half = outputs // 2
        inputs = net.channels
        net.conv(inputs, 3, 2, groups=inputs, aside=True)
        high, wide = net.high, net.wide
        net.high, net.wide = net.layers[-1].shape.out_size
        net.conv(half, 1, aside=True)
        net.high, net.wide = high, wide
        net.conv(half, 1)
        net.conv(half, 3, 2, groups=half)
        net.conv(half, 1)
        for _ in range(units - 1):
            net.conv(half, 1)
            net.conv(half, 3, groups=half)
            net.conv(half, 1)
        net.channels = outputs
    net.conv(2048, 1)
    net.linear(2048, 1000)
    return net.layers


def noscope() -> list[Layer]:
    """Specialised CNNs on 50 x 50 pixels, batch 64: widths before and after a pooling, and the
    hidden width, which the networks' published FLOPs leave no choice of."""
    layers = []
    for name, first, second, hidden in (
        ("coral", (16, 16), (), 128),
        ("roundabout", (32, 32), (64, 64), 32),
        ("taipei", (64, 64), (), 32),
        ("amsterdam", (64, 64), (), 256),
    ):
        net = _Builder(f"NoScope {name}", (50, 50), 64)
        for widths in (first, second):
            for outputs in widths:
                net.conv(outputs, 3)
            if widths:
                net.pool(2, 2)
        net.linear(net.channels * net.high * net.wide, hidden)
        net.linear(hidden, 2)
        layers += net.layers
    return layers


def dlrm(batches: tuple[int, ...]) -> list[Layer]:
    layers = []
    for batch in batches:
        for part, sizes in (("bottom", (13, 512, 256, 64)), ("top", (512, 512, 256, 1))):
            net = _Builder(f"DLRM MLP-{part} b={batch}", (1, 1), batch)
            for inputs, outputs in pairwise(sizes):
                net.linear(inputs, outputs)
            layers += net.layers
    return layers


DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_TOKENS = (2048, 4096)
_LLMS = {
    "8B": (32, (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096),
                ("down", 4096, 14336))),
    "70B": (80, (("qkv", 10240, 8192), ("o", 8192, 8192), ("gate_up", 57344, 8192),
                 ("down", 8192, 28672))),
}  # fmt: skip


def llm(kind: str, tokens: tuple[int, ...]) -> list[Layer]:
    """The matrix products of all blocks, for `tokens` rows: `kind` is decode or prefill."""
    return [
        Layer(f"{model} {kind} {rows}", name, Shape(rows, inner, outputs), count)
        for rows in tokens
        for model, (count, sizes) in _LLMS.items()
        for name, outputs, inner in sizes
    ]


def toy() -> list[Layer]:
    """One of each kind, for the CPU interpreter."""
    return [
        Layer("toy", "fc1", Shape(4, 24, 20), 2),
        Layer("toy", "conv2", Shape(1, 4, 6, 5, 5, 3, 1, 1)),
        Layer("toy", "conv3", Shape(1, 4, 4, 5, 5, 3, 1, 1, groups=4)),
    ]


def networks(*, quick: bool = False) -> list[Layer]:
    """Every layer, in the order in which they are measured: what must be known first, and the
    largest extras last. DenseNet has more shapes than all other CNNs."""
    first = (1, 64) if quick else (1, 16, 64, 256)
    layers = llm("decode", first)
    layers += llm("prefill", () if quick else PREFILL_TOKENS)
    layers += dlrm((1,)) + noscope() + resnet50("ResNet-50", 1)
    if quick:
        return layers
    # The authors' file of ResNeXt's layers is that of Wide-ResNet's, ungrouped (facts: abft C).
    layers += resnet50("Wide-ResNet-50-2", 2) + resnet50("ResNeXt-50 2x4d", 2)
    layers += vgg16() + alexnet() + squeezenet() + shufflenet() + densenet161()
    layers += llm("decode", tuple(rows for rows in DECODE_BATCHES if rows not in first))
    layers += dlrm((256, 2048)) + resnet50("ResNet-50 224 b=32", 1, (224, 224), 32)
    return layers


# Overheads on a T4 in per cent, read from the bars of the authors' slides (SC'21): scheme "global",
# and their choice per layer. DLRM at batch 1, NoScope at 64, CNNs in HD at batch 1.
PAPER_T4 = {
    "DLRM MLP-bottom b=1": (23.5, 5.1),
    "DLRM MLP-top b=1": (18.1, 5.6),
    "NoScope coral": (17.0, 4.6),
    "NoScope roundabout": (9.6, 1.8),
    "NoScope taipei": (6.5, 3.3),
    "NoScope amsterdam": (7.5, 4.7),
    "SqueezeNet": (10.1, 4.3),
    "ShuffleNet": (11.3, 4.1),
    "DenseNet-161": (4.9, 3.4),
    "ResNet-50": (8.5, 4.2),
    "AlexNet": (4.1, 3.4),
    "VGG-16": (3.4, 3.1),
    "Wide-ResNet-50-2": (5.2, 3.5),
    "ResNeXt-50 2x4d": (5.4, 3.9),
}
