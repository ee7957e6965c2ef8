"""Operands of convolutions: the distributions of `matrices`, along the channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d, pad

from kernels.matrices import operands
from proa_kernels import Verdict
from proa_kernels.checksum import Checksum
from proa_kernels.conv import checked_conv2d
from proa_kernels.conv.checksum import take


@dataclass(frozen=True)
class Shape:
    """One convolution of `batch` square-ish images."""

    batch: int = 2
    channels: int = 16
    outputs: int = 32
    size: tuple[int, int] = (9, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def options(self) -> dict[str, object]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def fits(self) -> bool:
        """Whether there is an output place, and none of padding alone: torch 2.13's own convolution
        crashes on some of those (channels_last, a 1 by 1 kernel)."""
        sides = zip(
            self.size, self.kernel, self.dilation, (self.padding[:2], self.padding[2:]), strict=True
        )
        return all(n + sum(p) > d * (k - 1) >= max(p) for n, k, d, p in sides)


def images(
    kind: str, shape: Shape, dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x [B, C, H, W]` and `weight [N, C / G, R, S]` of a distribution, from a seed."""
    (height, width), (rows, columns) = shape.size, shape.kernel
    inner = shape.channels // shape.groups
    x, _ = operands(kind, (shape.batch * height * width, 1, shape.channels), dtype, seed=seed)
    _, weight = operands(kind, (1, shape.outputs * rows * columns, inner), dtype, seed=seed + 1)
    x = x.view(shape.batch, height, width, shape.channels).permute(0, 3, 1, 2).contiguous()
    weight = weight.view(shape.outputs, rows, columns, inner).permute(0, 3, 1, 2).contiguous()
    return x, weight


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    shape: Shape,
    check: Checksum | None = None,
    **options: object,
) -> tuple[torch.Tensor, Verdict]:
    """The checked convolution, with a checksum of the kernel as it is, or as it was."""
    check = check or take(weight, shape.groups)
    options = {"bias": None, **shape.options, **options}
    bias = options.pop("bias")
    out, found = checked_conv2d(x, weight, bias, check.columns, check.scales, **options)  # type: ignore[arg-type]
    return out, Verdict.read(found)


def plain(
    x: torch.Tensor, weight: torch.Tensor, shape: Shape, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """torch's own, padded by itself where both sides are alike."""
    top, bottom, left, right = shape.padding
    if (top, left) == (bottom, right):
        return conv2d(x, weight, bias, shape.stride, (top, left), shape.dilation, shape.groups)
    x = pad(x, (left, right, top, bottom))
    return conv2d(x, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
