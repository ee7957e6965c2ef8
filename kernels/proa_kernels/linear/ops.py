"""Registration of `proa::checked_linear` and `proa::merge_verdicts` with torch.

The schemas have no way to inject a fault; `injection` replaces a kernel, and only where imported.
"""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.errors import KernelError
from proa_kernels.linear.reference import checked_product
from proa_kernels.rowcheck import Tamper

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEMES = ("row", "fused", "tile")  # how a GPU does it; on a CPU they are one and the same

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "checked_linear(Tensor x, Tensor weight, Tensor? addend, Tensor columns, Tensor scales, *,"
    " bool inner_first, float alpha, float beta, bool correct, str scheme='row')"
    " -> (Tensor, Tensor)",
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
    scheme: str = "row",
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`alpha x weight.T + beta addend` and its verdict, in plain torch: the same for each scheme.

    `x` `[..., K]`; `weight` `[N, K]`, or `[K, N]` with `inner_first`; `addend` broadcasts to
    `[..., N]`. Sums in fp32, checked before the rounding to x's dtype, and before alpha and addend
    unless that is a plain bias: the product adds it as torch's own does, for the same bits.
    No gradient: for inference. Raises KernelError for an unknown scheme.
    """
    _known(scheme)
    weight_NK = weight.T if inner_first else weight
    rows = x.numel() // max(1, x.shape[-1])
    plain = addend is not None and addend.shape == weight_NK.shape[:1] and alpha == beta == 1.0
    acc_MN, found = checked_product(
        x.reshape(rows, x.shape[-1]), weight_NK, columns, scales,
        correct=correct, bias_N=addend if plain else None, tamper=tamper,
    )  # fmt: skip
    out = acc_MN.view(*x.shape[:-1], weight_NK.shape[0])
    if alpha != 1.0:
        out = out.mul_(alpha)
    if addend is not None and beta != 0.0 and not plain:
        out = out.add_(addend, alpha=beta)
    return out.to(x.dtype), found


def _known(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise KernelError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")


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
    scheme: str = "row",
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_linear(
        x, weight, addend, columns, scales,
        inner_first=inner_first, alpha=alpha, beta=beta, correct=correct, scheme=scheme,
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
    scheme: str = "row",
) -> tuple[torch.Tensor, torch.Tensor]:
    _known(scheme)
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


def _cuda(x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The GPU's kernels; imported at the first call, so that no other machine needs Triton."""
    from proa_kernels.linear import gpu

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        found: tuple[torch.Tensor, torch.Tensor] = gpu.checked_linear(x, *args, **options)
    return found


_LIBRARY.impl("checked_linear", _kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("checked_linear", _cuda, "CUDA")
_LIBRARY.impl("merge_verdicts", verdict.merge, "CompositeExplicitAutograd")
torch.library.register_fake("proa::checked_linear", _fake, lib=_LIBRARY)
torch.library.register_fake("proa::merge_verdicts", _fake_merge, lib=_LIBRARY)
