"""How a convolution walks over its input.

Letters: B images, C input channels, N output channels, G groups; H, W input and P, Q output
places; kernel R by S; K = C / G R S inner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from proa_kernels.errors import KernelError


@dataclass(frozen=True)
class Geometry:
    """`padding`: zeros before and after, of the rows and of the columns."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(
        cls, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Geometry:
        """Of an operator's arguments, for one dimension or two. Raises KernelError."""
        if len(stride) == 1:  # a row of an image
            stride, padding, dilation = (1, *stride), (0, 0, *padding), (1, *dilation)
        if (len(stride), len(padding), len(dilation)) != (2, 4, 2):
            raise KernelError("stride and dilation have one entry per dimension, padding two")
        (s0, s1), (p0, p1, p2, p3), (d0, d1) = stride, padding, dilation
        return cls((s0, s1), (p0, p1, p2, p3), (d0, d1), groups)

    def padded(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """The input with what padding has more on one side, and what is left on both: as torch
        itself does it, so that results have the same bits."""
        top, bottom, left, right = self.padding
        both = min(top, bottom), min(left, right)
        if both != (top, left) or both != (bottom, right):
            extra = (left - both[1], right - both[1], top - both[0], bottom - both[0])
            x = torch.nn.functional.pad(x, extra)
        return x, both


def may_crash(kernel: Sequence[int], padding: Sequence[int]) -> bool:
    """A kernel of one tap with padding: torch 2.13 was seen to crash on some of those whose input
    is channels_last, and the check values are such a convolution, too."""
    return max(kernel) == 1 and max(padding) > 0


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """torch's own convolution, of images or of rows."""
    if x.dim() == 3:
        return convolve(x.unsqueeze(2), weight.unsqueeze(2), bias, geometry).squeeze(2)
    x, padding = geometry.padded(x)
    return torch.conv2d(
        x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups
    )


def empty_result(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Of the shape and layout that `convolve` gives. Not by torch's own fake convolution: asked
    again it binds a dynamic batch to that of the export."""
    first = 4 - x.dim()  # a row has one side, the second
    sizes = zip(
        x.shape[2:], weight.shape[2:], geometry.stride[first:], geometry.dilation[first:],
        (geometry.padding[:2], geometry.padding[2:])[first:], strict=True,
    )  # fmt: skip
    places = [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in sizes]
    out = x.new_empty(x.shape[0], weight.shape[0], *places)
    last = x.dim() == 4 and any(
        one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous()
        for one in (x, weight)
    )
    return out.to(memory_format=torch.channels_last) if last else out


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What `padding="same"` means: the odd zero comes after."""
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return [part for total in totals for part in (total // 2, total - total // 2)]
