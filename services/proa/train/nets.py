"""Small nets. All have a linear path beside the deep one.

The sum of the linear parts of k predictions is the linear part of the parity query, exactly: a
parity model with a linear path has only the rest left to learn.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from proa.errors import NotSupported

ARCHES = ("mlp", "cnn")
LINEAR_WEIGHTS_MAX = 1 << 22

Shape = tuple[int, ...]


class CodedNet(nn.Module):
    """fp32 inputs [b, *shape] in order -> output(s) [b, *shape], one tensor or a tuple.

    `body` maps the flattened, standardised inputs [b, n] to the flattened outputs [b, m].
    """

    def __init__(self, inputs: Sequence[Shape], outputs: Sequence[Shape], body: nn.Module) -> None:
        super().__init__()
        self.outputs = [tuple(shape) for shape in outputs]
        n, self.sizes = _elements(inputs), [math.prod(shape) for shape in outputs]
        m = sum(self.sizes)
        self.body = body
        self.linear = nn.Linear(n, m) if n * m <= LINEAR_WEIGHTS_MAX else None
        for name, size in (("input", 1), ("output", m)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def standardise(
        self,
        inputs: NDArray[np.float32],
        outputs: NDArray[np.float32],
        *,
        output_std: float | None = None,
    ) -> None:
        """Fit means and deviations to samples [s, n] and [s, m]: sums of raw pixels are large."""
        self.input_mean = torch.full((1,), float(inputs.mean()))
        self.input_std = torch.full((1,), max(float(inputs.std()), 1e-6))
        self.output_mean = torch.from_numpy(outputs.mean(0))
        std = max(float(outputs.std()), 1e-6) if output_std is None else output_std
        self.output_std = torch.full_like(self.output_mean, std)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        flat = torch.cat([x.flatten(1) for x in inputs], 1)
        flat = (flat - self.input_mean) / self.input_std
        found = self.body(flat)
        if self.linear is not None:
            found = found + self.linear(flat)
        found = found * self.output_std + self.output_mean
        parts = torch.split(found, self.sizes, 1)
        shaped = [p.reshape(p.shape[0], *s) for p, s in zip(parts, self.outputs, strict=True)]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)


class WarmStart(nn.Module):
    """A parity model that starts as the deployed net: scale * F(x / scale), plus a correction.

    With `scale` = sum of |coefficients| its input has the range that F knows. Takes the deployed
    net's weights as its start, and trains them. One input, one output.
    """

    def __init__(self, deployed: nn.Module, scale: float, correction: nn.Module) -> None:
        super().__init__()
        self.deployed = copy.deepcopy(deployed)
        self.scale = scale
        self.correction = correction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.scale * self.deployed(x / self.scale) + self.correction(x)
        return found


def build(
    arch: str, inputs: Sequence[Shape], outputs: Sequence[Shape], *, width: int | None = None
) -> CodedNet:
    """A net for these shapes (without the batch axis). arch: `mlp`, or `cnn` for one [c, h, w].

    Errors: NotSupported.
    """
    m = sum(math.prod(shape) for shape in outputs)
    if arch == "mlp":
        return CodedNet(inputs, outputs, mlp(_elements(inputs), m, width or 512))
    if arch != "cnn":
        raise NotSupported(f"arch {arch!r} is not one of {', '.join(ARCHES)}")
    if len(inputs) != 1 or len(inputs[0]) != 3 or min(inputs[0][1:]) < 2:
        raise NotSupported(f"arch cnn takes one input [c, h, w] of 2x2 or more, not {list(inputs)}")
    return CodedNet(inputs, outputs, cnn(inputs[0], m, width or 32))


def mlp(n: int, m: int, width: int) -> nn.Module:
    """Two hidden layers. The last starts at zero: the linear path leads."""
    layers = [nn.Linear(n, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, _zero(nn.Linear(width, m)))


def cnn(shape: Shape, m: int, width: int) -> nn.Module:
    """Pairs of 3x3 convolutions, halving until the image is at most 7 pixels wide."""
    channels, height, wide = shape
    layers: list[nn.Module] = [nn.Unflatten(1, shape)]
    while True:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        if max(height, wide) <= 7 or min(height, wide) < 2:
            break
        layers.append(nn.MaxPool2d(2))
        channels, width, height, wide = width, min(2 * width, 256), height // 2, wide // 2
    layers += [nn.Flatten(), nn.Linear(width * height * wide, 256), nn.ReLU()]
    return nn.Sequential(*layers, _zero(nn.Linear(256, m)))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _elements(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)
