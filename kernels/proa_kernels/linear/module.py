"""`ABFTLinear`: the eager face of the checked linear operator."""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import checksum
from proa_kernels.errors import KernelError
from proa_kernels.linear.ops import DTYPES
from proa_kernels.verdict import Verdict


class ABFTLinear(torch.nn.Module):
    """`nn.Linear` with its results checked. For inference: it has no gradient.

    `state_dict` has the keys of nn.Linear; the checksum is taken anew when one is loaded. After
    any other change of the weight call `refresh()`: until then every call alarms, as it should.
    """

    columns: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: torch.nn.Linear, *, mode: str = "detect") -> None:
        """Shares weight and bias with `linear`. `mode`: detect or correct."""
        super().__init__()
        if mode not in ("detect", "correct"):
            raise KernelError(f"mode {mode!r} is not one of detect, correct")
        if linear.weight.dtype not in DTYPES:
            raise KernelError(f"no check for {linear.weight.dtype}")
        self.weight, self.bias = linear.weight, linear.bias
        self.correct = mode == "correct"
        self.key = ""
        self.verdict: torch.Tensor | None = None
        self.refresh()
        self.register_load_state_dict_post_hook(_reloaded)  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Take the checksum of the weight as it is now. Raises WeightsRefused."""
        taken = checksum.take(self.weight.detach())
        self.register_buffer("columns", taken.columns, persistent=False)
        self.register_buffer("scales", taken.scales, persistent=False)
        self.key = taken.key

    def checked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[..., N]` of `[..., K]`, and the verdict, float64 `[8]` (see `proa_kernels.verdict`)."""
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.proa.checked_linear(
            x, self.weight, self.bias, self.columns, self.scales,
            inner_first=False, alpha=1.0, beta=1.0, correct=self.correct,
        )  # fmt: skip
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear. The verdict stays in `self.verdict`, except in an exported program."""
        out, found = self.checked(x)
        if not torch.compiler.is_compiling():
            self.verdict = found
        return out

    def last(self) -> Verdict:
        """The verdict of the last call."""
        if self.verdict is None:
            raise KernelError("nothing was computed yet")
        return Verdict.read(self.verdict)


def _reloaded(module: torch.nn.Module, _keys: Any) -> None:
    assert isinstance(module, ABFTLinear)
    module.refresh()
