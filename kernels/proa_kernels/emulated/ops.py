"""Registration of `proa::emulated_mm` and its checked form: torch on a CPU, Triton on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.emulated import check, reference
from proa_kernels.errors import KernelError

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "emulated_mm(Tensor a, Tensor b, int products) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_LIBRARY.define(
    "checked_emulated_mm(Tensor a, Tensor b, Tensor columns, Tensor scales, int products)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def _product(a: torch.Tensor, b: torch.Tensor, products: int) -> Pair:
    """fp32 `a @ b` `[M, N]`, and how many of its tiles fell back, int32 `[1]`."""
    if a.is_cuda:
        from proa_kernels.emulated import gpu  # needs Triton, which only GPUs do

        reference.accept(a, b, products)
        with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
            found: Pair = gpu.emulated_product(a, b, products)
        return found
    return reference.emulated_product(a, b, products)


@torch.no_grad()
def _checked(
    a: torch.Tensor, b: torch.Tensor, columns: torch.Tensor, scales: torch.Tensor, products: int
) -> Triple:
    """The same, checked against the checksum of `b.T`: product, verdict, fall-backs."""
    _accept_checksum(b, columns, scales)
    wide_MN, fallbacks = _product(a, check.widened(b, columns), products)
    out_MN, found = check.judged(a, wide_MN, scales, products)
    return out_MN.contiguous(), found, fallbacks


def _accept_checksum(b: torch.Tensor, columns: torch.Tensor, scales: torch.Tensor) -> None:
    if columns.shape[1] != b.shape[0] or columns.shape[2] != 2 * scales.shape[1]:
        raise KernelError("the checksum is of another weight")


def _fake(a: torch.Tensor, b: torch.Tensor, products: int) -> Pair:
    reference.accept(a, b, products)
    return a.new_empty(a.shape[0], b.shape[1]), a.new_empty(1, dtype=torch.int32)


def _fake_checked(
    a: torch.Tensor, b: torch.Tensor, columns: torch.Tensor, scales: torch.Tensor, products: int
) -> Triple:
    _accept_checksum(b, columns, scales)
    out, fallbacks = _fake(a, b, products)
    return out, a.new_empty((verdict.WIDTH,), dtype=torch.float64), fallbacks


_LIBRARY.impl("emulated_mm", _product, "CompositeExplicitAutograd")
_LIBRARY.impl("checked_emulated_mm", _checked, "CompositeExplicitAutograd")
torch.library.register_fake("proa::emulated_mm", _fake, lib=_LIBRARY)
torch.library.register_fake("proa::checked_emulated_mm", _fake_checked, lib=_LIBRARY)
