"""`ABFTConv2d`: the eager face of the checked convolution."""

from __future__ import annotations

import torch

from proa_kernels.checksum import Checksum
from proa_kernels.conv import checksum
from proa_kernels.conv.geometry import may_crash, same_padding
from proa_kernels.errors import KernelError
from proa_kernels.module import CheckedModule


class ABFTConv2d(CheckedModule):
    """`nn.Conv2d` with its results checked; padded with zeros, the one mode there is."""

    def __init__(self, conv: torch.nn.Conv2d, *, mode: str = "detect") -> None:
        super().__init__(conv, mode=mode)
        if conv.padding_mode != "zeros":
            raise KernelError(f"padding mode {conv.padding_mode!r}: pad before the layer")
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        if conv.padding == "same":
            self.padding = same_padding(conv.kernel_size, conv.dilation)
        else:
            sides = (0, 0) if isinstance(conv.padding, str) else conv.padding
            self.padding = [side for side in sides for _ in range(2)]
        if may_crash(conv.kernel_size, self.padding):
            raise KernelError("a kernel of one tap with padding: pad before the layer")
        self.refresh()

    def take(self) -> Checksum:
        return checksum.take(self.weight.detach(), self.groups)

    def checked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, N, P, Q]` of `[B, C, H, W]`, and the verdict."""
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.proa.checked_conv2d(
            x, self.weight, self.bias, self.columns, self.scales,
            stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups, correct=self.correct,
        )  # fmt: skip
        return found
