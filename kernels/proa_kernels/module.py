"""What the eager faces of checked operators share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from proa_kernels.checksum import Checksum
from proa_kernels.errors import KernelError
from proa_kernels.verdict import Verdict

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CheckedModule(torch.nn.Module):
    """A layer with its results checked. For inference: it has no gradient.

    `state_dict` has the keys of the plain layer; the checksum is taken anew when one is loaded.
    After any other change of the weight call `refresh()`: until then every call alarms, as it
    should.
    """

    columns: torch.Tensor
    scales: torch.Tensor
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

    def __init__(self, layer: torch.nn.Module, *, mode: str = "detect") -> None:
        """Shares weight and bias with `layer`. `mode`: detect or correct."""
        super().__init__()
        if mode not in ("detect", "correct"):
            raise KernelError(f"mode {mode!r} is not one of detect, correct")
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, torch.nn.Parameter)
        assert bias is None or isinstance(bias, torch.nn.Parameter)
        if weight.dtype not in DTYPES:
            raise KernelError(f"no check for {weight.dtype}")
        self.weight, self.bias = weight, bias
        self.correct = mode == "correct"
        self.key = ""
        self.verdict: torch.Tensor | None = None
        self.register_load_state_dict_post_hook(_reloaded)  # type: ignore[no-untyped-call]

    @abstractmethod
    def take(self) -> Checksum:
        """The checksum of the weight as it is. Raises WeightsRefused."""

    @abstractmethod
    def checked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output and the verdict, float64 `[8]` (see `proa_kernels.verdict`)."""

    def refresh(self) -> None:
        """Take the checksum of the weight as it is now. Raises WeightsRefused."""
        taken = self.take()
        self.register_buffer("columns", taken.columns, persistent=False)
        self.register_buffer("scales", taken.scales, persistent=False)
        self.key = taken.key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the plain layer; `self.verdict` has the verdict, except in an exported program."""
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
    assert isinstance(module, CheckedModule)
    module.refresh()
