"""Registration of `proa::checked_linear` and `proa::merge_verdicts` with torch.

The schemas have no way to inject a fault; `injection` replaces a kernel, and only where imported.
"""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.errors import KernelError
from proa_kernels.linear.reference import Tamper, checked_product

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "checked_linear(Tensor x, Tensor weight, Tensor? addend, Tensor columns, Tensor scales, *,"
    " bool inner_first, float alpha, float beta, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_LIBRARY.define("merge_verdicts(Tensor[] verdicts) -> Tensor", tags=torch.Tag.pt2_compliant_tag)


@torch.no_grad()
def checked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    inner_first: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`alpha x weight.T + beta addend` and its verdict, in plain torch.

    `x` `[..., K]`; `weight` `[N, K]`, or `[K, N]` with `inner_first`; `addend` broadcasts to
    `[..., N]`. Sums in fp32, checked before alpha, addend and the rounding to x's dtype.
    No gradient: for inference.
    """
    weight_NK = weight.T if inner_first else weight
    rows = x.numel() // max(1, x.shape[-1])
    acc_MN, found = checked_product(
        x.reshape(rows, x.shape[-1]), weight_NK, columns, scales, correct=correct, tamper=tamper
    )
    out = acc_MN.view(*x.shape[:-1], weight_NK.shape[0])
    if alpha != 1.0:
        out = out.mul_(alpha)
    if addend is not None and beta != 0.0:
        out = out.add_(addend, alpha=beta)
    return out.to(x.dtype), found


def _kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    inner_first: bool,
    alpha: float,
    beta: float,
    correct: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_linear(
        x, weight, addend, columns, scales,
        inner_first=inner_first, alpha=alpha, beta=beta, correct=correct,
    )  # fmt: skip


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,  # noqa: ARG001
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    inner_first: bool,
    alpha: float,  # noqa: ARG001
    beta: float,  # noqa: ARG001
    correct: bool,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    inner, outputs = weight.shape if inner_first else weight.shape[::-1]
    if x.shape[-1] != inner or x.dtype != weight.dtype:
        raise KernelError(f"x has {x.shape[-1]} {x.dtype} inner, weight {inner} {weight.dtype}")
    if columns.shape[1] != inner or columns.shape[2] != 2 * scales.shape[1]:
        raise KernelError("the checksum is of another weight")
    out = x.new_empty((*x.shape[:-1], outputs))
    return out, x.new_empty((verdict.WIDTH,), dtype=torch.float64)


def _fake_merge(verdicts: list[torch.Tensor]) -> torch.Tensor:
    shape = (1 + len(verdicts), verdict.WIDTH)
    if not verdicts:
        return torch.empty(shape, dtype=torch.float64)
    return verdicts[0].new_empty(shape)


_LIBRARY.impl("checked_linear", _kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("merge_verdicts", verdict.merge, "CompositeExplicitAutograd")
torch.library.register_fake("proa::checked_linear", _fake, lib=_LIBRARY)
torch.library.register_fake("proa::merge_verdicts", _fake_merge, lib=_LIBRARY)
