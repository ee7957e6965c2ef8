"""`ABFTLinear`: the eager face of the checked linear operator."""

from __future__ import annotations

import torch

from proa_kernels import checksum
from proa_kernels.checksum import Checksum
from proa_kernels.module import CheckedModule


class ABFTLinear(CheckedModule):
    """`nn.Linear` with its results checked."""

    def __init__(self, linear: torch.nn.Linear, *, mode: str = "detect") -> None:
        super().__init__(linear, mode=mode)
        self.refresh()

    def take(self) -> Checksum:
        return checksum.take(self.weight.detach())

    def checked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[..., N]` of `[..., K]`, and the verdict."""
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.proa.checked_linear(
            x, self.weight, self.bias, self.columns, self.scales,
            inner_first=False, alpha=1.0, beta=1.0, correct=self.correct,
        )  # fmt: skip
        return found
