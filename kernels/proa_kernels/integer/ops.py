"""Registration of `proa::checked_int_mm` with torch. The schema has no way to inject a fault."""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.checksum import TILE
from proa_kernels.errors import KernelError
from proa_kernels.integer.reference import DIGITS, checked_product
from proa_kernels.rowcheck import Tamper

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "checked_int_mm(Tensor x, Tensor weight, Tensor? columns, *, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.no_grad()
def checked_int_mm(
    x: torch.Tensor,
    weight: torch.Tensor,
    columns: torch.Tensor | None,
    *,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 `x @ weight` of int8 `[M, K]` and `[K, N]`, as `torch._int_mm`, and its verdict.

    `columns`: `integer.take(weight)`, or None: then the checksum is of the weight as it is now.
    """
    return checked_product(x, weight, columns, correct=correct, tamper=tamper)


def _kernel(
    x: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor | None, *, correct: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_int_mm(x, weight, columns, correct=correct)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    columns: torch.Tensor | None,
    *,
    correct: bool,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise KernelError(f"int8 alone, not {x.dtype} and {weight.dtype}")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        raise KernelError(f"no product of {tuple(x.shape)} and {tuple(weight.shape)}")
    width = -(-weight.shape[1] // TILE) * sum(DIGITS)
    if columns is not None and columns.shape != (weight.shape[0], width):
        raise KernelError("the checksum is of another weight")
    out = x.new_empty((x.shape[0], weight.shape[1]), dtype=torch.int32)
    return out, x.new_empty((verdict.WIDTH,), dtype=torch.float64)


_LIBRARY.impl("checked_int_mm", _kernel, "CompositeExplicitAutograd")
torch.library.register_fake("proa::checked_int_mm", _fake, lib=_LIBRARY)
