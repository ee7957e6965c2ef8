"""Registration of `proa::checked_bmm` and `proa::dup_bmm` with torch."""

from __future__ import annotations

import math
from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.bmm.reference import checked_product
from proa_kernels.dup.reference import duplicated
from proa_kernels.errors import KernelError
from proa_kernels.rowcheck import Tamper

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name in ("checked_bmm", "dup_bmm"):
    _LIBRARY.define(
        f"{_name}(Tensor x, Tensor y, Tensor? addend, *, bool transposed, float alpha, float beta,"
        " bool correct) -> (Tensor, Tensor)",
        tags=torch.Tag.pt2_compliant_tag,
    )


@torch.no_grad()
def checked_bmm(
    x: torch.Tensor,
    y: torch.Tensor,
    addend: torch.Tensor | None = None,
    *,
    transposed: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`alpha x @ y + beta addend` and its verdict, in plain torch.

    `x` `[..., M, K]` and `y` `[..., K, N]` as in torch.matmul, vectors and broadcasting included;
    `transposed`: y is `[..., N, K]`. `addend` broadcasts to the result. Sums in fp32, checked
    before alpha, addend and the rounding to x's dtype. No gradient: for inference.
    """
    y = y.mT if transposed else y
    left, right = (x[None] if x.dim() == 1 else x), (y[:, None] if y.dim() == 1 else y)
    if math.prod(right.shape[:-2]) == 1:  # one matrix on the right: all rows are one sheet
        x_BMK = left.reshape(1, math.prod(left.shape[:-1]), left.shape[-1])
        y_BKN = right.reshape(1, *right.shape[-2:])
    else:
        batch = _shape(left, right)[:-2]
        x_BMK, y_BKN = (one.expand(*batch, *one.shape[-2:]).flatten(0, -3) for one in (left, right))
    acc, found = checked_product(x_BMK, y_BKN, correct=correct, tamper=tamper)
    out = acc.view(_shape(x, y))
    if alpha != 1.0:
        out = out.mul_(alpha)
    if addend is not None and beta != 0.0:
        out = out.add_(addend, alpha=beta)
    return out.to(x.dtype), found


@torch.no_grad()
def dup_bmm(
    x: torch.Tensor,
    y: torch.Tensor,
    addend: torch.Tensor | None = None,
    *,
    transposed: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's product, twice, compared bit for bit: scheme `dup`. Arguments as above; the addend is
    covered."""
    right = y.mT if transposed else y

    def compute(attempt: int) -> torch.Tensor:
        if addend is not None and x.dim() == 3:
            out = torch.baddbmm(addend, x, right, alpha=alpha, beta=beta)
        else:
            out = torch.matmul(x, right)
            out = out.mul_(alpha) if alpha != 1.0 else out
            out = out if addend is None or beta == 0.0 else out.add_(addend, alpha=beta)
        if tamper is not None:
            tamper(out, attempt)
        return out

    return duplicated(compute, _shape(x, right)[-1], -1, correct=correct)


def _shape(x: torch.Tensor, y: torch.Tensor) -> tuple[int, ...]:
    """Of `x @ y`."""
    batch: torch.Size = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])  # type: ignore[no-untyped-call]
    return (*batch, *x.shape[-2:-1], *(y.shape[-1:] if y.dim() > 1 else ()))


def _kernel(
    x: torch.Tensor, y: torch.Tensor, addend: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_bmm(x, y, addend, **options)


def _dup(
    x: torch.Tensor, y: torch.Tensor, addend: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return dup_bmm(x, y, addend, **options)


def _fake(
    x: torch.Tensor,
    y: torch.Tensor,
    addend: torch.Tensor | None,  # noqa: ARG001
    *,
    transposed: bool,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = y.mT if transposed else y
    inner = y.shape[-2] if y.dim() > 1 else y.shape[0]
    if x.shape[-1] != inner or x.dtype != y.dtype:
        raise KernelError(f"x has {x.shape[-1]} {x.dtype} inner, y {inner} {y.dtype}")
    return x.new_empty(_shape(x, y)), x.new_empty((verdict.WIDTH,), dtype=torch.float64)


_LIBRARY.impl("checked_bmm", _kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("dup_bmm", _dup, "CompositeExplicitAutograd")
torch.library.register_fake("proa::checked_bmm", _fake, lib=_LIBRARY)
torch.library.register_fake("proa::dup_bmm", _fake, lib=_LIBRARY)
