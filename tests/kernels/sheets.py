"""Operands of batched products: sheets of the distributions in `matrices`, and counted runs."""

from __future__ import annotations

import torch

from kernels.matrices import Sizes, operands
from proa_kernels import Verdict
from proa_kernels.bmm import checked_product


def sheets(
    kind: str,
    count: int,
    sizes: Sizes,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    rows_first: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x [B, M, K]` and `y [B, K, N]`; `rows_first`: y lies as `[B, N, K]`, as keys do."""
    pairs = [operands(kind, sizes, dtype, seed=count * seed + at) for at in range(count)]
    x, y = torch.stack([x for x, _ in pairs]), torch.stack([w for _, w in pairs]).mT
    return x, y if rows_first else y.contiguous()


def product(
    x: torch.Tensor, y: torch.Tensor, *, correct: bool = False, tamper: object = None
) -> tuple[torch.Tensor, Verdict]:
    acc, found = checked_product(x, y, correct=correct, tamper=tamper)  # type: ignore[arg-type]
    return acc, Verdict.read(found)
